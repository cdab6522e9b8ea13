"""FCN-8s: scores at 1/32, 1/16 and 1/8 of the side, brought together by transposed convolutions.

Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 4. With
`hidden` 4096 and `kernel` 7 the two convolutions are the paper's, 119.5 million of its 134 million
parameters on a VGG-16. Without `skips` it is FCN-32s, of the scores at 1/32 alone; with one skip,
FCN-16s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.decoders import Decoder


class FCNDecoder(Decoder):
    """The three deeper maps -> scores (n, 1, side / `stride`, side / `stride`).

    `skips`, from 0 to 2, is how many maps above the deepest are scored too. An even `kernel`, as
    AlexNet's 6, reaches one cell farther to the right and below: AlexNet's cells are centred at
    their upper left corners, so its scores end up centred.
    """

    width = 1

    def __init__(
        self,
        widths: Sequence[int],
        hidden: int = 512,
        kernel: int = 3,
        dropout: float = 0.5,
        skips: int = 2,
    ) -> None:
        super().__init__()
        self.stride = 32 >> skips
        self._extra = 1 - kernel % 2

        self.convolve = nn.Sequential(
            nn.Conv2d(widths[-1], hidden, kernel, padding=(kernel - 1) // 2),
            nn.ReLU(), nn.Dropout2d(dropout),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Dropout2d(dropout),
        )  # fmt: skip

        skipped = [widths[-2 - number] for number in range(skips)]
        self.scores = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in (hidden, *skipped))
        self.doublings = nn.ModuleList(_enlarge(2) for _ in skipped)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        deepest, *above = self.scores
        x = functional.pad(maps[-1], (0, self._extra, 0, self._extra)) if self._extra else maps[-1]
        x = deepest(self.convolve(x))

        for number, (double, score) in enumerate(zip(self.doublings, above, strict=True)):
            x = double(x) + score(maps[-2 - number])

        return [x]

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
