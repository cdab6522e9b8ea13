"""A fully convolutional network by transfer: transposed convolutions over the deepest map, no
skips.

Two maps, background and finding, grow from 1/32 of the side to the full side. The published
networks end in a softmax of both; the answer here is the difference of both logits, of which the
sigmoid is the same number. Parameters behind the encoder, as published: 282,630 on VGG-19 (kernels
16, 32, 64), 91,146 on ResNet-50 (4, 16, 32, 32, 64), 1,073,160 on Inception-v3 (16, 32, 32, 64).
The strides are not published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.decoders import Decoder

_ENCODER_STRIDE = 32
_CLASSES = 2


class TransposedDecoder(Decoder):
    """The deepest map, at 1/32 of the side -> logits of both classes (n, 2, side, side)."""

    width = _CLASSES

    def __init__(
        self,
        widths: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(kernels) != len(strides) or math.prod(strides) != _ENCODER_STRIDE:
            raise ValueError(
                f"kernels {list(kernels)}, strides {list(strides)}: a stride for each kernel "
                f"wanted, their product {_ENCODER_STRIDE}"
            )
        for kernel, stride in zip(kernels, strides, strict=True):
            if kernel < stride or (kernel - stride) % 2:
                raise ValueError(
                    f"kernel {kernel}, stride {stride}: a kernel larger by an even number wanted"
                )

        channels = [widths[-1], *[_CLASSES] * (len(kernels) - 1)]
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(width, _CLASSES, kernel, stride, (kernel - stride) // 2)
            for width, kernel, stride in zip(channels, kernels, strides, strict=True)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        first, *others = self.enlarge
        x = first(self.dropout(maps[-1]))
        for layer in others:
            x = layer(functional.relu(x))
        return [torch.as_tensor(x)]

    def head(self) -> nn.Sequential:
        return nn.Sequential(ClassDifference())


class ClassDifference(nn.Module):
    """Logits (n, 2, h, w) of background and finding -> (n, 1, h, w), the logit of the finding."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:] - x[:, :1]
