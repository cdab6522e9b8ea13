"""DenseNet-121: every layer of a block sees the maps of all before it.

Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, Table 1. 7,978,856 parameters
with 1,000 outputs and colour input, as published. The names of the weights are those of
torchvision's checkpoints, so that one of them (or CheXNet, inference/importing.py) is loaded as it
is.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.imagenet import ImageNetInput, XRayVisionInput

# Maps that each layer adds.
_GROWTH = 32
_BLOCKS = (6, 12, 24, 16)
# Maps after the stem.
_FIRST = 64
# Times _GROWTH: the maps between a layer's two convolutions.
_BOTTLENECK = 4


class DenseLayer(nn.Module):
    """(n, c, h, w) -> the same with 32 maps more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = _BOTTLENECK * _GROWTH
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, _GROWTH, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        y = self.conv2(functional.relu(self.norm2(y)))
        return torch.cat([x, y], dim=1)


class DenseNet121(nn.Module):
    """(n, 1, side, side) float32 -> (n, outputs) logits.

    `stem` is "grey" (one map in), "torchxrayvision" (the same, -1024 to 1024) or "imagenet" (0
    black to 1 white, repeated to three colours and standardised with ImageNet's mean and deviation,
    as networks want it that were trained on photographs first).
    """

    def __init__(self, outputs: int = 1, stem: str = "grey") -> None:
        super().__init__()
        inputs = {"imagenet": ImageNetInput, "torchxrayvision": XRayVisionInput}
        self.input: nn.Module = inputs.get(stem, nn.Identity)()
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3 if stem == "imagenet" else 1, _FIRST, 7, 2, 3, bias=False),
            norm0=nn.BatchNorm2d(_FIRST),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, 2, 1),
        )
        channels = _FIRST

        for number, layers in enumerate(_BLOCKS, 1):
            block = nn.Sequential()

            for i in range(layers):
                block.add_module(f"denselayer{i + 1}", DenseLayer(channels + i * _GROWTH))

            parts[f"denseblock{number}"] = block
            channels += layers * _GROWTH

            if number < len(_BLOCKS):
                parts[f"transition{number}"] = _transition(channels)
                channels //= 2

        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        maps = functional.relu(self.features(self.input(x)))
        return torch.as_tensor(self.classifier(maps.mean((2, 3))))


def _transition(channels: int) -> nn.Sequential:
    """(n, c, h, w) -> (n, c / 2, h / 2, w / 2)."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )
