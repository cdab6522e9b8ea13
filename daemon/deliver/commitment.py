"""Storage commitment, as SCU of the Push Model (PS3.4 Annex J): an archive is asked whether it keeps what it stored.

Deliver asks (N-ACTION); the report (N-EVENT-REPORT) comes when the archive likes, on the same association or on one of
its own to the listening role, where it may be there before the answer to the question. Either way it is one transition
of the ledger, and only then answered with success. What an archive has lost is sent again; what it does not report is
asked for again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from enum import Enum, auto
from typing import cast

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event

from daemon.backoff import backoff_s
from daemon.config import DicomDestination
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    Status,
    no_delay,
)
from daemon.ledger import CommitmentRequest, Ledger

log = logging.getLogger("pleura.commitment")

_REFERENCES = 200  # objects per question, at most
_FIRST_REPORT_S = (
    60.0  # an archive that has not reported by then is asked again; twice as long each time
)
_SAME_ASSOCIATION_S = 1.0  # some archives report on the association that asked, at once
_IDLE_S = 1.0
_PAUSE_S = 5.0  # after trouble with our own ledger
_CONNECT_S = 10.0
_ANSWER_S = 60.0  # for the answer to an association request or a question
_REQUEST = 1  # action type, PS3.4 J.3.2
_COMPLETE, _FAILURES_EXIST = 1, 2  # event types, PS3.4 J.3.3


class _Fate(Enum):
    """What a failure reason means for the object."""

    LOST = auto()  # to be sent again
    LATER = auto()  # to be asked for again
    REFUSED = auto()


# Failure Reason (0008,1197), PS3.3 C.14.1.1. Whatever is not here is sent again: nothing is lost by that.
_FATES = {
    0x0110: _Fate.LATER,  # processing failure
    0x0112: _Fate.LOST,  # no such object instance
    0x0119: _Fate.REFUSED,  # class-instance conflict
    0x0122: _Fate.REFUSED,  # referenced SOP class not supported
    0x0131: _Fate.LATER,  # duplicate transaction UID
    0x0213: _Fate.LATER,  # resource limitation
}


def take_report(event: Event, destinations: Iterable[str], ledger: Ledger) -> tuple[int, None]:
    """The handler of an N-EVENT-REPORT from these destinations: record it, then answer. Never raises."""
    try:
        return _take_report(event, destinations, ledger).value, None
    except (
        Exception
    ):  # the handler's one catch-all; the archive may report again, and is asked again
        log.exception("a storage commitment report could not be taken")
        return Status.PROCESSING_FAILURE.value, None


def _take_report(event: Event, destinations: Iterable[str], ledger: Ledger) -> Status:
    request = cast(N_EVENT_REPORT, event.request)
    if request.AffectedSOPClassUID != STORAGE_COMMITMENT:
        return Status.NO_SUCH_SOP_CLASS
    if request.EventTypeID not in (_COMPLETE, _FAILURES_EXIST):
        return Status.NO_SUCH_EVENT_TYPE
    try:
        transaction_uid, committed, reasons = _read(event.event_information)
    except Exception as error:  # a parser met what it cannot take; its text may quote that
        log.warning(
            "a storage commitment report cannot be read (%s): not taken", type(error).__name__
        )
        return Status.INVALID_ARGUMENT_VALUE
    for name in destinations:
        if _record(ledger, name, transaction_uid, committed - reasons.keys(), reasons):
            return Status.SUCCESS
    log.warning("a storage commitment report names a transaction that was not asked for: not taken")
    return Status.INVALID_ARGUMENT_VALUE


def _read(report: Dataset) -> tuple[str, set[str], dict[str, int]]:
    """Transaction UID, the SOP Instance UIDs committed to, and the others with their failure reasons."""
    committed = {
        str(item.ReferencedSOPInstanceUID)
        for item in report.get("ReferencedSOPSequence", None) or ()
    }
    reasons = {
        str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0x0112))
        for item in report.get("FailedSOPSequence", None) or ()
    }
    return str(report.get("TransactionUID", "")), committed, reasons


def _record(
    ledger: Ledger,
    destination: str,
    transaction_uid: str,
    committed: Collection[str],
    reasons: dict[str, int],
) -> bool:
    by_fate: dict[_Fate, dict[str, str]] = {fate: {} for fate in _Fate}
    for uid, reason in reasons.items():
        by_fate[_FATES.get(reason, _Fate.LOST)][uid] = (
            f"not committed to (failure reason 0x{reason:04X})"
        )
    lost, refused = by_fate[_Fate.LOST], by_fate[_Fate.REFUSED]
    if not ledger.commitment_reported(destination, transaction_uid, committed, lost, refused):
        return False
    log.info(
        "%s committed to %d results; %d are sent again, %d refused, %d asked for again",
        destination,
        len(committed),
        len(lost),
        len(refused),
        len(by_fate[_Fate.LATER]),
    )
    return True


class _NotAskedError(Exception):
    """The question was not taken, and why."""


class _QuestionFailedError(_NotAskedError):
    """The archive understood the question and failed it: something that it names may be to blame."""


class Asker:
    """One destination's thread: asks it to commit to what it has stored."""

    def __init__(
        self, destination: DicomDestination, calling_ae_title: str, ledger: Ledger
    ) -> None:
        self._destination = destination
        self._calling_ae_title = calling_ae_title
        self._ledger = ledger

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set."""
        name, failures, limit = self._destination.name, 0, _REFERENCES
        while not stop.is_set():
            try:
                request = self._ledger.ask_commitment(name, limit, _FIRST_REPORT_S)
                if request is None:
                    self._ledger.wait(_IDLE_S)
                    continue
                try:
                    self._ask(request, stop)
                except _NotAskedError as trouble:
                    if isinstance(trouble, _QuestionFailedError):
                        limit = max(
                            1, len(request.references) // 2
                        )  # one bad reference must not hold up the others
                    failures += 1
                    pause_s = backoff_s(failures)
                    log.warning(
                        "%s: storage commitment: %s; again in %.1f s", name, trouble, pause_s
                    )
                    self._ledger.commitment_not_asked(
                        name, request, f"storage commitment: {trouble}", pause_s
                    )
                    stop.wait(pause_s)
                else:
                    failures, limit = 0, min(_REFERENCES, limit + 1)
            except Exception:  # the loop's one catch-all: a ledger that is away comes back
                log.exception("%s: the ledger is in trouble; trying again in %g s", name, _PAUSE_S)
                stop.wait(_PAUSE_S)

    def _ask(self, request: CommitmentRequest, stop: threading.Event) -> None:
        """Put one question. Raises _NotAskedError."""
        reported = threading.Event()
        reporters: list[threading.Thread] = []

        def on_report(event: Event) -> tuple[int, None]:
            reporters.append(threading.current_thread())
            answer = take_report(event, [self._destination.name], self._ledger)
            reported.set()
            return answer

        association = self._associate(on_report)
        try:
            if not association.is_established:
                raise _NotAskedError(
                    "no association for it (not connected, rejected, or the service is not accepted)"
                )
            answer, _ = association.send_n_action(
                _information(request), _REQUEST, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
            )
            if "Status" not in answer:
                raise _NotAskedError("the association was lost, or no answer came in time")
            if answer.Status != Status.SUCCESS:
                raise _QuestionFailedError(f"answered 0x{answer.Status:04X}")
            if not stop.is_set():
                reported.wait(_SAME_ASSOCIATION_S)
            for reporter in (
                reporters
            ):  # pynetdicom's own thread: a release before its answer went out breaks both
                reporter.join(_ANSWER_S)
        except (
            RuntimeError,
            ValueError,
        ) as error:  # pynetdicom: the association ended, or has no such context
            raise _NotAskedError("the association was lost") from error
        finally:
            if association.is_established:
                association.release()

    def _associate(self, on_report: Callable[[Event], tuple[int, None]]) -> Association:
        entity = AE(self._calling_ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.connection_timeout, entity.acse_timeout, entity.dimse_timeout = (
            _CONNECT_S,
            _ANSWER_S,
            _ANSWER_S,
        )
        entity.add_requested_context(
            STORAGE_COMMITMENT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        )
        there = self._destination
        try:
            return entity.associate(
                there.host,
                there.port,
                ae_title=there.ae_title,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, lambda event: no_delay(event.assoc.dul.socket.socket)),
                    (evt.EVT_N_EVENT_REPORT, on_report),
                ],
            )
        except (
            OSError
        ) as error:  # its name cannot be resolved: pynetdicom reports all else by itself
            raise _NotAskedError(f"cannot connect ({error.strerror or error})") from error


def _information(request: CommitmentRequest) -> Dataset:
    """The Action Information of the question (PS3.4 Table J.3-1)."""
    information = Dataset()
    information.TransactionUID = UID(request.transaction_uid)
    information.ReferencedSOPSequence = []
    for sop_class_uid, sop_instance_uid in request.references:
        reference = Dataset()
        reference.ReferencedSOPClassUID = UID(sop_class_uid)
        reference.ReferencedSOPInstanceUID = UID(sop_instance_uid)
        information.ReferencedSOPSequence.append(reference)
    return information
