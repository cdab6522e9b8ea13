"""The node's conclusion about one image: plain frozen values that every other room passes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Laterality = Literal["R", "L", "B"]  # the patient's right, left, both


class State(StrEnum):
    """The final state of an image; silence never means negative."""

    ANALYSED = "analysed"
    NOT_ANALYSED = "not_analysed"
    FAILED = "failed"


@dataclass(frozen=True)
class ModelIdentity:
    """The model package that answered. It enters every result and the derived UIDs."""

    id: str  # the package's own name, for example "pleura-default"
    version: str
    digest: str  # sha256 over the package's files, hex
    device_uid: str  # changes whenever the package changes (IHE AIR vol. 3, 6.5.3.1)


@dataclass(frozen=True)
class Measurement:
    """Figures of a mask in the source's own pixel matrix."""

    area_px: int
    area_mm2: float | None  # None if no spacing is known
    # True if the spacing is not known to be calibrated to the patient (PS3.3 10.7.1.1).
    area_estimated: bool
    # (column, row) of all regions together, pixel centres at whole numbers.
    centroid_px: tuple[float, float]
    laterality: Laterality | None  # None if PatientOrientation does not tell
    regions: int
    # (first row, first column, last row, last column) of them all.
    extent_px: tuple[int, int, int, int] | None = None
    # (row, column): the standard deviation of their pixels' positions.
    spread_px: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Finding:
    """The model's answer for one radiograph.

    `mask` is (rows, columns), bool, in the source's pixel matrix. It is None where the classifier
    said "not detected" (the segmenter never ran). A positive whose segmenter found no region has a
    mask without a true pixel and no measurement: a visible result, never turned into a negative.
    `sided` is False if the picture contradicts what its header says about the patient's sides.
    """

    probability: float  # the classifier's, 0 to 1
    threshold: float  # the operating point that it was compared with
    positive: bool
    mask: NDArray[np.bool_] | None = None
    measurement: Measurement | None = None
    sided: bool = True
    # Whether `probability` is a calibrated probability, not just a score; the package says so.
    calibrated: bool = False


@dataclass(frozen=True)
class Result:
    """One checked DICOM object, ready to leave. `data` is a whole Part 10 file."""

    kind: str  # SEG, SC, SR, PR
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The visible end state of one image, and the objects that report it (perhaps none)."""

    state: State
    content_digest: str
    sop_instance_uid: str | None
    study_instance_uid: str | None
    reason: str | None = None  # a code of admission.REASONS; None when analysed
    detail: str = ""  # for the log and the ledger: tags and UIDs, never a patient's value
    finding: Finding | None = None
    results: tuple[Result, ...] = ()
    notes: tuple[str, ...] = ()  # what was absent or implausible but admitted

    def summary(self) -> dict[str, Any]:
        """The answer as `pleura predict` prints it: plain values, None if there is none."""
        finding = self.finding
        measurement = finding.measurement if finding else None
        has_mm2 = measurement is not None and measurement.area_mm2 is not None

        return {
            "sop_instance_uid": self.sop_instance_uid,
            "state": self.state.value,
            "reason": self.reason,
            "detail": self.detail or None,
            "probability": round(finding.probability, 6) if finding else None,
            "positive": finding.positive if finding else None,
            "area_px": measurement.area_px if measurement else None,
            "area_mm2": measurement.area_mm2 if measurement else None,
            "area_estimated": measurement.area_estimated if measurement and has_mm2 else None,
            "centroid_px": measurement.centroid_px if measurement else None,
            "laterality": measurement.laterality if measurement else None,
            "notes": list(self.notes),
        }
