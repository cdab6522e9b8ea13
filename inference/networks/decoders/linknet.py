"""LinkNet's decoder: thin transposed convolutions; the encoder's maps are added, not joined.

Chaurasia and Culurciello, "LinkNet: Exploiting Encoder Representations for Efficient Semantic
Segmentation", VCIP 2017, with the last block as in segmentation_models.pytorch's Linknet:
21,771,937 parameters on a ResNet-34 with colour input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from inference.networks.convolution import convolve
from inference.networks.decoders import Decoder


class LinkBlock(nn.Sequential):
    """(n, in, h, w) -> (n, out, 2 h, 2 w), through a quarter of the channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        inner = channels_in // 4
        super().__init__(
            convolve(channels_in, inner, 1),
            nn.ConvTranspose2d(inner, inner, 4, 2, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            convolve(inner, channels_out, 1),
        )


class LinkNetDecoder(Decoder):
    """Five maps -> (n, 32, side, side)."""

    width = 32

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        steps = (*reversed(widths), self.width)
        self.blocks = nn.ModuleList(LinkBlock(i, o) for i, o in itertools.pairwise(steps))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        *skips, x = maps
        for block in self.blocks:
            x = block(x)
            if skips:
                x = x + skips.pop()
        return [x]
