"""The gate's rules for objects of every kind: patient, study, equipment, times and UIDs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from inference.as_sent import bytes_of, even, sent_bytes, tag_of
from inference.radiograph import COPIED_KEYWORDS
from inference.results import codes
from inference.results.case import Case, once_per_case
from inference.results.gate import words
from inference.results.gate.expected import Expected, Rule
from inference.results.gate.header import (
    BINARY_VRS,
    FORMAL_VRS,
    IDENTIFYING_KEYWORDS,
    element_of,
    has_usable,
    is_allowed,
    values_of,
)
from inference.results.gate.words import same
from inference.results.uids import derived_uid, series_uid
from inference.results.wording import DISCLAIMER, MANUFACTURER

COPIED_TAGS = frozenset(tag_of(keyword) for keyword in COPIED_KEYWORDS)
_PATIENT_GROUP = 0x0010
# Groups below are those of commands (PS3.7), file meta information and directories (PS3.10).
_FIRST_GROUP = 0x0008


def _uids(dataset: Dataset, expected: Expected) -> Iterator[str]:
    case, kind = expected.case, expected.kind.name
    if dataset.SOPInstanceUID != derived_uid(case, kind):
        yield f"SOPInstanceUID {dataset.SOPInstanceUID} is not the one derived from the case"

    series = dataset.SeriesInstanceUID
    if series != series_uid(case, kind) or series == case.header.SeriesInstanceUID:
        yield f"SeriesInstanceUID {series} is not the one derived from the case"
    if dataset.SeriesNumber != expected.kind.series_number:
        yield f"SeriesNumber {dataset.SeriesNumber}, wanted {expected.kind.series_number}"


@once_per_case
def _copied_bytes(case: Case) -> dict[str, bytes]:
    """The bytes of each copied attribute of the source, as an object must hold them."""
    return {keyword: even(bytes_of(case.header, keyword)) for keyword in COPIED_KEYWORDS}


def _patient_and_study(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """Check the patient's attributes: the source's own bytes, whatever its character set."""
    header = expected.case.header
    sources = _copied_bytes(expected.case)
    for keyword in COPIED_KEYWORDS:
        if values_of(element_of(dataset, keyword)):
            if bytes_of(dataset, keyword) != sources[keyword]:
                yield f"{keyword} is not the source's"
        elif keyword in IDENTIFYING_KEYWORDS and values_of(element_of(header, keyword)):
            yield f"{keyword} is missing, the source has one"
        elif has_usable(header, keyword):
            yield f"{keyword} was not carried on from the source"

    for element in expected.elements:
        if element.tag >> 16 == _PATIENT_GROUP and element.tag not in COPIED_TAGS:
            keyword = keyword_for_tag(element.tag)
            yield (
                f"{element.tag} {keyword} tells of a patient and is not one of the copied "
                "attributes"
            )


def _values_allowed(_: Dataset, expected: Expected) -> Iterator[str]:
    """Each value is allowed by its VR (PS3.5 6.2); the source's own text is not checked."""
    header = expected.case.header
    for element in expected.elements:
        if element.VR not in _allowed_vrs(int(element.tag)):
            yield f"{element.tag} is private, or no element of a data set, or has VR {element.VR}"
            continue
        # Any bit pattern of these VRs is allowed, so reading them was the check.
        if element.VR == "SQ" or element.VR in BINARY_VRS:
            continue
        if isinstance(element, RawDataElement):
            yield f"{element.tag} has VR {element.VR} and was not decoded"
            continue
        # Compared as bytes.
        if sent_bytes(element) is not None:
            continue

        formal = element.VR in FORMAL_VRS
        values = values_of(element)
        if all(is_allowed(element.VR, str(value) if formal else value) for value in values):
            continue
        # Equipment that breaks PS3.5 9.1 (leading zeros) still has patients.
        if element.VR == "UI" and element.value in expected.source:
            continue
        if not same(element, header):
            yield f"{element.tag} {element.keyword} has a value that VR {element.VR} does not allow"


@lru_cache(1024)
def _allowed_vrs(tag: int) -> tuple[str, ...]:
    """The VRs that an element may have in an explicit transfer syntax; none for a private one
    and for one of another place than a data set.
    """
    if BaseTag(tag).is_private or tag >> 16 < _FIRST_GROUP:
        return ()
    return (*dictionary_VR(tag).split(" or "), "OB")


def _equipment(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """The node knows its own results by DeviceUID: without it a result would be analysed again."""
    model = expected.case.model
    if dataset.Manufacturer != MANUFACTURER or dataset.ManufacturerModelName != model.id:
        yield "Manufacturer or ManufacturerModelName is not ours"

    equipment = dataset.get("ContributingEquipmentSequence") or []
    if [item.get("DeviceUID") for item in equipment] != [model.device_uid]:
        yield "ContributingEquipmentSequence does not hold the model's DeviceUID, and it alone"
        return
    purpose = equipment[0].PurposeOfReferenceCodeSequence[0].CodeValue
    if purpose != codes.PROCESSING_EQUIPMENT[0]:
        yield "ContributingEquipmentSequence has another purpose than Processing Equipment"


def _times(dataset: Dataset, expected: Expected) -> Iterator[str]:
    local_time = expected.case.local_time
    wanted = (local_time.strftime("%Y%m%d"), local_time.strftime("%H%M%S.%f"))
    for prefix in ("Series", expected.kind.content_time_prefix, "InstanceCreation"):
        if (dataset.get(f"{prefix}Date"), dataset.get(f"{prefix}Time")) != wanted:
            yield f"{prefix}Date and Time are not the result's"


def _description(dataset: Dataset, expected: Expected) -> Iterator[str]:
    wanted = f"{expected.kind.series_description}. {DISCLAIMER}"
    if dataset.get("SeriesDescription") != wanted:
        yield f"SeriesDescription does not say {wanted!r}"


def _measurement(_: Dataset, expected: Expected) -> Iterator[str]:
    """The finding's figures must match its mask."""
    finding, measured = expected.case.finding, expected.measured
    if finding is None or measured is None:
        return
    if finding.measurement is None:
        yield "the finding states no figures of its mask"
        return

    stated = finding.measurement
    if (stated.area_px, stated.regions) != (measured.area_px, measured.regions):
        yield "the finding states another area or number of regions than its mask has"
    if stated.laterality != measured.laterality:
        yield "the finding states another side than its mask has"


RULES: tuple[Rule, ...] = (
    _uids,
    _patient_and_study,
    _values_allowed,
    *words.RULES,
    _equipment,
    _times,
    _description,
    _measurement,
)
