"""A case becomes checked DICOM objects: one module per IOD, one identity, and a gate that nothing passes unread."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID

from inference.finding import Result
from inference.results import gate, sc, seg
from inference.results.gate import GateError
from inference.results.identity import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    Case,
    Refusal,
    RenderSettings,
    derived_uid,
)

__all__ = ["ENCODERS", "Case", "Encoder", "GateError", "Refusal", "RenderSettings", "build", "derived_uid"]


@dataclass(frozen=True)
class Encoder:
    """How one kind of object is made. `encode` gives None where the case holds nothing for that kind to say."""

    encode: Callable[[Case], Dataset | None]
    transfer_syntax_uid: UID


ENCODERS: dict[str, Encoder] = {
    seg.KIND: Encoder(seg.encode, seg.TRANSFER_SYNTAX_UID),
    sc.KIND: Encoder(sc.encode, sc.TRANSFER_SYNTAX_UID),
}


def build(case: Case, kinds: Iterable[str]) -> tuple[Result, ...]:
    """The objects of these kinds that tell of the case, each read back and checked, in the order of `kinds`.

    A positive with a region gives SEG and SC; every other answer (positive without a region, not detected, not
    analysed, failed) its SC alone. The same case gives the same bytes at any hour, in any process.

    Raises:
        ValueError: a kind that is not in ENCODERS.
        GateError: an object did not pass; it must not leave.
    """
    results = []
    for kind in kinds:
        if kind not in ENCODERS:
            raise ValueError(f"results: kind {kind!r}; wanted one of {', '.join(ENCODERS)}")
        with _silent_libraries():
            dataset = ENCODERS[kind].encode(case)
            if dataset is None:
                continue
            result = _write(dataset, kind)
            gate.check(result, case)
        results.append(result)
    return tuple(results)


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """pydicom warns and logs header values, which may be a patient's. The gate judges instead, and names tags only.

    highdicom is given no patient's value in the first place (seg.py).
    """
    log = logging.getLogger("pydicom")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def _write(dataset: Dataset, kind: str) -> Result:
    """The data set as a whole Part 10 file, with our own file meta information."""
    encoder = ENCODERS[kind]
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = encoder.transfer_syntax_uid
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    dataset.file_meta = meta
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return Result(
        kind=kind,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        transfer_syntax_uid=str(encoder.transfer_syntax_uid),
        data=file.getvalue(),
    )
