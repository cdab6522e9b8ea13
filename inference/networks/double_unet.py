"""Double U-Net: a second U-Net looks at the image as the mask of the first lets it through.

Jha et al., "DoubleU-Net: A Deep Convolutional Neural Network for Medical Image Segmentation", CBMS
2020: VGG-19 as the first encoder, atrous pyramids between encoders and decoders,
squeeze-and-excitation after every pair of convolutions. With four blocks and colour input
29,288,886 parameters; 29.3 million are published.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks import encoders
from inference.networks.decoders.deeplab_v3 import AtrousPyramid
from inference.networks.plain_unet import twice
from inference.networks.residual import SqueezeExcite

# Of the second encoder and, backwards, of both decoders.
_WIDTHS = (32, 64, 128, 256)
# Convolutions before each of its pools.
_VGG_WIDTHS = (64, 128, 256, 512, 512)
_PYRAMID = 64
_RATES = (6, 12, 18)


class DoubleUNet(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1, side, side) logits of the second U-Net.

    While training: [second, first].

    `blocks` is how often each encoder halves: 4 as published, 2 or 3 for less; the side can be
    halved that often. `stem` as in DenseNet121.
    """

    def __init__(self, blocks: int = 4, stem: str = "grey") -> None:
        super().__init__()
        widths, first_skips = _WIDTHS[:blocks], _VGG_WIDTHS[:blocks]

        self.input, self.encoder = encoders.build("vgg19", stem)
        layers = list(self.encoder.get_submodule("features").children())
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        last = pools[blocks]

        # Published weights of the whole encoder also hold these tensors, which this part lacks.
        self.unused = frozenset(
            f"features.{i}.{one}"
            for i in range(last, len(layers))
            for one in layers[i].state_dict()
        )

        self.encoder.features = nn.Sequential(*layers[:last])
        self.pyramid = AtrousPyramid(_VGG_WIDTHS[blocks], _PYRAMID, _RATES)
        self.decoder = _Decoder([first_skips], widths)

        channels = 1 if stem == "grey" else 3
        self.second_encoder = nn.ModuleList(
            _excited(i, o) for i, o in itertools.pairwise((channels, *widths))
        )
        self.second_pyramid = AtrousPyramid(widths[-1], _PYRAMID, _RATES)
        self.second_decoder = _Decoder([first_skips, widths], widths)

        self.head = nn.Conv2d(widths[0], 1, 1)
        self.second_head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        first, second = self.both(x)
        return [second, first] if self.training else second

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the first and of the second U-Net, each (n, 1, side, side).

        The paper keeps both; a package draws the second.
        """
        image = self.input(x)
        y, first_skips = image, []

        for layer in self.encoder.get_submodule("features").children():
            if isinstance(layer, nn.MaxPool2d):
                first_skips.append(y)
            y = layer(y)

        first = torch.as_tensor(self.head(self.decoder(self.pyramid(y), [first_skips])))

        y, skips = image * torch.sigmoid(first), []

        for stage in self.second_encoder:
            skips.append(stage(y))
            y = functional.max_pool2d(skips[-1], 2)

        y = self.second_decoder(self.second_pyramid(y), [first_skips, skips])
        return first, torch.as_tensor(self.second_head(y))


class _Decoder(nn.Module):
    """Double the size, join each encoder's map of that size, convolve."""

    def __init__(self, skips: Sequence[Sequence[int]], widths: Sequence[int]) -> None:
        super().__init__()
        ins = (_PYRAMID, *reversed(widths[1:]))
        joined = [sum(sizes) for sizes in zip(*skips, strict=True)]
        outs = zip(ins, reversed(joined), reversed(widths), strict=True)
        self.stages = nn.ModuleList(_excited(i + skip, o) for i, skip, o in outs)

    def forward(self, x: Tensor, skips: list[list[Tensor]]) -> Tensor:
        for stage, *maps in zip(self.stages, *(reversed(one) for one in skips), strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = stage(torch.cat([x, *maps], dim=1))
        return x


def _excited(channels_in: int, channels_out: int) -> nn.Sequential:
    return twice(channels_in, channels_out).append(SqueezeExcite(channels_out))
