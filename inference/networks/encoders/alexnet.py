"""AlexNet, in one tower.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, as
torchvision has it. 2,469,696 parameters: 61,100,840 as published, less the three fully connected
layers. The weights have torchvision's names.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from inference.networks.encoders.base import Encoder


class AlexNet(Encoder):
    """The image itself, folded to half the side, and the maps of 1/4, 1/8, 1/16 and 1/32.

    The first convolution quarters the side, so no map has half of it: four pixels become four
    channels. Its padding is 5 and that of the pools 1, where the original has 2 and 0: its maps
    are then exact fractions of the side.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widths = (4 * channels, 64, 192, 256, 256)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 11, 4, 5), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [functional.pixel_unshuffle(x, 2)]
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return [*maps, x]


def alexnet(channels: int) -> Encoder:
    """Widths 4 for each input channel, then 64, 192, 256, 256."""
    return AlexNet(channels)
