"""The figures we publish, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.bool_]
Scores = NDArray[np.float64]
_Z95 = 1.959964


def auc(scores: Scores, labels: Labels) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties half."""
    _, rank_of, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return math.nan
    above = mean_rank[rank_of][labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if trials == 0:
        return math.nan, math.nan
    p, z2 = successes / trials, _Z95**2
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
    figure: Callable[[NDArray[np.intp]], float], patients: NDArray[np.str_], draws: int = 2000
) -> tuple[float, float]:
    """95 % percentile interval of `figure(indices)`, resampling patients, not images: a patient's images are alike."""
    rng = np.random.default_rng(0)
    names = np.unique(patients)
    images_of = [np.flatnonzero(patients == name) for name in names]
    found = []
    for _ in range(draws):
        drawn = rng.integers(len(names), size=len(names))
        found.append(figure(np.concatenate([images_of[i] for i in drawn])))
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return float(low), float(high)


def dice(found: Labels, true: Labels) -> float:
    """2 |A and B| / (|A| + |B|); 1 when both are empty."""
    total = int(found.sum()) + int(true.sum())
    return 1.0 if total == 0 else 2.0 * int((found & true).sum()) / total


def threshold_for_sensitivity(scores: Scores, labels: Labels, sensitivity: float) -> float:
    """The highest threshold at which at least this share of the positives scores at or above it."""
    positives = np.sort(scores[labels])[::-1]
    return float(positives[math.ceil(sensitivity * len(positives)) - 1])
