"""The gate's first step: the bytes are a whole file of their kind, and complete."""

from __future__ import annotations

import io

from pydicom import FileDataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR

from inference.as_sent import keep_bytes, tag_of
from inference.finding import Result
from inference.radiograph import COPIED_KEYWORDS
from inference.results.gate.errors import GateError
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
    keep_bytes(dataset, COPIED_KEYWORDS, result.data)

    _check_identity(dataset, result, kind)
    _check_completeness(dataset, kind)

    _check_second_writing(result, kind)
    return dataset


def _check_second_writing(result: Result, kind: Kind) -> None:
    """Compare the bytes with what their own reading gives, without the copied attributes."""
    dataset = dcmread(io.BytesIO(result.data))
    rest = b""
    position = 0
    for tag in sorted(tag_of(keyword) for keyword in COPIED_KEYWORDS):
        if tag not in dataset:
            continue
        element = dataset[tag]
        if dictionary_VR(tag) != element.VR or element.file_tell is None:
            raise GateError(kind.name, f"{tag} has VR {element.VR}")

        start = element.file_tell
        length = int.from_bytes(result.data[start - 2 : start], "little")
        rest += result.data[position : start - _HEADER_BYTES]
        position = start + length
        del dataset[tag]
    rest += result.data[position:]

    again = io.BytesIO()
    dcmwrite(again, dataset, enforce_file_format=True)
    if again.getvalue() != rest:
        raise GateError(kind.name, "reading and writing it again gives other bytes")


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
    missing = [
        keyword for keyword in kind.required if keyword not in dataset or dataset[keyword].is_empty
    ]
    may_be_empty = (*REQUIRED_OR_EMPTY, *kind.required_or_empty)
    missing += [keyword for keyword in may_be_empty if keyword not in dataset]
    if missing:
        raise GateError(kind.name, f"required and absent: {', '.join(missing)}")
