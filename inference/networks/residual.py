"""A small residual network for grey images, with squeeze-and-excitation.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Hu et al.,
"Squeeze-and-Excitation Networks", CVPR 2018. A strided shortcut pools before its 1 x 1
convolution, so that it skips no pixel (He et al., "Bag of Tricks", CVPR 2019). With the default
widths the classifier has 3.5 million parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTHS = (32, 48, 96, 160, 256)
BLOCKS = 2


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate (0 to 1) that is computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 8, 1)
        self.expand = nn.Conv2d(channels // 8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.expand(weight))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with squeeze-and-excitation, and a shortcut.

    (n, in, h, w) -> (n, out, h / stride, w / stride).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.convolve1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.normalise1 = nn.BatchNorm2d(channels_out)
        self.convolve2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.normalise2 = nn.BatchNorm2d(channels_out)
        self.excite = SqueezeExcite(channels_out)
        self.shortcut: nn.Module = nn.Identity()

        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                nn.Conv2d(channels_in, channels_out, 1, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.normalise1(self.convolve1(x)))
        y = self.excite(self.normalise2(self.convolve2(y)))
        return torch.relu(y + self.shortcut(x))


class ResidualEncoder(nn.Module):
    """(n, 1, side, side) -> five maps at 1/2 to 1/32 of the side, `widths` channels each."""

    def __init__(self, widths: Sequence[int] = WIDTHS, blocks: int = BLOCKS) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
            nn.Conv2d(first, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
        )  # fmt: skip
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(i, o, 2), *(ResidualBlock(o, o, 1) for _ in range(blocks - 1))
            )
            for i, o in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class ResidualClassifier(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1) logits.

    It pools both mean and maximum: a thin line shows only in the maximum.
    """

    def __init__(
        self, widths: Sequence[int] = WIDTHS, blocks: int = BLOCKS, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(widths, blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        deepest = self.encoder(x)[-1]
        pooled = torch.cat([deepest.mean((2, 3)), deepest.amax((2, 3))], dim=1)
        return torch.as_tensor(self.head(self.dropout(pooled)))
