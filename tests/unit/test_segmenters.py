"""Encoders with decoders, whole networks and ensembles: shapes, published sizes, training outputs,
and bounds.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.engines import Candidate, Plan
from inference.engines import build as engine
from inference.networks import build, shapes

SMALL = {"architecture": "plain-unet", "arguments": {"widths": [8, 8], "up_widths": [8]}}
OTHER = {"architecture": "plain-unet", "arguments": {"widths": [8, 8, 8], "up_widths": [8, 8]}}
PLAIN = {"architecture": "plain-classifier", "arguments": {"widths": [8, 8]}}
COLOUR = {"stem": "imagenet"}


def parameters(name: str, **arguments: Any) -> int:
    with torch.device("meta"):
        return sum(one.numel() for one in build(name, **arguments).parameters())


def outputs(network: nn.Module, image: Tensor) -> list[Tensor]:
    found = network(image)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        # From here to deeplab-v3: the counts of segmentation_models.pytorch for one class.
        ("unet", COLOUR, 24_436_369),
        ("unet-plus-plus", COLOUR, 26_078_609),
        ("linknet", COLOUR, 21_771_937),
        ("fpn", COLOUR, 23_155_393),
        ("deeplab-v3", {"encoder": "resnet50", "stride": 8, **COLOUR}, 39_633_729),
        ("encnet", {"encoder": "resnet50", **COLOUR}, 23_508_032 + 512 * (9 * 2048 + 512 + 512 + 5) + 32 * 515 + 1026),
        # The paper's two large convolutions, then three scores and three enlargements of one class.
        ("fcn", {"encoder": "vgg19", "hidden": 4096, "kernel": 7, **COLOUR},
         20_024_384 + 102_764_544 + 16_781_312 + 4097 + 2 * 513 + 2 * 16 + 256),
        ("plain-unet", {"widths": [32, 64, 128, 256, 512], "up_widths": [256, 128, 64, 32]}, 7_763_041 - 2 * 9 * 32),
        ("plain-unet", {"widths": [64, 128, 256, 512, 1024], "up_widths": [512, 256, 128, 64]},
         # The count of the common PyTorch U-Net for colour images, without two input channels.
         31_037_633 - 2 * 9 * 64),
        # Published as 29.3 million.
        ("double-unet", COLOUR, 29_288_886),
        # Published as 10,069,640, counted differently (see dc_unet.py).
        ("dc-unet", {}, 10_046_782),
        ("monai-unet-plus-plus", {"deep_supervision": True}, 2_410_180),
        ("classifier", {"encoder": "resnet50", **COLOUR}, 23_508_032 + 2049),
        ("classifier", {"encoder": "resnet34", "hidden": 256, **COLOUR}, 21_284_672 + 1024 + 513 * 256 + 257),
    ],
)  # fmt: skip
def test_each_network_has_the_published_number_of_parameters(
    name: str, arguments: dict[str, Any], count: int
) -> None:
    assert parameters(name, **arguments) == count


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("unet", {}, ["map"]),
        ("unet-plus-plus", {"residual": True, "deep_supervision": True}, ["map"] * 4),
        ("linknet", {}, ["map"]),
        ("fpn", {}, ["map"]),
        ("deeplab-v3", {}, ["map"]),
        ("encnet", {"stride": 16}, ["map", "label"]),
        ("fcn", {}, ["map"]),
        ("plain-unet", {"widths": [8, 16, 8], "up_widths": [16, 8]}, ["map"]),
        ("double-unet", {"blocks": 2}, ["map", "map"]),
        ("dc-unet", {}, ["map"]),
        ("monai-unet-plus-plus", {}, ["map"]),
        ("monai-unet-plus-plus", {"features": [8, 8, 8, 8, 8, 8], "deep_supervision": True}, ["map"] * 4),
        ("classifier", {"encoder": "resnet34", "hidden": 16, "dropout": 0.5}, ["label"]),
        ("largest-of-map", {"of": SMALL, "pixels": 9}, ["label", "map"]),
        ("ensemble", {"members": [SMALL, {**OTHER, "side": 32}], "flip": True}, ["map"]),
    ],
)  # fmt: skip
def test_each_network_trains_all_parameters_and_then_gives_one_answer(
    name: str, arguments: dict[str, Any], wanted: list[str]
) -> None:
    torch.manual_seed(1)
    network = build(name, **arguments).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.rand(2, 1, 64, 64).contiguous(memory_format=torch.channels_last)
    found = outputs(network.train(), image)
    assert [tuple(one.shape) for one in found] == [
        (2, 1, 64, 64) if one == "map" else (2, 1) for one in wanted
    ]
    torch.stack([one.square().mean() for one in found]).sum().backward()
    assert [
        key for key, one in network.named_parameters() if one.grad is None or not one.grad.any()
    ] == []

    with torch.inference_mode():
        answer = network.eval()(image)
    assert isinstance(answer, Tensor)
    assert answer.shape == found[0].shape
    assert torch.isfinite(answer).all()


def test_the_first_training_output_is_the_one_that_serves() -> None:
    torch.manual_seed(1)
    image = torch.rand(2, 1, 32, 32)
    for name, arguments in [
        ("unet-plus-plus", {"deep_supervision": True}),
        ("encnet", {"stride": 32}),
    ]:
        network = build(name, **arguments).eval()
        with torch.inference_mode():
            served = network(image)
            # Set only this flag, so that batch norms and dropout still behave as in serving.
            network.training = True
            for one in network.children():
                one.training = True
            assert torch.equal(outputs(network, image)[0], served), name


def test_an_encoder_that_stops_halving_keeps_its_weights() -> None:
    for name in ("deeplab-v3", "encnet"):
        found = [shapes(name, stride=stride) for stride in (8, 16, 32)]
        assert [{key: one.shape for key, one in some.items()} for some in found] == [
            {key: one.shape for key, one in found[0].items()}
        ] * 3
    network = build("deeplab-v3", stride=16)
    maps = network.get_submodule("encoder")(torch.rand(1, 1, 64, 64))
    assert [one.shape[-1] for one in maps] == [32, 16, 8, 4, 4]
    with pytest.raises(ValueError, match="no layer4 to dilate; 32 wanted"):
        build("deeplab-v3", encoder="vgg19")


def test_enlargements_of_an_fcn_start_as_bilinear_interpolation() -> None:
    head = build("fcn").get_submodule("segmentation_head")
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    wanted = functional.interpolate(ramp, scale_factor=8.0, mode="bilinear")
    with torch.inference_mode():
        found = head(ramp)
    assert torch.allclose(found[..., 8:-8, 8:-8], wanted[..., 8:-8, 8:-8], atol=1e-5)


def test_the_encoding_is_the_sum_of_softly_assigned_residuals() -> None:
    torch.manual_seed(1)
    encoding: Any = build("encnet").get_submodule("decoder.encoding")
    x = torch.rand(1, 512, 2, 3)
    pixels = x[0].flatten(1).T
    # (pixels, codewords, channels).
    residuals = pixels[:, None] - encoding.codewords
    shares = torch.softmax(-encoding.smoothing * residuals.square().sum(2), dim=1)
    wanted = (shares[:, :, None] * residuals).sum(0)
    assert torch.allclose(encoding(x)[0], wanted, atol=1e-4)


def test_the_second_unet_sees_the_image_through_the_first_mask() -> None:
    network: Any = build("double-unet", blocks=2).eval()
    image = torch.rand(2, 1, 32, 32)
    seen = []
    network.second_encoder[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        network.head.weight.zero_()
        network.head.bias.fill_(0)
        network(image)
        nn.init.constant_(network.second_head.bias, 7)
        nn.init.zeros_(network.second_head.weight)
        assert [one.unique().item() for one in network.train()(image)] == [7, 0]
        assert [one.unique().item() for one in network.eval().both(image)] == [0, 7]
    # Every pixel of the first mask is one half.
    assert torch.allclose(seen[0], image / 2)


def test_the_deepest_output_of_monais_nested_unet_serves() -> None:
    network: Any = build("monai-unet-plus-plus", features=[8] * 6, deep_supervision=True)
    nn.init.zeros_(network.network.final_conv_0_4.weight)
    nn.init.constant_(network.network.final_conv_0_4.bias, 7)
    with torch.inference_mode():
        assert (network.train()(torch.rand(1, 1, 64, 64))[0] == 7).all()
        assert (network.eval()(torch.rand(1, 1, 64, 64)) == 7).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("member", [SMALL, PLAIN])
def test_an_ensemble_answers_with_the_mean_probability(flip: bool, member: dict[str, Any]) -> None:
    torch.manual_seed(1)
    members = [member, {**member, "side": 32}]
    network: Any = build("ensemble", members=members, flip=flip).train()

    # The members are already trained, so they stay in evaluation mode.
    assert not any(one.training for one in network.modules())
    image = torch.rand(2, 1, 64, 64)
    small = functional.interpolate(image, size=(32, 32), mode="bilinear", antialias=True)
    answers = []
    with torch.inference_mode():
        for mirrored in (False, True) if flip else (False,):
            for one, given in zip(network.members, (image, small), strict=True):
                logits = one(given.flip(3) if mirrored else given)
                if logits.dim() == 4:
                    logits = functional.interpolate(logits, size=(64, 64), mode="bilinear")
                    logits = logits.flip(3) if mirrored else logits
                answers.append(torch.sigmoid(logits))
        assert torch.allclose(
            torch.sigmoid(network(image)), torch.stack(answers).mean(0), atol=1e-6
        )


def test_an_ensemble_of_extreme_logits_stays_finite_and_exact() -> None:
    network: Any = build("ensemble", members=[PLAIN, PLAIN])
    for one, bias in zip(network.members, (80.0, 90.0), strict=True):
        nn.init.zeros_(one.head.weight)
        nn.init.constant_(one.head.bias, bias)
    with torch.inference_mode():
        wanted = -np.log((np.exp(-80.0) + np.exp(-90.0)) / 2)
        assert network(torch.rand(1, 1, 32, 32)).item() == pytest.approx(wanted, abs=1e-4)


def test_largest_of_map_reaches_a_threshold_exactly_if_enough_pixels_do() -> None:
    torch.manual_seed(1)
    image = torch.rand(4, 1, 32, 32)
    with torch.inference_mode():
        for pixels in (1, 40, 32 * 32):
            network: Any = build("largest-of-map", of=SMALL, pixels=pixels).eval()
            found = network(image)
            maps = network.segmenter(image)
            for top in maps.flatten()[::97]:
                assert torch.equal(found[:, 0] >= top, (maps >= top).flatten(1).sum(1) >= pixels)
    assert build("largest-of-map", of={"architecture": "unet"}, pixels=1).encoder is not None


@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize(
    ("other", "name", "arguments"),
    [
        (
            "openvino",
            "ensemble",
            {"members": [SMALL, {**SMALL, "side": 32}, {**SMALL, "side": 96}], "flip": True},
        ),
        (
            "onnxruntime",
            "ensemble",
            {"members": [SMALL, SMALL], "flip": True},
            # No other sides here: ONNX resizes differently from torch.
        ),
        ("openvino", "largest-of-map", {"of": SMALL, "pixels": 9}),
        ("onnxruntime", "largest-of-map", {"of": SMALL, "pixels": 9}),
    ],
)
def test_engines_answer_as_torch_does(other: str, name: str, arguments: dict[str, Any]) -> None:
    pytest.importorskip(other)
    network = build(name, **arguments).eval()
    images = np.random.default_rng(1).random((3, 1, 64, 64), dtype=np.float32)
    plan = Plan(torch.device("cpu"), 64)
    wanted = engine(Candidate("torch"), network, plan)(images)
    assert engine(Candidate(other), network, plan)(images) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("unet", {"encoder": "os.system"}, "encoder: .*allowed: alexnet"),
        ("unet", {"up_widths": [1024, 512, 256, 128, 128]}, "stage 0"),
        ("plain-unet", {"widths": [128, 128], "up_widths": [64]}, "stage 0"),
        ("plain-unet", {"widths": [64, 128], "up_widths": [64, 64]}, "arguments of plain-unet"),
        ("monai-unet-plus-plus", {"features": [32, 32, 64, 128, 256, 256]}, "stage 0"),
        ("double-unet", {"blocks": 5}, "blocks"),
        ("deeplab-v3", {"stride": 4}, "stride"),
        ("fcn", {"hidden": 10**9}, "hidden"),
        ("largest-of-map", {"of": SMALL, "pixels": 0}, "pixels"),
        ("largest-of-map", {"of": {"architecture": "os.system"}, "pixels": 1}, "allowed"),
        ("ensemble", {"members": []}, "members"),
        ("ensemble", {"members": [SMALL] * 9}, "members"),
        ("ensemble", {"members": [{**SMALL, "side": 10**6}]}, r"members\.0\.side"),
        ("ensemble", {"members": [{**SMALL, "weights": "x"}]}, r"members\.0\.weights"),
        (
            "ensemble",
            {"members": [{"architecture": "unet", "arguments": {"stem": "x"}}]},
            "arguments of unet: stem",
        ),
    ],
)
def test_arguments_out_of_bounds_are_refused(
    name: str, arguments: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        shapes(name, **arguments)


def test_nesting_of_networks_is_bounded() -> None:
    inner: dict[str, Any] = SMALL
    for _ in range(2):
        inner = {"architecture": "ensemble", "arguments": {"members": [inner]}}
    assert shapes("ensemble", **inner["arguments"])
    with pytest.raises(ValueError, match="nested 3 deep, at most 2"):
        shapes("ensemble", members=[inner])


def test_the_size_limit_applies_to_a_whole_ensemble() -> None:
    large = {"architecture": "fcn", "arguments": {"encoder": "vgg19", "hidden": 4096, "kernel": 7}}
    assert shapes("ensemble", members=[large] * 3)
    with pytest.raises(ValueError, match="weights, at most"):
        shapes("ensemble", members=[large] * 4)


def test_a_recipe_without_a_monai_network_does_not_import_monai() -> None:
    code = "import sys, inference.networks as n; n.build('unet'); sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0
