"""A case becomes checked DICOM objects: one module per IOD, one identity, and a gate that nothing passes unread."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID

from inference.finding import Result
from inference.results import pr, sc, seg, sr
from inference.results.gate import common as gate
from inference.results.gate.common import GateError
from inference.results.identity import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    Case,
    Refusal,
    RenderSettings,
    derived_uid,
)

__all__ = [
    "ENCODERS", "Built", "Case", "Encoder", "GateError", "Refusal", "RenderSettings", "build", "build_what_passes",
    "derived_uid", "write",
]  # fmt: skip


@dataclass(frozen=True)
class Encoder:
    """How one kind of object is made. `encode` gives None where the case holds nothing for that kind to say."""

    encode: Callable[[Case], Dataset | None]
    transfer_syntax_uid: UID


# pydicom also logs what it warns of. For good: threads that switch a logger on and off do so for one another.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

# In the order in which they are made: an SR refers to the SEG only when that has passed.
ENCODERS: dict[str, Encoder] = {
    seg.KIND: Encoder(seg.encode, seg.TRANSFER_SYNTAX_UID),
    sc.KIND: Encoder(sc.encode, sc.TRANSFER_SYNTAX_UID),
    sr.KIND: Encoder(sr.encode, sr.TRANSFER_SYNTAX_UID),
    pr.KIND: Encoder(pr.encode, pr.TRANSFER_SYNTAX_UID),
}


@dataclass(frozen=True)
class Built:
    """What became of one case: the objects that passed, in the order asked for, and what did not, each with why."""

    results: tuple[Result, ...]
    problems: tuple[GateError, ...]


def build(case: Case, kinds: Iterable[str]) -> tuple[Result, ...]:
    """The objects of these kinds that tell of the case, each read back and checked, in the order of `kinds`.

    A positive with a region gives SEG, SC, SR and PR; every other answer (positive without a region, not detected, not
    analysed, failed) SC and SR. The same case gives the same bytes at any hour, in any process.

    Raises:
        ValueError: a kind that is not in ENCODERS.
        GateError: an object did not pass; it must not leave.
    """
    built = build_what_passes(case, kinds)
    if built.problems:
        raise built.problems[0]
    return built.results


def build_what_passes(case: Case, kinds: Iterable[str]) -> Built:
    """As `build`, but an object that cannot be made or does not pass holds up none of the others.

    Raises:
        ValueError: a kind that is not in ENCODERS.
    """
    wanted = list(kinds)
    unknown = [kind for kind in wanted if kind not in ENCODERS]
    if unknown:
        raise ValueError(f"results: kind {unknown[0]!r}; wanted one of {', '.join(ENCODERS)}")
    passed: dict[str, Result] = {}
    problems = []
    if seg.KIND not in wanted:
        case = _without_segmentation(case)
    for kind in ENCODERS:
        if kind not in wanted:
            continue
        try:
            result = _build_one(case, kind)
        except GateError as error:
            problems.append(error)
            if kind == seg.KIND:
                case = _without_segmentation(case)
            continue
        if result is not None:
            passed[kind] = result
    return Built(tuple(passed[kind] for kind in wanted if kind in passed), tuple(problems))


def _without_segmentation(case: Case) -> Case:
    """The case for an SR that can refer to no SEG: nobody would find it."""
    return replace(case, appearance=replace(case.appearance, refer_to_segmentation=False))


def _build_one(case: Case, kind: str) -> Result | None:
    with _silent_libraries():
        try:
            dataset = ENCODERS[kind].encode(case)
            if dataset is None:
                return None
            result = write(dataset, kind)
        except MemoryError:
            raise  # the machine's, not the object's
        except (
            Exception
        ) as error:  # libraries meet whatever a header holds, and raise what they like
            raise GateError(kind, f"it cannot be made ({type(error).__name__})") from error
        gate.check(result, case)
    return result


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """pydicom warns of header values, which may be a patient's. The gate judges instead, and names tags only.

    highdicom is given no patient's value in the first place (seg.py).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write(dataset: Dataset, kind: str) -> Result:
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
