"""Losses on logits, composed as a recipe says."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe import Loss

Outputs = Tensor | list[Tensor]
# Gamma of the focal loss: the best of the paper
_FOCUS = 2.0
# Pixels added to both sides of a ratio, so that an empty one is defined and a tiny mask is smooth
_SMOOTH = 1.0
# Power of the focal Tversky loss: 1 / gamma, with the paper's gamma of 4/3
_FOCAL_TVERSKY = 0.75
_LEAST = 1e-6


def compose(loss: Loss, positive_share: float = 0.5) -> Callable[[Outputs, Tensor], Tensor]:
    """Give the loss of a recipe: outputs and targets in, a float32 scalar out.

    Outputs are logits, one tensor or a list of them (deep supervision), whose losses are averaged.
    Targets are labels (n, 1) or masks (n, 1, side, side), both 0..1 and possibly soft. A 4-D output
    is compared with the masks; a 2-D output with the labels, or with "the mask is not empty". Dice
    and the other overlaps need masks: if they are the whole loss, a 2-D output gets cross entropy.

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

    if loss.hard_negatives < 1:
        return _of_the_hardest(loss, positive_share)

    weights = (0.5 / (1 - positive_share), 0.5 / positive_share) if loss.balance else (1.0, 1.0)
    terms = ((loss.cross_entropy, cross_entropy), (loss.focal, focal))
    of_labels = [(weight, term) for weight, term in terms if weight] or [(1.0, cross_entropy)]
    overlaps: list[tuple[float, Callable[[Tensor, Tensor, bool], Tensor]]] = [
        (loss.dice, dice),
        (loss.tanimoto, tanimoto),
        (loss.jaccard, jaccard),
        (loss.tversky, partial(tversky, misses=loss.misses)),
        (loss.focal_tversky, partial(tversky, misses=loss.misses, power=_FOCAL_TVERSKY)),
        (loss.lovasz, lovasz),
    ]

    def of_one(logits: Tensor, targets: Tensor) -> Tensor:
        # Sums over a megapixel need float32, whatever the network computes in.
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

        # The first output is the answer; the others are auxiliary.
        answer, *others = parts
        return answer + loss.auxiliary * torch.stack(others).mean() if others else answer

    return of_all


def _of_the_hardest(loss: Loss, positive_share: float) -> Callable[[Outputs, Tensor], Tensor]:
    """The loss of each image alone: the mean over the positives and the hardest negatives.

    Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining",
    CVPR 2016; here whole images are mined, and positives are always kept.
    """
    of_batch = compose(loss.model_copy(update={"hard_negatives": 1.0}), positive_share)

    def of_image(outputs: list[Tensor], targets: Tensor, number: int) -> Tensor:
        one = slice(number, number + 1)
        return of_batch([output[one] for output in outputs], targets[one])

    def of_all(outputs: Outputs, targets: Tensor) -> Tensor:
        several = outputs if isinstance(outputs, list) else [outputs]
        each = torch.stack([of_image(several, targets, number) for number in range(len(targets))])

        is_negative = ~(targets.flatten(1) > 0.5).any(1)
        negatives = each[is_negative]
        kept = math.ceil(loss.hard_negatives * len(negatives))
        return torch.cat([each[~is_negative], negatives.topk(kept).values]).mean()

    return of_all


def cross_entropy(
    logits: Tensor, targets: Tensor, negative: float = 1.0, positive: float = 1.0
) -> Tensor:
    """Binary cross entropy against probabilities, the classes weighted; mean over everything."""
    ratio = torch.tensor(positive / negative, device=logits.device)
    return negative * functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=ratio)


def focal(logits: Tensor, targets: Tensor, negative: float = 1.0, positive: float = 1.0) -> Tensor:
    """Focal loss: cross entropy weighted by (1 - p)^2 (Lin et al., ICCV 2017); mean over
    everything.

    For a soft target its minimum is not at the target but nearer to one half; the paper has only
    hard targets.
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


def jaccard(logits: Tensor, masks: Tensor, empty: bool = False) -> Tensor:
    """1 - intersection over union of each image (Rahman & Wang, ISVC 2016)."""
    found, true = torch.sigmoid(logits).flatten(1), masks.flatten(1)
    overlap = (found * true).sum(1)
    union = found.sum(1) + true.sum(1) - overlap
    return _mean(1 - (overlap + _SMOOTH) / (union + _SMOOTH), true, empty)


def tversky(
    logits: Tensor, masks: Tensor, empty: bool = False, misses: float = 0.7, power: float = 1.0
) -> Tensor:
    """1 - TP / (TP + (1 - misses) FP + misses FN) of each image, to a `power`.

    Salehi et al., MLMI 2017; the focal one, with a power below 1: Abraham & Khan, ISBI 2019.
    """
    found, true = torch.sigmoid(logits).flatten(1), masks.flatten(1)
    overlap = (found * true).sum(1)
    false, missed = found.sum(1) - overlap, true.sum(1) - overlap
    whole = overlap + (1 - misses) * false + misses * missed

    loss = 1 - (overlap + _SMOOTH) / (whole + _SMOOTH)
    if power != 1:
        # At 0 the gradient of the root is not finite.
        loss = loss.clamp_min(_LEAST) ** power
    return _mean(loss, true, empty)


def lovasz(logits: Tensor, masks: Tensor, empty: bool = False) -> Tensor:
    """The Lovász hinge of each image: a convex bound of 1 - intersection over union.

    Berman et al., CVPR 2018, algorithm 1. Of a soft mask 0.5 and more is inside.
    """
    inside = (masks.flatten(1) >= 0.5).float()
    margins = 1 - logits.flatten(1) * (2 * inside - 1)
    sorted_margins, order = margins.sort(dim=1, descending=True)
    true = inside.gather(1, order)

    # The Jaccard loss where the first k pixels are wrong, and what the k-th adds to it
    positives = true.sum(1, keepdim=True)
    intersection = positives - true.cumsum(1)
    union = positives + (1 - true).cumsum(1)
    losses = 1 - intersection / union.clamp_min(1)
    added = torch.cat([losses[:, :1], losses[:, 1:] - losses[:, :-1]], 1)

    return _mean((functional.relu(sorted_margins) * added).sum(1), inside, empty)


def _mean(losses: Tensor, true: Tensor, empty: bool) -> Tensor:
    """Mean over the images that count; 0 if none does."""
    if empty:
        return losses.mean()
    some = (true.sum(1) > 0).float()
    return (losses * some).sum() / some.sum().clamp_min(1)
