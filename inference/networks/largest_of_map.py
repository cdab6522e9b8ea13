"""A segmenter as a classifier: an image is positive if enough of it is."""

from __future__ import annotations

from torch import Tensor, nn


class LargestOfMap(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1): the `pixels`-th largest logit of the segmenter's map.

    It reaches a threshold exactly where at least that many pixels do: the first half of the rule of
    three thresholds that won SIIM-ACR 2019. While training the map follows, for a loss that knows
    the masks.
    """

    def __init__(self, segmenter: nn.Module, pixels: int) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.pixels = pixels

    @property
    def encoder(self) -> nn.Module:
        """The segmenter's: for starting weights, and to be frozen."""
        return self.segmenter.get_submodule("encoder")

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        answer = self.segmenter(x)
        maps = answer if isinstance(answer, list) else [answer]
        largest = maps[0].flatten(1).topk(self.pixels).values[:, -1:]
        return [largest, *maps] if self.training else largest
