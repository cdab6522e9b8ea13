"""VGG-16 and VGG-19: nothing but 3 x 3 convolutions, and a pool after each group of them.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, Table 1, configurations D and E, without batch normalisation. 14,714,688 and 20,024,384
parameters: 138,357,544 and 143,667,240 as published, less the three fully connected layers. The
weights have torchvision's names.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.networks.encoders.base import Encoder

# Maps of each group.
_WIDTHS = (64, 128, 256, 512, 512)
# Convolutions of each group.
_OF_16 = (2, 2, 3, 3, 3)
_OF_19 = (2, 2, 4, 4, 4)


class VGG(Encoder):
    """The maps before the pools 2 to 5, and the map after the last; the full side is left out."""

    widths = (128, 256, 512, 512, 512)

    def __init__(self, channels: int, counts: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []

        for width, count in zip(_WIDTHS, counts, strict=True):
            for channels_in in (channels, *itertools.repeat(width, count - 1)):
                layers += [nn.Conv2d(channels_in, width, 3, 1, 1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels = width

        self.features = nn.Sequential(*layers)

        # Without batch normalisation a deep network learns from scratch only if its initial
        # weights keep the variance.
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(torch.as_tensor(layer.bias))

    def forward(self, x: Tensor) -> list[Tensor]:
        before_pools = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                before_pools.append(x)
            x = layer(x)
        return [*before_pools[1:], x]


def vgg16(channels: int) -> Encoder:
    """Widths 128, 256, 512, 512, 512."""
    return VGG(channels, _OF_16)


def vgg19(channels: int) -> Encoder:
    """Widths 128, 256, 512, 512, 512."""
    return VGG(channels, _OF_19)
