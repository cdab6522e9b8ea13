"""The gate's first step: the bytes are a whole file of their kind, and complete."""

from __future__ import annotations

import io

from pydicom import FileDataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info

from inference.as_sent import keep_bytes, tag_of
from inference.finding import Result
from inference.radiograph import COPIED_KEYWORDS
from inference.results.gate.errors import GateError
from inference.results.gate.header import has_value
from inference.results.gate.rewriting import written_again
from inference.results.kinds import KINDS, Kind

# Type 2 in Patient and General Study (PS3.3 C.7.1.1, C.7.2.1).
REQUIRED_OR_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# Tag, VR and length of an element of a short VR (PS3.5 7.1.2).
_HEADER_BYTES = 8


def read(result: Result) -> FileDataset:
    """Parse the bytes as any receiver would; a second writing must give the same bytes.

    The copied attributes keep their bytes in the data set, and are left out of that comparison: a
    writer would decode and encode them.

    Raises:
        GateError: file meta and data set disagree, a required attribute is missing, or the bytes
            are not what their own reading gives.
    """
    kind = KINDS[result.kind]
    dataset = dcmread(io.BytesIO(result.data))
    rest = _without_copied(dataset, result, kind)
    keep_bytes(dataset, COPIED_KEYWORDS, result.data)

    _check_identity(dataset, result, kind)
    _check_completeness(dataset, kind)

    if _written_again(dataset) != rest:
        raise GateError(kind.name, "reading and writing it again gives other bytes")
    return dataset


def _without_copied(dataset: FileDataset, result: Result, kind: Kind) -> bytes:
    """The file without the copied attributes of the data set, which was just read from it."""
    parts = []
    position = 0

    for tag in sorted(tag_of(keyword) for keyword in COPIED_KEYWORDS):
        if tag not in dataset:
            continue
        element = dataset.get_item(tag)
        if dictionary_VR(tag) != element.VR:
            raise GateError(kind.name, f"{tag} has VR {element.VR}")

        start = element.value_tell if isinstance(element, RawDataElement) else element.file_tell
        if start is None:
            raise GateError(kind.name, f"{tag} was not read from the file")
        length = int.from_bytes(result.data[start - 2 : start], "little")
        parts.append(result.data[position : start - _HEADER_BYTES])
        position = start + length

    return b"".join([*parts, result.data[position:]])


def _written_again(dataset: FileDataset) -> bytes:
    """The file that pydicom writes from the values of the data set, without the copied attributes.

    Every value is decoded first: pydicom would write what it has not decoded as it is.
    """
    file = DicomBytesIO()
    file.write((dataset.preamble or b"") + b"DICM")
    write_file_meta_info(file, dataset.file_meta)
    file.write(written_again(dataset, without={tag_of(keyword) for keyword in COPIED_KEYWORDS}))
    return file.getvalue()


def _check_identity(dataset: FileDataset, result: Result, kind: Kind) -> None:
    meta = dataset.file_meta
    for found, wanted, name in (
        (meta.MediaStorageSOPClassUID, result.sop_class_uid, "MediaStorageSOPClassUID"),
        (dataset.SOPClassUID, result.sop_class_uid, "SOPClassUID"),
        (meta.MediaStorageSOPInstanceUID, result.sop_instance_uid, "MediaStorageSOPInstanceUID"),
        (dataset.SOPInstanceUID, result.sop_instance_uid, "SOPInstanceUID"),
        (meta.TransferSyntaxUID, result.transfer_syntax_uid, "TransferSyntaxUID"),
    ):
        if found != wanted:
            raise GateError(kind.name, f"{name} {found}, wanted {wanted}")

    if dataset.SOPClassUID != kind.sop_class_uid or dataset.get("Modality") != kind.modality:
        raise GateError(kind.name, f"SOP Class {dataset.SOPClassUID} or Modality is another kind's")


def _check_completeness(dataset: FileDataset, kind: Kind) -> None:
    missing = [keyword for keyword in kind.required if not has_value(dataset, keyword)]
    may_be_empty = (*REQUIRED_OR_EMPTY, *kind.required_or_empty)
    missing += [keyword for keyword in may_be_empty if keyword not in dataset]
    if missing:
        raise GateError(kind.name, f"required and absent: {', '.join(missing)}")
