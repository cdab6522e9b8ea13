"""Millimetres per pixel.

As a projection's header states them; an unknown spacing is never guessed (PS3.3 10.7.1).
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
# The longer side of a chest's picture, a newborn's included. With the placeholder 1\1, a 1024 x
# 1024 picture would be longer; with centimetres, or with the spacing from before a reduction to 512
# x 512, it would be shorter.
_SHORTEST_MM = 100.0
_LONGEST_MM = 1000.0
# Placeholders of writers that do not know the spacing; no detector has such pixels.
_PLACEHOLDER = (1.0, 1.0)

# 0.139 beside 0.1388889 is one spacing, rounded, and so is 0.143 beside 0.14. A small step upwards
# can only be rounding: a patient is smaller than the shadow.
_ROUNDING = 0.01
_ROUNDED_UP = 0.03
# The magnification of a patient between source and detector: size of the shadow / of the patient.
_LARGEST_MAGNIFICATION = 2.0

# Spacings written with few digits differ by less.
SQUARE_WITHIN = 0.01
# No detector has pixels longer than this times their width.
_LARGEST_ASPECT = 8.0

_Pair = tuple[float, float]


@dataclass(frozen=True)
class Spacing:
    """Millimetres per pixel, and whether they are an estimate.

    `detector` is True if the spacing is not known to be calibrated to the patient: it may be the
    spacing at the detector's front plane, where the patient is magnified (PS3.3 10.7.1.1).
    """

    row_mm: float
    column_mm: float
    detector: bool


def spacing_of(header: Dataset) -> Spacing | None:
    """The patient's size where PixelSpacing is calibrated, else an estimate, else None."""
    return spacing_and_notes(header)[0]


def spacing_and_notes(header: Dataset) -> tuple[Spacing | None, tuple[str, ...]]:
    """`spacing_of`, and a note for each stated spacing that is implausible.

    PixelSpacing is calibrated where it is smaller than the spacing of the detector or the scanned
    film by a magnification, the same along rows and columns, or where PixelSpacingCalibrationType
    says so and the two do not contradict each other. Any other difference comes from a later resize
    or a placeholder; as one cannot tell which value is right, neither is used. Where PixelSpacing
    is alone, it cannot be determined whether it is calibrated (PS3.3 10.7.1.1).

    A Secondary Capture's PixelSpacing and ImagerPixelSpacing are ignored: the program that wrapped
    the picture may have resized it, as in the SIIM set.
    """
    wrapped = header.get("SOPClassUID") in _WRAPPED
    shown, notes = _believed(header, "PixelSpacing")
    plane, plane_keyword, plane_notes = _plane(header, wrapped)
    notes += plane_notes
    claimed = str(header.get("PixelSpacingCalibrationType") or "").strip() in _CALIBRATED

    if shown is None:
        return (_estimated(header, plane) if plane is not None else None), tuple(notes)

    if plane is None:
        is_usable = claimed or not wrapped
        return (Spacing(*shown, detector=not claimed) if is_usable else None), tuple(notes)

    ratios = [one / other for one, other in zip(shown, plane, strict=True)]
    if not _is_magnification(ratios):
        notes.append(f"PixelSpacing and {plane_keyword} contradict each other and are ignored")
        return None, tuple(notes)

    is_smaller = min(ratios) < 1 - _ROUNDING
    calibrated = Spacing(*shown, detector=False) if claimed or is_smaller else None
    return calibrated or _estimated(header, plane), tuple(notes)


def detector_spacing(header: Dataset) -> tuple[float, float] | None:
    """(row, column) ImagerPixelSpacing in mm; None if it is absent or implausible."""
    if header.get("SOPClassUID") in _WRAPPED:
        return None
    return _believed(header, "ImagerPixelSpacing")[0]


def _plane(header: Dataset, wrapped: bool) -> tuple[_Pair | None, str, list[str]]:
    """The spacing of the detector, else of the scanned film, its keyword, and notes."""
    keywords = ["NominalScannedPixelSpacing"]
    if not wrapped:
        keywords.insert(0, "ImagerPixelSpacing")

    notes = []
    for keyword in keywords:
        pair, note = _believed(header, keyword)
        notes += note
        if pair is not None:
            return pair, keyword, notes
    return None, "", notes


def _is_magnification(ratios: list[float]) -> bool:
    """Whether PixelSpacing may be the patient's, given the detector's: equal or smaller.

    `ratios` are those of PixelSpacing to the detector's spacing, of rows and of columns.
    """
    smallest, largest = min(ratios), max(ratios)
    if largest > smallest * (1 + 2 * _ROUNDING):
        return False
    return smallest >= (1 - _ROUNDING) / _LARGEST_MAGNIFICATION and largest <= 1 + _ROUNDED_UP


def _estimated(header: Dataset, plane: _Pair) -> Spacing:
    magnification = _magnification(header)
    return Spacing(plane[0] / magnification, plane[1] / magnification, detector=True)


def _magnification(header: Dataset) -> float:
    """EstimatedRadiographicMagnificationFactor, detector to patient.

    1 where absent or no factor of a chest.
    """
    try:
        factor = float(header.get("EstimatedRadiographicMagnificationFactor"))
    except (TypeError, ValueError):
        return 1.0
    return factor if 1 <= factor <= _LARGEST_MAGNIFICATION else 1.0


def _believed(header: Dataset, keyword: str) -> tuple[_Pair | None, list[str]]:
    """(row, column) in mm if it can be a chest's; otherwise None and a note."""
    try:
        row_mm, column_mm = (float(value) for value in header.get(keyword))
        rows, columns = int(header.get("Rows") or 1), int(header.get("Columns") or 1)
    except (TypeError, ValueError, OverflowError):
        return None, []
    if not (math.isfinite(row_mm) and math.isfinite(column_mm) and row_mm > 0 and column_mm > 0):
        return None, []

    pair = (row_mm, column_mm)
    longer_mm = max(rows * row_mm, columns * column_mm)
    if pair == _PLACEHOLDER or not _SHORTEST_MM <= longer_mm <= _LONGEST_MM:
        return None, [f"{keyword} is not that of a chest and is ignored"]
    return pair, []


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
    """Whether pixels with this height divided by width are square, within rounding."""
    return abs(aspect - 1) <= SQUARE_WITHIN


def aspect_ratio(header: Dataset) -> float | None:
    """PixelAspectRatio as height divided by width; None if it is absent or not usable."""
    return _ratio(header.get("PixelAspectRatio"))


def _ratio(value: Any) -> float | None:
    """The first of two numbers divided by the second; None if it cannot be a pixel's aspect."""
    try:
        height, width = (float(side) for side in value)
        ratio = height / width
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None
    return ratio if height > 0 and 1 / _LARGEST_ASPECT <= ratio <= _LARGEST_ASPECT else None
