"""Inception-ResNet-v2: Inception's branches as the residual of a shortcut.

Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
AAAI 2017, Figures 15 to 19 (the widths are those of the authors' published checkpoint). 54,306,464
parameters: timm's 55,843,464, less the 1,000 classes. The weights have the names of Cadene's and
timm's checkpoints. Every convolution and pool is padded here (the paper leaves out the padding in
the stem and where the size is halved), so that each map is an exact fraction of the side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.encoders.base import Encoder
from inference.networks.encoders.inception_v3 import Convolution, Kernel

# Width and kernel.
Step = tuple[int, Kernel]
Branches = Sequence[Sequence[Step]]

_MIXED_5B: Branches = ([(96, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)])
_BLOCK_35: Branches = ([(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)])
_MIXED_6A: Branches = ([(384, 3)], [(256, 1), (256, 3), (384, 3)])
_BLOCK_17: Branches = ([(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))])
_MIXED_7A: Branches = ([(256, 1), (384, 3)], [(256, 1), (288, 3)], [(256, 1), (288, 3), (320, 3)])
_BLOCK_8: Branches = ([(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))])


class Mixed(nn.Module):
    """Branches of convolutions, joined; the last step of each has `stride`."""

    def __init__(self, channels: int, branches: Branches, stride: int = 1) -> None:
        super().__init__()

        for number, steps in enumerate(branches):
            widths = [channels, *(width for width, _ in steps)]
            strides = [1] * (len(steps) - 1) + [stride]
            parts = [
                Convolution(i, o, kernel, s)
                for (i, o), (_, kernel), s in zip(
                    itertools.pairwise(widths), steps, strides, strict=True
                )
            ]
            self.add_module(
                f"branch{number}", parts[0] if len(parts) == 1 else nn.Sequential(*parts)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [branch(x) for name, branch in self.named_children() if name.startswith("branch")], 1
        )


class ResidualMixed(Mixed):
    """Branches, joined to as many maps as came in, and `scale` of that added to these.

    The last block has no ReLU.
    """

    def __init__(
        self, channels: int, branches: Branches, scale: float, rectify: bool = True
    ) -> None:
        super().__init__(channels, branches)
        self.conv2d = nn.Conv2d(sum(steps[-1][0] for steps in branches), channels, 1)
        self.scale, self.rectify = scale, rectify

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.scale * self.conv2d(super().forward(x))
        return functional.relu(y, inplace=True) if self.rectify else y


class InceptionResNetV2(Encoder):
    """The last maps before each halving."""

    widths = (64, 192, 320, 1088, 1536)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv2d_1a = Convolution(channels, 32, 3, 2)
        self.conv2d_2a = Convolution(32, 32, 3)
        self.conv2d_2b = Convolution(32, 64, 3)
        self.conv2d_3b = Convolution(64, 80, 1)
        self.conv2d_4a = Convolution(80, 192, 3)

        self.mixed_5b = Mixed(192, _MIXED_5B)
        average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.mixed_5b.add_module("branch3", nn.Sequential(average, Convolution(192, 64, 1)))

        self.repeat = nn.Sequential(*(ResidualMixed(320, _BLOCK_35, 0.17) for _ in range(10)))

        self.mixed_6a = Mixed(320, _MIXED_6A, 2)
        self.mixed_6a.add_module("branch2", nn.MaxPool2d(3, 2, 1))

        self.repeat_1 = nn.Sequential(*(ResidualMixed(1088, _BLOCK_17, 0.10) for _ in range(20)))

        self.mixed_7a = Mixed(1088, _MIXED_7A, 2)
        self.mixed_7a.add_module("branch3", nn.MaxPool2d(3, 2, 1))
        self.repeat_2 = nn.Sequential(*(ResidualMixed(2080, _BLOCK_8, 0.20) for _ in range(9)))
        self.block8 = ResidualMixed(2080, _BLOCK_8, 1.0, rectify=False)
        self.conv2d_7b = Convolution(2080, 1536, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))]
        maps.append(self.conv2d_4a(self.conv2d_3b(functional.max_pool2d(maps[-1], 3, 2, 1))))
        maps.append(self.repeat(self.mixed_5b(functional.max_pool2d(maps[-1], 3, 2, 1))))
        maps.append(self.repeat_1(self.mixed_6a(maps[-1])))
        maps.append(self.conv2d_7b(self.block8(self.repeat_2(self.mixed_7a(maps[-1])))))
        return maps


def inception_resnet_v2(channels: int) -> Encoder:
    """Widths 64, 192, 320, 1088, 1536."""
    return InceptionResNetV2(channels)
