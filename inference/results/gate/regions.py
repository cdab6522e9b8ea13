"""The regions of a finding's mask, measured by the gate itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inference.finding import Laterality
from inference.results.case import Case, once_per_case
from inference.results.gate.header import directions_of
from inference.results.gate.runs import Runs
from inference.results.limits import MAX_LESIONS
from inference.results.uids import tracking_uid
from inference.results.wording import NUMBERED_LESION, ONE_LESION

# A centroid nearer to the middle than this part of the image's width has no side.
MIDDLE = 0.05


@dataclass(frozen=True, eq=False)
class Region:
    """A lesion as the gate expects it; the last of very many holds all remaining regions.

    Attributes:
        corner: (row, column) of `mask` and `outer` in the source's matrix.
        mask: (rows, columns), bool, the lesion within its own bounds.
        outer: (rows, columns), bool, the largest connected part with its holes filled: what the
            outer contour encloses.
    """

    number: int
    tracking_id: str
    tracking_uid: str
    corner: tuple[int, int]
    mask: NDArray[np.bool_]
    outer: NDArray[np.bool_]
    side: Laterality | None

    @property
    def area_px(self) -> int:
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Measured:
    """The figures of the whole mask, as inference.finding.Measurement has them."""

    area_px: int
    area_mm2: float | None
    area_estimated: bool
    centroid_px: tuple[float, float]  # (column, row)
    laterality: Laterality | None
    regions: int
    extent_px: tuple[int, int, int, int]  # (first row, first column, last row, last column)
    spread_px: tuple[float, float]  # (rows, columns)


@dataclass(frozen=True, eq=False)
class _Connected:
    """The connected regions of a mask.

    Attributes:
        runs: of the mask within its bounds, from their corner on.
        numbers: of each run: that of its region, from 0 from the top down.
        count: of the regions.
        bounds: (rows, columns) of the mask in the source's matrix.
    """

    runs: Runs
    numbers: NDArray[np.intp]
    count: int
    bounds: tuple[slice, slice]

    @property
    def corner(self) -> tuple[int, int]:
        return self.bounds[0].start, self.bounds[1].start

    def runs_of(self, regions: list[int]) -> Runs:
        """The runs of the regions with these numbers."""
        if len(regions) == self.count:
            return self.runs
        return self.runs.some(np.isin(self.numbers, regions))

    @cached_property
    def areas_px(self) -> NDArray[np.int64]:
        return np.bincount(self.numbers, self.runs.lengths, self.count).astype(np.int64)

    @cached_property
    def centroids(self) -> list[tuple[float, float]]:
        """(row, column) of each region in the source's matrix."""
        # Whole numbers, which a double holds exactly.
        sums = [
            np.bincount(self.numbers, self.runs.lengths * middles, self.count)
            for middles in (self.runs.rows, (self.runs.starts + self.runs.stops - 1) / 2)
        ]
        rows, columns = (
            sum_ / self.areas_px + first for sum_, first in zip(sums, self.corner, strict=True)
        )
        return list(zip(rows.tolist(), columns.tolist(), strict=True))

    @cached_property
    def row_counts(self) -> NDArray[np.int64]:
        """The pixels of the mask in each row of its bounds."""
        return np.bincount(self.runs.rows, self.runs.lengths).astype(np.int64)

    @cached_property
    def column_counts(self) -> NDArray[np.int64]:
        """The pixels of the mask in each column of its bounds."""
        turns = np.bincount(self.runs.starts, minlength=self.runs.stops.max() + 1)
        turns -= np.bincount(self.runs.stops)
        return np.asarray(np.cumsum(turns)[:-1])


@once_per_case
def bounds_of(case: Case) -> tuple[slice, slice]:
    """The (rows, columns) that hold the mask of a case that has something segmented."""
    mask = case.segmented
    assert mask is not None
    rows = np.flatnonzero(mask.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return slice(top, bottom), slice(int(columns[0]), int(columns[-1]) + 1)


@once_per_case
def _connected(case: Case) -> _Connected:
    """The regions of a case that has something segmented."""
    mask = case.segmented
    assert mask is not None
    rows, columns = bounds_of(case)

    runs = Runs.of(mask[rows, columns])
    numbers, count = runs.together(over_corners=True)
    return _Connected(runs, numbers, count, (rows, columns))


@once_per_case
def regions_of(case: Case) -> tuple[Region, ...]:
    """The lesions of the mask, the largest first, then from the top down."""
    if case.segmented is None or case.finding is None:
        return ()

    found_in = _connected(case)
    areas_px = found_in.areas_px
    order = sorted(range(found_in.count), key=lambda number: (-areas_px[number], number))
    groups = [[number] for number in order[:MAX_LESIONS]]
    groups[-1] += order[MAX_LESIONS:]

    found = []
    for number, group in enumerate(groups, start=1):
        runs = found_in.runs_of(group)
        box = runs.box
        mask = runs.painted(box)
        largest = mask if len(group) == 1 else found_in.runs_of(group[:1]).painted(box)
        region = Region(
            number=number,
            tracking_id=ONE_LESION if len(groups) == 1 else NUMBERED_LESION.format(number=number),
            tracking_uid=tracking_uid(case, number),
            corner=(box[0].start + found_in.corner[0], box[1].start + found_in.corner[1]),
            mask=mask,
            outer=_filled(largest),
            side=_side_of_one(found_in.centroids[group[0]], case) if len(group) == 1 else None,
        )
        found.append(region)

    return tuple(found)


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with its holes: all but the background that reaches its border over sides."""
    padded = np.pad(~mask, 1, constant_values=True)
    background = Runs.of(padded)
    numbers, count = background.together(over_corners=False)
    # The border is read first.
    if count == 1:
        return mask

    rows, columns = mask.shape
    return mask | background.some(numbers > 0).painted((slice(1, rows + 1), slice(1, columns + 1)))


def _side_of_one(centroid: tuple[float, float], case: Case) -> Laterality | None:
    """The side of a lesion that is a single region."""
    directions = directions_of(case.header)
    if directions is None or case.finding is None or not case.finding.sided:
        return None
    assert case.segmented is not None  # the region is part of it

    return _side(centroid, case.segmented.shape, directions)


def _side(
    centroid: tuple[float, float], shape: tuple[int, ...], directions: list[str]
) -> Laterality | None:
    """R or L of a (row, column) centroid; None near the middle or where the header is unclear.

    PatientOrientation names where rows run to (left to right), then where columns run to (top to
    bottom), PS3.3 C.7.6.1.1.1.
    """
    across = [
        axis for axis, name in ((1, directions[0]), (0, directions[1])) if name[:1] in ("L", "R")
    ]
    if len(across) != 1:
        return None

    axis = across[0]
    towards_left = (directions[0] if axis == 1 else directions[1])[0] == "L"
    offset = centroid[axis] - (shape[axis] - 1) / 2
    if abs(offset) < MIDDLE * shape[axis]:
        return None
    return "L" if (offset > 0) == towards_left else "R"


@once_per_case
def measured_of(case: Case) -> Measured | None:
    """Area, centroid, extent, spread, side and number of regions of the whole mask."""
    if case.segmented is None or case.finding is None:
        return None

    regions = _connected(case)
    top, left = regions.corner
    row_counts, column_counts = regions.row_counts, regions.column_counts
    row, row_spread = _mean_and_deviation(row_counts, top)
    column, column_spread = _mean_and_deviation(column_counts, left)
    area_px = int(row_counts.sum())
    spacing = case.spacing

    return Measured(
        area_px=area_px,
        area_mm2=None if spacing is None else area_px * spacing.row_mm * spacing.column_mm,
        area_estimated=spacing is not None and spacing.detector,
        centroid_px=(column, row),
        laterality=_side_of_all(case),
        regions=regions.count,
        extent_px=(top, left, top + row_counts.size - 1, left + column_counts.size - 1),
        spread_px=(row_spread, column_spread),
    )


def _mean_and_deviation(counts: NDArray[np.int64], first: int) -> tuple[float, float]:
    """Mean and deviation of consecutive positions, each with its number of occurrences."""
    positions = np.arange(first, first + counts.size)
    mean = float(np.average(positions, weights=counts))
    return mean, float(np.sqrt(np.average((positions - mean) ** 2, weights=counts)))


def _side_of_all(case: Case) -> Laterality | None:
    """The side of every region, B where they are on both; None where a single region has none."""
    assert case.finding is not None  # it has regions
    assert case.segmented is not None
    directions = directions_of(case.header)
    if directions is None or not case.finding.sided:
        return None

    shape = case.segmented.shape
    sides = {_side(centroid, shape, directions) for centroid in _connected(case).centroids}
    if None in sides:
        return None
    return "B" if len(sides) == 2 else sides.pop()
