"""U-Net's decoder: each step doubles the size and joins the encoder's map of that size.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.
Shape and weight names are those of segmentation_models.pytorch's Unet without attention: 24,436,369
parameters on a ResNet-34 with colour input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.convolution import convolve
from inference.networks.decoders import Decoder

UP_WIDTHS = (256, 128, 64, 32, 16)


class UpBlock(nn.Module):
    """Double the size (nearest neighbour), join the encoder's map of that size, convolve twice.

    At the full side there is no such map.

    `residual`: beside a 1 x 1 convolution (Zhang et al., "Road Extraction by Deep Residual U-Net",
    2018).
    """

    def __init__(
        self, channels_in: int, channels_skip: int, channels_out: int, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = convolve(channels_in + channels_skip, channels_out)
        self.conv2 = convolve(channels_out, channels_out)
        self.shortcut = (
            nn.Conv2d(channels_in + channels_skip, channels_out, 1) if residual else None
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        y = torch.as_tensor(self.conv2(self.conv1(x)))
        return y if self.shortcut is None else y + self.shortcut(x)


class UNetDecoder(Decoder):
    """Five maps -> (n, the last of `up_widths`, side / stride, side / stride).

    Five widths reach the full side. Each width left out doubles `stride`: most of the arithmetic is
    in the last blocks.
    """

    kernel = 3

    def __init__(self, widths: Sequence[int], up_widths: Sequence[int] = UP_WIDTHS) -> None:
        super().__init__()
        if len(up_widths) > len(widths):
            raise ValueError(
                f"up_widths: {len(up_widths)} found, at most {len(widths)} allowed: "
                "one for each halving"
            )

        self.width = up_widths[-1]
        self.stride = 2 ** (len(widths) - len(up_widths))

        self.blocks = nn.ModuleList()
        channels = widths[-1]
        skips = (*reversed(widths[:-1]), 0)
        for skip, out in zip(skips, up_widths, strict=False):
            self.blocks.append(UpBlock(channels, skip, out))
            channels = out

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        *skips, x = maps
        for block in self.blocks:
            x = block(x, skips.pop() if skips else None)
        return [x]
