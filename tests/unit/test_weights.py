"""Checkpoints in each published form, generated here, fill an encoder; weights that do not fit are
reported, not guessed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inference.networks import build
from inference.networks.densenet import DenseNet121
from inference.networks.encoders import ENCODERS
from training.fitting.weights import WeightsError, load_start, take_encoder
from training.recipe import Stage

# The blocks of each stage of EfficientNet-B3: the paper's Table 1, times 1.4.
B3_BLOCKS = (2, 3, 3, 5, 5, 6, 2)
SE_RESNEXT50_BLOCKS = (3, 4, 6, 3)


class Network(nn.Module):
    """An encoder followed by other layers."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(1, 1)


def stage(architecture: str = "unet", **arguments: Any) -> Stage:
    return Stage.model_validate(
        {
            "role": "segmenter",
            "architecture": architecture,
            "arguments": arguments,
            "side": 64,
            "start": "imagenet",
            "loss": {"dice": 1},
            "epochs": 1,
            "batch": 1,
            "optimiser": {"learning_rate": 0.1},
        }
    )


def small(channels: int = 3) -> Network:
    return Network(nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4)))


def batch_norm(name: str) -> Iterator[str]:
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        yield f"{name}.{part}"


def both(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"


def blocks(of_stages: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    number = 0
    for one, count in enumerate(of_stages):
        for block in range(count):
            yield one, block, number
            number += 1


def lukemelas() -> Iterator[str]:
    yield "_conv_stem.weight"
    yield from batch_norm("_bn0")
    for one, _, number in blocks(B3_BLOCKS):
        at = f"_blocks.{number}."
        if one:
            yield f"{at}_expand_conv.weight"
            yield from batch_norm(f"{at}_bn0")
        yield f"{at}_depthwise_conv.weight"
        yield from batch_norm(f"{at}_bn1")
        yield from both(f"{at}_se_reduce")
        yield from both(f"{at}_se_expand")
        yield f"{at}_project_conv.weight"
        yield from batch_norm(f"{at}_bn2")


def monai() -> Iterator[str]:
    numbers = [(one, number) for one, _, number in blocks(B3_BLOCKS)]
    for name in lukemelas():
        parts = name.split(".")
        if parts[0] == "_blocks":
            parts.insert(1, str(numbers[int(parts[1])][0]))
        yield ".".join(parts)


def timm() -> Iterator[str]:
    yield "conv_stem.weight"
    yield from batch_norm("bn1")
    for one, block, _ in blocks(B3_BLOCKS):
        convolutions = ["conv_pw", "conv_dw", "conv_pwl"] if one else ["conv_dw", "conv_pw"]
        for number, convolution in enumerate(convolutions, 1):
            yield f"blocks.{one}.{block}.{convolution}.weight"
            yield from batch_norm(f"blocks.{one}.{block}.bn{number}")
            if convolution == "conv_dw":
                yield from both(f"blocks.{one}.{block}.se.conv_reduce")
                yield from both(f"blocks.{one}.{block}.se.conv_expand")


def torchvision() -> Iterator[str]:
    yield "features.0.0.weight"
    yield from batch_norm("features.0.1")
    for one, block, _ in blocks(B3_BLOCKS):
        parts = ["convolution", "convolution", "squeeze", "convolution"][0 if one else 1 :]
        for number, part in enumerate(parts):
            at = f"features.{one + 1}.{block}.block.{number}."
            if part == "squeeze":
                yield from both(f"{at}fc1")
                yield from both(f"{at}fc2")
            else:
                yield f"{at}0.weight"
                yield from batch_norm(f"{at}1")


def cadene() -> Iterator[str]:
    yield "layer0.conv1.weight"
    yield from batch_norm("layer0.bn1")
    for one, block, _ in blocks(SE_RESNEXT50_BLOCKS):
        at = f"layer{one + 1}.{block}."
        for number in (1, 2, 3):
            yield f"{at}conv{number}.weight"
            yield from batch_norm(f"{at}bn{number}")
        yield from both(f"{at}se_module.fc1")
        yield from both(f"{at}se_module.fc2")
        # In the order in which MONAI registers them, with the shortcut last.
        if not block:
            yield f"{at}downsample.0.weight"
            yield from batch_norm(f"{at}downsample.1")


def distinct_values(encoder: nn.Module) -> list[Tensor]:
    """Tensors like the encoder's, each filled with a number of its own."""
    return [
        torch.full_like(one, number) for number, one in enumerate(encoder.state_dict().values(), 2)
    ]


def assert_filled(encoder: nn.Module, values: list[Tensor]) -> None:
    found = encoder.state_dict()
    wrong = [
        name
        for (name, one), value in zip(found.items(), values, strict=True)
        if not torch.equal(one, value)
    ]
    assert wrong == []


@pytest.fixture(scope="module")
def efficientnet() -> nn.Module:
    return ENCODERS["efficientnet-b3"](3)


@pytest.mark.parametrize(
    ("names", "file", "head", "known"),
    [
        (
            lukemelas,
            "b3",
            ["_conv_head.weight", "_bn1.bias", "_fc.weight"],
            {"_blocks.25._project_conv.weight": (384, 2304)},
        ),
        (
            monai,
            "b3",
            ["_conv_head.weight", "_bn1.bias", "_fc.weight"],
            {"_blocks.1.2._expand_conv.weight": (144, 24)},
        ),
        (
            timm,
            "tf_efficientnet_b3",
            ["conv_head.weight", "bn2.bias", "classifier.weight"],
            {"blocks.0.0.conv_pw.weight": (24, 40), "blocks.0.1.se.conv_reduce.weight": (6, 24)},
        ),
    ],
)
def test_efficientnet_is_loaded_under_each_publishers_names(
    names: Callable[[], Iterator[str]],
    file: str,
    head: list[str],
    known: dict[str, tuple[int, int]],
    efficientnet: nn.Module,
    tmp_path: Path,
) -> None:
    values = distinct_values(efficientnet)
    state = dict(zip(names(), values, strict=True))
    assert {name: tuple(state[name].shape[:2]) for name in known} == known
    path = tmp_path / f"{file}.safetensors"
    save_file(state | {name: torch.ones(2) for name in head}, path)
    load_start(Network(efficientnet), stage(encoder="efficientnet-b3"), path)

    assert_filled(efficientnet, values)


@pytest.mark.parametrize(
    ("names", "file", "known"),
    [
        (timm, "efficientnet_b3_ra2", {"blocks.0.0.conv_pw.weight": (24, 40)}),
        (
            torchvision,
            "efficientnet_b3_rwightman",
            {
                "features.1.0.block.2.0.weight": (24, 40),
                "features.7.1.block.3.0.weight": (384, 2304),
            },
        ),
    ],
)
def test_efficientnet_weights_trained_with_other_padding_are_refused(
    names: Callable[[], Iterator[str]],
    file: str,
    known: dict[str, tuple[int, int]],
    efficientnet: nn.Module,
    tmp_path: Path,
) -> None:
    state = dict(zip(names(), distinct_values(efficientnet), strict=True))
    assert {name: tuple(state[name].shape[:2]) for name in known} == known
    path = tmp_path / f"{file}.safetensors"
    save_file(state, path)
    before = [tensor.clone() for tensor in efficientnet.state_dict().values()]
    with pytest.raises(WeightsError, match=r"pad otherwise.*encoder: timm-efficientnet_b3"):
        load_start(Network(efficientnet), stage(encoder="efficientnet-b3"), path)

    assert_filled(efficientnet, before)


def test_squeeze_and_excitation_is_loaded_under_the_names_of_cadene_and_timm(
    tmp_path: Path,
) -> None:
    encoder = ENCODERS["se-resnext50"](3)
    values = distinct_values(encoder)
    state = dict(zip(cadene(), values, strict=True))
    for name in state:
        if ".se_module." in name and name.endswith("weight"):
            # In that library, this layer is a convolution of one pixel.
            state[name] = state[name][:, :, None, None]
    state |= {"last_linear.weight": torch.ones(2), "last_linear.bias": torch.ones(2)}
    assert tuple(state["layer3.5.se_module.fc1.weight"].shape) == (64, 1024, 1, 1)
    torch.save(state, tmp_path / "se.pth")
    load_start(Network(encoder), stage(encoder="se-resnext50"), tmp_path / "se.pth")
    assert_filled(encoder, values)


def test_squeeze_and_excitation_of_current_timm_has_other_padding_and_is_refused(
    tmp_path: Path,
) -> None:
    encoder = ENCODERS["se-resnext50"](3)
    values = distinct_values(encoder)
    state = {}

    for name, value in zip(cadene(), values, strict=True):
        theirs = name.removeprefix("layer0.").replace(".se_module.", ".se.")
        if ".se." in theirs and theirs.endswith("weight"):
            # In that library, this layer is a convolution of one pixel.
            value = value[:, :, None, None]
        state[theirs] = value

    assert {"conv1.weight", "bn1.bias", "layer3.5.se.fc1.weight"} <= state.keys()
    torch.save(state | {"fc.weight": torch.ones(2)}, tmp_path / "seresnext50_32x4d.pth")

    with pytest.raises(WeightsError, match=r"pads otherwise.*legacy_.*encoder: timm-"):
        load_start(
            Network(encoder), stage(encoder="se-resnext50"), tmp_path / "seresnext50_32x4d.pth"
        )


def test_the_backbone_of_a_larger_network_is_loaded(tmp_path: Path) -> None:
    values = distinct_values(small().encoder)
    names = small().encoder.state_dict()
    state = {f"backbone.{name}": value for name, value in zip(names, values, strict=True)}
    save_file(state | {"decoder.0.weight": torch.ones(1)}, tmp_path / "whole.safetensors")
    network = small()
    load_start(network, stage(), tmp_path / "whole.safetensors")
    assert_filled(network.encoder, values)


@pytest.mark.parametrize("only", ["op_threshs", "classifier.weight"])
def test_weights_of_torchxrayvision_require_its_scale(only: str, tmp_path: Path) -> None:
    arguments = {"encoder": "densenet121", "stem": "torchxrayvision"}
    network = build("classifier", **arguments)
    encoder = network.get_submodule("encoder")
    values = distinct_values(encoder)
    state = dict(zip(encoder.state_dict(), values, strict=True)) | {only: torch.ones(18, 1024)}
    path = tmp_path / "densenet121-res224-all.safetensors"
    save_file(state, path)

    grey = build("classifier", encoder="densenet121")
    with pytest.raises(WeightsError, match=r"-1024 to 1024; found stem grey .*torchxrayvision"):
        load_start(grey, stage("classifier", encoder="densenet121"), path)

    load_start(network, stage("classifier", **arguments), path)
    assert_filled(encoder, values)
    shown = network.get_submodule("input")(torch.tensor([0.0, 0.5, 1.0]))
    assert shown.tolist() == [-1024, 0, 1024]


def as_chexnet(name: str) -> str:
    if ".denselayer" in name:
        for part in ("norm", "conv"):
            name = name.replace(f".{part}1.", f".{part}.1.").replace(f".{part}2.", f".{part}.2.")
    return f"module.densenet121.{name}"


@pytest.mark.parametrize("build", [DenseNet121, lambda: Network(ENCODERS["densenet121"](1))])
def test_chexnet_initialises_a_grey_densenet_and_its_encoder(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    published = DenseNet121(14, "imagenet")
    network = build()
    state = {
        as_chexnet(name).replace("classifier.", "classifier.0."): one
        for name, one in published.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    before = {
        name: one.clone() for name, one in network.state_dict().items() if "features." not in name
    }

    torch.save({"epoch": 5, "state_dict": state}, tmp_path / "chexnet.pth.tar")
    load_start(network, stage("densenet-121"), tmp_path / "chexnet.pth.tar")
    found = {name.removeprefix("encoder."): one for name, one in network.state_dict().items()}
    wanted = published.features.state_dict()
    kernels = wanted.pop("conv0.weight")
    assert all(torch.equal(found[f"features.{name}"], one) for name, one in wanted.items())

    grey = torch.rand(1, 1, 16, 16)
    one_map = nn.functional.conv2d(grey, found["features.conv0.weight"])
    torch.testing.assert_close(one_map, nn.functional.conv2d(grey.repeat(1, 3, 1, 1), kernels))
    assert before
    assert all(torch.equal(found[name], one) for name, one in before.items())


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_a_whole_vgg19_initialises_an_encoder_of_its_first_layers(
    blocks: int, tmp_path: Path
) -> None:
    whole = ENCODERS["vgg19"](3).state_dict()
    state = {
        name: torch.full(one.shape, 2.0 + number)
        for number, (name, one) in enumerate(whole.items())
    }
    save_file(state | {"classifier.0.weight": torch.ones(2)}, tmp_path / "vgg19.safetensors")

    network = build("double-unet", blocks=blocks, stem="imagenet")
    load_start(network, stage("double-unet"), tmp_path / "vgg19.safetensors")
    kept = network.get_submodule("encoder").state_dict()
    assert all(torch.equal(one, state[name]) for name, one in kept.items())
    assert network.unused == state.keys() - kept.keys()
    save_file(state | {"features.37.weight": torch.ones(2)}, tmp_path / "other.safetensors")

    with pytest.raises(WeightsError, match=r"features\.37\.weight is unknown; give"):
        load_start(network, stage("double-unet"), tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "wrap", [dict, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state}]
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "module.model.", "model.module.", "encoder."]
)
def test_wrappers_and_other_parts_are_ignored(
    wrap: Callable[[Any], Any], prefix: str, tmp_path: Path
) -> None:
    network = small()
    values = distinct_values(network.encoder)
    state = {
        prefix + name: one for name, one in zip(network.encoder.state_dict(), values, strict=True)
    }
    state |= (
        {"decoder.x": torch.ones(1)}
        if prefix == "encoder."
        else {f"{prefix}fc.weight": torch.ones(1)}
    )
    torch.save(wrap(state), tmp_path / "a.pt")

    load_start(network, stage(), tmp_path / "a.pt")
    assert_filled(network.encoder, values)


def missing(state: dict[str, Tensor]) -> None:
    del state["1.running_var"]


def unknown(state: dict[str, Tensor]) -> None:
    state["2.weight"] = torch.zeros(1)


def misshapen(state: dict[str, Tensor]) -> None:
    state["0.weight"] = torch.zeros(4, 3, 5, 5)


def not_finite(state: dict[str, Tensor]) -> None:
    state["1.bias"] = torch.full((4,), float("nan"))


def all_others(state: dict[str, Tensor]) -> None:
    state |= {f"x{number}": torch.zeros(1) for number in range(6)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"encoder of unet vgg19: 1\.running_var is missing; give"),
        (unknown, r"encoder of unet vgg19: 2\.weight is unknown; give"),
        (misshapen, r"0\.weight is \(4, 3, 5, 5\), wanted \(4, 3, 3, 3\); give"),
        (not_finite, r"1\.bias holds NaN or infinity; give"),
        (all_others, r"x0 is unknown; .*x4 is unknown; and 1 more; give the state dict"),
    ],
)
def test_a_mismatch_is_named_and_nothing_is_changed(
    spoil: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    network = small()
    before = [one.clone() for one in network.encoder.state_dict().values()]
    state = dict(zip(network.encoder.state_dict(), distinct_values(network.encoder), strict=True))
    spoil(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=rf"a\.pth: not weights for .*{message}"):
        load_start(network, stage(encoder="vgg19"), tmp_path / "a.pth")
    assert_filled(network.encoder, before)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Hostile(tmp_path / "made")}, tmp_path / "a.pth")
    with pytest.raises(
        WeightsError, match=r"a\.pth: refused, nothing in it was run: it wants to call posix\.mkdir"
    ):
        load_start(small(), stage(), tmp_path / "a.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "absent.pth", "absent.safetensors"])
def test_a_file_that_is_not_a_checkpoint_is_reported_with_its_path(
    name: str, tmp_path: Path
) -> None:
    if name.startswith("a."):
        (tmp_path / name).write_bytes(b"{} not weights")
    with pytest.raises(WeightsError, match=name):
        load_start(small(), stage(), tmp_path / name)


def test_a_network_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="plain-classifier has no encoder"):
        load_start(nn.Linear(1, 1), stage("plain-classifier"), tmp_path / "any.pth")


def test_a_segmenter_takes_the_encoder_of_a_classifier() -> None:
    classifier, segmenter = small(), small()
    values = distinct_values(classifier.encoder)
    classifier.encoder.load_state_dict(
        dict(zip(classifier.encoder.state_dict(), values, strict=True))
    )
    take_encoder(segmenter, classifier)
    assert_filled(segmenter.encoder, values)


def test_an_encoder_of_another_kind_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"the encoders differ in 1 tensors \(0\.weight\)"):
        take_encoder(small(channels=1), small())
