"""The figures we publish. What is undefined is NaN, unless the docstring states a convention.

`label_figures` and `mask_figures` give them under the names that recipes use (`best_by`,
`published`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.bool_]
Scores = NDArray[np.float64]
_Z95 = 1.959964


@dataclass(frozen=True)
class Confusion:
    """Counts of agreement: 0-d arrays of one comparison, or 1-d arrays of several.

    The figures are of the same shape; a share of an empty set is NaN.
    """

    true_positive: Scores
    false_positive: Scores
    false_negative: Scores
    true_negative: Scores

    @classmethod
    def of(cls, found: Labels, true: Labels) -> Confusion:
        """Compare labels, or the pixels of a mask.

        Raises:
            ValueError: the shapes differ.
        """
        if found.shape != true.shape:
            raise ValueError(
                f"confusion: found has shape {found.shape} and true {true.shape}; wanted the same"
            )

        both, said, is_so = (
            np.float64(np.count_nonzero(one)) for one in (found & true, found, true)
        )
        return cls(
            *map(np.asarray, (both, said - both, is_so - both, found.size - said - is_so + both))
        )

    @classmethod
    def stack(cls, parts: Iterable[Confusion]) -> Confusion:
        """Several comparisons as one, 1-d."""
        return cls(*map(np.stack, zip(*map(astuple, parts), strict=True)))

    def pooled(self) -> Confusion:
        """All comparisons as if they were one."""
        return Confusion(*(np.asarray(counts.sum()) for counts in astuple(self)))

    def of_background(self) -> Confusion:
        """The counts with the negative class taken as the positive."""
        return Confusion(
            self.true_negative, self.false_negative, self.false_positive, self.true_positive
        )

    @property
    def sensitivity(self) -> Scores:
        """Share of the positives that is found: recall."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> Scores:
        """Share of the negatives that is called negative."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def ppv(self) -> Scores:
        """Share of the images called positive that are positive: precision."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def npv(self) -> Scores:
        """Share of the images called negative that are negative."""
        return _ratio(self.true_negative, self.true_negative + self.false_negative)

    @property
    def accuracy(self) -> Scores:
        """Share that is right."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative)

    @property
    def iou(self) -> Scores:
        """Intersection over union: Jaccard's index."""
        return _ratio(
            self.true_positive, self.true_positive + self.false_positive + self.false_negative
        )

    @property
    def mcc(self) -> Scores:
        """Matthews' correlation coefficient (1975).

        0 where a class never occurs or is never called.
        """
        right = self.true_positive * self.true_negative - self.false_positive * self.false_negative

        called_positive = self.true_positive + self.false_positive
        called_negative = self.true_negative + self.false_negative
        positive = self.true_positive + self.false_negative
        negative = self.true_negative + self.false_positive

        product = called_positive * positive * called_negative * negative
        return np.nan_to_num(_ratio(right, np.sqrt(product)))

    @property
    def f1(self) -> Scores:
        """Harmonic mean of sensitivity and ppv; of pixels: Dice."""
        return self.f(1)

    @property
    def f2(self) -> Scores:
        """As f1, sensitivity counting twice."""
        return self.f(2)

    def f(self, beta: float) -> Scores:
        """F measure (van Rijsbergen 1979)."""
        hits = (1 + beta**2) * self.true_positive
        return _ratio(hits, hits + beta**2 * self.false_negative + self.false_positive)


_OF_COUNTS = ("sensitivity", "specificity", "ppv", "npv", "f1", "f2", "mcc", "accuracy")
# By which a network can be chosen: the higher the better.
LABEL_FIGURES = ("auc", "average_precision", *_OF_COUNTS)
MASK_FIGURES = (
    "dice", "dice_positives", "iou", "iou_positives", "mean_iou",
    "pixel_accuracy", "pixel_f1", "pixel_f2", "competition_score",
)  # fmt: skip

# Every figure that may stand beside a published figure
FIGURES = tuple(dict.fromkeys([*LABEL_FIGURES, *MASK_FIGURES]))


def label_figures(scores: Scores, labels: Labels, threshold: float) -> dict[str, float]:
    """Every figure of a classifier; scores and labels are (images,).

    "Positive" is a score of the threshold or more.
    """
    counts = Confusion.of(scores >= threshold, labels)
    return {
        "auc": auc(scores, labels),
        "average_precision": average_precision(scores, labels),
        **{name: float(getattr(counts, name)) for name in _OF_COUNTS},
        "brier": brier(scores, labels),
    }


def mask_figures(found: Iterable[Labels], true: Iterable[Labels]) -> dict[str, float]:
    """Every figure of the masks of some images: each a pair of (rows, columns), arrays of them or
    one after another.

    An empty mask found empty counts 1 in `dice`, `iou` and `mean_iou`, which are means over all
    images; those `_positives` are means over the images with a mask. `mean_iou` is the mean over
    background and lesion of each image, then over images. `pixel_` pools the pixels of all images.
    `competition_score` is that of SIIM-ACR 2019: `dice`.

    Raises:
        ValueError: no image, not as many found as true, or two of different shape.
    """
    images = Confusion.stack(map(Confusion.of, found, true))
    some = images.true_positive + images.false_negative > 0
    pooled = images.pooled()
    dices, ious, background = (
        np.nan_to_num(one, nan=1.0) for one in (images.f1, images.iou, images.of_background().iou)
    )

    return {
        "dice": _mean(dices),
        "dice_positives": _mean(dices[some]),
        "iou": _mean(ious),
        "iou_positives": _mean(ious[some]),
        "mean_iou": _mean((ious + background) / 2),
        "pixel_accuracy": float(pooled.accuracy),
        "pixel_f1": float(pooled.f1),
        "pixel_f2": float(pooled.f2),
        "competition_score": _mean(dices),
    }


def auc(scores: Scores, labels: Labels) -> float:
    """Area under the ROC curve; NaN without both classes.

    The share of (positive, negative) pairs in the right order; ties count half.
    """
    _, rank_of, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return math.nan
    above = mean_rank[rank_of][labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def average_precision(scores: Scores, labels: Labels) -> float:
    """Mean of the precisions at which each positive is found, ties found together; NaN without a
    positive.
    """
    sensitivity, precision, _ = precision_recall(scores, labels)
    return float((np.diff(sensitivity) * precision[1:]).sum())


def brier(scores: Scores, labels: Labels) -> float:
    """Mean squared distance of probability and label (Brier 1950): 0 at best."""
    return _mean((scores - labels) ** 2)


def at_every_threshold(scores: Scores, labels: Labels) -> tuple[Scores, Confusion]:
    """The thresholds that differ in what they find, falling, from infinity (nothing) on, and the
    counts at each.
    """
    distinct, place = np.unique(scores, return_inverse=True)
    found = [
        np.append(0.0, np.bincount(place[chosen], minlength=len(distinct))[::-1].cumsum())
        for chosen in (labels, ~labels)
    ]
    hits, alarms = found
    return np.append(np.inf, distinct[::-1]), Confusion(
        hits, alarms, hits[-1] - hits, alarms[-1] - alarms
    )


def roc(scores: Scores, labels: Labels) -> tuple[Scores, Scores, Scores]:
    """Points of the ROC curve: 1 - specificity, sensitivity, and the threshold of each; from (0, 0)
    to (1, 1).
    """
    thresholds, counts = at_every_threshold(scores, labels)
    return 1 - counts.specificity, counts.sensitivity, thresholds


def precision_recall(scores: Scores, labels: Labels) -> tuple[Scores, Scores, Scores]:
    """Points of the precision-recall curve: sensitivity, ppv, threshold.

    Where nothing is found, precision is 1.
    """
    thresholds, counts = at_every_threshold(scores, labels)
    return counts.sensitivity, np.append(1.0, counts.ppv[1:]), thresholds


def calibration(
    scores: Scores, labels: Labels, bins: int = 10
) -> tuple[Scores, Scores, NDArray[np.intp]]:
    """Reliability curve: of each equal part of 0..1 with images, mean score, share of positives,
    number of images.
    """
    part = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(part, minlength=bins)
    some = count > 0
    sums = (np.bincount(part, values, minlength=bins)[some] for values in (scores, labels))
    mean, share = (one / count[some] for one in sums)
    return mean, share, count[some]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if trials == 0:
        return math.nan, math.nan
    p, z2 = successes / trials, _Z95**2
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def _ratio(part: Scores, whole: Scores) -> Scores:
    with np.errstate(invalid="ignore"):
        return np.asarray(part / whole)


def _mean(values: Scores) -> float:
    return float(values.mean()) if values.size else math.nan
