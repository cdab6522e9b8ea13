"""The ledger, in which the roles meet: images received, their states, results owed to archives."""

from daemon.ledger.alarms import Alarm, AlarmMessage
from daemon.ledger.database import LedgerError, UndecidedError
from daemon.ledger.digests import accession_digest
from daemon.ledger.figures import Circuit, Owed, RoleProcess, Snapshot, Tally, Unresolved
from daemon.ledger.generations import BusyError, Found, Generation, Taker
from daemon.ledger.inspect import Inspection
from daemon.ledger.ledger import Ledger, owner_name, this_machine
from daemon.ledger.outage import Outage, describe
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
    SameReason,
    StoredResult,
)
from daemon.ledger.senders import Sender
from daemon.ledger.shadow import Pairs, ShadowJob
from daemon.ledger.states import DeliveryState, GenerationState, ImageState
from daemon.ledger.weekly import BaselineWeeks, DriftBook, DriftView, ReportedImage, WeeklyCount

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
    "owner_name",
    "this_machine",
]
