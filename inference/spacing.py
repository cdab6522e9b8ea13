"""Millimetres per pixel.

What a projection's header says of them, and never one that is not known (PS3.3 10.7.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset
from pydicom.uid import (
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

# Values of PixelSpacingCalibrationType, PS3.3 10.7.1.2.
_CALIBRATED = ("GEOMETRY", "FIDUCIAL")
_WRAPPED = (
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)
# 0.139 beside 0.1388889 is one spacing, rounded.
_ROUNDING = 0.01
# Whole legs and spines on one film; a placeholder such as 1\1 makes a chest of 2.5 m.
_LONGEST_MM = 1500.0

# Spacings written with few digits differ by less.
SQUARE_WITHIN = 0.01
# No detector has pixels longer than this times their width.
_LARGEST_ASPECT = 8.0


@dataclass(frozen=True)
class Spacing:
    """Millimetres per pixel, and whether they are an estimate.

    `detector` is True where nothing says that the size is calibrated to the patient: it is, or may
    be, that at the detector's front plane, magnified against the patient (PS3.3 10.7.1.1).
    """

    row_mm: float
    column_mm: float
    detector: bool


def spacing_of(header: Dataset) -> Spacing | None:
    """The patient's size where PixelSpacing is calibrated, else an estimate, else None.

    PixelSpacing is calibrated where PixelSpacingCalibrationType says so, or where it differs from
    the spacing of the detector or the scanned film by more than rounding; where neither of those is
    there it cannot be determined (PS3.3 10.7.1.1). A Secondary Capture's PixelSpacing and
    ImagerPixelSpacing are none: what wrapped the picture may have resized it, as in the SIIM set.
    """
    shown, wrapped = _pair_mm(header, "PixelSpacing"), header.get("SOPClassUID") in _WRAPPED
    detector = None if wrapped else _pair_mm(header, "ImagerPixelSpacing")
    plane = detector or _pair_mm(header, "NominalScannedPixelSpacing")
    calibrated = str(header.get("PixelSpacingCalibrationType") or "").strip() in _CALIBRATED
    if shown is not None and (calibrated or (plane is not None and _differ(shown, plane))):
        return Spacing(*shown, detector=False)

    if plane is not None:
        magnification = _magnification(header)
        return Spacing(plane[0] / magnification, plane[1] / magnification, detector=True)

    if shown is not None and not wrapped:
        return Spacing(*shown, detector=True)

    return None


def _differ(shown: tuple[float, float], plane: tuple[float, float]) -> bool:
    return any(
        abs(one - other) > _ROUNDING * other for one, other in zip(shown, plane, strict=True)
    )


def _magnification(header: Dataset) -> float:
    """EstimatedRadiographicMagnificationFactor, detector to patient.

    1 where absent or no factor of a chest.
    """
    try:
        factor = float(header.get("EstimatedRadiographicMagnificationFactor"))
    except (TypeError, ValueError):
        return 1.0
    return factor if 1 <= factor <= 2 else 1.0


def _pair_mm(header: Dataset, keyword: str) -> tuple[float, float] | None:
    try:
        row_mm, column_mm = (float(value) for value in header.get(keyword))
        rows, columns = int(header.get("Rows") or 1), int(header.get("Columns") or 1)
    except (TypeError, ValueError, OverflowError):
        return None
    if not (math.isfinite(row_mm) and math.isfinite(column_mm) and row_mm > 0 and column_mm > 0):
        return None
    return (row_mm, column_mm) if max(rows * row_mm, columns * column_mm) <= _LONGEST_MM else None


def pixel_aspect(header: Dataset) -> float:
    """A pixel's height divided by its width.

    From the first spacing that the header states, that of wrapped pictures included, else from
    PixelAspectRatio (PS3.3 C.7.6.3.1.7), else 1.
    """
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        sides = _ratio(header.get(keyword))
        if sides is not None:
            return sides
    return aspect_ratio(header) or 1.0


def is_square(aspect: float) -> bool:
    """Whether pixels of this height divided by their width are square, but for few digits."""
    return abs(aspect - 1) <= SQUARE_WITHIN


def aspect_ratio(header: Dataset) -> float | None:
    """PixelAspectRatio as height divided by width; None where it is absent or not usable."""
    return _ratio(header.get("PixelAspectRatio"))


def _ratio(value: Any) -> float | None:
    """The first of two numbers divided by the second; None where that is no pixel's aspect."""
    try:
        height, width = (float(side) for side in value)
        ratio = height / width
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None
    return ratio if height > 0 and 1 / _LARGEST_ASPECT <= ratio <= _LARGEST_ASPECT else None
