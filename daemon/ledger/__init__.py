"""Where the roles meet: what was received, what became of each image, what is owed to each archive."""

from daemon.ledger.database import LedgerError, UndecidedError
from daemon.ledger.ledger import (
    LEASE_S,
    LONGEST_WAIT_S,
    Arrival,
    CommitmentRequest,
    Completion,
    DeliveryJob,
    ImageJob,
    KeptFile,
    Ledger,
    StoredResult,
    owner_name,
    this_machine,
)

__all__ = [
    "LEASE_S",
    "LONGEST_WAIT_S",
    "Arrival",
    "CommitmentRequest",
    "Completion",
    "DeliveryJob",
    "ImageJob",
    "KeptFile",
    "Ledger",
    "LedgerError",
    "StoredResult",
    "UndecidedError",
    "owner_name",
    "this_machine",
]
