"""ResNet-34 and ResNet-50.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1; the bottleneck's
stride is at its 3 x 3 convolution, as everywhere today. 21,797,672 and 25,557,032 parameters with
1,000 classes and colour input; here without the classes. The names of the weights are those of
torchvision's checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from inference.networks.encoders.base import Encoder

_FIRST = 64
# Of a bottleneck: the channels of its last convolution to those of its inner convolutions.
_EXPANSION = 4


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    (n, in, h, w) -> (n, out, h / stride, w / stride).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut.

    The inner convolutions have a quarter of the channels.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inner = channels_out // _EXPANSION
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(Encoder):
    """The maps of the first convolution, and of the four layers."""

    def __init__(
        self,
        channels: int,
        block: type[BasicBlock | Bottleneck],
        widths: Sequence[int],
        blocks: Sequence[int],
    ) -> None:
        super().__init__()
        self.widths = (_FIRST, *widths)

        self.conv1 = nn.Conv2d(channels, _FIRST, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(_FIRST)

        self.layer1 = _layer(block, _FIRST, widths[0], blocks[0], 1)
        self.layer2 = _layer(block, widths[0], widths[1], blocks[1], 2)
        self.layer3 = _layer(block, widths[1], widths[2], blocks[2], 2)
        self.layer4 = _layer(block, widths[2], widths[3], blocks[3], 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [functional.relu(self.bn1(self.conv1(x)))]
        x = functional.max_pool2d(maps[0], 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


def resnet34(channels: int) -> Encoder:
    """Widths 64, 64, 128, 256, 512."""
    return ResNet(channels, BasicBlock, (64, 128, 256, 512), (3, 4, 6, 3))


def resnet50(channels: int) -> Encoder:
    """Widths 64, 256, 512, 1024, 2048."""
    return ResNet(channels, Bottleneck, (256, 512, 1024, 2048), (3, 4, 6, 3))


def _layer(
    block: type[BasicBlock | Bottleneck],
    channels_in: int,
    channels_out: int,
    count: int,
    stride: int,
) -> nn.Sequential:
    rest = (block(channels_out, channels_out, 1) for _ in range(count - 1))
    return nn.Sequential(block(channels_in, channels_out, stride), *rest)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
    )
