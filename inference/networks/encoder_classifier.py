"""Any encoder under a classifier's head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inference.networks import encoders


class EncoderClassifier(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1) logits, from the mean of the deepest map.

    `hidden` 0 is the published networks' own head: dropout, one linear layer. More is the usual
    head of transfer learning: batch normalisation, a dense layer of that width, dropout, one linear
    layer. `stem` as in DenseNet121.
    """

    def __init__(
        self, encoder: str, stem: str = "grey", hidden: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.input, self.encoder = encoders.build(encoder, stem)
        self.top, width = encoders.top(self.encoder)
        self.head = nn.Sequential()
        if hidden:
            self.head.extend([nn.BatchNorm1d(width), nn.Linear(width, hidden), nn.ReLU()])
        self.head.extend([nn.Dropout(dropout), nn.Linear(hidden or width, 1)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.top(self.encoder(self.input(x))[-1]).mean((2, 3))))
