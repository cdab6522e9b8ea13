"""Squeeze-and-excitation networks: SE-ResNeXt-50 and -101 (32 x 4d), and SENet-154.

Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018; Xie et al., "Aggregated Residual
Transformations for Deep Neural Networks", CVPR 2017; MONAI's networks. Parameters: 25,510,896,
46,906,416 and 113,039,984 - 27,559,896, 48,955,416 and 115,088,984 as published (Cadene, timm),
less the 1,000 classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from inference.extras import needs_training_libraries
from inference.networks.encoders.base import Encoder


class SENet(Encoder):
    """The maps of the stem before its pool, and of the four layers of MONAI's network `model`."""

    def __init__(self, channels: int, model: str, first_width: int) -> None:
        # Imported here: MONAI takes seconds, and only packages that name this encoder should pay.
        with needs_training_libraries(f"encoder {model}"):
            from monai.networks.nets import senet

        super().__init__()
        self.widths = (first_width, 256, 512, 1024, 2048)
        whole: nn.Module = getattr(senet, model)(spatial_dims=2, in_channels=channels)
        for name in ("layer0", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, whole.get_submodule(name))

    def forward(self, x: Tensor) -> list[Tensor]:
        *stem, pool = self.get_submodule("layer0").children()
        for part in stem:
            x = part(x)
        maps = [x]
        x = pool(x)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
            maps.append(x)
        return maps


def se_resnext50(channels: int) -> Encoder:
    """Widths 64, 256, 512, 1024, 2048."""
    return SENet(channels, "SEResNext50", 64)


def se_resnext101(channels: int) -> Encoder:
    """Widths 64, 256, 512, 1024, 2048."""
    return SENet(channels, "SEResNext101", 64)


def senet154(channels: int) -> Encoder:
    """Widths 128, 256, 512, 1024, 2048."""
    return SENet(channels, "SENet154", 128)
