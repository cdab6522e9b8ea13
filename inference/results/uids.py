"""Derived UIDs: the same for the same content, another for any other content (docs/rules.md).

Archives keep the first object of a UID and answer success to the second, so that everything that
changes content goes into the UID.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import uuid

from pydicom import Dataset

from inference.admission import usable_uid
from inference.as_sent import sent_bytes
from inference.display import lut_words
from inference.finding import State
from inference.radiograph import COPIED_KEYWORDS
from inference.results.case import Case, once_per_case
from inference.results.kinds import KINDS

try:
    PLEURA_VERSION = importlib.metadata.version("pleura")
except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
    PLEURA_VERSION = "0+unknown"

# Increased when an encoder writes something else for the same case, so that no UID changes meaning.
SCHEMA_VERSION = 7
NAMESPACE = uuid.UUID("538e4772-f5cc-46a9-8a5e-5b4945cc6aa8")

# Attributes that results take from their source and the content digest does not cover.
TAKEN_KEYWORDS = (
    "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "TimezoneOffsetFromUTC", "Modality",
    "BodyPartExamined", "BurnedInAnnotation", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "AcquisitionDate",
    "AcquisitionTime", "PixelAspectRatio", "RescaleType", "ModalityLUTSequence", "VOILUTSequence",
    "ShutterShape", "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge",
    "ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge", "CenterOfCircularShutter",
    "RadiusOfCircularShutter", "VerticesOfThePolygonalShutter",
)  # fmt: skip


def derived_uid(case: Case, kind: str) -> str:
    """The SOP Instance UID of the object of this kind about the case."""
    uids = _derived_uids(case)
    if kind not in uids:
        uids[kind] = _derived_uid(case, kind)
    return uids[kind]


@once_per_case
def _derived_uids(case: Case) -> dict[str, str]:  # noqa: ARG001
    """The UIDs that were derived for the case, by kind."""
    return {}


def _derived_uid(case: Case, kind: str) -> str:
    outcome: list[object]
    if case.finding is not None:
        finding = case.finding
        outcome = [State.ANALYSED.value, bool(finding.positive), float(finding.threshold)]
    else:
        assert case.no_finding is not None  # Case holds one of the two
        outcome = [case.no_finding.state.value, case.no_finding.reason]

    return _uuid5(kind, *_source(case), outcome, _settings(case, kind), taken_digest(case))


def _settings(case: Case, kind: str) -> list[object]:
    """The values of the settings that change what this kind of object holds."""
    if kind not in KINDS:  # a UID within an object, such as that of the SEG's dimensions
        return []
    return [getattr(case.effective_settings, name) for name in KINDS[kind].settings]


def tracking_uid(case: Case, number: int) -> str:
    """The UID of the lesion with this number, the same in every object however it is rendered."""
    assert case.finding is not None  # it has lesions
    return _uuid5("tracking", *_source(case), float(case.finding.threshold), number)


def series_uid(case: Case, kind: str) -> str:
    """One series per kind, source and model: versions of a model do not mix in one series."""
    return _uuid5("series", kind, *_source(case))


def frame_of_reference_uid(case: Case) -> str:
    """The source's own Frame of Reference UID, else the one that objects of this source share."""
    own = str(case.header.get("FrameOfReferenceUID") or "")
    if usable_uid(own):
        return own
    return _uuid5("frame of reference", str(case.header.SOPInstanceUID))


@once_per_case
def taken_digest(case: Case) -> str:
    """Over what results take from the source beside its content, over spacing and notes.

    The copied attributes count as bytes: other bytes may be the same text.
    """
    digest = hashlib.sha256(repr((case.notes, case.spacing)).encode("utf-8", "surrogateescape"))
    for keyword in COPIED_KEYWORDS:
        sent = sent_bytes(case.header[keyword]) if keyword in case.header else None
        if sent is not None:
            digest.update(f"\0{keyword} {len(sent)}=".encode() + sent)
    for keyword in TAKEN_KEYWORDS:
        for tag, value in _values(case.header, keyword):
            digest.update(f"\0{keyword} {tag}={value!r}".encode("utf-8", "surrogateescape"))

    return digest.hexdigest()


def _values(header: Dataset, keyword: str) -> list[tuple[object, object]]:
    """(tag, value) of an attribute; of a sequence, of everything in its items."""
    if keyword not in header:
        return []

    element = header[keyword]
    if element.VR != "SQ":
        return [(element.tag, element.value)]

    inner = [each for item in element.value for each in item.iterall()]
    return [
        (each.tag, (each.keyword == "LUTData" and lut_words(each.value, header)) or each.value)
        for each in inner
    ]


def _source(case: Case) -> tuple[str, ...]:
    return str(case.header.SOPInstanceUID), case.content_digest, case.model.digest


def _uuid5(*parts: object) -> str:
    name = json.dumps(
        [*parts, SCHEMA_VERSION, PLEURA_VERSION], separators=(",", ":"), ensure_ascii=True
    )
    return f"2.25.{uuid.uuid5(NAMESPACE, name).int}"  # PS3.5 B.2
