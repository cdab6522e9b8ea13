"""Mask -> Measurement: area, centroid, extent, spread, side and number of regions, in the source's
own pixel matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference.finding import Laterality, Measurement
from inference.orientation import directions
from inference.postprocess import label_regions
from inference.radiograph import Spacing

# If a region's centroid is nearer to the image's middle than this part of the width, its side is
# not stated.
MIDDLE = 0.05


def measure(
    mask: NDArray[np.bool_], spacing: Spacing | None, patient_orientation: Sequence[str] | None
) -> Measurement | None:
    """Measure a (rows, columns) bool mask; None when nothing is segmented.

    `patient_orientation` is the source's PatientOrientation (0020,0020). Millimetres come only from
    `spacing`, and are marked as estimated if that is the detector's (PS3.3 10.7.1.1).
    """
    regions, count = label_regions(mask)
    if count == 0:
        return None

    positions = np.argwhere(mask)  # (area_px, [row, column])
    number = regions[mask] - 1
    areas_px = np.bincount(number)
    sums = np.stack([np.bincount(number, weights=positions[:, axis]) for axis in (0, 1)], axis=1)

    area_px = len(positions)
    row, column = positions.mean(axis=0)
    spread_rows, spread_columns = positions.std(axis=0)
    (top, left), (bottom, right) = positions.min(axis=0), positions.max(axis=0)

    known = spacing is not None and all(
        math.isfinite(side) and side > 0 for side in (spacing.row_mm, spacing.column_mm)
    )

    return Measurement(
        area_px=area_px,
        area_mm2=area_px * spacing.row_mm * spacing.column_mm
        if spacing is not None and known
        else None,
        area_estimated=bool(spacing is not None and known and spacing.detector),
        centroid_px=(float(column), float(row)),
        laterality=laterality(
            sums / areas_px[:, None], (mask.shape[0], mask.shape[1]), patient_orientation
        ),
        regions=count,
        extent_px=(int(top), int(left), int(bottom), int(right)),
        spread_px=(float(spread_rows), float(spread_columns)),
    )


def laterality(
    centroids: NDArray[np.float64],
    shape: tuple[int, int],
    patient_orientation: Sequence[str] | None,
) -> Laterality | None:
    """The patient's side(s) on which the regions' (row, column) centroids lie; None if the header
    does not tell.

    PatientOrientation names where the rows run to (left to right on the image) and where the
    columns run to (top to bottom), each by its main direction first: PS3.3 C.7.6.1.1.1. L\\F is the
    usual chest: image right is the patient's left. The middle of the image stands in for the
    patient's midline, which is its limit: an off-centre or rotated patient shifts it, so no side is
    stated for a centroid near the middle.
    """
    stated = directions(patient_orientation)
    if stated is None:
        return None

    along_row, along_column = (direction[0] for direction in stated)
    if "L" not in (along_row, along_column) and "R" not in (along_row, along_column):
        # Neither axis runs across the patient.
        return None

    axis, towards = (1, along_row) if along_row in ("L", "R") else (0, along_column)
    extent = shape[axis]
    offsets = centroids[:, axis] - (extent - 1) / 2
    if np.any(np.abs(offsets) < MIDDLE * extent):
        return None

    sides: set[Laterality] = {
        "L" if (offset > 0) == (towards == "L") else "R" for offset in offsets
    }
    return "B" if len(sides) == 2 else sides.pop()
