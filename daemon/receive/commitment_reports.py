"""Storage commitment reports on associations that an archive opened (PS3.4 J.3.3)."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from daemon.dicom.acceptor import Context
from daemon.dicom.commitment import Fate, ReportError, read_report
from daemon.dicom.pdu import CommandSet, Element
from daemon.dicom.tables import Status
from daemon.ledger import Ledger, log_failure

log = logging.getLogger("pleura.commitment")


def take_report(
    command: CommandSet,
    information: bytes,
    context: Context,
    destinations: Iterable[str],
    ledger: Ledger,
) -> Status:
    """Record a report from one of `destinations`.

    Returns the status to answer with. Never raises.
    """
    try:
        return _take_report(command, information, context, destinations, ledger)
    except Exception as error:
        # The handler's only catch-all. The archive may report again, and is asked again.
        log_failure(log, "a storage commitment report is not recorded", error)
        return Status.PROCESSING_FAILURE


def _take_report(
    command: CommandSet,
    information: bytes,
    context: Context,
    destinations: Iterable[str],
    ledger: Ledger,
) -> Status:
    sop_class_uid = command.text(Element.AFFECTED_SOP_CLASS_UID)
    event_type = command.number(Element.EVENT_TYPE_ID)
    try:
        report = read_report(sop_class_uid, event_type, information, context.transfer_syntax)
    except ReportError as error:
        log.warning("a storage commitment report is not accepted: %s", error)
        return error.status

    lost, refused = report.failed(Fate.LOST), report.failed(Fate.REFUSED)
    for name in destinations:
        if ledger.record_commitment_report(
            name, report.transaction_uid, report.committed, lost, refused
        ):
            log.info("%s %s", name, report)
            return Status.SUCCESS

    log.warning(
        "a storage commitment report is not accepted: this node did not ask under its "
        "transaction UID"
    )
    return Status.INVALID_ARGUMENT_VALUE
