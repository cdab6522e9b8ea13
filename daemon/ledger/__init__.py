"""Where the roles meet: the images received, the state of each, and what is owed to each archive."""

from daemon.ledger.database import LedgerError, UndecidedError
from daemon.ledger.inspect import Inspection
from daemon.ledger.ledger import Ledger, owner_name, this_machine
from daemon.ledger.records import (
    Arrival,
    CommitmentRequest,
    Completion,
    DeliveryJob,
    ImageJob,
    KeptFile,
    LedgerLimits,
    StoredResult,
)
from daemon.ledger.states import DeliveryState, ImageState

__all__ = [
    "Arrival",
    "CommitmentRequest",
    "Completion",
    "DeliveryJob",
    "DeliveryState",
    "ImageJob",
    "ImageState",
    "Inspection",
    "KeptFile",
    "Ledger",
    "LedgerError",
    "LedgerLimits",
    "StoredResult",
    "UndecidedError",
    "owner_name",
    "this_machine",
]
