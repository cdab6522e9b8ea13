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
from inference.networks import build
from inference.package import PackageError

TINY: dict[str, Any] = {"widths": [8, 8, 8, 8, 8], "blocks": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    unet = TINY | {"up_widths": [8, 8, 8, 8]}
    manifest = {
        "id": "tiny", "version": "1.0.0", "task": "pneumothorax",
        "classifier": {"architecture": "residual-classifier", "arguments": TINY, "side": 32,
                       "normalisation": "image-standard", "threshold": 0.5, "operating_point": "none"},
        "segmenter": {"architecture": "residual-unet", "arguments": unet, "side": 32,
                      "normalisation": "image-standard", "bottom": 0.5, "top": 0.5, "min_area_at_1024_px": 10},
        "label": {"value": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"},
        "training": {"recipe": "none", "data": [], "date": "2026-01-01", "command": "none"},
        "metrics": {}, "licence": "none", "intended_use": "tests",
    }  # fmt: skip
    networks = {"classifier": build("residual-classifier", **TINY), "segmenter": build("residual-unet", **unet)}
    package.write(tmp_path / "tiny", manifest, networks, dict.fromkeys(networks, torch.rand(2, 1, 32, 32)))
    return tmp_path / "tiny"


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


def test_a_package_comes_back_as_it_was_written(folder: Path) -> None:
    loaded = package.load(folder)
    assert loaded.identity.id == "tiny"
    assert loaded.identity.digest == hashlib.sha256((folder / "model.yaml").read_bytes()).hexdigest()
    golden = load_file(folder / "golden.safetensors")
    with torch.inference_mode():
        assert torch.allclose(loaded.classifier(golden["classifier.input"]), golden["classifier.output"], atol=1e-5)


def test_another_package_is_another_device(folder: Path) -> None:
    before = package.load(folder).identity
    edit(folder, lambda document: document["classifier"].update(threshold=0.4))
    after = package.load(folder).identity
    assert before.device_uid != after.device_uid
    assert before.digest != after.digest


def test_amending_the_metrics_keeps_the_weights(folder: Path) -> None:
    package.amend(folder, {"auc": 0.5})
    assert package.load(folder).manifest.metrics == {"auc": 0.5}


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
    folder: Path, change: Callable[[dict[str, Any]], None], word: str
) -> None:
    edit(folder, change)
    with pytest.raises(PackageError, match=word):
        package.load(folder)


def test_a_changed_or_missing_file_is_refused(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(PackageError, match="sha256"):
        package.load(folder)
    weights.unlink()
    with pytest.raises(PackageError, match="cannot be read"):
        package.load(folder)


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    replace_tensors(folder, "weights.safetensors", lambda t: t["classifier.head.weight"].fill_(float("nan")))
    with pytest.raises(PackageError, match="finite"):
        package.load(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    replace_tensors(folder, "weights.safetensors", lambda t: t.__delitem__("classifier.head.weight"))
    with pytest.raises(PackageError, match="does not fit"):
        package.load(folder)


def test_a_replay_that_differs_is_refused(folder: Path) -> None:
    replace_tensors(folder, "golden.safetensors", lambda t: t["segmenter.output"].add_(0.01))
    with pytest.raises(PackageError, match="golden replay of the segmenter"):
        package.load(folder)


def test_a_pickle_is_no_package(folder: Path) -> None:
    torch.save({"classifier.head.weight": torch.zeros(1)}, folder / "weights.safetensors")
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    edit(folder, lambda document: document["sha256"].update({"weights.safetensors": digest}))
    with pytest.raises(PackageError, match="safetensors"):
        package.load(folder)


def test_yaml_that_wants_to_run_code_does_not(folder: Path) -> None:
    path = folder / "model.yaml"
    path.write_text(path.read_text() + "\nextra: !!python/object/apply:os.system ['touch evil']\n")
    with pytest.raises(PackageError, match="YAML"):
        package.load(folder)
