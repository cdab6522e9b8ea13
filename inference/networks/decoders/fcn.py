"""FCN-8s: scores at 1/32, 1/16 and 1/8 of the side, brought together by transposed convolutions.

Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 4. With
`hidden` 4096 and `kernel` 7 the two convolutions are the paper's, 119.5 million of its 134 million
parameters on a VGG-16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.networks.decoders import Decoder


class FCNDecoder(Decoder):
    """The three deeper maps -> scores (n, 1, side / 8, side / 8)."""

    width = 1
    stride = 8

    def __init__(
        self, widths: Sequence[int], hidden: int = 512, kernel: int = 3, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.convolve = nn.Sequential(
            nn.Conv2d(widths[-1], hidden, kernel, padding=kernel // 2),
            nn.ReLU(), nn.Dropout2d(dropout),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Dropout2d(dropout),
        )  # fmt: skip
        self.scores = nn.ModuleList(
            nn.Conv2d(width, 1, 1) for width in (hidden, widths[-2], widths[-3])
        )
        self.doublings = nn.ModuleList(_enlarge(2) for _ in range(2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        deepest, half, quarter = self.scores
        x = self.doublings[0](deepest(self.convolve(maps[-1]))) + half(maps[-2])
        return [self.doublings[1](x) + quarter(maps[-3])]

    def head(self) -> nn.Sequential:
        return nn.Sequential(_enlarge(self.stride))


def _enlarge(factor: int) -> nn.ConvTranspose2d:
    """(n, 1, h, w) -> (n, 1, h factor, w factor).

    It starts as bilinear interpolation (section 3.3).
    """
    layer = nn.ConvTranspose2d(1, 1, 2 * factor, factor, factor // 2, bias=False)
    centre = factor - 0.5
    line = 1 - (torch.arange(2 * factor, dtype=torch.float32) - centre).abs() / factor
    with torch.no_grad():
        layer.weight.copy_(line[:, None] * line)
    return layer
