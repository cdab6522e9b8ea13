"""Bytes -> header -> Radiograph: one grey image in display polarity, or Unsuitable with the reason."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import UID, ImplicitVRLittleEndian

# Attributes that results copy from their source: they are part of the image's identity (docs/decisions.md, "Identity").
COPIED_ATTRIBUTES = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription",
    "ReferringPhysicianName",
)  # fmt: skip


class Unsuitable(Exception):  # noqa: N818 - it is an outcome, not an error
    """The image cannot become a Radiograph. `reason` is a code of admission.REASONS; `detail` holds no patient value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Spacing:
    """Millimetres per pixel, and which attribute says so.

    `detector` is True where only ImagerPixelSpacing is known: the size at the detector's front plane, magnified
    against the patient (PS3.3 10.7.1.3).
    """

    row_mm: float
    column_mm: float
    detector: bool


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A frontal projection as a viewer would show it.

    `pixels` is (rows, columns), float32, 0 black to 1 white, in display polarity: MONOCHROME1 is already inverted,
    so air is dark in every Radiograph. `header` is the source without its Pixel Data.
    """

    header: Dataset
    pixels: NDArray[np.float32]
    spacing: Spacing | None
    content_digest: str
