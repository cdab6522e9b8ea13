"""The interface of every encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Encoder(nn.Module):
    """(n, channels, side, side) -> five maps, `widths` channels each; the side is a multiple of 32.

    Its modules are registered in the order of the forward pass, and all of them are used.
    """

    widths: Sequence[int]

    def forward(self, x: Tensor) -> list[Tensor]:
        """The five maps, the largest first."""
        raise NotImplementedError


class SymmetricInput(nn.Module):
    """(n, 1, h, w), 0 black to 1 white -> (n, 3, h, w), -1 to 1.

    The published Inception and Xception checkpoints expect this range instead of ImageNet's
    standardised colours.
    """

    def forward(self, x: Tensor) -> Tensor:
        return (2 * x - 1).repeat(1, 3, 1, 1)
