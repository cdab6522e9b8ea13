"""Storage commitment reports that an archive sends on an association that it opened (PS3.4 J.3.3)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import cast

from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event

from daemon.dicom.commitment import Fate, ReportError, read_report
from daemon.dicom.tables import Status
from daemon.ledger import Ledger

log = logging.getLogger("pleura.commitment")


def take_report(event: Event, destinations: Iterable[str], ledger: Ledger) -> tuple[int, None]:
    """Record a report from one of `destinations`, then answer it. Never raises."""
    try:
        return _take_report(event, destinations, ledger).value, None
    except Exception:
        # The handler's one catch-all. The archive may report again, and is asked again.
        log.exception("a storage commitment report could not be taken")
        return Status.PROCESSING_FAILURE.value, None


def _take_report(event: Event, destinations: Iterable[str], ledger: Ledger) -> Status:
    request = cast(N_EVENT_REPORT, event.request)
    information = request.EventInformation.getvalue() if request.EventInformation else b""

    try:
        report = read_report(
            request.AffectedSOPClassUID,
            request.EventTypeID,
            information,
            str(event.context.transfer_syntax),
        )
    except ReportError as error:
        log.warning("a storage commitment report is not taken: %s", error)
        return error.status

    lost, refused = report.failed(Fate.LOST), report.failed(Fate.REFUSED)
    for name in destinations:
        if ledger.record_commitment_report(
            name, report.transaction_uid, report.committed, lost, refused
        ):
            log.info("%s %s", name, report)
            return Status.SUCCESS

    log.warning(
        "a storage commitment report is not taken: this node did not ask under its transaction UID"
    )
    return Status.INVALID_ARGUMENT_VALUE
