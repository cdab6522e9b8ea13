"""Thresholds chosen on validation images: from which score on an image is positive, and how a map
becomes a mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.postprocess import REFERENCE_MATRIX_PX, label_regions
from training.measures import metrics
from training.recipe import OperatingPoint

# Of a rule that was tried
SCORE = "competition_score"
_DIGITS = 4

# Probability and true mask, both (rows, columns)
Map = tuple[NDArray[np.float32], NDArray[np.bool_]]


def operating_point(
    scores: metrics.Scores, labels: metrics.Labels, point: OperatingPoint
) -> tuple[float, str]:
    """The threshold at or above which a score (0..1) is positive, and in words how it was chosen;
    both (images,).

    It has three decimals, below 0.001 four digits, rounded down, so that the image that determined
    it stays positive in other arithmetic. Among equally good thresholds the lowest is taken,
    because a missed pneumothorax costs more than a false alarm. The words count as a node does:
    every score that is not below the threshold is positive.

    Raises:
        ValueError: the labels lack a class that the choice needs, or too many positives score 0, so
            that only a threshold of 0 would find enough.
    """
    count, positive = len(labels), int(labels.sum())
    if not positive or (point.best and positive == count):
        raise ValueError(
            f"operating point: {positive} of the {count} validation images are positive; wanted "
            "some, and some that are not: change split"
        )

    # Each score as the highest candidate that it reaches, a score of 0 as none
    candidates = np.unique(np.append(_candidates(scores), 0.0))
    place = np.searchsorted(candidates, scores, side="right") - 1
    thresholds, counts = metrics.at_every_threshold(candidates[place], labels)
    possible = thresholds > 0

    # The first threshold finds nothing.
    figure = getattr(counts, point.best or "sensitivity")[possible][1:]
    if not len(figure) or (point.sensitivity and figure[-1] < point.sensitivity):
        raise ValueError(
            f"operating point: {int((labels & (scores <= 0)).sum())} of {positive} positive "
            "validation images score 0, which no threshold finds; a network that tells them "
            "apart wanted: look at its curve, or lower operating_point.sensitivity"
        )
    if point.best:
        index = int(np.flatnonzero(figure == figure.max())[-1])
        words = f"highest {point.best} ({figure[index]:.3f})"
    else:
        # The figures rise as the threshold falls.
        index = int(np.argmax(figure >= point.sensitivity))
        words = f"sensitivity {point.sensitivity:.2f} or more ({figure[index]:.3f})"

    return float(
        thresholds[1:][index]
    ), f"{words} on {count} validation images, {positive} of them positive"


def _candidates(scores: metrics.Scores) -> metrics.Scores:
    """The thresholds that these scores reach."""
    coarse = np.floor(scores.astype(np.float64) * 1000).clip(max=999) / 1000
    return np.where(coarse > 0, coarse, rounded_down(scores))


def rounded_down(values: metrics.Scores) -> metrics.Scores:
    """Round each down to four digits: an image exactly at a threshold stays positive."""
    some = np.where(values > 0, values, 1.0).astype(np.float64)
    scale = 10.0 ** (_DIGITS - np.ceil(np.log10(some)))
    return np.where(values > 0, np.floor(some * scale) / scale, 0.0)


@dataclass(frozen=True)
class Grid:
    """The values tried for each figure of `inference.postprocess.segment`; a top of None is as the
    bottom.
    """

    bottom: tuple[float, ...]
    top: tuple[float | None, ...]
    min_area_at_1024_px: tuple[float, ...]
    min_sure_area_at_1024_px: tuple[float, ...]


# After a classifier: where the mask begins, and the smallest region that stays.
TWO_STAGE = Grid(
    bottom=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    top=(None,),
    min_area_at_1024_px=(0, 250, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 5000),
    min_sure_area_at_1024_px=(0,),
)
# Without one, as the winner of SIIM-ACR 2019: how many pixels reach the top, and where the mask
# begins then.
TRIPLET = Grid(
    bottom=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    top=(0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    min_area_at_1024_px=(0,),
    min_sure_area_at_1024_px=(0, 250, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 5000),
)


@dataclass(frozen=True)
class Search:
    """The competition score (mean Dice, empty as empty 1) of every rule of a grid."""

    grid: Grid
    # (bottoms, tops, areas, sure areas); NaN where the top is below the bottom
    scores: NDArray[np.float64]

    @property
    def best(self) -> dict[str, float]:
        """The rule with the highest score; the middle one of several.

        Keys as in a package's manifest.
        """
        best = best_of(list(self.rows()))
        return {name: value for name, value in best.items() if name != SCORE}

    @property
    def score(self) -> float:
        """That of the best."""
        return float(np.nanmax(self.scores))

    def rows(self) -> Iterator[dict[str, float]]:
        """Every rule with its SCORE."""
        for place in zip(*np.nonzero(~np.isnan(self.scores)), strict=True):
            yield self._rule(place) | {SCORE: float(self.scores[place])}

    def _rule(self, place: tuple[int, ...]) -> dict[str, float]:
        bottom, top, area, sure_area = place
        return {
            "bottom": self.grid.bottom[bottom],
            "top": _top(self.grid.top[top], self.grid.bottom[bottom]),
            "min_area_at_1024_px": self.grid.min_area_at_1024_px[area],
            "min_sure_area_at_1024_px": self.grid.min_sure_area_at_1024_px[sure_area],
        }


def best_of(rows: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The rule in `Search.rows` with the highest score; the middle one of several."""
    highest = max(row[SCORE] for row in rows)
    equal = [row for row in rows if row[SCORE] >= highest - 1e-9]
    return equal[len(equal) // 2]


def search(maps: Iterable[Map], grid: Grid) -> Search:
    """Score every rule of the grid as `inference.postprocess.segment` applies it; the maps are seen
    once, one by one.

    An image that a classifier before it calls negative comes as a map of zeros.

    Raises:
        ValueError: there is no map, or one and its mask differ in shape.
    """
    total, count = np.zeros(()), 0
    for probability, true in maps:
        if probability.shape != true.shape:
            raise ValueError(
                f"search: a map of shape {probability.shape} and a mask of {true.shape}; wanted "
                "the same"
            )
        total, count = total + _dices(probability, true, grid), count + 1

    if not count:
        raise ValueError(
            "search: no validation image has a mask; wanted some to choose thresholds on"
        )

    return Search(grid, np.asarray(total / count))


def _dices(
    probability: NDArray[np.float32], true: NDArray[np.bool_], grid: Grid
) -> NDArray[np.float64]:
    """Dice of one image under every rule."""
    scale, true_px = probability.size / REFERENCE_MATRIX_PX, np.count_nonzero(true)
    areas = np.array(grid.min_area_at_1024_px) * scale
    sure_areas = np.maximum(1, np.array(grid.min_sure_area_at_1024_px) * scale)
    rows, columns = (np.flatnonzero((probability >= min(grid.bottom)).any(axis)) for axis in (1, 0))
    # No rule finds anything outside this box.
    if len(rows):
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        probability, true = probability[box], true[box]

    dices = np.full((len(grid.bottom), len(grid.top), len(areas), len(sure_areas)), np.nan)
    for i, bottom in enumerate(grid.bottom):
        mask = probability >= bottom
        regions, count = label_regions(mask) if areas.max() > 1 else (mask.astype(np.int32), 1)
        size, common = (_by_region(regions[chosen], count) for chosen in (mask, mask & true))
        # (areas, regions)
        kept = (size >= areas[:, None]).astype(np.int64)
        dice = 2 * (kept @ common) / np.maximum(1, kept @ size + true_px)
        for j, top in enumerate(grid.top):
            if (least := _top(top, bottom)) >= bottom:
                sure = kept @ _by_region(regions[mask & (probability >= least)], count)
                dices[i, j] = np.where(
                    sure[:, None] >= sure_areas, dice[:, None], float(not true_px)
                )

    return dices


def _by_region(numbers: NDArray[np.int32], count: int) -> NDArray[np.intp]:
    """How many pixels of each region 1..count are among these."""
    return np.bincount(numbers, minlength=count + 1)[1:]


def _top(top: float | None, bottom: float) -> float:
    return bottom if top is None else top
