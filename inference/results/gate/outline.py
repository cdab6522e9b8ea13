"""The contour in an overlay's picture: looked for along the edge of the finding's mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.contours import LARGEST_DISTANCE_PX
from inference.results import layout
from inference.results.case import Case, once_per_case
from inference.results.gate.panel import BLOCK, FINE, Panel
from inference.results.gate.regions import bounds_of

# The least sum of the contour's colour, in pixels, near any piece of the mask's edge.
CONTOUR_PX = 3.0
# The colour across a side of the edge, in widths of the line, that is one clear stroke.
LEAST_STROKE = 0.6
MOST_STROKE = 1.6
# The fewest sides that say anything, and the most that are worth looking at.
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


@dataclass(frozen=True, eq=False)
class Sides:
    """The sides between a mask and other pixels, of neighbours along one axis.

    Attributes:
        middles: (n, 2) of (row, column) in the source's matrix.
        faces_on: for each whether the mask ends there: its pixel is the first of the two.
    """

    middles: NDArray[np.float64]
    faces_on: NDArray[np.bool_]


@once_per_case
def sides_of(case: Case) -> tuple[Sides, Sides]:
    """The sides of what is segmented, of neighbours in a column and of neighbours in a row."""
    assert case.segmented is not None
    rows, columns = bounds_of(case)
    part = np.pad(case.segmented[rows, columns], 1)
    corner = np.array([rows.start - 1.0, columns.start - 1.0])
    return _sides(part, corner, 0), _sides(part, corner, 1)


def displacement_px(
    sides: tuple[Sides, Sides],
    colour: NDArray[np.float32],
    corner: tuple[int, int],
    panel: Panel,
) -> tuple[float, float]:
    """How far the drawn contour as a whole lies off the mask's edge: source pixels down, right.

    `colour` is the panel at half its size from its pixel `corner` (row, column) on, (rows,
    columns), 1 where all is contour. Across each side of the edge lies a stroke, whose middle is
    found to a fraction of a pixel. Smoothing moves a line towards the inside of its bends; the
    sides of the edge that face one way and those that face the other way take that out of each
    other. An axis with too few clear strokes counts as 0.
    """
    down, right = (
        _along_axis(axis, each, colour, corner, panel) for axis, each in enumerate(sides)
    )
    return down, right


def tolerated_px(panel: Panel) -> tuple[float, float]:
    """How far a contour may seem to lie off, in source pixels down and right.

    The true contours of 270 random shapes at quality 50 to 90 seemed to lie at most 0.2 source
    pixels off, in pictures from a quarter to 28 times the size of the source.
    """
    down, right = (max(0.5, 0.25 / scale) for scale in panel.scales)
    return down, right


def fine_box(case: Case, panel: Panel) -> tuple[slice, slice]:
    """The (rows, columns) of the panel at half its size that hold every stroke of the contour."""
    rows, columns = (
        slice(
            max(0, int(bounds.start * scale / FINE) - _stroke_reach(axis, panel) - 1),
            int(bounds.stop * scale / FINE) + _stroke_reach(axis, panel) + 2,
        )
        for axis, (bounds, scale) in enumerate(zip(bounds_of(case), panel.scales, strict=True))
    )
    return rows, columns


def _stroke_reach(axis: int, panel: Panel) -> int:
    """How far to look across a side, in pixels of the panel at half its size."""
    line_px = panel.line_px / FINE
    return int(line_px / 2 + (LARGEST_DISTANCE_PX + 1) * panel.scales[axis] / FINE) + 2


def _along_axis(
    axis: int, sides: Sides, colour: NDArray[np.float32], corner: tuple[int, int], panel: Panel
) -> float:
    scales = np.array(panel.scales) / FINE
    line_px = panel.line_px / FINE
    reach = _stroke_reach(axis, panel)
    steps = np.arange(-reach, reach + 1)

    # (n, 2) of the sides' middles, and (n,) of the pixels in which they lie
    every = -(-len(sides.middles) // MOST_STROKES)
    faces_on = sides.faces_on[::every]
    places = (sides.middles[::every] + 0.5) * scales - np.array(corner)
    pixels = np.floor(places).astype(np.intp)
    across, along = pixels[:, axis], pixels[:, 1 - axis]

    # The picture's pixels across each side, (n, steps), without those that reach beyond it.
    inside = (across >= reach) & (across < colour.shape[axis] - reach)
    inside &= (along >= 0) & (along < colour.shape[1 - axis])
    across, along, places, faces_on = (
        each[inside] for each in (across, along, places[:, axis], faces_on)
    )
    strides = (colour.shape[1], 1)
    first = across * strides[axis] + along * strides[1 - axis]
    strokes = np.clip(colour.ravel()[first[:, None] + steps * strides[axis]], 0, 1)

    # One clear stroke: a line that runs along here, or another nearby, shows more colour.
    amounts = strokes.sum(axis=1)
    clear = (amounts > LEAST_STROKE * line_px) & (amounts < MOST_STROKE * line_px)
    # The mean distance of a stroke's colour from the side's middle.
    moments = strokes @ steps.astype(np.float32) + amounts * (across + 0.5 - places)
    offsets = moments / np.maximum(amounts, 1e-6) / scales[axis]

    ways = [offsets[clear & (faces_on == way)] for way in (True, False)]
    if min(way.size for way in ways) < LEAST_STROKES:
        return 0.0
    return float(sum(np.median(way) for way in ways)) / 2


def edge_of(case: Case) -> NDArray[np.float64]:
    """(n, 2) of (row, column): the middles of the sides between the mask and other pixels."""
    return np.concatenate([sides.middles for sides in sides_of(case)])


def _sides(part: NDArray[np.bool_], corner: NDArray[np.float64], axis: int) -> Sides:
    """The sides within a part of the mask that begins at `corner` (row, column)."""
    first, second = (part[:-1], part[1:]) if axis == 0 else (part[:, :-1], part[:, 1:])
    row, column = np.divmod(np.flatnonzero(first != second), first.shape[1])
    middles = np.stack([row, column], axis=1) + corner
    middles[:, axis] += 0.5
    return Sides(middles, first[row, column])
