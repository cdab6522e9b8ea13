"""Lesions: what SEG, SR and presentation state speak of one by one, each with one tracking UID in all of them.

A lesion is a region, what hangs together over sides or corners: a viewer draws one contour for a tracking UID and drops
any other (docs/decisions.md). That two regions are one pneumothorax is for a reader to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.contours import contours, is_hole
from inference.finding import Laterality
from inference.measure import laterality
from inference.postprocess import label_regions

MAX_LESIONS = (
    20  # beyond, the smallest regions are one lesion together: a frame each is what a SEG costs
)
# GraphicData is FL, and an explicit VR FL holds at most 65534 bytes (PS3.5 7.1.2).
MAX_VERTICES = 65534 // 8


@dataclass(frozen=True, eq=False)
class Lesion:
    """One region of the mask, or (the last of very many) some.

    `corner` is where `part`, the (rows, columns) bool piece of the mask that holds it, lies in the source's matrix.
    `outlines` are closed (n, 2) lines of (row, column), pixel centres at whole numbers: the outer one of the largest
    region first, then those of further regions and of holes.
    """

    number: int  # from 1, the largest first
    tracking_id: str
    tracking_uid: str
    corner: tuple[int, int]
    part: NDArray[np.bool_]
    area_px: int
    side: Laterality | None
    outlines: tuple[NDArray[np.float64], ...]


def find(
    mask: NDArray[np.bool_], orientation: Sequence[str] | None, tracking_uid: Callable[[int], str]
) -> tuple[Lesion, ...]:
    """The lesions of a (rows, columns) mask, the largest first, then from the top down.

    `orientation` is the source's PatientOrientation; `tracking_uid` gives the UID of the lesion with a number.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return ()
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    regions, count = label_regions(part)
    areas_px = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    order = [int(index) + 1 for index in np.argsort(-areas_px, kind="stable")]  # numbers of regions
    groups = [[region] for region in order[:MAX_LESIONS]]
    groups[-1] += order[MAX_LESIONS:]
    outlines: list[list[NDArray[np.float64]]] = [[] for _ in range(count + 1)]
    for line in contours(mask):
        outlines[_region_at(regions, line[0] - (top, left))].append(_fitting(line))
    found = []
    for number, group in enumerate(groups, start=1):
        own = (
            part
            if count == 1
            else np.isin(regions, group)
            if len(group) > 1
            else regions == group[0]
        )
        centroid = np.array([[_mean_index(own, 1) + top, _mean_index(own, 0) + left]])
        lines = [line for region in group for line in outlines[region]]
        found.append(
            Lesion(
                number=number,
                tracking_id="Pneumothorax" if len(groups) == 1 else f"Pneumothorax region {number}",
                tracking_uid=tracking_uid(number),
                corner=(top, left),
                part=own,
                area_px=sum(int(areas_px[region - 1]) for region in group),
                side=laterality(centroid, (mask.shape[0], mask.shape[1]), orientation)
                if len(group) == 1
                else None,
                outlines=tuple(sorted(lines, key=is_hole)),
            )
        )
    return tuple(found)


def _region_at(regions: NDArray[np.int32], vertex: NDArray[np.float64]) -> int:
    """Whose line a vertex is on: of the four pixels around it one at least is in the region, and none in another."""
    row, column = np.floor(vertex).astype(int)
    return int(regions[max(0, row) : row + 2, max(0, column) : column + 2].max())


def _mean_index(mask: NDArray[np.bool_], axis: int) -> float:
    """The mean row (axis 1) or column (axis 0) of what is True."""
    counts = np.count_nonzero(mask, axis=axis)
    return float(counts @ np.arange(counts.size) / counts.sum())


def _fitting(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """The line with as many vertices as an attribute holds, first and last alike."""
    step = -(-len(line) // (MAX_VERTICES - 1))
    return line if step == 1 else np.concatenate([line[:-1:step], line[:1]])
