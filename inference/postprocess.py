"""Probability map -> mask, by two thresholds and two areas."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# The matrix to which stated areas refer: the training masks'.
REFERENCE_MATRIX_PX = 1024 * 1024


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the regions of a (rows, columns) mask: the (rows, columns) array of numbers, 0
    outside, and the last one.

    Regions are 8-connected, because a thin apical crescent is often one pixel wide and diagonal.
    """
    regions, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))
    return np.asarray(regions, dtype=np.int32), int(count)


def segment(
    probability: NDArray[np.float32],
    bottom: float,
    top: float,
    min_area_at_1024_px: float,
    min_sure_area_at_1024_px: float = 0.0,
) -> NDArray[np.bool_]:
    """The (rows, columns) bool mask of a (rows, columns) float32 probability map.

    1. The mask is what reaches `bottom`.
    2. Its regions of less than `min_area_at_1024_px` are dropped.
    3. There is a lesion at all only if what is left has `min_sure_area_at_1024_px`, one pixel at
      the least, that
       reaches `top`; else the mask is empty.

    The rule of the SIIM-ACR 2019 winner is steps 1 and 3 (`min_area_at_1024_px` 0): the number of
    sure pixels in the whole image decides whether there is a lesion, and the lower threshold draws
    it. The usual rule, to threshold and drop small regions, is steps 1 and 2 (`bottom` = `top`).
    With all steps, dropped specks do not count as sure pixels.

    Areas are stated for a 1024 x 1024 matrix and scaled to this one, so that a package's figure
    means the same part of a chest in every matrix. NaN reaches no threshold, so it is never a
    finding.

    Raises:
        ValueError: not two axes, or thresholds other than 0 < bottom <= top <= 1.
    """
    if probability.ndim != 2:
        raise ValueError(
            f"segment: a probability map of shape {probability.shape}; wanted (rows, columns)"
        )
    if not 0 < bottom <= top <= 1:
        raise ValueError(f"segment: bottom {bottom} and top {top}; wanted 0 < bottom <= top <= 1")

    scale = probability.size / REFERENCE_MATRIX_PX
    mask = np.asarray(probability >= bottom)

    if min_area_at_1024_px * scale > 1:  # otherwise no region is too small
        regions, count = label_regions(mask)
        keep = np.bincount(regions.ravel(), minlength=count + 1) >= min_area_at_1024_px * scale
        keep[0] = False
        mask = np.asarray(keep[regions], dtype=bool)

    sure_px = np.count_nonzero(mask & (probability >= top))
    return mask if sure_px >= max(1.0, min_sure_area_at_1024_px * scale) else np.zeros_like(mask)


def sure_probability(
    probability: NDArray[np.float32],
    bottom: float,
    top: float,
    min_area_at_1024_px: float,
    min_sure_area_at_1024_px: float = 0.0,
) -> float:
    """The image's score, 0 to 1: at or above `top` exactly where `segment` gives a mask.

    It is the probability that the required sure area reaches, in the regions that `segment` keeps.
    """
    scale = probability.size / REFERENCE_MATRIX_PX
    kept = np.nan_to_num(probability, nan=0.0)

    if min_area_at_1024_px * scale > 1:
        mask = np.asarray(kept >= bottom)
        regions, count = label_regions(mask)
        small = np.bincount(regions.ravel(), minlength=count + 1) < min_area_at_1024_px * scale
        small[0] = False
        kept = np.where(small[regions], 0, kept)

    pixels = min(kept.size, max(1, math.ceil(min_sure_area_at_1024_px * scale)))
    score = np.partition(kept, -pixels, axis=None)[-pixels]

    # Compared in float32, as `segment` compares the map.
    return max(float(score), top) if score >= np.float32(top) else float(score)
