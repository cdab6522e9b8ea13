"""Storage commitment as data (PS3.4 Annex J): a request, a report, and the consequence of each
failure reason.

Both roles that may take a report share this module: deliver on the association that asked, receive
on an association that the archive opens. Pure functions: no network, no ledger. pydicom is imported
with the first report or request: a node without commitment does without it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from daemon.dicom.tables import IMPLICIT_VR_LITTLE_ENDIAN, STORAGE_COMMITMENT, Status

if TYPE_CHECKING:
    from pydicom import Dataset

REQUEST = 1  # action type, PS3.4 J.3.2
COMPLETE, FAILURES_EXIST = 1, 2  # event types, PS3.4 J.3.3
NO_SUCH_OBJECT_INSTANCE = 0x0112


class Fate(Enum):
    """The consequence of a failure reason for the object."""

    LOST = auto()  # to be sent again
    LATER = auto()  # to be asked for again
    REFUSED = auto()


# Failure Reason (0008,1197), PS3.3 C.14.1.1. An object with any other reason is sent again: that
# loses nothing.
FATES = {
    0x0110: Fate.LATER,  # processing failure
    NO_SUCH_OBJECT_INSTANCE: Fate.LOST,
    0x0119: Fate.REFUSED,  # class-instance conflict
    0x0122: Fate.REFUSED,  # referenced SOP class not supported
    0x0131: Fate.LATER,  # duplicate transaction UID
    0x0213: Fate.LATER,  # resource limitation
}


class ReportError(Exception):
    """The report cannot be taken. `status` answers it (PS3.7 10.1.1.1.8)."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Report:
    """An archive's answer to one request: SOP Instance UIDs, as the archive wrote them."""

    transaction_uid: str
    committed: frozenset[str]
    reasons: Mapping[str, int]  # of the objects it does not commit to: the failure reason

    def failed(self, fate: Fate) -> dict[str, str]:
        """The objects that meet this fate, each with the reason in words."""
        return {
            uid: f"not committed to (failure reason 0x{reason:04X})"
            for uid, reason in self.reasons.items()
            if FATES.get(reason, Fate.LOST) is fate
        }

    def __str__(self) -> str:
        return (
            f"committed to {len(self.committed)} results; "
            f"{len(self.failed(Fate.LOST))} are sent again, "
            f"{len(self.failed(Fate.REFUSED))} refused, "
            f"{len(self.failed(Fate.LATER))} asked for again"
        )


def read_report(
    sop_class_uid: str | None, event_type: int | None, information: bytes, transfer_syntax_uid: str
) -> Report:
    """The report in an N-EVENT-REPORT request.

    `information` is the encoded Event Information in an uncompressed little endian transfer syntax.

    Raises:
        ReportError: it is another event, or cannot be read.
    """
    if sop_class_uid != STORAGE_COMMITMENT:
        raise ReportError(Status.NO_SUCH_SOP_CLASS, "it is of another SOP class")
    if event_type not in (COMPLETE, FAILURES_EXIST):
        raise ReportError(Status.NO_SUCH_EVENT_TYPE, "its event type is neither 1 nor 2")

    from pydicom.filereader import read_dataset

    from daemon.dicom.leniency import lenient_headers

    is_implicit = transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
    try:
        with lenient_headers():
            return report_of(read_dataset(io.BytesIO(information), is_implicit, True))
    except Exception as error:
        # A parser's text may quote the value that it could not take.
        raise ReportError(
            Status.INVALID_ARGUMENT_VALUE, f"it cannot be read ({type(error).__name__})"
        ) from error


def report_of(information: Dataset) -> Report:
    """The report in its decoded Event Information (PS3.4 Table J.3-2).

    Raises whatever pydicom raises.
    """
    reasons = {
        str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", NO_SUCH_OBJECT_INSTANCE))
        for item in information.get("FailedSOPSequence", None) or ()
    }

    referenced = {
        str(item.ReferencedSOPInstanceUID)
        for item in information.get("ReferencedSOPSequence", None) or ()
    }

    # An object in both sequences is not safe.
    committed = frozenset(referenced - reasons.keys())

    return Report(str(information.get("TransactionUID", "")), committed, reasons)


def action_information(transaction_uid: str, references: Sequence[tuple[str, str]]) -> Dataset:
    """The Action Information of a request (PS3.4 Table J.3-1).

    `references`: SOP class, SOP instance UID.
    """
    from pydicom import Dataset
    from pydicom.uid import UID

    information = Dataset()
    information.TransactionUID = UID(transaction_uid)
    information.ReferencedSOPSequence = []
    for sop_class_uid, sop_instance_uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID = UID(sop_class_uid)
        item.ReferencedSOPInstanceUID = UID(sop_instance_uid)
        information.ReferencedSOPSequence.append(item)
    return information
