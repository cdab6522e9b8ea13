"""Xception: depthwise and pointwise convolutions apart, in residual blocks.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, Figure 5.
20,806,952 parameters: 22,855,952 as published, less the 1,000 classes. The weights have the names
of Cadene's and timm's checkpoints. The first two convolutions are padded here ("valid" in the
paper), so that each map is an exact fraction of the side.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional

from inference.networks.encoders.base import Encoder

_MIDDLE = 728


class SeparableConvolution(nn.Module):
    """3 x 3 within each map, then 1 x 1 across them; no bias."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_in, 3, 1, 1, groups=channels_in, bias=False)
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.conv1(x))
        return y


class Block(nn.Module):
    """Separable convolutions through `widths`, beside a shortcut.

    (n, widths[0], h, w) -> (n, widths[-1], h / s, w / s); `s` is 2 where `halve`. Each convolution
    reads rectified maps; the very first block reads them as they are.
    """

    def __init__(self, *widths: int, halve: bool = True, rectify_first: bool = True) -> None:
        super().__init__()
        self.skip: nn.Module = nn.Identity()
        self.skipbn: nn.Module = nn.Identity()

        if halve:
            self.skip = nn.Conv2d(widths[0], widths[-1], 1, 2, bias=False)
            self.skipbn = nn.BatchNorm2d(widths[-1])

        layers: list[nn.Module] = []

        for channels_in, channels_out in itertools.pairwise(widths):
            layers += [
                nn.ReLU(),
                SeparableConvolution(channels_in, channels_out),
                nn.BatchNorm2d(channels_out),
            ]

        if halve:
            layers.append(nn.MaxPool2d(3, 2, 1))

        self.rep = nn.Sequential(*layers[0 if rectify_first else 1 :])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rep(x) + self.skipbn(self.skip(x))
        return y


class Xception(Encoder):
    """The maps of the second convolution, of blocks 1, 2 and 11, and of the last convolution."""

    widths = (64, 128, 256, _MIDDLE, 2048)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.block1 = Block(64, 128, 128, rectify_first=False)
        self.block2 = Block(128, 256, 256)
        self.block3 = Block(256, _MIDDLE, _MIDDLE)

        for number in range(4, 12):
            self.add_module(f"block{number}", Block(*[_MIDDLE] * 4, halve=False))

        self.block12 = Block(_MIDDLE, _MIDDLE, 1024)
        self.conv3 = SeparableConvolution(1024, 1536)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = SeparableConvolution(1536, 2048)
        self.bn4 = nn.BatchNorm2d(2048)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.relu(self.bn1(self.conv1(x)))
        maps = [functional.relu(self.bn2(self.conv2(x)))]
        maps.append(self.block1(maps[-1]))
        maps.append(self.block2(maps[-1]))
        x = self.block3(maps[-1])
        for number in range(4, 12):
            x = self.get_submodule(f"block{number}")(x)
        maps.append(x)
        x = functional.relu(self.bn3(self.conv3(self.block12(x))))
        maps.append(functional.relu(self.bn4(self.conv4(x))))
        return maps


def xception(channels: int) -> Encoder:
    """Widths 64, 128, 256, 728, 2048."""
    return Xception(channels)
