"""One image's answer, with everything that encoders and gate need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.admission import usable_uid
from inference.finding import Finding, ModelIdentity, State
from inference.radiograph import Spacing
from inference.results.source import utc_offset
from inference.spacing import SQUARE_WITHIN, pixel_aspect

T = TypeVar("T")

NAMING_KEYWORDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class RenderSettings:
    """The settings that change pixels or words.

    Each is part of the identity of the kinds that it changes (kinds.py) and of no other.

    Attributes:
        longest_side: pixels of the radiograph within the overlay; a smaller source is not enlarged
            to it.
        jpeg_quality: of the overlay.
        report_absent: "not detected" is also coded as Absent in the SR. A site decides this.
        refer_to_segmentation: False where the SR goes to a destination that does not get the SEG.
    """

    longest_side: int = 2048
    jpeg_quality: int = 90
    report_absent: bool = False
    refer_to_segmentation: bool = True

    def __post_init__(self) -> None:
        if not 256 <= self.longest_side <= 16384:
            raise ValueError(
                f"RenderSettings: longest_side {self.longest_side}; wanted 256 to 16384 pixels"
            )
        if not 50 <= self.jpeg_quality <= 100:
            raise ValueError(f"RenderSettings: jpeg_quality {self.jpeg_quality}; wanted 50 to 100")


@dataclass(frozen=True)
class NoFinding:
    """Why an image has no finding.

    Attributes:
        state: NOT_ANALYSED or FAILED.
        reason: a code of admission.REASONS.
        sentence: for the reader, without a patient's value.
    """

    state: State
    reason: str
    sentence: str

    def __post_init__(self) -> None:
        if self.state is State.ANALYSED or not self.reason or not self.sentence:
            raise ValueError(
                "NoFinding: wanted NOT_ANALYSED or FAILED with a reason code and a sentence"
            )


@dataclass(frozen=True, eq=False)
class Case:
    """One image's answer. Once constructed, results can be built from it.

    Either `finding` or `no_finding` is given.

    Attributes:
        header: the source without Pixel Data.
        pixels: (rows, columns), float32, 0 black to 1 white in display polarity; None where they
            cannot be decoded.
        result_time: when the answer was reached; no encoder asks a clock. A naive time is the
            site's local time. An aware time is written in its own offset, or in the source's
            offset where the source states one.
        notes: short plain phrases on what was absent or implausible but admitted, never a patient's
            value.

    Raises:
        ValueError: the source has no usable Study, Series or SOP Instance UID, or shapes disagree.
    """

    header: Dataset
    content_digest: str
    model: ModelIdentity
    result_time: datetime
    finding: Finding | None = None
    no_finding: NoFinding | None = None
    pixels: NDArray[np.float32] | None = None
    spacing: Spacing | None = None
    appearance: RenderSettings = RenderSettings()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.finding is None) == (self.no_finding is None):
            raise ValueError("Case: wanted either a finding or the reason why there is no finding")

        for keyword in NAMING_KEYWORDS:
            if not usable_uid(str(self.header.get(keyword) or "")):
                raise ValueError(
                    f"Case: the source has no usable {keyword}; a result cannot refer to it"
                )

        matrix = (self.header.get("Rows"), self.header.get("Columns"))
        if self.pixels is not None and self.pixels.shape != matrix:
            raise ValueError(
                f"Case: pixels of shape {self.pixels.shape} for another Rows and Columns"
            )

        if self.finding is not None:
            self._check_finding(self.finding)

    def _check_finding(self, finding: Finding) -> None:
        if self.pixels is None:
            raise ValueError("Case: a finding without the pixels that it was found in")
        if finding.mask is not None and finding.mask.shape != self.pixels.shape:
            raise ValueError(
                f"Case: mask {finding.mask.shape}, pixels {self.pixels.shape}; wanted equal"
            )

    @cached_property
    def segmented(self) -> NDArray[np.bool_] | None:
        """The (rows, columns) mask of a positive with at least one pixel in it, else None."""
        finding = self.finding
        if finding is None or not finding.positive or finding.mask is None:
            return None
        return finding.mask if finding.mask.any() else None

    @property
    def aspect(self) -> float:
        """A pixel's height divided by its width; exactly 1 if it is 1 within the rounding of
        headers.

        Pictures for people have square pixels: viewers show a Secondary Capture as it is stored.
        """
        aspect = pixel_aspect(self.header)
        return 1.0 if abs(aspect - 1) <= SQUARE_WITHIN else aspect

    @property
    def refers_to_segmentation(self) -> bool:
        """True if every destination of this case's SR also gets its SEG."""
        return self.appearance.refer_to_segmentation and self.segmented is not None

    @property
    def effective_settings(self) -> RenderSettings:
        """The settings that can have an effect in this case: without a SEG, no SR refers to one."""
        return replace(self.appearance, refer_to_segmentation=self.refers_to_segmentation)

    @property
    def states_offset(self) -> bool:
        """Whether the source states the offset of its times from UTC."""
        return utc_offset(self.header) is not None

    @property
    def local_time(self) -> datetime:
        """The result's time on the clock of the object's dates and times (PS3.3 C.12.1.1.8)."""
        offset = utc_offset(self.header)
        if offset is None or self.result_time.tzinfo is None:
            return self.result_time
        return self.result_time.astimezone(offset)


def once_per_case(function: Callable[[Case], T]) -> Callable[[Case], T]:
    """Cache the function's result for the lifetime of its case: several objects use it."""
    answers: WeakKeyDictionary[Case, T] = WeakKeyDictionary()

    @wraps(function)
    def remembered(case: Case) -> T:
        if case not in answers:
            answers[case] = function(case)
        return answers[case]

    return remembered
