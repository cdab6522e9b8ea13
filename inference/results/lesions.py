"""Lesions: what SEG, SR and presentation state describe, each with one tracking UID in all of them.

A lesion is a region, connected over sides or corners: a viewer draws one contour for a tracking UID
and drops any other (docs/decisions.md). Whether two regions are one pneumothorax is for a reader to
say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.contours import bounding_box, contours, is_hole
from inference.finding import Laterality
from inference.measure import laterality
from inference.postprocess import label_regions
from inference.results.case import Case, once_per_case
from inference.results.limits import MAX_LESIONS, MAX_VERTICES
from inference.results.source import orientation
from inference.results.uids import tracking_uid
from inference.results.wording import NUMBERED_LESION, ONE_LESION


@dataclass(frozen=True, eq=False)
class Lesion:
    """A region of the mask; the last of very many lesions holds all remaining regions.

    Attributes:
        number: from 1, the largest first.
        corner: (row, column) of `part` in the source's matrix.
        part: (rows, columns), bool, the piece of the mask that holds the lesion.
        side: None where the header does not tell, or where the lesion is several regions.
        outlines: closed (n, 2) lines of (row, column), pixel centres at whole numbers: the outer
            line of the largest region first, then those of further regions and of holes.
    """

    number: int
    tracking_id: str
    tracking_uid: str
    corner: tuple[int, int]
    part: NDArray[np.bool_]
    area_px: int
    side: Laterality | None
    outlines: tuple[NDArray[np.float64], ...]


@once_per_case
def lesions_of(case: Case) -> tuple[Lesion, ...]:
    """The lesions of what is segmented, the largest first; none where nothing is segmented."""
    if case.segmented is None or case.finding is None:
        return ()

    directions = orientation(case.header) if case.finding.sided else None
    lines = outlines_of(case)
    return find(case.segmented, lines, directions, lambda number: tracking_uid(case, number))


@once_per_case
def outlines_of(case: Case) -> tuple[NDArray[np.float64], ...]:
    """The closed lines around what is segmented (inference.contours); none where nothing is."""
    return () if case.segmented is None else tuple(contours(case.segmented))


def find(
    mask: NDArray[np.bool_],
    lines: Sequence[NDArray[np.float64]],
    directions: Sequence[str] | None,
    uid_of: Callable[[int], str],
) -> tuple[Lesion, ...]:
    """The lesions of a (rows, columns) mask, the largest first, then from the top down.

    Args:
        lines: the mask's contours.
        directions: the source's PatientOrientation.
        uid_of: gives the tracking UID of the lesion with a number.
    """
    box = bounding_box(mask)
    if box is None:
        return ()

    top, left = box[0].start, box[1].start
    part = mask[box]
    regions, areas_px = _regions(part, lines)
    count = len(areas_px)

    outlines: list[list[NDArray[np.float64]]] = [[] for _ in range(count + 1)]
    for line in lines:
        outlines[_region_at(regions, line[0] - (top, left))].append(_limited(line))

    groups = _grouped(areas_px)
    found = []
    for number, group in enumerate(groups, start=1):
        own = part if count == 1 else np.isin(regions, group)
        lines = [line for region in group for line in outlines[region]]
        side = None
        if len(group) == 1:
            centroid = np.array([[_mean_index(own, 1) + top, _mean_index(own, 0) + left]])
            side = laterality(centroid, (mask.shape[0], mask.shape[1]), directions)

        lesion = Lesion(
            number=number,
            tracking_id=ONE_LESION if len(groups) == 1 else NUMBERED_LESION.format(number=number),
            tracking_uid=uid_of(number),
            corner=(top, left),
            part=own,
            area_px=sum(int(areas_px[region - 1]) for region in group),
            side=side,
            outlines=tuple(sorted(lines, key=is_hole)),
        )
        found.append(lesion)

    return tuple(found)


def _regions(
    part: NDArray[np.bool_], lines: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.int32] | NDArray[np.bool_], NDArray[np.int64]]:
    """The number of the region of each pixel of a mask with these contours, 0 outside, and the
    area of each region.
    """
    # There is a contour around each region: one region needs no labels, which cost as much as all
    # its contours.
    if sum(not is_hole(line) for line in lines) == 1:
        return part, np.array([np.count_nonzero(part)])

    regions, count = label_regions(part)
    return regions, np.bincount(regions.ravel(), minlength=count + 1)[1:]


def _grouped(areas_px: NDArray[np.int64]) -> list[list[int]]:
    """The numbers of the regions, a list for each lesion, the largest first."""
    order = [int(index) + 1 for index in np.argsort(-areas_px, kind="stable")]
    groups = [[region] for region in order[:MAX_LESIONS]]
    groups[-1] += order[MAX_LESIONS:]
    return groups


def _region_at(regions: NDArray[np.int32] | NDArray[np.bool_], vertex: NDArray[np.float64]) -> int:
    """The region of a line's vertex: among the four pixels around it are those of one region."""
    row, column = np.floor(vertex).astype(int)
    return int(regions[max(0, row) : row + 2, max(0, column) : column + 2].max())


def _mean_index(mask: NDArray[np.bool_], axis: int) -> float:
    """The mean row (axis 1) or column (axis 0) of the True pixels."""
    counts = np.count_nonzero(mask, axis=axis)
    return float(counts @ np.arange(counts.size) / counts.sum())


def _limited(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """The line with at most MAX_VERTICES vertices, first and last alike."""
    step = -(-len(line) // (MAX_VERTICES - 1))
    if step == 1:
        return line
    return np.concatenate([line[:-1:step], line[:1]])
