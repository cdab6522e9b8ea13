"""Encoders from timm, an optional extra: our side against a simulated library, and the real library
if it is installed.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from inference import package
from inference.container import PackageError
from inference.networks import build, shapes
from inference.networks.encoders import from_timm
from tests import models
from training.fitting.weights import WeightsError, load_start
from training.recipe import Stage
from training.timm_checkpoint import Head, classifier

pytestmark = pytest.mark.xdist_group("timm")


class MadeNetwork(nn.Module):
    """The parts of timm's networks that we use: maps, their description, and a head."""

    def __init__(self, channels: int, first: int = 2, claimed: int = 8, size: int = 0) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        self.stages = nn.ModuleList(
            nn.Conv2d(8 if place else channels, 8, 3, 2 if place else first, 1)
            for place in range(6 - first // 2)
        )
        self.feature_info = [
            {"reduction": first << place, "num_chs": claimed} for place in range(len(self.stages))
        ]
        self.head = nn.Linear(8, 1000)
        self.size = size

    def forward_intermediates(
        self, x: Tensor, indices: list[int], intermediates_only: bool
    ) -> list[Tensor]:
        assert intermediates_only
        assert self.size in (0, x.shape[-1]), (
            f"Input height ({x.shape[-1]}) doesn't match model ({self.size})"
        )
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[place] for place in indices]


class NoMaps(nn.Module):
    pass


class SixteenthsOnly(MadeNetwork):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.feature_info = [{"reduction": 16, "num_chs": 8}] * 12


class PartlyIdle(MadeNetwork):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.stages.append(nn.Conv2d(1, 1, 1))
        self.feature_info = self.feature_info[:5]

    def forward_intermediates(
        self, x: Tensor, indices: list[int], intermediates_only: bool
    ) -> list[Tensor]:
        maps = []
        for stage in self.stages[:5]:
            x = stage(x)
            maps.append(x)
        return maps


class WithHead(MadeNetwork):
    """A whole network like timm's classifiers, with an answer after the mean of the last map."""

    def forward(self, x: Tensor) -> Tensor:
        (last,) = self.forward_intermediates(x, [len(self.stages) - 1], intermediates_only=True)
        return torch.as_tensor(self.head(self.between(last.mean((2, 3)))))

    def between(self, features: Tensor) -> Tensor:
        return features


class WithNorm(WithHead):
    def between(self, features: Tensor) -> Tensor:
        return nn.functional.layer_norm(features, features.shape[1:])


MADE = {
    "halves": MadeNetwork,
    "tf_halves": MadeNetwork,
    "whole": WithHead,
    "normed": WithNorm,
    "quarters": lambda channels: MadeNetwork(channels, first=4),
    "no_maps": lambda _: NoMaps(),
    "like_vit": SixteenthsOnly,
    "boasts": lambda channels: MadeNetwork(channels, claimed=16),
    "one_size": lambda channels: MadeNetwork(channels, size=224),
    "partly_idle": PartlyIdle,
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a simulated timm with small networks."""

    def create_model(name: str, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        assert not pretrained
        network = MADE[name.partition(".")[0]](in_chans)
        if num_classes:
            network.head = nn.Linear(8, num_classes)
        return network

    def is_model(name: str) -> bool:
        return name.partition(".")[0] in MADE

    library = SimpleNamespace(create_model=create_model, is_model=is_model, __version__="0")
    monkeypatch.setitem(sys.modules, "timm", library)  # type: ignore[arg-type]
    from_timm._idle.cache_clear()


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real timm. Skips without it, also under CI=true, because an optional extra need not be
    installed.
    """
    from_timm._idle.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import timm as library
        except Exception as error:
            # A torchvision built for another torch raises RuntimeError.
            pytest.skip(
                f"timm cannot be imported ({error}); an optional extra, never promised: pip "
                "install pleura[timm]"
            )

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return library


def stage(encoder: str) -> Stage:
    return Stage.model_validate(
        {"role": "segmenter", "architecture": "unet", "arguments": {"encoder": encoder}, "side": 64, "epochs": 1,
         "start": "imagenet", "loss": {"dice": 1}, "batch": 1, "optimiser": {"learning_rate": 0.1}}
    )  # fmt: skip


def started(encoder: str, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights of the grey encoder after it was started from `tensors`."""
    save_file(
        {name: one.contiguous() for name, one in tensors.items()}, folder / "start.safetensors"
    )
    network = build("unet", encoder=encoder)
    load_start(network, stage(encoder), folder / "start.safetensors")
    return dict(network.get_submodule("encoder.model").state_dict())


def packed(folder: Path, encoder: str) -> Path:
    """A package with a classifier and a U-Net on this encoder."""
    arguments = {"encoder": encoder, "stem": "imagenet"}
    torch.manual_seed(1)
    networks = {
        "classifier": build("classifier", **arguments),
        "segmenter": build("unet", **arguments),
    }

    document = yaml.safe_load(
        (models.write(folder, models.tiny_networks()) / "model.yaml").read_text()
    )
    del document["sha256"]

    for role, architecture in (("classifier", "classifier"), ("segmenter", "unet")):
        document[role] |= {
            "architecture": architecture,
            "arguments": arguments,
            "side": 64,
            "normalisation": "unit",
        }

    package.write(folder, document, networks, dict.fromkeys(networks, torch.rand(2, 1, 64, 64)))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "timm-", "timm-hf-hub:timm/resnet18", "timm-hf_hub:a/b", "timm-local-dir:/tmp",
        "timm-/tmp/a", "timm-../a",
        "timm-a/b", "timm-halves\n", "timm-.halves", "timm-halves.", "timm-halves.a.b",
        "timm-resnet-34", "timm-é",
        "timm-" + "a" * 81,
    ],
)  # fmt: skip
@pytest.mark.usefixtures("made")
def test_only_a_plain_name_reaches_timm(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"arguments of unet: encoder: .* found; timm- and a name of timm wanted"
    ):
        shapes("unet", encoder=name)


def test_without_timm_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = models.write(tmp_path / "a", models.tiny_networks())
    document = yaml.safe_load((folder / "model.yaml").read_text())
    document["segmenter"] |= {"architecture": "unet", "arguments": {"encoder": "timm-resnet34"}}
    (folder / "model.yaml").write_text(yaml.safe_dump(document))
    # As if timm were not installed.
    monkeypatch.setitem(sys.modules, "timm", None)
    message = r"timm-resnet34: timm cannot be imported \(.*Pleura's extra timm \(docs/install.md\), which needs the torchvision that"
    with pytest.raises(
        PackageError, match=rf"model\.yaml: segmenter: arguments of unet: encoder: {message}"
    ):
        package.load(folder)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "timm 0 has no such network"),
        ("no_maps", "does not give its maps"),
        ("like_vit", "its maps are at 1/16 of the side; 1/4, 1/8, 1/16 and 1/32 wanted"),
        ("boasts", r"its maps are \[\(8, 48, 48\), .*\(16, 48, 48\), .* wanted"),
        ("one_size", "Input height .96. doesn't match"),
        ("partly_idle", "no map depends on some weights in stages"),
    ],
)
def test_a_network_unfit_as_an_encoder_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"arguments of unet: encoder: timm-{name}: .*{message}"):
        shapes("unet", encoder=f"timm-{name}")


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("stem", ["grey", "imagenet"])
@pytest.mark.parametrize("encoder", ["timm-halves", "timm-quarters.of_a_tag"])
@pytest.mark.parametrize(
    ("decoder", "arguments"),
    [
        ("unet", {}), ("unet-plus-plus", {"deep_supervision": True}), ("linknet", {}), ("fpn", {}),
        ("fcn", {}),
        ("deeplab-v3", {"stride": 32}), ("encnet", {"stride": 32}),
    ],
)  # fmt: skip
def test_an_encoder_works_with_every_decoder(
    decoder: str, arguments: dict[str, Any], encoder: str, stem: str
) -> None:
    network = build(decoder, encoder=encoder, stem=stem, **arguments).eval()
    assert (
        shapes(decoder, encoder=encoder, stem=stem, **arguments).keys()
        == network.state_dict().keys()
    )
    assert not any("head" in name for name in network.get_submodule("encoder").state_dict())
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.usefixtures("made")
def test_a_missing_map_at_half_the_side_is_replaced_by_the_image() -> None:
    image = torch.rand(1, 1, 64, 64)
    first, *rest = from_timm.build("timm-quarters", 1)(image)
    assert torch.equal(
        first, torch.stack([image[0, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)])[None]
    )
    assert [one.shape[-1] for one in rest] == [16, 8, 4, 2]


@pytest.mark.usefixtures("made")
def test_colours_are_standardised_as_for_timms_checkpoints() -> None:
    network = build("classifier", encoder="timm-halves", stem="imagenet")
    assert network.get_submodule("input")(torch.ones(1, 1, 1, 1)).flatten().tolist() == [2, 2, 2]


@pytest.mark.usefixtures("made")
def test_a_package_with_a_timm_encoder_is_written_checked_and_replayed(tmp_path: Path) -> None:
    loaded = package.load(packed(tmp_path / "a", "timm-quarters"))
    assert max(loaded.replay_error.values()) <= package.GOLDEN_TOLERANCE


@pytest.mark.usefixtures("made")
def test_an_encoder_starts_from_timms_own_checkpoint(tmp_path: Path) -> None:
    published = {name: one.detach() for name, one in MadeNetwork(3).state_dict().items()}
    found = started("timm-halves", published, tmp_path)
    assert torch.equal(found["stages.4.weight"], published["stages.4.weight"])
    assert torch.equal(found["stages.0.weight"], published["stages.0.weight"].sum(1, keepdim=True))
    with pytest.raises(WeightsError, match=r"stages\.9\.weight is unknown"):
        started("timm-halves", published | {"stages.9.weight": torch.zeros(1)}, tmp_path)


# One encoder of each kind: plain residual, squeeze-and-excitation, without a map at half the side,
# and a RegNet.
@pytest.mark.parametrize(
    "name", ["resnet34", "efficientnet_b0.ra_in1k", "convnext_atto", "regnety_002"]
)
def test_real_encoders_have_maps_of_exact_size_and_no_unused_weight(timm: Any, name: str) -> None:
    encoder = from_timm.build(f"timm-{name}", 1)
    maps = encoder(torch.rand(2, 1, 64, 96))
    assert [tuple(one.shape) for one in maps] == [
        (2, width, 2 * size, 3 * size)
        for width, size in zip(encoder.widths, (16, 8, 4, 2, 1), strict=True)
    ]
    torch.stack([one.sum() for one in maps]).sum().backward()
    assert [key for key, one in encoder.named_parameters() if one.grad is None] == []


def test_timms_resnet34_equals_ours(timm: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    ours = build("unet", encoder="resnet34").eval()
    theirs = build("unet", encoder="timm-resnet34").eval()
    weights = {
        name.replace("encoder.", "encoder.model."): one for name, one in ours.state_dict().items()
    }
    theirs.load_state_dict(weights)

    picture = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(picture), ours(picture))
    published = timm.create_model("resnet34").state_dict()
    found = started("timm-resnet34", published, tmp_path)
    assert all(
        torch.equal(one, published[name]) for name, one in found.items() if name != "conv1.weight"
    )

    assert published.keys() - found.keys() == {"fc.weight", "fc.bias"}


def test_a_package_with_a_real_timm_encoder_is_written_checked_and_replayed(
    timm: Any, tmp_path: Path
) -> None:
    loaded = package.load(packed(tmp_path / "a", "timm-convnext_atto"))
    assert max(loaded.replay_error.values()) <= package.GOLDEN_TOLERANCE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", "1/16 of the side"),
        ("swin_tiny_patch4_window7_224", "224"),
        ("inception_v3", r"its maps are \[\(64, 45, 45"),
    ],
)
def test_real_networks_unfit_as_encoders_are_refused(timm: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"timm-{name}: .*{message}"):
        shapes("unet", encoder=f"timm-{name}")


@pytest.mark.usefixtures("made")
def test_an_imported_classifier_answers_as_timms_network_or_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    head = Head(1, "softmax-logits")
    for name in ("whole", "normed"):
        whole = MADE[name](3)
        whole.head = nn.Linear(8, 2)
        save_file(whole.state_dict(), tmp_path / f"{name}.safetensors")

    found = classifier(tmp_path / "whole.safetensors", "timm-whole", 64, head)
    assert found.module(torch.zeros(1, 1, 64, 64)).shape == (1, 1)
    with pytest.raises(WeightsError, match=r"answers .* where timm's own network answers"):
        classifier(tmp_path / "normed.safetensors", "timm-normed", 64, head)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("model", "file"), [("halves", "tf_halves.pth"), ("tf_halves", "halves.pth")]
)
def test_weights_of_the_variant_with_other_padding_are_refused(
    model: str, file: str, tmp_path: Path
) -> None:
    encoder = f"timm-{model}"
    network = build("unet", encoder=encoder)
    torch.save(MadeNetwork(1).state_dict(), tmp_path / file)
    with pytest.raises(WeightsError, match=rf"timm has {model} and .*, whose weights fit"):
        load_start(network, stage(encoder), tmp_path / file)
