"""Encoders: an image -> five feature maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of its side.

A new encoder is a file in this folder, a row of `ENCODERS`, and its published number of parameters
in its docstring. Where timm is installed, its networks are encoders too (from_timm.py).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from inference.networks.encoders import from_timm
from inference.networks.encoders.alexnet import alexnet
from inference.networks.encoders.base import Encoder, SymmetricInput
from inference.networks.encoders.densenet import densenet121
from inference.networks.encoders.efficientnet import efficientnet_b3, efficientnet_b4
from inference.networks.encoders.efficientnet_lite import (
    TOP_WIDTH,
    EfficientNetLite,
    EfficientNetLiteTop,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
)
from inference.networks.encoders.inception_resnet_v2 import inception_resnet_v2
from inference.networks.encoders.inception_v3 import inception_v3
from inference.networks.encoders.resnet import resnet34, resnet50
from inference.networks.encoders.senet import se_resnext50, se_resnext101, senet154
from inference.networks.encoders.vgg import vgg16, vgg19
from inference.networks.encoders.xception import xception
from inference.networks.imagenet import ImageNetInput, XRayVisionInput

__all__ = ["ENCODERS", "Encoder", "build", "top"]

# Each takes the number of input channels.
ENCODERS: dict[str, Callable[[int], Encoder]] = {
    "alexnet": alexnet,
    "densenet121": densenet121,
    "efficientnet-b3": efficientnet_b3,
    "efficientnet-b4": efficientnet_b4,
    "efficientnet-lite0": efficientnet_lite0,
    "efficientnet-lite1": efficientnet_lite1,
    "efficientnet-lite2": efficientnet_lite2,
    "inception-resnet-v2": inception_resnet_v2,
    "inception-v3": inception_v3,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "se-resnext50": se_resnext50,
    "se-resnext101": se_resnext101,
    "senet154": senet154,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "xception": xception,
}

# The others' published checkpoints were given ImageNet's standardised colours.
_SYMMETRIC = (
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
    "inception-resnet-v2",
    "inception-v3",
    "xception",
)


def build(name: str, stem: str) -> tuple[nn.Module, Encoder]:
    """(input, encoder): the input's conversion for `stem`, and the encoder.

    `stem` is "grey", "imagenet" or "torchxrayvision" (grey, -1024 to 1024).

    Raises:
        ValueError: a name that is not on the list, and none of timm's (from_timm.py) either.
    """
    if name.startswith(from_timm.PREFIX):
        timms = from_timm.build(name, 3 if stem == "imagenet" else 1)
        if stem == "imagenet":
            return ImageNetInput(timms.mean, timms.deviation), timms
        return XRayVisionInput() if stem == "torchxrayvision" else nn.Identity(), timms

    if name not in ENCODERS:
        raise ValueError(
            f"encoder: {name[:60]!r} found, allowed: {', '.join(ENCODERS)}, {from_timm.PREFIX}<a "
            "name of timm>"
        )

    if stem == "grey":
        return nn.Identity(), ENCODERS[name](1)

    if stem == "torchxrayvision":
        return XRayVisionInput(), ENCODERS[name](1)

    return SymmetricInput() if name in _SYMMETRIC else ImageNetInput(), ENCODERS[name](3)


def top(encoder: Encoder) -> tuple[nn.Module, int]:
    """(top, width): what the published classifier has between the last map and its mean."""
    if isinstance(encoder, EfficientNetLite):
        return EfficientNetLiteTop(encoder.widths[-1]), TOP_WIDTH
    return nn.Identity(), encoder.widths[-1]
