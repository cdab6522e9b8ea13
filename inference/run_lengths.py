"""Masks in the format of SIIM-ACR 2019: run lengths, column by column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The text of an empty mask
NONE = "-1"


def encode(mask: NDArray[np.bool_]) -> str:
    """The text of a (rows, columns) mask; "-1" when it is empty.

    Pairs of numbers: the gap since the last run's end, and the run's length.
    """
    flat = mask.T.tobytes()
    words: list[int] = []
    end = 0

    while (start := flat.find(1, end)) >= 0:
        gap, stop = start - end, flat.find(0, start)
        end = stop if stop >= 0 else len(flat)
        words += [gap, end - start]

    return " ".join(map(str, words)) or NONE
