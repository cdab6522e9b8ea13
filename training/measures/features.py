"""The features that a physician sees in a mask: size, place, spread and shape.

Per image and per patient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference.contours import contours
from inference.measure import measure

# How a feature of the slices becomes one of the patient; what is not named here is a mean over the
# slices, weighted by area: where a large part of the lesion lies counts more than its tip.
_SUMMED = ("area_px", "area_share", "regions")


def of_mask(mask: NDArray[np.bool_]) -> dict[str, float]:
    """Features of a (rows, columns) mask; of an empty one, area and regions are 0 and the rest is
    NaN.

    `area_px`; `area_share`, of the image; `regions`, their number; `centroid_row` and
    `centroid_column`, `spread_row` and `spread_column` (standard deviations of the pixels'
    positions), `height` and `width` (of the bounding box), all six as shares of the image's rows or
    columns; `filling`, the share of the bounding box that is filled; `eccentricity`, of the ellipse
    with the same second moments, 0 round to 1 a line; `perimeter_px`; `circularity`, 4 pi area /
    perimeter^2, about 1 for a disc and less for anything else.
    """
    found = measure(mask, None, None)
    if found is None:
        return {name: 0.0 if name in _SUMMED else math.nan for name in NAMES}

    # `measure` always gives both.
    assert found.extent_px is not None
    assert found.spread_px is not None
    rows, columns = mask.shape
    top, left, bottom, right = found.extent_px
    height, width = bottom - top + 1, right - left + 1
    perimeter = sum(float(np.hypot(*np.diff(line, axis=0).T).sum()) for line in contours(mask))
    features = (
        found.area_px,
        found.area_px / mask.size,
        found.regions,
        found.centroid_px[1] / rows,
        found.centroid_px[0] / columns,
        found.spread_px[0] / rows,
        found.spread_px[1] / columns,
        height / rows,
        width / columns,
        found.area_px / (height * width),
        _eccentricity(mask),
        perimeter,
        4 * math.pi * found.area_px / perimeter**2,
    )

    return dict(zip(NAMES, map(float, features), strict=True))


NAMES = (
    "area_px", "area_share", "regions", "centroid_row", "centroid_column", "spread_row",
    "spread_column", "height",
    "width", "filling", "eccentricity", "perimeter_px", "circularity",
)  # fmt: skip


def of_patient(slices: Sequence[dict[str, float]]) -> dict[str, float]:
    """Features of one patient from those of all slices, as `of_mask` gives them.

    `slices`, their number; `slices_with`, those whose mask is not empty; areas and regions as sum;
    the largest slice's area; every other feature as mean over the slices that have it, weighted by
    area. NaN where no slice has any.
    """
    values = {name: np.array([features[name] for features in slices]) for name in NAMES}
    area = values["area_px"]
    some = area > 0
    patient = {
        "slices": float(len(slices)),
        "slices_with": float(some.sum()),
        "largest_area_px": float(area.max()),
    }

    for name, value in values.items():
        if name in _SUMMED:
            patient[name] = float(value.sum())
        else:
            patient[name] = (
                float(np.average(value[some], weights=area[some])) if some.any() else math.nan
            )

    return patient


def _eccentricity(mask: NDArray[np.bool_]) -> float:
    # A pixel is a square, not a point: 1/12 is its own variance, so that one pixel is round and not
    # undefined.
    positions = np.argwhere(mask).T.astype(float)
    minor, major = np.linalg.eigvalsh(np.cov(positions, bias=True) + np.eye(2) / 12)
    return math.sqrt(max(0.0, 1 - minor / major))
