"""The contour in an overlay's picture: looked for along the edge of the finding's mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.contours import LARGEST_DISTANCE_PX
from inference.results import layout
from inference.results.gate.panel import BLOCK, FINE, Panel

# Pixels of the contour's colour, summed up, in the neighbourhood of any piece of the mask's edge.
CONTOUR_PX = 3.0
# The colour across a side of the edge, in widths of the line, that is one clear stroke.
LEAST_STROKE = 0.6
MOST_STROKE = 1.6
# Fewer of them than this tell nothing; more than so many tell nothing more.
LEAST_STROKES = 8
MOST_STROKES = 20_000


def touched_blocks(
    edge: NDArray[np.float64], shape: tuple[int, int], panel: Panel
) -> NDArray[np.bool_]:
    """The (rows, columns) blocks that a contour along the edge may touch."""
    rows, columns = shape
    touched = np.zeros((rows + 2, columns + 2), dtype=bool)  # with a rim of one block

    # A contour lies within LARGEST_DISTANCE_PX of the edge, and that within half a pixel of a
    # side's middle.
    reach = panel.contour_reach_px + 1 + (LARGEST_DISTANCE_PX + 0.5) * max(panel.scales)
    steps = np.linspace(-reach, reach, 2 + int(2 * reach / BLOCK))
    for down in steps:
        for across in steps:
            row, column = np.floor((edge + np.array([down, across])).T / BLOCK).astype(int)
            touched[np.clip(row + 1, 0, rows + 1), np.clip(column + 1, 0, columns + 1)] = True

    return touched[1:-1, 1:-1]


def has_contour(edge: NDArray[np.float64], coloured: NDArray[np.float32], panel: Panel) -> bool:
    """True if there is the contour's colour near every piece of the edge."""
    rows, columns = coloured.shape

    # The sum of colour over the blocks around each block, by a table of sums.
    about = 1 + int(LARGEST_DISTANCE_PX * max(panel.scales) / BLOCK)
    far = 2 * about + 1
    sums = np.pad(np.pad(coloured, about).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    around = sums[far:, far:] - sums[far:, :-far] - sums[:-far, far:] + sums[:-far, :-far]

    limits = np.array([[panel.height - 1], [panel.width - 1]])
    row, column = np.floor(np.clip(edge.T, 0, limits) / BLOCK).astype(int)
    inside = (row < rows) & (column < columns)
    colour = (layout.ORANGE[0] - layout.ORANGE[2]) / 255
    wanted = CONTOUR_PX / BLOCK**2 * colour
    return float(around[row[inside], column[inside]].min(initial=1)) >= wanted


def displacement_px(
    mask: NDArray[np.bool_], colour: NDArray[np.float32], panel: Panel
) -> tuple[float, float]:
    """How far the drawn contour as a whole lies off the mask's edge: source pixels down, right.

    `colour` is the panel at half its size, (rows, columns), 1 where all is contour. Across each
    side of the edge lies a stroke, whose middle is found to a fraction of a pixel. Smoothing moves
    a line towards the inside of its bends; the sides of the edge that face one way and those that
    face the other way take that out of each other. An axis with too few clear strokes counts as 0.
    """
    down, right = (_along_axis(axis, mask, colour, panel) for axis in (0, 1))
    return down, right


def tolerated_px(panel: Panel) -> tuple[float, float]:
    """How far a contour may seem to lie off, in source pixels down and right.

    The true contours of 270 random shapes at quality 50 to 90 seemed to lie at most 0.2 source
    pixels off, in pictures from a quarter to 28 times the size of the source.
    """
    down, right = (max(0.5, 0.25 / scale) for scale in panel.scales)
    return down, right


def _along_axis(
    axis: int, mask: NDArray[np.bool_], colour: NDArray[np.float32], panel: Panel
) -> float:
    scales = np.array(panel.scales) / FINE
    line_px = panel.line_px / FINE
    reach = int(line_px / 2 + (LARGEST_DISTANCE_PX + 1) * scales[axis]) + 2
    steps = np.arange(-reach, reach + 1)

    middles, faces_on = _sides(mask, axis)
    every = -(-len(middles) // MOST_STROKES)
    faces_on = faces_on[::every]
    places = (middles[::every] + 0.5) * scales
    index = np.floor(places).astype(int)[:, :, None].repeat(steps.size, axis=2)
    index[:, axis] += steps

    limits = np.array(colour.shape)[:, None]
    whole = ((index >= 0) & (index < limits)).all(axis=(1, 2))
    row, column = np.clip(index, 0, limits - 1).transpose(1, 0, 2)
    strokes = np.clip(colour[row, column], 0, 1)

    # One clear stroke: a line that runs along here, or another nearby, shows more colour.
    amounts = strokes.sum(axis=1)
    clear = whole & (amounts > LEAST_STROKE * line_px) & (amounts < MOST_STROKE * line_px)
    distances = index[:, axis] + 0.5 - places[:, axis, None]
    offsets = (distances * strokes).sum(axis=1) / np.maximum(amounts, 1e-6) / scales[axis]

    ways = [offsets[clear & (faces_on == way)] for way in (True, False)]
    if min(way.size for way in ways) < LEAST_STROKES:
        return 0.0
    return float(sum(np.median(way) for way in ways)) / 2


def edge_of(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, 2) of (row, column): the middles of the sides between the mask and other pixels."""
    return np.concatenate([_sides(mask, axis)[0] for axis in (0, 1)])


def _sides(mask: NDArray[np.bool_], axis: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The middles of the sides between neighbours along an axis, (n, 2) of (row, column).

    And for each whether the mask ends there: its pixel is the first of the two.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corner = np.array([rows[0] - 1, columns[0] - 1])
    part = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)

    first, second = (part[:-1], part[1:]) if axis == 0 else (part[:, :-1], part[:, 1:])
    row, column = np.divmod(np.flatnonzero(first != second), first.shape[1])
    middles = np.stack([row, column], axis=1) + corner.astype(float)
    middles[:, axis] += 0.5
    return middles, first[row, column]
