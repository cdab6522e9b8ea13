"""The gate's rules for contours: closed lines, compared with the mask that they must enclose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from inference.contours import SMOOTHED_PX
from inference.results.gate.regions import Region
from inference.results.gate.runs import turns_of
from inference.results.limits import MAX_VERTICES

Line = NDArray[np.float64]

# Single precision holds a coordinate to 0.0005 pixels.
ROUNDING_PX = 0.002
# A longer line may have lost vertices to the limit of GraphicData: it is checked by its vertices.
WHOLE_VERTICES = MAX_VERTICES // 2


def outer_contour(values: NDArray[np.float32], region: Region) -> Iterator[str]:
    """Complaints about the outer contour of a region, as column\\row pairs of GraphicData."""
    yield from _complaints([values], region, region.outer)


def all_contours(graphics: Sequence[NDArray[np.float32]], region: Region) -> Iterator[str]:
    """Complaints about the contours of a region, around it and around its holes."""
    yield from _complaints(graphics, region, region.mask)


def _complaints(
    graphics: Sequence[NDArray[np.float32]], region: Region, enclosed: NDArray[np.bool_]
) -> Iterator[str]:
    """`enclosed` is (rows, columns), at the region's corner: the pixels inside the lines."""
    # PS3.3 C.10.5, C.18.6.1.1: a pixel's centre lies at a half; here at whole numbers, from the
    # region's corner on.
    pairs = [values.reshape(-1, 2).astype(np.float64) for values in graphics]
    lines = [each[:, ::-1] - 0.5 - np.array(region.corner) for each in pairs]
    if not lines or any(len(line) < 4 or not np.array_equal(line[0], line[-1]) for line in lines):
        yield f"a contour of lesion {region.number} is not closed"
        return

    if not all(_runs_along_the_edge(line, region.mask) for line in lines):
        yield f"a contour of lesion {region.number} does not run along the edge of its mask"
        return

    if max(len(line) for line in lines) > WHOLE_VERTICES:
        return
    if not _enclose(lines, enclosed):
        yield f"the contours of lesion {region.number} do not enclose its mask"


def _runs_along_the_edge(line: Line, mask: NDArray[np.bool_]) -> bool:
    """True if each vertex is near the middle of a side between a pixel of the mask and another.

    Smoothing moves a vertex by SMOOTHED_PX at the most, and two such middles are 0.7 pixels apart.
    """
    padded = np.pad(mask, 1)
    near = np.zeros(len(line), dtype=bool)
    whole, below = np.round(line).astype(int), np.floor(line).astype(int)

    for axis in (0, 1):
        # The nearest middle of a side between neighbours along this axis.
        first = whole.copy()
        first[:, axis] = below[:, axis]
        second = first.copy()
        second[:, axis] += 1
        middle = (first + second) / 2

        limits = np.array(mask.shape)
        inside = np.asarray(((first >= -1) & (second <= limits)).all(axis=1))
        rows, columns = np.where(inside[:, None], first, 0).T + 1
        these = padded[rows, columns]
        rows, columns = np.where(inside[:, None], second, 0).T + 1
        others = padded[rows, columns]
        distance = np.hypot(*(line - middle).T)
        close = distance <= SMOOTHED_PX + ROUNDING_PX
        near |= inside & np.not_equal(these, others) & close

    return bool(near.all())


def _enclose(lines: Sequence[Line], mask: NDArray[np.bool_]) -> bool:
    """True if the pixel centres inside the closed lines, by the even-odd rule, are the mask's.

    Both turn from outside to inside and back at the same places: the mask itself need not be
    painted.
    """
    padded = np.pad(mask, ((0, 0), (1, 1)))
    rows, width = padded.shape

    places = []
    for line in lines:
        start, end = line[:-1], line[1:]
        first = np.ceil(np.minimum(start[:, 0], end[:, 0])).astype(int)
        last = np.ceil(np.maximum(start[:, 0], end[:, 0])).astype(int)

        # A piece crosses the rows from first to last - 1: one entry for each crossing.
        count = last - first
        piece = np.repeat(np.arange(len(start)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[piece]

        rise = end[piece, 0] - start[piece, 0]
        part = (row - start[piece, 0]) / np.where(rise == 0, 1, rise)
        column = start[piece, 1] + part * (end[piece, 1] - start[piece, 1])
        right_of = np.clip(np.ceil(column).astype(int), 0, mask.shape[1])
        kept = (row >= 0) & (row < rows)
        places.append(row[kept] * width + right_of[kept])

    crossed, times = np.unique(np.concatenate(places), return_counts=True)
    return np.array_equal(crossed[times % 2 == 1], turns_of(padded))
