"""EfficientNet-B3 and -B4: inverted bottlenecks with squeeze-and-excitation, scaled together.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019;
MONAI's network, with its drop-connect (0.2). Parameters: 10,103,336 and 16,742,216 - 12,233,232 and
19,341,616 as published, less the last 1 x 1 convolution and the 1,000 classes. MONAI pads each
stride as is right for the published side (300, 380 px): at another side the maps are of exact size,
but lie up to half a pixel of the map beside TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from inference.extras import needs_training_libraries
from inference.networks.encoders.base import Encoder

_HEAD = ("_conv_head", "_conv_head_padding", "_bn1", "_avg_pooling", "_dropout", "_fc")


class EfficientNet(Encoder):
    """The last maps before each halving."""

    def __init__(self, channels: int, model: str, widths: Sequence[int]) -> None:
        # Imported here: MONAI takes seconds, and only packages that name this encoder should pay.
        with needs_training_libraries(f"encoder {model}"):
            from monai.networks.nets.efficientnet import EfficientNetBNFeatures

        super().__init__()
        self.widths = widths
        self.features = EfficientNetBNFeatures(model, pretrained=False, in_channels=channels)

        for name in _HEAD:
            delattr(self.features, name)

        for module in self.features.modules():
            # torch's own is exported, and needs less memory than MONAI's
            if hasattr(module, "_swish"):
                module._swish = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.features(x)
        return maps


def efficientnet_b3(channels: int) -> Encoder:
    """Widths 24, 32, 48, 136, 384."""
    return EfficientNet(channels, "efficientnet-b3", (24, 32, 48, 136, 384))


def efficientnet_b4(channels: int) -> Encoder:
    """Widths 24, 32, 56, 160, 448."""
    return EfficientNet(channels, "efficientnet-b4", (24, 32, 56, 160, 448))
