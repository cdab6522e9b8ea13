"""A model package loads only if it is as it was packed, and runs no code of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from inference import package
from inference.networks import build
from inference.package import PackageError
from tests.models import TINY


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


def replace_tensors(
    folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    """Rewrite a tensor file and correct its checksum, so that only its contents are wrong."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit(folder, lambda document: document["sha256"].update({name: digest}))


def test_a_written_package_loads_unchanged(tiny_package: Path) -> None:
    loaded = package.load(tiny_package)
    assert loaded.identity.id == "tiny"
    assert (
        loaded.identity.digest
        == hashlib.sha256((tiny_package / "model.yaml").read_bytes()).hexdigest()
    )
    golden = load_file(tiny_package / "golden.safetensors")
    with torch.inference_mode():
        assert torch.allclose(
            loaded.classifier(golden["classifier.input"]), golden["classifier.output"], atol=1e-5
        )


def test_no_random_weights_are_made_before_those_of_a_package(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.device] = []
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda weight, **_: made.append(weight.device))
    package.load(tiny_package)
    assert {device.type for device in made} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_each_tensor_of_a_loaded_network_has_values_of_its_own(
    tiny_package: Path, dtype: torch.dtype
) -> None:
    """None lies in the file's bytes or on the meta device."""
    replace_tensors(
        tiny_package,
        "weights.safetensors",
        lambda weights: weights.update(
            {name: one.to(dtype) for name, one in weights.items() if one.is_floating_point()}
        ),
    )
    stored = load_file(tiny_package / "weights.safetensors")

    for role, network in package.load(tiny_package).networks.items():
        for name, value in network.state_dict().items():
            assert torch.equal(value, stored[f"{role}.{name}"].to(value.dtype))
            assert not value.is_floating_point() or value.dtype == torch.float32
        assert all(not one.is_meta for one in (*network.parameters(), *network.buffers()))


def test_another_package_has_another_device_uid(tiny_package: Path) -> None:
    before = package.load(tiny_package).identity
    edit(tiny_package, lambda document: document["classifier"].update(threshold=0.4))
    after = package.load(tiny_package).identity
    assert before.device_uid != after.device_uid
    assert before.digest != after.digest


def test_amending_the_metrics_keeps_the_weights(tiny_package: Path) -> None:
    package.amend(tiny_package, {"metrics": {"auc": 0.5}})
    assert package.load(tiny_package).manifest.metrics == {"auc": 0.5}


def with_a_gate(folder: Path, gate: dict[str, Any] | None = None) -> Path:
    """Rewrite the package with a plausibility network."""
    loaded = package.load(folder)
    manifest = loaded.manifest.model_dump(mode="json", exclude={"sha256"})
    manifest["plausibility"] = {
        "architecture": "residual-classifier", "arguments": TINY, "side": 64, "normalisation": "image-standard",
        "threshold": 0.4, "operating_point": "none",
    } | (gate or {})  # fmt: skip
    networks = {**loaded.networks, "plausibility": build("residual-classifier", **TINY)}
    golden = {role: loaded.golden[f"{role}.input"] for role in loaded.networks}
    package.write(folder, manifest, networks, golden | {"plausibility": torch.rand(1, 1, 64, 64)})
    return folder


def test_the_shipped_model_has_its_networks_and_the_digest_of_its_manifest() -> None:
    loaded = package.load(package.default_folder())
    assert (
        loaded.identity.digest
        == hashlib.sha256((package.default_folder() / "model.yaml").read_bytes()).hexdigest()
    )
    assert list(loaded.networks)[:2] == ["classifier", "segmenter"]
    assert (loaded.plausibility is None) == (loaded.manifest.plausibility is None)


def test_a_package_may_have_a_third_network(tiny_package: Path) -> None:
    assert package.load(tiny_package).plausibility is None
    before = yaml.safe_load((tiny_package / "model.yaml").read_text())
    assert not {"plausibility", "precision"} & set(before)

    loaded = package.load(with_a_gate(tiny_package))
    assert loaded.manifest.plausibility is not None
    assert loaded.manifest.plausibility.threshold == 0.4
    assert list(loaded.networks) == ["classifier", "segmenter", "plausibility"]
    assert loaded.plausibility is not None

    with torch.inference_mode():
        found = loaded.plausibility(loaded.golden["plausibility.input"])
    assert torch.allclose(found, loaded.golden["plausibility.output"], atol=1e-5)

    # The other two networks keep exactly the same weights.
    after = yaml.safe_load((tiny_package / "model.yaml").read_text())
    assert {key: after[key] for key in ("classifier", "segmenter")} == {
        key: before[key] for key in ("classifier", "segmenter")
    }


def test_a_third_network_is_checked_and_replayed_like_the_others(tiny_package: Path) -> None:
    with_a_gate(tiny_package)
    replace_tensors(
        tiny_package, "golden.safetensors", lambda t: t["plausibility.output"].add_(0.01)
    )
    with pytest.raises(PackageError, match="golden replay of the plausibility"):
        package.load(tiny_package)


def test_weights_of_an_undeclared_network_are_refused(tiny_package: Path) -> None:
    with_a_gate(tiny_package)
    edit(tiny_package, lambda document: document.pop("plausibility"))
    with pytest.raises(PackageError, match=r"plausibility.*belongs to no network"):
        package.load(tiny_package)


def test_bf16_needs_a_validation_for_each_network(tiny_package: Path) -> None:
    assert not package.load(tiny_package).manifest.allows_bf16("classifier")
    figure = {"metric": "AUC, made up", "fp32": 0.91, "bf16": 0.905, "images": 10}
    edit(tiny_package, lambda document: document.update(precision={"bf16": {"classifier": figure}}))
    manifest = package.load(tiny_package).manifest
    assert manifest.allows_bf16("classifier")
    assert not manifest.allows_bf16("segmenter")
    edit(
        tiny_package, lambda document: document["precision"]["bf16"]["classifier"].update(bf16=0.89)
    )
    with pytest.raises(PackageError, match=r"precision\.bf16\.classifier: .*worse"):
        package.load(tiny_package)


def test_every_wrong_key_is_reported_at_once_with_its_value(tiny_package: Path) -> None:
    def spoil(document: dict[str, Any]) -> None:
        document["classifier"].update(threshold="high", normalisation="imagenet")
        document.pop("licence")
        document["$import"] = ["os"]

    edit(tiny_package, spoil)
    with pytest.raises(PackageError) as caught:
        package.load(tiny_package)
    for part in (
        "model.yaml", "classifier.threshold: 'high' found", "classifier.normalisation: 'imagenet' found; allowed: ",
        "licence: absent", "$import: unknown key",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_a_package_that_would_not_load_is_not_written(tiny_package: Path, tmp_path: Path) -> None:
    loaded = package.load(tiny_package)
    manifest = loaded.manifest.model_dump(mode="json", exclude={"sha256"})
    networks = {str(role): network for role, network in loaded.networks.items()}
    golden = {role: loaded.golden[f"{role}.input"] for role in networks}

    with pytest.raises(PackageError, match="plausibility"):
        package.write(
            tmp_path / "a", manifest, networks | {"plausibility": networks["classifier"]}, golden
        )

    with pytest.raises(PackageError, match=r"classifier\.threshold"):
        package.write(tmp_path / "b", manifest | {"classifier": {"threshold": 2}}, networks, golden)

    with torch.no_grad():
        # 7e4 is more than float16 can hold.
        networks["classifier"].get_parameter("head.weight").zero_()[:, :1] = 7e4
    with pytest.raises(PackageError, match=r"head\.weight holds NaN or infinity"):
        package.write(tmp_path / "c", manifest, networks, golden)

    package.write(tmp_path / "d", manifest, networks, golden, exact=True)
    assert package.load(tmp_path / "d").classifier.state_dict()[
        "head.weight"
    ].unique().tolist() == [0, 7e4]


def test_a_package_describes_itself(tiny_package: Path) -> None:
    described = package.load(tiny_package).describe()
    for part in (
        "tiny 1.0.0",
        "residual-classifier, 32 px",
        "bf16 never",
        "plausibility none",
        "licence",
    ):
        assert part in described


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d.update(unknown=1), "unknown"),
        (lambda d: d["classifier"].update({"$import": "os"}), r"classifier\.\$import: unknown key"),
        (lambda d: d["classifier"].update(arguments={"$import": "os"}), r"\$import"),
        (lambda d: d["classifier"].update(arguments={"widths": [10**9] * 5}), "widths"),
        (lambda d: d["classifier"].update(arguments={"widths": {"a": 1}}), "widths"),
        (
            lambda d: d["classifier"].update(architecture="residual-unet"),
            "does not fit residual-unet",
        ),
        (lambda d: d["segmenter"].update(side=33), "segmenter.input"),
        (lambda d: d["segmenter"].update(bottom=0.9), "bottom <= top"),
        (lambda d: d["segmenter"].update(min_area_at_1024_px=float("inf")), "min_area_at_1024_px"),
        (lambda d: d["label"].update(value="1\\2"), r"label\.value"),
        (lambda d: d.update(id="../evil"), "id"),
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


def test_weights_with_nan_or_infinity_are_refused(tiny_package: Path) -> None:
    replace_tensors(
        tiny_package,
        "weights.safetensors",
        lambda t: t["classifier.head.weight"].fill_(float("nan")),
    )
    with pytest.raises(PackageError, match="finite"):
        package.load(tiny_package)


def test_weights_of_another_network_are_refused(tiny_package: Path) -> None:
    replace_tensors(
        tiny_package, "weights.safetensors", lambda t: t.__delitem__("classifier.head.weight")
    )
    with pytest.raises(PackageError, match="does not fit"):
        package.load(tiny_package)


def test_a_replay_that_differs_is_refused(tiny_package: Path) -> None:
    replace_tensors(tiny_package, "golden.safetensors", lambda t: t["segmenter.output"].add_(0.01))
    with pytest.raises(PackageError, match="golden replay of the segmenter"):
        package.load(tiny_package)
