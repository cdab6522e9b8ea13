"""Several networks whose answers are averaged, each at its own side, optionally also on the
mirrored image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Ensemble(nn.Module):
    """(n, 1, side, side) float32 -> the logit of the members' mean probability.

    It is (n, 1), or (n, 1, side, side).

    `sides` are the members' sides, None for the side of the input. With `flip` each member also
    sees the image mirrored, left to right. Members are trained one by one: this is always in eval
    mode.
    """

    def __init__(
        self, members: Sequence[nn.Module], sides: Sequence[int | None], flip: bool = False
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.sides = tuple(sides)
        self.flip = flip
        self.train(False)

    def train(self, mode: bool = True) -> Ensemble:  # noqa: ARG002
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        answers = []

        for member, side in zip(self.members, self.sides, strict=True):
            image = _resize(x, side or x.shape[-1])
            answers.append(_resize(member(image), x.shape[-1]))
            if self.flip:
                answers.append(_resize(_mirror(member(_mirror(image))), x.shape[-1]))

        # The logit of the mean of sigmoids, computed in logarithms: exact even where probabilities
        # round to 0 or 1. softplus(-x) is -log(sigmoid(x)); ONNX has no logsigmoid, and the
        # logarithm of ONNX Runtime's sigmoid is up to 0.2 off at -15.
        logits = torch.stack(answers).float()
        positive = (-functional.softplus(-logits)).logsumexp(0)
        negative = (-functional.softplus(logits)).logsumexp(0)
        return positive - negative


def _mirror(x: Tensor) -> Tensor:
    return x.flip(3) if x.dim() == 4 else x


def _resize(x: Tensor, side: int) -> Tensor:
    """Resize images and maps to (side, side) as preprocess.fit does; (n, 1) is unchanged."""
    if x.dim() == 2 or x.shape[-1] == side:
        return x
    return functional.interpolate(x.float(), size=(side, side), mode="bilinear", antialias=True)
