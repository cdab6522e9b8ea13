"""Storage commitment, as SCU of the Push Model (PS3.4 Annex J): an archive is asked whether it keeps what it stored.

Deliver asks (N-ACTION); the report (N-EVENT-REPORT) comes when the archive likes, on the same association or on one of
its own to the listening role, where it may be there before the answer to the question. Either way it is one transition
of the ledger, and only then answered with success. What an archive has lost is sent again; what it does not report is
asked for again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import cast

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event

from daemon.backoff import backoff_s
from daemon.config import DicomDestination
from daemon.dicom.commitment import Fate, ReportError, read_report
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


def _take_report(event: Event, destination: str, ledger: Ledger) -> Status:
    """Record a report that came on the association that asked. Never raises."""
    try:
        request = cast(N_EVENT_REPORT, event.request)
        information = request.EventInformation.getvalue() if request.EventInformation else b""
        report = read_report(
            request.AffectedSOPClassUID,
            request.EventTypeID,
            information,
            str(event.context.transfer_syntax),
        )
        lost, refused = report.failed(Fate.LOST), report.failed(Fate.REFUSED)
        if not ledger.commitment_reported(
            destination, report.transaction_uid, report.committed, lost, refused
        ):
            raise ReportError(
                Status.INVALID_ARGUMENT_VALUE, "this node did not ask under its transaction UID"
            )
    except ReportError as error:
        log.warning("%s: a storage commitment report is not taken: %s", destination, error)
        return error.status
    except Exception:
        # The handler's one catch-all. The archive may report again, and is asked again.
        log.exception("%s: a storage commitment report could not be taken", destination)
        return Status.PROCESSING_FAILURE
    log.info("%s %s", destination, report)
    return Status.SUCCESS


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
            status = _take_report(event, self._destination.name, self._ledger)
            reported.set()
            return status.value, None

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
