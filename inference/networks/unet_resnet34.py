"""U-Net with a ResNet-34 encoder, the usual baseline on SIIM-ACR.

Ronneberger et al., "U-Net", MICCAI 2015; He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Shape
and weight names are those of segmentation_models.pytorch's Unet("resnet34") without attention (24,436,369 parameters
with colour input); the encoder's names are also those of torchvision's resnet34.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.imagenet import ImageNetInput

_LAYERS = (3, 4, 6, 3)
_WIDTHS = (64, 64, 128, 256, 512)  # of the encoder's maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the side
_UP_WIDTHS = (256, 128, 64, 32, 16)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; (n, in, h, w) -> (n, out, h / stride, w / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet34(nn.Module):
    """(n, 1 or 3, side, side) -> five maps at 1/2 to 1/32 of the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _WIDTHS[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        for number, (i, o) in enumerate(itertools.pairwise(_WIDTHS), 1):
            first = BasicBlock(i, o, 1 if number == 1 else 2)
            rest = (BasicBlock(o, o, 1) for _ in range(_LAYERS[number - 1] - 1))
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [functional.relu(self.bn1(self.conv1(x)))]
        x = functional.max_pool2d(maps[0], 3, 2, 1)
        for number in range(1, len(_WIDTHS)):
            x = self.get_submodule(f"layer{number}")(x)
            maps.append(x)
        return maps


class UpBlock(nn.Module):
    """Double the size (nearest neighbour), join the encoder's map of that size if there is one, convolve twice."""

    def __init__(self, channels_in: int, channels_skip: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels_in + channels_skip, channels_out)
        self.conv2 = _convolution(channels_out, channels_out)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return torch.as_tensor(self.conv2(self.conv1(x)))


class Decoder(nn.Module):
    """The encoder's five maps -> (n, 16, side, side)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = _WIDTHS[-1]
        for skip, out in zip((*reversed(_WIDTHS[:-1]), 0), _UP_WIDTHS, strict=True):
            self.blocks.append(UpBlock(channels, skip, out))
            channels = out

    def forward(self, maps: list[Tensor]) -> Tensor:
        *skips, x = maps
        for block in self.blocks:
            x = block(x, skips.pop() if skips else None)
        return x


class UNetResNet34(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1, side, side) logits; the side is a multiple of 32.

    `stem` as in DenseNet121: "grey" or "imagenet".
    """

    def __init__(self, stem: str = "grey") -> None:
        super().__init__()
        self.input = ImageNetInput() if stem == "imagenet" else nn.Identity()
        self.encoder = ResNet34(3 if stem == "imagenet" else 1)
        self.decoder = Decoder()
        self.segmentation_head = nn.Sequential(nn.Conv2d(_UP_WIDTHS[-1], 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.segmentation_head(self.decoder(self.encoder(self.input(x)))))


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, 1, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )
