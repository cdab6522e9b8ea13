"""A very small plain network for one coarse question about a grey image.

64,000 parameters by default.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

PLAIN_WIDTHS = (8, 16, 24, 32, 48)


class PlainClassifier(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1) logits.

    3 x 3 convolutions, two to each halving, then mean and maximum.
    """

    def __init__(self, widths: Sequence[int] = PLAIN_WIDTHS) -> None:
        super().__init__()
        pairs = itertools.pairwise((1, *widths))
        self.stages = nn.Sequential(
            *(part for i, o in pairs for part in (_convolve(i, o, 2), _convolve(o, o, 1)))
        )
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        deepest = self.stages(x)
        return torch.as_tensor(
            self.head(torch.cat([deepest.mean((2, 3)), deepest.amax((2, 3))], dim=1))
        )


def _convolve(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
