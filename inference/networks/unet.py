"""U-Net on the residual encoder.

Ronneberger et al., "U-Net", MICCAI 2015. 4.3 million parameters by default.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.residual import BLOCKS, WIDTHS, ResidualEncoder

UP_WIDTHS = (128, 80, 48, 32)


class UpBlock(nn.Module):
    """Double the size, join the encoder's map of that size, two 3 x 3 convolutions."""

    def __init__(self, channels_in: int, channels_skip: int, channels_out: int) -> None:
        super().__init__()
        self.convolve = nn.Sequential(
            nn.Conv2d(channels_in + channels_skip, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
        return torch.as_tensor(self.convolve(torch.cat([x, skip], dim=1)))


class ResidualUNet(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1, side, side) logits.

    The last step, from half the side, is bilinear.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        blocks: int = BLOCKS,
        up_widths: Sequence[int] = UP_WIDTHS,
    ) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(widths, blocks)
        self.up = nn.ModuleList()
        channels = widths[-1]

        for skip, out in zip(reversed(widths[:-1]), up_widths, strict=True):
            self.up.append(UpBlock(channels, skip, out))
            channels = out

        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        *skips, y = self.encoder(x)
        for block in self.up:
            y = block(y, skips.pop())
        return functional.interpolate(
            self.head(y), size=x.shape[2:], mode="bilinear", align_corners=False
        )
