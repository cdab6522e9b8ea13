"""Mask -> closed contours: smooth, and so close to the mask's edge that filling them gives the mask
back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Half-way between pixel centres inside and outside, a line cuts each corner of the mask's edge by
# sqrt(1/8) px and passes pixel centres at that same distance. Smoothing and thinning together move
# it by less than that, so that no contour reaches a pixel centre (SMOOTHED_PX + 2 THINNED_PX <
# sqrt(1/8)), and none meets another.
CORNER_PX = 0.125**0.5
SMOOTHED_PX = 0.25  # the furthest that smoothing moves any point
THINNED_PX = 0.05  # the furthest that leaving vertices out moves any point
# 0.654, between any point of contour or edge and the other.
LARGEST_DISTANCE_PX = CORNER_PX + SMOOTHED_PX + THINNED_PX
LONGEST_PIECE = 64  # the most sides of pixels that one straight piece may replace


def contours(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed lines of (row, column) vertices around the True parts of a (rows, columns) mask; none
    for an empty mask.

    Each is (n, 2), n at least 4, pixel centres at whole numbers, its first vertex repeated at its
    end. There is one around each region (8-connected) and one around each hole (4-connected);
    `is_hole` tells them apart by their sense of rotation. No point of a contour lies further than
    LARGEST_DISTANCE_PX from the mask's edge (the sides that True and False pixels share, or that
    True pixels share with the border of the matrix), nor any point of the edge from a contour. The
    pixel centres inside (even-odd) are the mask, exactly.
    """
    box = bounding_box(mask)
    if box is None:
        return []

    rows, columns = box
    top, left = rows.start, columns.start
    width = min(max(1.5, max(mask.shape) / 1000), 4.0)

    found = []
    for loop in _loops(np.pad(mask[box], 1)):
        vertices = _thinned(_smoothed(loop, width))
        found.append(np.concatenate([vertices, vertices[:1]]) + np.array([top - 1.0, left - 1.0]))
    return found


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """The (rows, columns) slices that hold every True pixel; None if there is none."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None

    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return slice(top, bottom), slice(int(columns[0]), int(columns[-1]) + 1)


def is_hole(contour: NDArray[np.float64]) -> bool:
    """Whether a line of `contours` runs around a hole: holes run counter-clockwise as seen, regions
    clockwise.
    """
    row, column = (contour - contour[0]).T
    return bool(np.sum(column[:-1] * row[1:] - column[1:] * row[:-1]) < 0)


def _loops(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The middles, (n, 2) of (row, column), of the sides between True and False pixels,
    loop by loop.

    No True pixel lies on the border. Each side is walked with the True pixel at the right hand,
    from one corner of pixels to the next.
    """
    # Indexed by corner: corner (row, column) is the upper left corner of the pixel.
    columns = mask.shape[1] + 1
    starts, ways = [], []
    for way, (inside, outside, to_row, to_column) in enumerate(
        (
            (mask[1:], mask[:-1], 1, 0),  # its upper side, walked to the right
            (mask[:, :-1], mask[:, 1:], 0, 1),  # its right side, walked down
            (mask[:-1], mask[1:], 1, 1),  # its lower side, walked to the left
            (mask[:, 1:], mask[:, :-1], 1, 1),  # its left side, walked up
        )
    ):
        row, column = np.divmod(np.flatnonzero(inside > outside), inside.shape[1])
        starts.append((row + to_row) * columns + column + to_column)
        ways.append(np.full(row.size, way))
    step = np.array([1, columns, -1, -columns])
    order = np.argsort(key := np.concatenate(starts) * 4 + np.concatenate(ways))
    key = key[order]
    start, way = np.divmod(key, 4)
    end = start + step[way]
    following = np.searchsorted(key, end * 4)
    # Where pixels touch only by a corner, two sides begin: turning left connects the pixels.
    other = np.minimum(following + 1, key.size - 1)
    following = np.where(
        (start[other] == end) & (way[following] != (way + 3) % 4), other, following
    )
    middles = (
        np.stack(np.divmod(start, columns), axis=1) + np.stack(np.divmod(end, columns), axis=1)
    ) / 2 - 0.5

    successors, loops = following.tolist(), []
    walked = bytearray(key.size)
    for first in range(key.size):
        if walked[first]:
            continue
        loop, here = [], first
        while not walked[here]:
            walked[here] = 1
            loop.append(here)
            here = successors[here]
        loops.append(middles[loop])
    return loops


def _smoothed(vertices: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """A Gaussian along the closed line, `width` vertices wide; each vertex moves by at most
    SMOOTHED_PX.
    """
    moved = (
        ndimage.gaussian_filter1d(vertices, min(width, len(vertices) / 12), axis=0, mode="wrap")
        - vertices
    )
    distance = np.hypot(moved[:, 0], moved[:, 1])
    return np.asarray(
        vertices + moved * np.minimum(1, SMOOTHED_PX / np.maximum(distance, 1e-9))[:, None]
    )


def _thinned(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out vertices of a closed line that lie within THINNED_PX of the piece which replaces
    them.

    Runs of 2, 4, 8... vertices are tried in parallel: the recursion of Douglas and Peucker takes 20
    times as long here.
    """
    count = len(vertices)
    keep = np.ones(count, dtype=bool)
    # Whether the run of half the size that begins here is one straight piece.
    straight = np.ones(count, dtype=bool)
    run = 2
    while run <= LONGEST_PIECE and run <= count // 4:
        starts = np.arange(0, count - run, run)
        starts = starts[straight[starts] & straight[starts + run // 2]]
        begin, chord = vertices[starts], vertices[starts + run] - vertices[starts]
        # (runs, run - 1, 2)
        between = vertices[starts[:, None] + np.arange(1, run)] - begin[:, None]

        length = np.maximum((chord**2).sum(axis=1), 1e-12)
        along = np.clip((between * chord[:, None]).sum(axis=2) / length[:, None], 0, 1)
        off = between - along[..., None] * chord[:, None]

        straight = np.zeros(count, dtype=bool)
        starts = starts[((off**2).sum(axis=2) <= THINNED_PX**2).all(axis=1)]
        straight[starts] = True
        keep[starts + run // 2] = False
        run *= 2
    return vertices[keep]
