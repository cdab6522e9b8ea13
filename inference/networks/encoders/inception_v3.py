"""Inception-v3: branches of small and factorised convolutions, side by side.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, Table 1 and
Figures 5 to 7 and 10. 21,785,568 parameters: 23,834,568 as published without the auxiliary
classifier, less the 1,000 classes. The weights have torchvision's names. Every convolution and pool
is padded here (the paper leaves out the padding in the stem and where the size is halved), so that
each map is an exact fraction of the side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.encoders.base import Encoder

Kernel = int | tuple[int, int]
# One step of a branch: its width, and its kernel; with two kernels, two convolutions of the same
# maps, joined.
Step = tuple[int, Kernel] | tuple[int, Kernel, Kernel]
_ROW, _COLUMN = (1, 7), (7, 1)


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU; padded so that only `stride` changes the size."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: Kernel, stride: int = 1
    ) -> None:
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (rows // 2, columns // 2)
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches of convolutions and a pool, joined; (n, c, h, w) -> (n, width, h, w).

    `halve` gives half the size: the last step of each branch has stride 2, and the pool is a
    maximum without a convolution.
    """

    def __init__(
        self, channels: int, branches: Mapping[str, Sequence[Step]], halve: bool = False
    ) -> None:
        super().__init__()
        self.halve = halve
        self.width = channels if halve else 0
        # The names of the convolutions in each step of each branch.
        self._branches: list[list[list[str]]] = []

        for branch, steps in branches.items():
            names: list[list[str]] = []
            channels_in = channels

            for number, (width, *kernels) in enumerate(steps, 1):
                stem = branch if len(steps) == 1 else f"{branch}_{number}"
                names.append([stem] if len(kernels) == 1 else [f"{stem}a", f"{stem}b"])
                stride = 2 if halve and number == len(steps) else 1

                for name, kernel in zip(names[-1], kernels, strict=True):
                    self.add_module(name, Convolution(channels_in, width, kernel, stride))

                channels_in = width * len(kernels)

            self._branches.append(names)
            self.width += channels_in

    def forward(self, x: Tensor) -> Tensor:
        pooled = (
            functional.max_pool2d(x, 3, 2, 1) if self.halve else functional.avg_pool2d(x, 3, 1, 1)
        )
        joined = []

        for names in self._branches:
            maps = [pooled if names == [["branch_pool"]] else x]

            for step in names:
                maps = [
                    self.get_submodule(name)(maps[0] if len(maps) == 1 else torch.cat(maps, 1))
                    for name in step
                ]

            joined += maps

        return torch.cat([*joined, pooled] if self.halve else joined, 1)


def _mixed_5(pool: int) -> dict[str, list[Step]]:
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(pool, 1)],
    }


def _mixed_6(inner: int) -> dict[str, list[Step]]:
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(inner, 1), (inner, _ROW), (192, _COLUMN)],
        "branch7x7dbl": [
            (inner, 1),
            (inner, _COLUMN),
            (inner, _ROW),
            (inner, _COLUMN),
            (192, _ROW),
        ],
        "branch_pool": [(192, 1)],
    }


_MIXED_6A: dict[str, list[Step]] = {
    "branch3x3": [(384, 3)],
    "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
}
_MIXED_7A: dict[str, list[Step]] = {
    "branch3x3": [(192, 1), (320, 3)],
    "branch7x7x3": [(192, 1), (192, _ROW), (192, _COLUMN), (192, 3)],
}
_MIXED_7: dict[str, list[Step]] = {
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), (384, (1, 3), (3, 1))],
    "branch3x3dbl": [(448, 1), (384, 3), (384, (1, 3), (3, 1))],
    "branch_pool": [(192, 1)],
}


class InceptionV3(Encoder):
    """The last maps before each halving."""

    widths = (64, 192, 288, 768, 2048)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(channels, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)

        self.Mixed_5b = Mixed(192, _mixed_5(32))
        self.Mixed_5c = Mixed(256, _mixed_5(64))
        self.Mixed_5d = Mixed(288, _mixed_5(64))

        self.Mixed_6a = Mixed(288, _MIXED_6A, halve=True)
        self.Mixed_6b = Mixed(768, _mixed_6(128))
        self.Mixed_6c = Mixed(768, _mixed_6(160))
        self.Mixed_6d = Mixed(768, _mixed_6(160))
        self.Mixed_6e = Mixed(768, _mixed_6(192))

        self.Mixed_7a = Mixed(768, _MIXED_7A, halve=True)
        self.Mixed_7b = Mixed(1280, _MIXED_7)
        self.Mixed_7c = Mixed(2048, _MIXED_7)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))]
        maps.append(
            self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(maps[-1], 3, 2, 1)))
        )
        maps.append(
            self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(functional.max_pool2d(maps[-1], 3, 2, 1))))
        )
        maps.append(
            self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(maps[-1])))))
        )
        maps.append(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(maps[-1]))))

        return maps


def inception_v3(channels: int) -> Encoder:
    """Widths 64, 192, 288, 768, 2048."""
    return InceptionV3(channels)
