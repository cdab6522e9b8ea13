"""MONAI's UNet++, with its own encoder and without pretrained weights.

Zhou et al., "UNet++: A Nested U-Net Architecture for Medical Image Segmentation", DLMIA 2018, with
MONAI's instance normalisation and leaky ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.extras import needs_training_libraries

FEATURES = (32, 32, 64, 128, 256, 32)


class MonaiUNetPlusPlus(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1, side, side) logits; the side is a multiple of 16.

    `features` are the five widths of the encoder and that of the last node. With `deep_supervision`
    the ends of the four nested U-Nets while training, the deepest first.
    """

    def __init__(self, features: Sequence[int] = FEATURES, deep_supervision: bool = False) -> None:
        # Imported here: MONAI takes seconds, and only packages that name this network should pay.
        with needs_training_libraries("network monai-unet-plus-plus"):
            from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

        super().__init__()
        self.network = BasicUNetPlusPlus(2, 1, 1, tuple(features), deep_supervision)
        if not deep_supervision:
            # MONAI computes these heads and drops them.
            for step in range(1, 4):
                setattr(self.network, f"final_conv_0_{step}", nn.Identity())

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = [torch.as_tensor(one) for one in self.network(x)][::-1]
        return maps if self.training and len(maps) > 1 else maps[0]
