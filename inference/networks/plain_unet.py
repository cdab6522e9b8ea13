"""The plain U-Net: convolutions in pairs, maximum pools down, transposed convolutions up.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
with batch normalisation and padded convolutions. 7,763,041 parameters with widths from 32 to 512
and colour input, as Buda et al., "Association of Genomic Subtypes of Lower-Grade Gliomas",
Computers in Biology and Medicine 2019, published it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.convolution import convolve

PLAIN_UNET_WIDTHS = (64, 128, 256, 256, 256, 256)
PLAIN_UNET_UP_WIDTHS = (512, 512, 256, 128, 64)


class PlainUNet(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1, side, side) logits.

    The side can be halved once less than there are widths. `widths` are of the way down, the first
    at the full side, `up_widths` of the way up.
    """

    def __init__(
        self,
        widths: Sequence[int] = PLAIN_UNET_WIDTHS,
        up_widths: Sequence[int] = PLAIN_UNET_UP_WIDTHS,
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList(twice(i, o) for i, o in itertools.pairwise((1, *widths)))
        self.enlarge = nn.ModuleList()
        self.up = nn.ModuleList()
        channels = widths[-1]

        for skip, out in zip(reversed(widths[:-1]), up_widths, strict=True):
            self.enlarge.append(nn.ConvTranspose2d(channels, out, 2, 2))
            self.up.append(twice(out + skip, out))
            channels = out

        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for stage in self.down[1:]:
            maps.append(stage(functional.max_pool2d(maps[-1], 2)))
        *skips, x = maps
        for enlarge, stage in zip(self.enlarge, self.up, strict=True):
            x = stage(torch.cat([enlarge(x), skips.pop()], dim=1))
        return torch.as_tensor(self.head(x))


def twice(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions; (n, in, h, w) -> (n, out, h, w)."""
    return nn.Sequential(convolve(channels_in, channels_out), convolve(channels_out, channels_out))
