"""Losses on logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy against probabilities: (n, 1) logits, (n, 1) targets in 0..1."""
    return functional.binary_cross_entropy_with_logits(logits, targets)


def cross_entropy_and_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy plus 1 - Dice over the images that have something to find; all (n, 1, side, side)."""
    loss = functional.binary_cross_entropy_with_logits(logits, targets)
    found = torch.sigmoid(logits).flatten(1)
    true = targets.flatten(1)
    some = true.sum(1) > 0
    if some.any():
        overlap = (found * true).sum(1)[some]
        loss = loss + (1 - (2 * overlap + 1) / (found.sum(1)[some] + true.sum(1)[some] + 1)).mean()
    return loss
