"""A stack of convolutions at full resolution: the simplest segmentation network.

Its receptive field is 2 x len(widths) + 1 pixels: it sees textures and edges, but no organs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.networks.convolution import convolve

CONV_STACK_WIDTHS = (32, 32, 32, 32)


class ConvStack(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1, side, side) logits, at any side."""

    def __init__(self, widths: Sequence[int] = CONV_STACK_WIDTHS) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(convolve(i, o) for i, o in itertools.pairwise((1, *widths))))
        self.head = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.layers(x)))
