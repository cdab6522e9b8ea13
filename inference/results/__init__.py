"""Turns a case into checked DICOM objects.

kinds.py holds one record for each kind, an IOD module encodes it, and the gate checks every object
before it may leave.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pydicom import Dataset
from pydicom.uid import UID

from inference.as_sent import encoded
from inference.finding import Result
from inference.radiograph import COPIED_KEYWORDS
from inference.results import gate
from inference.results.case import NAMING_KEYWORDS, Case, NoFinding, RenderSettings
from inference.results.gate import GateError
from inference.results.kinds import KINDS, Kind
from inference.results.uids import PLEURA_VERSION, derived_uid

__all__ = [
    "KINDS", "Built", "Case", "GateError", "Kind", "NoFinding", "Note", "RenderSettings", "build",
    "build_what_passes", "derived_uid", "last_resort", "unnoted", "write",
]  # fmt: skip

# PS3.7 D.3.3.2. The same as in daemon/dicom/tables.py, which may not import this package: a test
# holds them equal.
IMPLEMENTATION_CLASS_UID = "2.25.185662961511293906917213657468255293311"
IMPLEMENTATION_VERSION_NAME = f"PLEURA_{PLEURA_VERSION}"[:16]

# pydicom also logs its warnings. Switched off for good: threads that switch a logger on and off
# disturb each other.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


# Called with the name of each finished step, such as "encoded SEG".
Note = Callable[[str], None]


def unnoted(_: str) -> None:
    """A Note for callers that time nothing."""


@dataclass(frozen=True)
class Built:
    """The objects of a case that passed, in the requested order, and an error for each of the
    others.
    """

    results: tuple[Result, ...]
    problems: tuple[GateError, ...]


def build(case: Case, kinds: Iterable[str]) -> tuple[Result, ...]:
    """The objects of these kinds about the case, each read back and checked, in the order of
    `kinds`.

    A positive with a region gives SEG, SC, SR and PR; every other answer (positive without a
    region, not detected, not analysed, failed) SC and SR. The same case gives the same bytes at any
    hour, in any process.

    Raises:
        ValueError: a kind that is not in KINDS.
        GateError: an object did not pass; it must not leave.
    """
    built = build_what_passes(case, kinds)

    if built.problems:
        raise built.problems[0]
    return built.results


def build_what_passes(case: Case, kinds: Iterable[str], note: Note = unnoted) -> Built:
    """`build`, but an object that cannot be made or does not pass does not affect the others.

    `note` is called with "encoded KIND" and "checked KIND".

    Raises:
        ValueError: a kind that is not in KINDS.
    """
    wanted = list(kinds)
    for name in wanted:
        if name not in KINDS:
            raise ValueError(f"results: kind {name!r}; wanted one of {', '.join(KINDS)}")
    if "SEG" not in wanted:
        case = _without_segmentation(case)

    passed: dict[str, Result] = {}
    problems = []
    for kind in KINDS.values():
        if kind.name not in wanted:
            continue
        try:
            result = _build_one(case, kind, note)
        except GateError as error:
            problems.append(error)
            if kind.name == "SEG":
                case = _without_segmentation(case)
            continue
        if result is not None:
            passed[kind.name] = result

    in_order = tuple(passed[name] for name in wanted if name in passed)
    return Built(in_order, tuple(problems))


def last_resort(case: Case) -> tuple[Result, tuple[str, ...]] | None:
    """A Secondary Capture that says that there is no result, after every other object failed.

    It holds no picture and no notes, and only those attributes of the source that pass the gate:
    one bad attribute must not keep the archive from being told.

    Returns the object and the keywords of the patient and study attributes that it lacks; None if
    not even this object passes.

    Raises:
        ValueError: the case has a finding.
    """
    if case.no_finding is None:
        raise ValueError("last_resort: wanted a case without a finding")

    kind = KINDS["SC"]
    header = Dataset(
        {case.header[keyword].tag: case.header[keyword] for keyword in NAMING_KEYWORDS}
    )
    header.set_original_encoding(False, True)
    passed = _build_or_none(_bare(case, header), kind)

    carried = [*NAMING_KEYWORDS]
    lacking = []
    for keyword in COPIED_KEYWORDS:
        if passed is None or keyword not in case.header or keyword in carried:
            continue
        fuller = _header_of(case, [*carried, keyword])
        result = _build_or_none(_bare(case, fuller), kind)
        if result is None:
            lacking.append(keyword)
        else:
            passed = result
            carried.append(keyword)

    return None if passed is None else (passed, tuple(lacking))


def _header_of(case: Case, keywords: Iterable[str]) -> Dataset:
    """The source's header with only these attributes."""
    header = Dataset()
    for keyword in keywords:
        header.add(case.header[keyword])
    header.set_original_encoding(False, True)
    return header


def _bare(case: Case, header: Dataset) -> Case:
    """The case with this header, and without everything that is not needed to tell it."""
    return replace(case, header=header, pixels=None, spacing=None, notes=())


def _build_or_none(case: Case, kind: Kind) -> Result | None:
    try:
        return _build_one(case, kind)
    except GateError:
        return None


def _without_segmentation(case: Case) -> Case:
    """The case for an SR that may not refer to a SEG, because no archive gets it."""
    return replace(case, appearance=replace(case.appearance, refer_to_segmentation=False))


def _build_one(case: Case, kind: Kind, note: Note = unnoted) -> Result | None:
    with _silent_libraries():
        try:
            dataset = kind.encode(case)
            if dataset is None:
                return None
            result = write(dataset, kind)
        except MemoryError:
            raise  # the machine's fault, not the object's
        except Exception as error:
            # Libraries meet any value that a header can hold, and raise any exception.
            raise GateError(kind.name, f"it cannot be made ({type(error).__name__})") from error

        note(f"encoded {kind.name}")

        gate.check(result, case)
        note(f"checked {kind.name}")
    return result


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """pydicom's warnings quote header values, which may be a patient's.

    The gate judges, and names only tags.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write(dataset: Dataset, kind: Kind) -> Result:
    """The data set as a whole Part 10 file, with our own file meta information."""
    meta = Dataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = kind.transfer_syntax_uid
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    meta_bytes = encoded(meta)

    # (0002,0000), the length of what follows.
    length = Dataset()
    length.FileMetaInformationGroupLength = len(meta_bytes)
    # The preamble and the prefix of PS3.10 7.1.
    data = b"".join((bytes(128), b"DICM", encoded(length), meta_bytes, encoded(dataset)))
    return Result(
        kind=kind.name,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        transfer_syntax_uid=str(kind.transfer_syntax_uid),
        data=data,
    )
