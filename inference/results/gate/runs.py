"""Runs: a mask as the True pieces of its rows, and which of them are connected.

A pneumothorax has a few runs in a row, while its box has hundreds of pixels, so computing with runs
takes a fraction of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.intp]
Box = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs in the order of reading: by row, then by column. Each array holds one number a run.

    Attributes:
        rows: of each run.
        starts: its first column.
        stops: the column behind its last.
    """

    rows: Whole
    starts: Whole
    stops: Whole

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Runs:
        """The runs of a (rows, columns) mask."""
        padded = np.pad(mask, ((0, 0), (1, 1)))
        turns = turns_of(padded)
        rows, starts = np.divmod(turns[::2], padded.shape[1])
        return cls(rows, starts, turns[1::2] - rows * padded.shape[1])

    @cached_property
    def lengths(self) -> Whole:
        return self.stops - self.starts

    def some(self, chosen: NDArray[np.bool_]) -> Runs:
        """Those of the runs that are chosen, in the same order."""
        return Runs(self.rows[chosen], self.starts[chosen], self.stops[chosen])

    @property
    def box(self) -> Box:
        """The (rows, columns) that hold the runs, of which there is at least one."""
        rows = slice(int(self.rows[0]), int(self.rows[-1]) + 1)
        return rows, slice(int(self.starts.min()), int(self.stops.max()))

    def painted(self, box: Box) -> NDArray[np.bool_]:
        """The (rows, columns) mask of the runs, which lie within these bounds."""
        rows, columns = box
        mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)
        firsts = (self.rows - rows.start) * mask.shape[1] + self.starts - columns.start
        mask.reshape(-1)[_ranges(firsts, self.lengths)] = True
        return mask

    def together(self, over_corners: bool) -> tuple[Whole, int]:
        """The number of each run's region, from 0 in the order of their first pixels, and how many
        regions there are.

        Regions are 4-connected, or 8-connected with `over_corners`.
        """
        upper, lower = self._neighbours(1 if over_corners else 0)
        # Each run points to one of its region that is read no later than it.
        towards = np.arange(self.rows.size)

        while True:
            ends = np.minimum(towards[upper], towards[lower])
            nearer = towards.copy()
            for side in (upper, lower):
                np.minimum.at(nearer, side, ends)
                np.minimum.at(nearer, towards[side], ends)
            while not np.array_equal(further := nearer[nearer], nearer):
                nearer = further
            if np.array_equal(nearer, towards):
                break
            towards = nearer

        firsts, numbers = np.unique(towards, return_inverse=True)
        return numbers, firsts.size

    def _neighbours(self, reach: int) -> tuple[Whole, Whole]:
        """The pairs of runs in consecutive rows that overlap once one is widened by `reach` at both
        ends.
        """
        # No widened run reaches the next row's columns.
        width = int(self.stops.max(initial=0)) + 2
        starts, stops = self.rows * width + self.starts, self.rows * width + self.stops
        firsts = np.searchsorted(stops, starts + width - reach, side="right")
        counts = np.searchsorted(starts, stops + width + reach, side="left") - firsts
        return np.repeat(np.arange(counts.size), counts), _ranges(firsts, counts)


def turns_of(mask: NDArray[np.bool_]) -> Whole:
    """The flat places of a (rows, columns) mask behind which it turns from True to False or back.

    In a mask with a False column at its left and right they are a beginning and an end of a run in
    turn.
    """
    flat = mask.reshape(-1)
    return np.flatnonzero(flat[1:] != flat[:-1])


def _ranges(firsts: Whole, counts: Whole) -> Whole:
    """`counts` whole numbers from each of `firsts` on, one after another."""
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(offsets + np.repeat(firsts, counts))
