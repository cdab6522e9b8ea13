"""PatientOrientation (0020,0020), read in one place, so that picture, side and admission agree."""

from __future__ import annotations

import re
from collections.abc import Sequence

# PS3.3 C.7.6.1.1.1, for humans; other texts (PORTRAIT, RIGHT, ERECT) are not orientations.
_DIRECTION = re.compile(r"[AFHLPR]{1,3}")
# The two directions of each of the patient's axes.
_AXES = ("AP", "FH", "LR")


def directions(patient_orientation: object) -> tuple[str, str] | None:
    """Where rows run to (left to right), then where columns run to (top to bottom).

    Each direction has its main letter first.

    Args:
        patient_orientation: the attribute's value as pydicom gives it, of any type.

    Returns:
        None unless the value states two perpendicular directions; then all of it is ignored.
    """
    if isinstance(patient_orientation, str) or not isinstance(patient_orientation, Sequence):
        return None
    if len(patient_orientation) != 2:
        return None

    # Spaces around a value of VR CS are not significant (PS3.5 6.2).
    values = [str(value).strip(" ") for value in patient_orientation]
    if not all(_is_direction(value) for value in values):
        return None

    along_row, along_column = values
    if _axis(along_row[0]) == _axis(along_column[0]):
        return None
    return along_row, along_column


def _is_direction(value: str) -> bool:
    """Whether the letters are allowed, each axis at most once."""
    if not _DIRECTION.fullmatch(value):
        return False
    axes = [_axis(letter) for letter in value]
    return len(set(axes)) == len(axes)


def _axis(letter: str) -> str:
    return next(axis for axis in _AXES if letter in axis)
