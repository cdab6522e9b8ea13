"""Storage commitment, as SCU of the Push Model (PS3.4 Annex J): ask an archive whether it keeps
what it stored.

Deliver asks with an N-ACTION. The archive sends its report (N-EVENT-REPORT) at any time: on the
same association, or on one that it opens to the receive role, where the report may even overtake
the answer to the N-ACTION. Either way the report is recorded in one transition of the ledger before
it is answered with success. An object that the archive has lost is sent again; an object that it
does not report is asked for again.
"""

from __future__ import annotations

import logging
import threading

from daemon.config import Config, DicomDestination
from daemon.deliver.limits import DEFAULT_LIMITS, DeliverLimits
from daemon.deliver.remote import remote_of
from daemon.dicom.commitment import (
    REQUEST,
    Fate,
    ReportError,
    action_information,
    read_report,
)
from daemon.dicom.link import Link, LinkDownError, NotAcceptedError, commitment_proposal
from daemon.dicom.outgoing import UnsendableError
from daemon.dicom.requestor import EventReport
from daemon.dicom.tables import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, Status
from daemon.ledger import CommitmentRequest, Ledger, Outage, log_failure

log = logging.getLogger("pleura.commitment")


class _NotAskedError(Exception):
    """The archive did not accept the request; the message says why."""


class _RequestFailedError(_NotAskedError):
    """The archive understood the request and failed it: an object that it names may be to blame."""


class Asker:
    """One destination's thread: asks it to commit to what it has stored."""

    def __init__(
        self,
        destination: DicomDestination,
        config: Config,
        ledger: Ledger,
        limits: DeliverLimits = DEFAULT_LIMITS,
    ) -> None:
        self._destination = destination
        self._remote = remote_of(config, destination)
        self._calling_ae_title = config.ae_title
        self._ledger = ledger
        self._limits = limits

        self._failures = 0  # requests in a row that were not taken
        self._references = limits.references_per_request

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set."""
        outage = Outage(log, f"{self._destination.name}, commitment: the ledger")
        while not stop.is_set():
            try:
                self._turn(stop)
            except Exception as error:
                # The loop's only catch-all: an unreachable ledger comes back.
                outage.failed(error)
                stop.wait(self._limits.ledger_pause_s)
            else:
                outage.over()

    def _turn(self, stop: threading.Event) -> None:
        """Ask once, if a request is due."""
        name = self._destination.name
        limits = self._limits
        request = self._ledger.ask_commitment(name, self._references, limits.first_report_s)
        if request is None:
            self._ledger.wait(limits.idle_s)
            return

        if request.asked_before:
            log.warning(
                "%s: no commitment report came on %d objects; asking again. Does the archive "
                "have this "
                "node's AE title, host and port, and does this node admit its address?",
                name,
                request.asked_before,
            )

        try:
            self._ask(request, stop)
        except _NotAskedError as trouble:
            if isinstance(trouble, _RequestFailedError):
                # Halve the request, so that one bad reference does not hold up the others.
                self._references = max(1, len(request.references) // 2)
            self._failures += 1
            pause_s = limits.backoff.pause_s(self._failures)
            log.warning("%s: storage commitment: %s; again in %.1f s", name, trouble, pause_s)
            why = f"storage commitment: {trouble}"
            self._ledger.postpone_commitment(name, request, why, pause_s)
            stop.wait(pause_s)
        else:
            self._failures = 0
            self._references = min(limits.references_per_request, self._references + 1)

    def _ask(self, request: CommitmentRequest, stop: threading.Event) -> None:
        """Send one request. Raises _NotAskedError."""
        reported = threading.Event()

        def on_report(report: EventReport) -> int:
            reported.set()
            return self._take_report(report)

        remote = self._remote
        contexts = commitment_proposal()
        limits = self._limits.association
        information = action_information(request.transaction_uid, request.references)
        try:
            with Link.open(self._calling_ae_title, remote, contexts, limits, on_report) as link:
                answer = link.action(
                    STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, REQUEST, information
                )
                if answer.status != Status.SUCCESS:
                    raise _RequestFailedError(str(answer))
                if not stop.is_set() and not reported.is_set():
                    self._await_report(link)
        except (LinkDownError, NotAcceptedError, UnsendableError) as error:
            raise _NotAskedError(str(error)) from error

    def _await_report(self, link: Link) -> None:
        try:
            link.await_event_report(self._limits.same_association_s)
        except LinkDownError as error:
            # The request was accepted. The report may come on another association.
            log.info("%s: %s, after the request was taken", self._destination.name, error)

    def _take_report(self, event: EventReport) -> Status:
        """Record a report that came on the association that asked. Never raises."""
        name = self._destination.name
        try:
            report = read_report(
                event.sop_class_uid, event.event_type, event.information, event.transfer_syntax_uid
            )
            lost = report.failed(Fate.LOST)
            refused = report.failed(Fate.REFUSED)
            if not self._ledger.record_commitment_report(
                name, report.transaction_uid, report.committed, lost, refused
            ):
                raise ReportError(
                    Status.INVALID_ARGUMENT_VALUE, "this node did not ask under its transaction UID"
                )
        except ReportError as error:
            log.warning("%s: a storage commitment report is not accepted: %s", name, error)
            return error.status
        except Exception as error:
            # The handler's only catch-all. The archive may report again, and is asked again.
            log_failure(log, f"{name}: a storage commitment report is not recorded", error)
            return Status.PROCESSING_FAILURE

        log.info("%s %s", name, report)
        return Status.SUCCESS
