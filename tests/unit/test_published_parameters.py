"""The networks of the recipes have as many parameters as the published systems."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference.networks import build
from tests.recipes import FOLDER
from training import recipe

# Keras counts a bias for each convolution of ResNet-50, which has no effect before a batch norm,
# and the running means and variances of its batch norms.
_KERAS_RESNET50 = 26_560 + 53_120
# Keras counts running means and variances, but its Inception-v3 has no scale in its batch norms.
_KERAS_INCEPTION_V3 = 17_216


def on_meta(name: str, **changes: Any) -> nn.Module:
    (stage,) = recipe.load(FOLDER / f"{name}.yaml").networks
    with torch.device("meta"):
        return build(stage.architecture, **(stage.arguments | changes))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "published", "trainable", "only_keras"),
    [
        ("f1-fcn-vgg19", 20_307_014, 282_630, 0),
        ("f1-fcn-resnet50", 23_678_858, 91_146, _KERAS_RESNET50),
        ("f1-fcn-inception-v3", 22_875_944, 1_073_160, _KERAS_INCEPTION_V3),
    ],
)
def test_fcn_by_transfer_has_the_published_parameters(
    name: str, published: int, trainable: int, only_keras: int
) -> None:
    network = on_meta(name)
    assert count(network) + only_keras == published
    assert count(network) - count(network.get_submodule("encoder")) == trainable
    assert recipe.load(FOLDER / f"{name}.yaml").networks[0].freeze == recipe.Freeze(epochs=0)


@pytest.mark.parametrize(
    ("name", "published_millions"), [("s1-fcn-alexnet", 57), ("s1-fcn-vgg16", 134)]
)
def test_fcns_of_the_slides_have_the_published_parameters(
    name: str, published_millions: int
) -> None:
    network = on_meta(name)
    decoder = network.get_submodule("decoder")
    one_class = decoder.get_submodule("scores.0")
    enlarging = network.get_submodule("segmentation_head")

    # The published count has a score for each of PASCAL VOC's 21 classes, and its enlargement has
    # fixed weights.
    own = count(network) - count(one_class) - count(enlarging)
    assert round((own + (4096 + 1) * 21) / 1e6) == published_millions


def test_the_stack_of_convolutions_is_small() -> None:
    assert count(on_meta("s1-conv-stack")) == 28_225


@pytest.mark.parametrize("skips", [0, 1, 2])
@pytest.mark.parametrize("kernel", [6, 7])
def test_fcn_answers_at_full_size(skips: int, kernel: int) -> None:
    arguments = {"encoder": "alexnet", "hidden": 8, "kernel": kernel, "skips": skips}
    with torch.inference_mode():
        found = build("fcn", **arguments).eval()(torch.zeros(1, 1, 64, 96))
    assert found.shape == (1, 1, 64, 96)


@pytest.mark.parametrize("name", ["t2-unet-plus-plus", "b1-unet-plus-plus"])
def test_unet_plus_plus_has_the_published_parameters(name: str) -> None:
    assert count(on_meta(name, deep_supervision=False)) == 9_118_657


def test_fcn_by_transfer_answers_at_full_size() -> None:
    for kernels, strides in (((16, 32, 64), (2, 2, 8)), ((4, 16, 32, 32, 64), (2, 2, 2, 2, 2))):
        network = build("fcn-transposed", encoder="resnet34", kernels=kernels, strides=strides)
        with torch.inference_mode():
            assert network.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    ("kernels", "strides"), [((16, 32), (2, 2)), ((16, 32, 64), (2, 16)), ((4, 64), (8, 4))]
)
def test_strides_that_do_not_reach_the_full_side_are_refused(
    kernels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="arguments of fcn-transposed"):
        build("fcn-transposed", encoder="resnet34", kernels=kernels, strides=strides)
