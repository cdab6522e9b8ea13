"""`pleura retry`: another try for failed images, for refused deliveries, and at once for what is
owed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from daemon.ledger import DeliveryState, Ledger


@dataclass(frozen=True)
class Wanted:
    """The call: `states` among failed and refused; `to` names one destination; `now` hastens what
    is owed. `old`: only what is addressed to this name, which has left the settings, goes to `to`.
    """

    states: Sequence[str]
    uids: Sequence[str] = ()
    to: str | None = None
    now: bool = False
    # Who asks, for the audit trail.
    by: str = ""
    old: str | None = None


@dataclass(frozen=True)
class Retried:
    """How many images and deliveries were re-armed, re-addressed and hastened."""

    rearmed: int
    readdressed: int = 0
    hastened: int = 0
    # Destinations of refused deliveries that are not in the settings.
    unknown: Sequence[str] = ()

    @property
    def count(self) -> int:
        """All of them."""
        return self.rearmed + self.readdressed + self.hastened

    def __str__(self) -> str:
        parts = [f"{self.rearmed} re-armed"]
        if self.readdressed:
            parts.append(f"{self.readdressed} re-addressed")
        if self.hastened:
            parts.append(f"{self.hastened} due now")
        if self.unknown:
            names = ", ".join(self.unknown)
            parts.append(f"deliveries to {names} stay: not in the settings; see --from")
        return "; ".join(parts)


def retry(ledger: Ledger, wanted: Wanted, configured: Collection[str]) -> Retried:
    """Do what is wanted. `configured`: the names of the destinations in the settings."""
    if wanted.old is not None and wanted.to is not None:
        moved = ledger.readdress(wanted.old, wanted.to, wanted.uids, wanted.by)
        return Retried(0, moved, unknown=_unknown(ledger, configured))

    # A failed image has no destination yet.
    states = [DeliveryState.REFUSED.value] if wanted.to else wanted.states
    names = [wanted.to] if wanted.to else list(configured)
    rearmed = ledger.rearm(states, wanted.uids, names, wanted.by)
    hastened = ledger.hasten(names, wanted.uids, wanted.by) if wanted.now else 0
    return Retried(rearmed, hastened=hastened, unknown=_unknown(ledger, configured))


def _unknown(ledger: Ledger, configured: Collection[str]) -> list[str]:
    return sorted(ledger.inspect.refused_destinations() - set(configured))
