"""DenseNet-121 as an encoder: the features of inference/networks/densenet.py, under the same names.

6,953,856 parameters: 7,978,856 as published, less the 1,000 classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from inference.networks.densenet import DenseNet121
from inference.networks.encoders.base import Encoder


class DenseNet(Encoder):
    """The maps of the stem, then of each block, normalised and rectified."""

    widths = (64, 256, 512, 1024, 1024)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = DenseNet121().features
        self.features.conv0 = nn.Conv2d(channels, self.widths[0], 7, 2, 3, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name, part in self.features.named_children():
            if name.startswith("transition"):
                maps.append(functional.relu(part.get_submodule("norm")(x)))
                x = part.get_submodule("pool")(part.get_submodule("conv")(maps[-1]))
            else:
                x = part(x)
            if name == "relu0":
                maps.append(x)
        return [*maps, functional.relu(x)]


def densenet121(channels: int) -> Encoder:
    """Widths 64, 256, 512, 1024, 1024."""
    return DenseNet(channels)
