"""DeepLabV3: atrous convolutions of several rates over the deepest map.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017. Shape as
segmentation_models.pytorch's DeepLabV3: 39,633,729 parameters on a ResNet-50 with colour input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.networks.convolution import convolve
from inference.networks.decoders import Decoder

_DROPOUT = 0.5
# Atrous rates in pixels of the image: 6, 12 and 18 at 1/16 of the side (section 4.1).
_RATES = (
    96,
    192,
    288,
)


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (ASPP): (n, in, h, w) -> (n, out, h, w)."""

    def __init__(self, channels_in: int, channels_out: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                convolve(channels_in, channels_out, 1),
                *(convolve(channels_in, channels_out, 3, rate) for rate in rates),
            ]
        )
        self.pooled = convolve(channels_in, channels_out, 1)
        self.project = convolve((len(rates) + 2) * channels_out, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [branch(x) for branch in self.branches]
        whole = self.pooled(x.mean((2, 3), keepdim=True)).expand_as(seen[0])
        return torch.as_tensor(self.project(torch.cat([*seen, whole], dim=1)))


class DeepLabV3Decoder(Decoder):
    """The deepest map, at 1/`stride` of the side -> (n, 256, side / stride, side / stride)."""

    width = 256

    def __init__(self, widths: Sequence[int], stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.pyramid = AtrousPyramid(widths[-1], self.width, [rate // stride for rate in _RATES])
        self.dropout = nn.Dropout(_DROPOUT)
        self.convolve = convolve(self.width, self.width)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [self.convolve(self.dropout(self.pyramid(maps[-1])))]
