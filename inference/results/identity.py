"""Who a result is about, whose it is and what it is called: the attributes that every outgoing object shares."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import uuid
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.admission import usable_uid
from inference.display import lut_words
from inference.finding import Finding, ModelIdentity, State
from inference.radiograph import COPIED_KEYWORDS, Spacing
from inference.results.lesions import Lesion, find
from inference.results.source import copied, orientation, utc_offset

try:
    PLEURA_VERSION = importlib.metadata.version("pleura")
except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
    PLEURA_VERSION = "0+unknown"

MANUFACTURER = "Pleura"
DISCLAIMER = "Research use only - not for diagnosis"
IMPLEMENTATION_CLASS_UID = (
    "2.25.185662961511293906917213657468255293311"  # PS3.7 D.3.3.2: names the implementation
)
IMPLEMENTATION_VERSION_NAME = f"PLEURA_{PLEURA_VERSION}"[:16]
SCHEMA_VERSION = 4  # raised when an encoder changes what it writes for the same case, so that no UID changes meaning
NAMESPACE = uuid.UUID("538e4772-f5cc-46a9-8a5e-5b4945cc6aa8")

# Type 2 in the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): present in each object, empty where unknown.
TYPE_2_KEYWORDS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# What results also take from their source, and the content digest does not cover.
TAKEN_KEYWORDS = (
    "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "TimezoneOffsetFromUTC", "Modality", "BodyPartExamined",
    "BurnedInAnnotation", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "AcquisitionDate", "AcquisitionTime", "PixelAspectRatio", "RescaleType", "ModalityLUTSequence", "VOILUTSequence",
    "ShutterShape", "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge", "ShutterUpperHorizontalEdge",
    "ShutterLowerHorizontalEdge", "CenterOfCircularShutter", "RadiusOfCircularShutter",
    "VerticesOfThePolygonalShutter",
)  # fmt: skip


@dataclass(frozen=True)
class RenderSettings:
    """The settings that change pixels or words: each part of the identity of what it changes, and of nothing else."""

    longest_side: int = 2048  # pixels of the radiograph within the overlay; a smaller source is never blown up to it
    jpeg_quality: int = 90
    report_absent: bool = (
        False  # "not detected" is also coded as Absent in the SR: a site's own decision
    )
    refer_to_segmentation: bool = (
        True  # False where an SR goes to somebody who does not get the SEG
    )

    def __post_init__(self) -> None:
        if not 256 <= self.longest_side <= 16384:
            raise ValueError(
                f"RenderSettings: longest_side {self.longest_side}; wanted 256 to 16384 pixels"
            )
        if not 50 <= self.jpeg_quality <= 100:
            raise ValueError(f"RenderSettings: jpeg_quality {self.jpeg_quality}; wanted 50 to 100")


@dataclass(frozen=True)
class Refusal:
    """Why there is no finding: a code of admission.REASONS, and a sentence for the reader without a patient's value."""

    state: State  # NOT_ANALYSED or FAILED
    reason: str
    sentence: str

    def __post_init__(self) -> None:
        if self.state is State.ANALYSED or not self.reason or not self.sentence:
            raise ValueError(
                "Refusal: wanted NOT_ANALYSED or FAILED with a reason code and a sentence"
            )


@dataclass(frozen=True, eq=False)
class Case:
    """One image's answer, with everything a result needs. Constructed means that results can be built.

    `header` is the source without Pixel Data. `pixels` is (rows, columns), float32, 0 black to 1 white in display
    polarity, None where they cannot be decoded. Either `finding` or `refusal` is given. `result_time` is when the
    answer was reached; no encoder asks a clock. A naive one is the site's local time; an aware one is written in its
    own offset, or in the source's where that states one. `notes` are short plain phrases: what was absent or
    implausible and admitted all the same, never a patient's value.

    Raises:
        ValueError: the source has no usable Study, Series or SOP Instance UID, or shapes disagree.
    """

    header: Dataset
    content_digest: str
    model: ModelIdentity
    result_time: datetime
    finding: Finding | None = None
    refusal: Refusal | None = None
    pixels: NDArray[np.float32] | None = None
    spacing: Spacing | None = None
    appearance: RenderSettings = RenderSettings()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.finding is None) == (self.refusal is None):
            raise ValueError("Case: wanted either a finding or a refusal")
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            if not usable_uid(str(self.header.get(keyword) or "")):
                raise ValueError(
                    f"Case: the source has no usable {keyword}; a result cannot refer to it"
                )
        if self.pixels is not None and self.pixels.shape != (
            self.header.get("Rows"),
            self.header.get("Columns"),
        ):
            raise ValueError(
                f"Case: pixels of shape {self.pixels.shape} for another Rows and Columns"
            )
        if self.finding is not None:
            if self.pixels is None:
                raise ValueError("Case: a finding without the pixels it was found in")
            if self.finding.mask is not None and self.finding.mask.shape != self.pixels.shape:
                raise ValueError(
                    f"Case: mask {self.finding.mask.shape}, pixels {self.pixels.shape}; wanted equal"
                )

    @property
    def segmented(self) -> NDArray[np.bool_] | None:
        """The (rows, columns) mask where the finding is positive and a pixel is in it, else None."""
        finding = self.finding
        return (
            finding.mask
            if finding and finding.positive and finding.mask is not None and finding.mask.any()
            else None
        )

    @cached_property
    def lesions(self) -> tuple[Lesion, ...]:
        """The lesions of what is segmented, the largest first; none where nothing is."""
        if self.segmented is None or self.finding is None:
            return ()
        directions = orientation(self.header) if self.finding.sided else None
        return find(self.segmented, directions, lambda number: _tracking_uid(self, number))

    @cached_property
    def taken_digest(self) -> str:
        """Over what results take from the source beside its content, over spacing and notes."""
        digest = hashlib.sha256(repr((self.notes, self.spacing)).encode("utf-8", "surrogateescape"))
        for keyword in TAKEN_KEYWORDS:
            element = self.header[keyword] if keyword in self.header else None  # noqa: SIM401 - get() gives the value
            values = [] if element is None else [element]
            if element is not None and element.VR == "SQ":
                values = [each for item in element.value for each in item.iterall()]
            for each in values:
                words = lut_words(each.value, self.header) if each.keyword == "LUTData" else None
                value = words or each.value
                digest.update(
                    f"\0{keyword} {each.tag}={value!r}".encode("utf-8", "surrogateescape")
                )
        return digest.hexdigest()

    @property
    def local_time(self) -> datetime:
        """The result's time on the clock that the object's dates and times are in (PS3.3 C.12.1.1.8)."""
        offset = utc_offset(self.header)
        return (
            self.result_time
            if offset is None or self.result_time.tzinfo is None
            else self.result_time.astimezone(offset)
        )


def derived_uid(case: Case, kind: str) -> str:
    """The UID of one object about this case: the same for the same content, another for any other content.

    Archives keep the first object of a UID and answer success to the second, so all that changes content is in here.
    """
    outcome: list[object]
    if case.finding is not None:
        outcome = [State.ANALYSED.value, bool(case.finding.positive), float(case.finding.threshold)]
    else:
        assert case.refusal is not None  # one of the two: Case says so
        outcome = [case.refusal.state.value, case.refusal.reason]
    return _uuid5(kind, *_source(case), outcome, _settings(case, kind), case.taken_digest)


def _settings(case: Case, kind: str) -> list[object]:
    """The settings that change what this kind of object holds."""
    chosen = case.appearance
    if kind == "SC":
        return [chosen.longest_side, chosen.jpeg_quality]
    return (
        [chosen.report_absent, chosen.refer_to_segmentation and bool(case.lesions)]
        if kind == "SR"
        else []
    )


def _tracking_uid(case: Case, number: int) -> str:
    """The UID of a lesion, the same in every object that speaks of it, however that is rendered."""
    assert case.finding is not None  # it has lesions
    return _uuid5("tracking", *_source(case), float(case.finding.threshold), number)


def series_uid(case: Case, kind: str) -> str:
    """One series per kind, source and model, so that a later version of a model does not mix with the former."""
    return _uuid5("series", kind, *_source(case))


def frame_of_reference_uid(case: Case) -> str:
    """The source's own Frame of Reference UID, else one that all objects about this source share."""
    own = str(case.header.get("FrameOfReferenceUID") or "")
    return own if usable_uid(own) else _uuid5("frame of reference", str(case.header.SOPInstanceUID))


def _source(case: Case) -> tuple[str, ...]:
    return str(case.header.SOPInstanceUID), case.content_digest, case.model.digest


def _uuid5(*parts: object) -> str:
    name = json.dumps(
        [*parts, SCHEMA_VERSION, PLEURA_VERSION], separators=(",", ":"), ensure_ascii=True
    )
    return f"2.25.{uuid.uuid5(NAMESPACE, name).int}"  # PS3.5 B.2


def identify(case: Case, kind: str, number: int, description: str) -> Dataset:
    """A new data set with what all objects of a case share: patient, study, series, equipment and SOP Common.

    Patient and study are the source's (type 2 gaps stay empty, nothing is invented); the rest is our own.
    """
    dataset = Dataset()
    for keyword in (*COPIED_KEYWORDS, "TimezoneOffsetFromUTC"):
        element = copied(case.header, keyword)
        if element is not None:
            dataset.add(element)
        elif keyword in TYPE_2_KEYWORDS:
            setattr(dataset, keyword, None)
    if utc_offset(case.header) is None and "TimezoneOffsetFromUTC" in dataset:
        del dataset.TimezoneOffsetFromUTC
    dataset.StudyInstanceUID = str(case.header.StudyInstanceUID)
    dataset.SeriesInstanceUID = series_uid(case, kind)
    dataset.SOPInstanceUID = derived_uid(case, kind)
    dataset.SeriesNumber = number
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = f"{description}. {DISCLAIMER}"
    date, time = case.local_time.strftime("%Y%m%d"), case.local_time.strftime("%H%M%S.%f")
    for prefix in ("Series", "Content", "InstanceCreation"):
        setattr(dataset, f"{prefix}Date", date)
        setattr(dataset, f"{prefix}Time", time)
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = case.model.id
    dataset.DeviceSerialNumber = case.model.digest[:16]
    dataset.SoftwareVersions = [f"Pleura {PLEURA_VERSION}", f"model {case.model.version}"]
    dataset.ContributingEquipmentSequence = [_equipment(case)]
    return dataset


def record_lossy(dataset: Dataset, steps: list[tuple[str, str]]) -> None:
    """Write the lossy history; a list of which nothing is known stays away (both are type 1C or 3, never empty)."""
    dataset.LossyImageCompression = "01" if steps else "00"
    for keyword, values in zip(("Ratio", "Method"), zip(*steps, strict=True), strict=False):
        if any(values):
            setattr(dataset, f"LossyImageCompression{keyword}", list(values))


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item


def reference(case: Case) -> Dataset:
    """The source as an item that refers to it."""
    item = Dataset()
    item.ReferencedSOPClassUID = str(case.header.SOPClassUID)
    item.ReferencedSOPInstanceUID = str(case.header.SOPInstanceUID)
    return item


def reference_series(case: Case) -> Dataset:
    """The source's series as an item of ReferencedSeriesSequence (PS3.3 C.12.2)."""
    item = Dataset()
    item.SeriesInstanceUID = str(case.header.SeriesInstanceUID)
    item.ReferencedInstanceSequence = [reference(case)]
    return item


def _equipment(case: Case) -> Dataset:
    """Pleura as contributing equipment. IHE AIR vol. 3, 6.5.3.1 wants the DeviceUID; the node knows its own by it."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = case.model.id
    item.SoftwareVersions = [f"Pleura {PLEURA_VERSION}", f"model {case.model.version}"]
    item.DeviceUID = case.model.device_uid
    item.ContributionDateTime = case.local_time.strftime("%Y%m%d%H%M%S.%f%z")
    item.ContributionDescription = "Pneumothorax detection and segmentation"
    return item
