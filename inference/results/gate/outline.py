"""The contour in an overlay's picture: looked for along the edge of the finding's mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.contours import LARGEST_DISTANCE_PX
from inference.results import layout
from inference.results.gate.panel import BLOCK, Panel

# Pixels of the contour's colour, summed up, in the neighbourhood of any piece of the mask's edge.
CONTOUR_PX = 3.0


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


def has_contour(edge: NDArray[np.float64], coloured: NDArray[np.float64], panel: Panel) -> bool:
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


def edge_of(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, 2) of (row, column): the middles of the sides between the mask and other pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corner = np.array([rows[0] - 1, columns[0] - 1])
    part = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)

    middles = []
    for one, other, half in (
        (part[:-1], part[1:], (0.5, 0.0)),
        (part[:, :-1], part[:, 1:], (0.0, 0.5)),
    ):
        row, column = np.divmod(np.flatnonzero(one != other), one.shape[1])
        middles.append(np.stack([row + half[0], column + half[1]], axis=1))
    return np.asarray(np.concatenate(middles) + corner)
