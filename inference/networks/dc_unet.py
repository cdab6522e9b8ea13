"""DC-UNet: a U-Net of dual-channel blocks, whose skips are residual paths.

Lou et al., "DC-UNet: Rethinking the U-Net Architecture with Dual Channel Efficient CNN for Medical
Images Segmentation", SPIE Medical Imaging 2021. 10,046,782 parameters; the published 10,069,640
also count running statistics, and its convolutions' batch normalisation has no scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.convolution import convolve

_WIDTHS = (32, 64, 128, 256, 512)
# A block has about 1.67 times its width in channels, divided among its three convolutions.
_ALPHA = 1.67
_SHARES = (0.167, 0.333, 0.5)


class DualChannelBlock(nn.Module):
    """The sum of two rows of three 3 x 3 convolutions, whose receptive fields are 3, 5 and 7.

    (n, in, h, w) -> (n, out, h, w); out is a little less than 1.67 times `width`.
    """

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.rows = nn.ModuleList(_Row(channels_in, _widths(width)) for _ in range(2))
        self.normalise = nn.BatchNorm2d(sum(_widths(width)))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.rows
        return torch.as_tensor(self.normalise(functional.relu(first(x) + second(x))))


class _Row(nn.Module):
    """Convolutions one after the other; the feature maps of all of them, concatenated."""

    def __init__(self, channels_in: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            convolve(i, o) for i, o in itertools.pairwise((channels_in, *widths))
        )
        self.normalise = nn.BatchNorm2d(sum(widths))

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for convolution in self.convolutions:
            x = convolution(x)
            seen.append(x)
        return torch.as_tensor(self.normalise(torch.cat(seen, dim=1)))


class ResidualPath(nn.Module):
    """`length` residual steps of one 3 x 3 convolution; (n, in, h, w) -> (n, out, h, w)."""

    def __init__(self, channels_in: int, channels_out: int, length: int) -> None:
        super().__init__()
        ins = (channels_in, *(channels_out,) * (length - 1))
        self.convolutions = nn.ModuleList(convolve(i, channels_out) for i in ins)
        # Convolution and normalisation alone, without the ReLU.
        self.shortcuts = nn.ModuleList(convolve(i, channels_out, 1)[:2] for i in ins)
        self.normalise = nn.ModuleList(nn.BatchNorm2d(channels_out) for _ in ins)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, shortcut, normalise in zip(
            self.convolutions, self.shortcuts, self.normalise, strict=True
        ):
            x = normalise(functional.relu(convolution(x) + shortcut(x)))
        return x


class DCUNet(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1, side, side) logits; the side is a multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        channels = 1

        for width in _WIDTHS:
            self.down.append(DualChannelBlock(channels, width))
            channels = sum(_widths(width))

        self.paths = nn.ModuleList()
        self.enlarge = nn.ModuleList()
        self.up = nn.ModuleList()

        # The larger the maps, the longer their residual path.
        for length, level in enumerate(reversed(range(len(_WIDTHS) - 1)), 1):
            width = _WIDTHS[level]
            self.paths.append(ResidualPath(sum(_widths(width)), width, length))
            self.enlarge.append(nn.ConvTranspose2d(channels, width, 2, 2))
            self.up.append(DualChannelBlock(2 * width, width))
            channels = sum(_widths(width))

        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for stage in self.down[1:]:
            maps.append(stage(functional.max_pool2d(maps[-1], 2)))

        *skips, x = maps
        for path, enlarge, stage in zip(self.paths, self.enlarge, self.up, strict=True):
            x = stage(torch.cat([enlarge(x), path(skips.pop())], dim=1))
        return torch.as_tensor(self.head(x))


def _widths(width: int) -> list[int]:
    """The channels of a block's three convolutions."""
    return [int(_ALPHA * width * share) for share in _SHARES]
