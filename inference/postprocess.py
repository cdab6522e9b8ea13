"""Probability map -> mask: two thresholds and a smallest area, nothing cleverer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

REFERENCE_MATRIX_PX = 1024 * 1024  # the matrix that a smallest area is stated for: the one of the training masks


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the regions of a (rows, columns) mask: the (rows, columns) array of numbers, 0 outside, and the last one.

    A region hangs together over corners too: a thin apical crescent is often one pixel wide and runs diagonally.
    """
    regions, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))
    return np.asarray(regions, dtype=np.int32), int(count)


def segment(
    probability: NDArray[np.float32], bottom: float, top: float, min_area_at_1024_px: float
) -> NDArray[np.bool_]:
    """Give the (rows, columns) bool mask of a (rows, columns) float32 probability map.

    A region is what hangs together at `bottom` or more. It stays when enough of it reaches `top`: at least
    `min_area_at_1024_px`, stated for a 1024 x 1024 matrix and scaled to this one, so that a package's figure means the
    same part of a chest in every matrix. This is the triplet rule of the SIIM-ACR 2019 winner, kept per region instead
    of per image; with bottom = top it is: threshold, then drop small regions.
    """
    if probability.ndim != 2:
        raise ValueError(f"segment: a probability map of shape {probability.shape}; wanted (rows, columns)")
    if not 0 < bottom <= top <= 1:
        raise ValueError(f"segment: bottom {bottom} and top {top}; wanted 0 < bottom <= top <= 1")
    regions, count = label_regions(probability >= bottom)
    if count == 0:
        return np.zeros(probability.shape, dtype=bool)
    # NaN compares false on both thresholds: what the network could not say is not a finding.
    sure_px = np.bincount(regions.ravel(), weights=(probability >= top).ravel(), minlength=count + 1)
    keep = sure_px >= max(1.0, min_area_at_1024_px * probability.size / REFERENCE_MATRIX_PX)
    keep[0] = False
    return np.asarray(keep[regions], dtype=bool)
