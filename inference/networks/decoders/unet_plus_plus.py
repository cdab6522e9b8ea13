"""UNet++'s decoder: nested U-Nets of every depth share one encoder.

Each node sees all earlier nodes of its size.

Zhou et al., "UNet++: A Nested U-Net Architecture for Medical Image Segmentation", DLMIA 2018. Level
0 is at half the side, as in segmentation_models.pytorch's UnetPlusPlus: 26,078,609 parameters on a
ResNet-34 with colour input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.networks.decoders import Decoder
from inference.networks.decoders.unet import UP_WIDTHS, UpBlock


class UNetPlusPlusDecoder(Decoder):
    """Five maps -> (n, 16, side, side).

    Node x_i_j is at level i (0 the largest maps), j steps from the encoder. Inner nodes are as wide
    as the encoder at their level, the last of each level as wide as U-Net's. With
    `deep_supervision` the inner nodes of level 0, each the end of a smaller U-Net, give a map of
    logits too while training. `residual` is of UpBlock.
    """

    kernel = 3

    def __init__(
        self,
        widths: Sequence[int],
        up_widths: Sequence[int] = UP_WIDTHS,
        residual: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.width = up_widths[-1]
        self.depth = len(widths) - 1
        # The width of each level's last node; the deepest level has the encoder's map alone.
        ends = (
            *reversed(up_widths[:-1]),
            widths[-1],
        )
        self.nodes = nn.ModuleDict()

        for level, step in self._order():
            is_end = level + step == self.depth
            below = ends[level + 1] if is_end else widths[level + 1]
            out = ends[level] if is_end else widths[level]
            self.nodes[f"x_{level}_{step}"] = UpBlock(below, step * widths[level], out, residual)

        self.last = UpBlock(ends[0], 0, self.width, residual)
        inner = range(1, self.depth) if deep_supervision else ()
        self.heads = nn.ModuleDict({f"x_0_{step}": nn.Conv2d(widths[0], 1, 1) for step in inner})

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        rows = [[one] for one in maps]
        for level, step in self._order():
            node = self.nodes[f"x_{level}_{step}"]
            rows[level].append(node(rows[level + 1][step - 1], torch.cat(rows[level], dim=1)))
        features = [self.last(rows[0][-1], None)]
        if self.training:
            features += [
                self.heads[f"x_0_{step}"](rows[0][step]) for step in range(len(self.heads), 0, -1)
            ]
        return features

    def _order(self) -> list[tuple[int, int]]:
        """(level, step) of every node, each after the nodes that it reads."""
        return [
            (level, step)
            for step in range(1, self.depth + 1)
            for level in range(self.depth - step, -1, -1)
        ]
