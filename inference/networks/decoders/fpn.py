"""A feature pyramid for segmentation: maps of four sizes, merged from the deepest up and summed.

Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017; the branch to one map is
Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, section 3.1. Shape as
segmentation_models.pytorch's FPN: 23,155,393 parameters on a ResNet-34 with colour input.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from inference.networks.decoders import Decoder

# Channels of each of its maps.
_PYRAMID = 256
# Of group normalisation.
_GROUPS = 32
_DROPOUT = 0.2


class FPNDecoder(Decoder):
    """The four deeper maps -> (n, 128, side / 4, side / 4)."""

    width = 128
    stride = 4

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, _PYRAMID, 1) for width in widths[1:])
        self.branches = nn.ModuleList(
            _branch(doublings, self.width) for doublings in range(len(widths) - 1)
        )
        self.dropout = nn.Dropout2d(_DROPOUT)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        pyramid = [lateral(one) for lateral, one in zip(self.laterals, maps[1:], strict=True)]
        for i in range(len(pyramid) - 2, -1, -1):
            pyramid[i] = pyramid[i] + functional.interpolate(
                pyramid[i + 1], scale_factor=2.0, mode="nearest"
            )
        first, *rest = (branch(one) for branch, one in zip(self.branches, pyramid, strict=True))
        return [self.dropout(sum(rest, first))]


def _branch(doublings: int, width: int) -> nn.Sequential:
    """(n, 256, h, w) -> (n, width, h 2^doublings, w 2^doublings)."""
    branch = nn.Sequential()
    for i in range(max(1, doublings)):
        branch.append(nn.Conv2d(width if i else _PYRAMID, width, 3, 1, 1, bias=False))
        branch.append(nn.GroupNorm(_GROUPS, width))
        branch.append(nn.ReLU())
        if doublings:
            branch.append(nn.Upsample(scale_factor=2, mode="bilinear"))
    return branch
