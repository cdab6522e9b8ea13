"""The ledger, in which the roles meet: images received, their states, results owed to archives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# A name loads its module when it is first asked for: most need SQLAlchemy, which is more than half
# of the time of a short command, and others (an error, a record, a process's name) do not.
if TYPE_CHECKING:
    from daemon.ledger.alarms import Alarm, AlarmMessage
    from daemon.ledger.digests import accession_digest
    from daemon.ledger.errors import LedgerError, UndecidedError, is_locked_out
    from daemon.ledger.figures import Circuit, Owed, RoleProcess, Snapshot, Tally, Unresolved
    from daemon.ledger.generations import BusyError, Found, Generation, Taker
    from daemon.ledger.inspect import Inspection
    from daemon.ledger.ledger import Ledger
    from daemon.ledger.outage import Outage, describe, is_outage, log_failure
    from daemon.ledger.overview import SameReason
    from daemon.ledger.processes import owner_name, this_machine
    from daemon.ledger.records import (
        Arrival,
        AuditRow,
        CommitmentRequest,
        Completion,
        DeliveryJob,
        ImageJob,
        KeptFile,
        LedgerLimits,
        Recipient,
        StoredResult,
    )
    from daemon.ledger.senders import Sender
    from daemon.ledger.shadow import Pairs, ShadowJob
    from daemon.ledger.states import DeliveryState, GenerationState, ImageState
    from daemon.ledger.weekly import BaselineWeeks, DriftBook, DriftView, ReportedImage, WeeklyCount

_NAMES = {
    "alarms": "Alarm AlarmMessage",
    "digests": "accession_digest",
    "errors": "LedgerError UndecidedError is_locked_out",
    "figures": "Circuit Owed RoleProcess Snapshot Tally Unresolved",
    "generations": "BusyError Found Generation Taker",
    "inspect": "Inspection",
    "ledger": "Ledger",
    "outage": "Outage describe is_outage log_failure",
    "overview": "SameReason",
    "processes": "owner_name this_machine",
    "records": "Arrival AuditRow CommitmentRequest Completion DeliveryJob ImageJob KeptFile "
    "LedgerLimits Recipient StoredResult",
    "senders": "Sender",
    "shadow": "Pairs ShadowJob",
    "states": "DeliveryState GenerationState ImageState",
    "weekly": "BaselineWeeks DriftBook DriftView ReportedImage WeeklyCount",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "Alarm",
    "AlarmMessage",
    "Arrival",
    "AuditRow",
    "BaselineWeeks",
    "BusyError",
    "Circuit",
    "CommitmentRequest",
    "Completion",
    "DeliveryJob",
    "DeliveryState",
    "DriftBook",
    "DriftView",
    "Found",
    "Generation",
    "GenerationState",
    "ImageJob",
    "ImageState",
    "Inspection",
    "KeptFile",
    "Ledger",
    "LedgerError",
    "LedgerLimits",
    "Outage",
    "Owed",
    "Pairs",
    "Recipient",
    "ReportedImage",
    "RoleProcess",
    "SameReason",
    "Sender",
    "ShadowJob",
    "Snapshot",
    "StoredResult",
    "Taker",
    "Tally",
    "UndecidedError",
    "Unresolved",
    "WeeklyCount",
    "accession_digest",
    "describe",
    "is_locked_out",
    "is_outage",
    "log_failure",
    "owner_name",
    "this_machine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
