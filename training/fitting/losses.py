"""Losses on logits, composed as a recipe says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe import Loss

Outputs = Tensor | list[Tensor]
# Gamma of the focal loss: the best of the paper
_FOCUS = 2.0
# Pixels added to both sides of a ratio: an empty one is defined, and a tiny mask no cliff
_SMOOTH = 1.0


def compose(loss: Loss, positive_share: float = 0.5) -> Callable[[Outputs, Tensor], Tensor]:
    """Give the loss of a recipe: outputs and targets in, a float32 scalar out.

    Outputs are logits, one tensor or a list of them (deep supervision), whose losses are averaged.
    Targets are labels (n, 1) or masks (n, 1, side, side), both 0..1 and possibly soft. A 4-D output
    is held against the masks; a 2-D one against the labels, or against "the mask is not empty".
    Dice and Tanimoto are of masks: where they are the whole loss, a 2-D output is held to cross
    entropy.

    `positive_share` is that of the training labels; `loss.balance` weighs both classes of the
    labels inverse to it.

    Raises:
        ValueError: to balance, but one class is missing; at a call: a map, and no masks to hold it
            against.
    """
    if loss.balance and not 0 < positive_share < 1:
        raise ValueError(
            f"loss: balance with a positive share of {positive_share}; wanted images of both "
            "classes"
        )

    weights = (0.5 / (1 - positive_share), 0.5 / positive_share) if loss.balance else (1.0, 1.0)
    terms = ((loss.cross_entropy, cross_entropy), (loss.focal, focal))
    of_labels = [(weight, term) for weight, term in terms if weight] or [(1.0, cross_entropy)]
    overlaps = ((loss.dice, dice), (loss.tanimoto, tanimoto))

    def of_one(logits: Tensor, targets: Tensor) -> Tensor:
        # Sums over a megapixel want 32 bits, whatever the network computes in.
        logits, targets = logits.float(), targets.float()
        if logits.dim() == 2:
            if targets.dim() == 4:
                targets = (targets > 0).flatten(1).any(1, keepdim=True).float()
            return torch.stack(
                [weight * term(logits, targets, *weights) for weight, term in of_labels]
            ).sum()

        if targets.dim() != 4:
            raise ValueError(
                f"loss: a map {tuple(logits.shape)} and targets {tuple(targets.shape)}; wanted "
                "masks"
            )

        parts = [weight * term(logits, targets) for weight, term in terms if weight]
        parts += [weight * term(logits, targets, loss.empty) for weight, term in overlaps if weight]
        return torch.stack(parts).sum()

    def of_all(outputs: Outputs, targets: Tensor) -> Tensor:
        outputs = outputs if isinstance(outputs, list) else [outputs]
        parts = [of_one(logits, targets) for logits in outputs]
        if loss.auxiliary is None:
            return torch.stack(parts).mean()

        # The first output is the answer, the others only help to train it.
        answer, *others = parts
        return answer + loss.auxiliary * torch.stack(others).mean() if others else answer

    return of_all


def cross_entropy(
    logits: Tensor, targets: Tensor, negative: float = 1.0, positive: float = 1.0
) -> Tensor:
    """Binary cross entropy against probabilities, the classes weighted; mean over everything."""
    ratio = torch.tensor(positive / negative, device=logits.device)
    return negative * functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=ratio)


def focal(logits: Tensor, targets: Tensor, negative: float = 1.0, positive: float = 1.0) -> Tensor:
    """Cross entropy, what is right already weighing less: (1 - p)^2 (Lin et al., ICCV 2017); mean
    over everything.

    Of a soft target it is least beside that target, nearer to one half: the paper has none.
    """
    for_one, for_zero = torch.sigmoid(-logits) ** _FOCUS, torch.sigmoid(logits) ** _FOCUS
    found = positive * targets * for_one * functional.logsigmoid(logits)
    return -(found + negative * (1 - targets) * for_zero * functional.logsigmoid(-logits)).mean()


def dice(logits: Tensor, masks: Tensor, empty: bool = False) -> Tensor:
    """1 - Dice of each image (Milletari et al., 3DV 2016, unsquared).

    Mean over the images with a mask or, if `empty`, over all.
    """
    found, true = torch.sigmoid(logits).flatten(1), masks.flatten(1)
    overlap, total = (found * true).sum(1), found.sum(1) + true.sum(1)
    return _mean(1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH), true, empty)


def tanimoto(logits: Tensor, masks: Tensor, empty: bool = False) -> Tensor:
    """1 - xy / (x² + y² - xy) of each image: 0 where a soft mask is met exactly (DC-UNet: Lou et
    al., SPIE 2021).
    """
    found, true = torch.sigmoid(logits).flatten(1), masks.flatten(1)
    overlap = (found * true).sum(1)
    squares = (found**2).sum(1) + (true**2).sum(1)
    return _mean(1 - (overlap + _SMOOTH) / (squares - overlap + _SMOOTH), true, empty)


def _mean(losses: Tensor, true: Tensor, empty: bool) -> Tensor:
    """Mean over the images that count; 0 if none does."""
    if empty:
        return losses.mean()
    some = (true.sum(1) > 0).float()
    return (losses * some).sum() / some.sum().clamp_min(1)
