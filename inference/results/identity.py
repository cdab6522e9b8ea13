"""The attributes that every outgoing object shares: whose image, which series, which equipment."""

from __future__ import annotations

import copy
from functools import cache

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement

from inference.as_sent import as_bytes, as_item, encoded, even, tag_of
from inference.radiograph import COPIED_KEYWORDS
from inference.results import codes
from inference.results.case import Case, once_per_case
from inference.results.codes import Code
from inference.results.kinds import KINDS
from inference.results.source import copied, utc_offset
from inference.results.uids import PLEURA_VERSION, derived_uid, series_uid
from inference.results.wording import CONTRIBUTION, DISCLAIMER, MANUFACTURER

# Type 2 in Patient and General Study (PS3.3 C.7.1.1, C.7.2.1): always present, empty where unknown.
TYPE_2_KEYWORDS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def identify(case: Case, kind: str) -> Dataset:
    """A new data set with what all objects share: patient, study, series, equipment, SOP Common.

    Patient and study are the source's, byte for byte (type 2 gaps stay empty, nothing is invented);
    the rest is our own, in ASCII, which every character set holds.
    """
    record = KINDS[kind]
    dataset = Dataset()

    for element in _patient_and_study(case):
        dataset.add(copy.copy(element))

    dataset.SeriesInstanceUID = series_uid(case, kind)
    dataset.SOPClassUID = record.sop_class_uid
    dataset.SOPInstanceUID = derived_uid(case, kind)
    dataset.Modality = record.modality
    dataset.SeriesNumber = record.series_number
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = f"{record.series_description}. {DISCLAIMER}"

    date = case.local_time.strftime("%Y%m%d")
    time = case.local_time.strftime("%H%M%S.%f")
    for prefix in ("Series", record.content_time_prefix, "InstanceCreation"):
        setattr(dataset, f"{prefix}Date", date)
        setattr(dataset, f"{prefix}Time", time)

    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = case.model.id
    dataset.DeviceSerialNumber = case.model.digest[:16]
    dataset.SoftwareVersions = [f"Pleura {PLEURA_VERSION}", f"model {case.model.version}"]
    equipment = _contributing_equipment(case)
    dataset[equipment.tag] = equipment
    return dataset


@once_per_case
def _patient_and_study(case: Case) -> tuple[DataElement, ...]:
    """The source's own elements, type 2 where it has none, and its offset from UTC where usable."""
    elements = []
    for keyword in COPIED_KEYWORDS:
        element = copied(case.header, keyword)
        if element is None and keyword in TYPE_2_KEYWORDS:
            element = DataElement(tag_of(keyword), dictionary_VR(tag_of(keyword)), None)
        if element is not None:
            elements.append(element)

    offset = copied(case.header, "TimezoneOffsetFromUTC")
    if offset is not None and utc_offset(case.header) is not None:
        elements.append(offset)
    return tuple(elements)


def record_lossy(dataset: Dataset, steps: list[tuple[str, str]]) -> None:
    """Write the lossy history of (ratio, method) steps.

    Ratio and method are type 1C or 3 and never empty: a list without any known value stays away.
    """
    dataset.LossyImageCompression = "01" if steps else "00"

    for keyword, values in zip(("Ratio", "Method"), zip(*steps, strict=True), strict=False):
        if any(values):
            setattr(dataset, f"LossyImageCompression{keyword}", list(values))


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item


def add_code(dataset: Dataset, keyword: str, name: Code) -> None:
    """Add a sequence of one code, which cannot be changed."""
    element = _coded(keyword, name)
    dataset[element.tag] = element


def add_term(dataset: Dataset, keyword: str, term: str) -> None:
    """Add a defined term, of VR CS, which cannot be changed."""
    element = _term(keyword, term)
    dataset[element.tag] = element


# Each report says the same terms and codes many times.
@cache
def _term(keyword: str, term: str) -> RawDataElement:
    return as_bytes(keyword, even(term.encode("ascii")))


@cache
def _coded(keyword: str, name: Code) -> RawDataElement:
    """A sequence of one code of codes.py, encoded."""
    return as_bytes(keyword, as_item(encoded(code(*name))))


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


def add_body_part(dataset: Dataset, case: Case) -> None:
    """Carry BodyPartExamined on, and say that the side is unknown unless the part is unpaired."""
    body_part = copied(case.header, "BodyPartExamined")
    if body_part is not None:
        dataset.add(body_part)

    # Laterality is type 2C (PS3.3 C.7.3.1): wanted unless the body part is known to be unpaired.
    if body_part is None or body_part.value != "CHEST":
        dataset.Laterality = None


@once_per_case
def _contributing_equipment(case: Case) -> RawDataElement:
    """Pleura as the only contributing equipment, encoded."""
    return as_bytes("ContributingEquipmentSequence", as_item(encoded(_equipment(case))))


def _equipment(case: Case) -> Dataset:
    """Pleura as contributing equipment.

    IHE AIR vol. 3, 6.5.3.1 wants the DeviceUID; the node recognises its own results by it.
    """
    item = Dataset()
    add_code(item, "PurposeOfReferenceCodeSequence", codes.PROCESSING_EQUIPMENT)
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = case.model.id
    item.SoftwareVersions = [f"Pleura {PLEURA_VERSION}", f"model {case.model.version}"]
    item.DeviceUID = case.model.device_uid
    item.ContributionDateTime = case.local_time.strftime("%Y%m%d%H%M%S.%f%z")
    item.ContributionDescription = CONTRIBUTION
    return item
