"""EncNet: an encoding of the whole image weighs the channels of the deepest map.

Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018: 512 channels, 32 codewords.
While training it also says whether the mask is empty, for the paper's semantic encoding loss.
33,489,570 parameters on a ResNet-50 with colour input, of which 23,508,032 are the encoder's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.convolution import convolve
from inference.networks.decoders import Decoder

_CODEWORDS = 32
_DROPOUT = 0.1


class Encoding(nn.Module):
    """(n, c, h, w) -> (n, codewords, c).

    Per codeword the sum of the pixels' residuals to it, softly assigned.
    """

    def __init__(self, channels: int, codewords: int = _CODEWORDS) -> None:
        super().__init__()
        bound = (channels * codewords) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.smoothing = nn.Parameter(torch.empty(codewords).uniform_(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Squared distances cancel in bf16.
        with torch.autocast(x.device.type, enabled=False):
            # (n, h w, c)
            pixels = x.float().flatten(2).transpose(1, 2)
            products = pixels @ self.codewords.T
            distances = (
                pixels.square().sum(2, keepdim=True) - 2 * products + self.codewords.square().sum(1)
            )
            # Of each pixel, over the codewords.
            shares = torch.softmax(-self.smoothing * distances, dim=2)
            return shares.transpose(1, 2) @ pixels - shares.sum(1).unsqueeze(2) * self.codewords


class EncNetDecoder(Decoder):
    """The deepest map, at 1/`stride` of the side -> (n, 512, side / stride, side / stride).

    Training: a logit too.
    """

    width = 512

    def __init__(self, widths: Sequence[int], stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.convolve = convolve(widths[-1], self.width)
        self.project = convolve(self.width, self.width, 1)
        self.encoding = Encoding(self.width)
        self.normalise = nn.BatchNorm1d(_CODEWORDS)
        self.weigh = nn.Linear(self.width, self.width)
        self.presence = nn.Linear(self.width, 1)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x = self.convolve(maps[-1])
        # (n, 512)
        context = functional.relu(self.normalise(self.encoding(self.project(x)))).mean(1)
        weights = torch.sigmoid(self.weigh(context))[:, :, None, None]
        features = [self.dropout(functional.relu(x + x * weights))]
        return [*features, self.presence(context)] if self.training else features
