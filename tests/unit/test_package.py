"""A model package loads only as it was packed, and runs nothing of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from inference import package
from inference.package import PackageError


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


def replace_tensors(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite a tensor file, its checksum made right again: what is wrong then is only what it holds."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit(folder, lambda document: document["sha256"].update({name: digest}))


def test_a_package_comes_back_as_it_was_written(tiny_package: Path) -> None:
    loaded = package.load(tiny_package)
    assert loaded.identity.id == "tiny"
    assert loaded.identity.digest == hashlib.sha256((tiny_package / "model.yaml").read_bytes()).hexdigest()
    golden = load_file(tiny_package / "golden.safetensors")
    with torch.inference_mode():
        assert torch.allclose(loaded.classifier(golden["classifier.input"]), golden["classifier.output"], atol=1e-5)


def test_another_package_is_another_device(tiny_package: Path) -> None:
    before = package.load(tiny_package).identity
    edit(tiny_package, lambda document: document["classifier"].update(threshold=0.4))
    after = package.load(tiny_package).identity
    assert before.device_uid != after.device_uid
    assert before.digest != after.digest


def test_amending_the_metrics_keeps_the_weights(tiny_package: Path) -> None:
    package.amend(tiny_package, {"auc": 0.5})
    assert package.load(tiny_package).manifest.metrics == {"auc": 0.5}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d.update(unknown=1), "unknown"),
        (lambda d: d["classifier"].update(architecture="os.system"), "allowed"),
        (lambda d: d["classifier"].update(arguments={"nonsense": 1}), "arguments"),
        (lambda d: d["classifier"].update(threshold=1.5), "threshold"),
        (lambda d: d["classifier"].update(side=64 * 1024), "side"),
        (lambda d: d.update(task="anything"), "task"),
        (lambda d: d["sha256"].pop("golden.safetensors"), "not listed"),
        (lambda d: d["sha256"].update({"../evil": "0" * 64}), "plain file name"),
        (lambda d: d["sha256"].update({"weights.safetensors": "0" * 64}), "sha256"),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_reason(
    tiny_package: Path, change: Callable[[dict[str, Any]], None], word: str
) -> None:
    edit(tiny_package, change)
    with pytest.raises(PackageError, match=word):
        package.load(tiny_package)


def test_a_changed_or_missing_file_is_refused(tiny_package: Path) -> None:
    weights = tiny_package / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(PackageError, match="sha256"):
        package.load(tiny_package)
    weights.unlink()
    with pytest.raises(PackageError, match="cannot be read"):
        package.load(tiny_package)


def test_weights_that_are_not_numbers_are_refused(tiny_package: Path) -> None:
    replace_tensors(tiny_package, "weights.safetensors", lambda t: t["classifier.head.weight"].fill_(float("nan")))
    with pytest.raises(PackageError, match="finite"):
        package.load(tiny_package)


def test_weights_of_another_network_are_refused(tiny_package: Path) -> None:
    replace_tensors(tiny_package, "weights.safetensors", lambda t: t.__delitem__("classifier.head.weight"))
    with pytest.raises(PackageError, match="does not fit"):
        package.load(tiny_package)


def test_a_replay_that_differs_is_refused(tiny_package: Path) -> None:
    replace_tensors(tiny_package, "golden.safetensors", lambda t: t["segmenter.output"].add_(0.01))
    with pytest.raises(PackageError, match="golden replay of the segmenter"):
        package.load(tiny_package)


def test_a_pickle_is_no_package(tiny_package: Path) -> None:
    torch.save({"classifier.head.weight": torch.zeros(1)}, tiny_package / "weights.safetensors")
    digest = hashlib.sha256((tiny_package / "weights.safetensors").read_bytes()).hexdigest()
    edit(tiny_package, lambda document: document["sha256"].update({"weights.safetensors": digest}))
    with pytest.raises(PackageError, match="safetensors"):
        package.load(tiny_package)


def test_yaml_that_wants_to_run_code_does_not(tiny_package: Path) -> None:
    path = tiny_package / "model.yaml"
    path.write_text(path.read_text() + "\nextra: !!python/object/apply:os.system ['touch evil']\n")
    with pytest.raises(PackageError, match="YAML"):
        package.load(tiny_package)
