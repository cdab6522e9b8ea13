"""The layer that most networks are made of."""

from __future__ import annotations

from torch import nn


def convolve(
    channels_in: int, channels_out: int, kernel: int = 3, dilation: int = 1
) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU; (n, in, h, w) -> (n, out, h, w). `kernel` is odd."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, 1, padding, dilation, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
