"""The deliver role's limits: one frozen value, injected, so that a test or a simulation sets its
own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.backoff import Backoff
from daemon.dicom.requestor import Limits as AssociationLimits


@dataclass(frozen=True)
class DeliverLimits:
    """Counts, and times in seconds."""

    association: AssociationLimits = field(default_factory=AssociationLimits)
    backoff: Backoff = field(default_factory=Backoff)

    # How long a thread with nothing to do waits for the ledger's doorbell.
    idle_s: float = 1.0
    # After trouble with the ledger.
    ledger_pause_s: float = 5.0

    objects_per_association: int = 16
    # An object that has not been started by then is given back: a more urgent one may have come.
    turn_s: float = 30.0

    references_per_request: int = 200
    # An archive that has not reported by then is asked again; twice as long each time.
    first_report_s: float = 60.0
    # Some archives report at once, on the association that asked.
    same_association_s: float = 1.0


DEFAULT_LIMITS = DeliverLimits()
