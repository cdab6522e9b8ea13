"""`pleura retry`: retry failed images and refused deliveries, or send what is owed at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from daemon.ledger import DeliveryState, Ledger


@dataclass(frozen=True)
class Wanted:
    """What to retry.

    `states` are among failed and refused; `to_destination` names one; `now` makes owed deliveries
    due at once. `from_destination`: only what is addressed to this name, which has left the
    settings, goes to `to_destination`.
    """

    states: Sequence[str]
    uids: Sequence[str] = ()
    to_destination: str | None = None
    now: bool = False
    # Who asks, for the audit trail.
    by: str = ""
    from_destination: str | None = None


@dataclass(frozen=True)
class Retried:
    """How many images and deliveries were re-armed, re-addressed and hastened."""

    rearmed: int
    readdressed: int = 0
    hastened: int = 0
    # Deliveries that were not re-addressed: the destination does not take their kind, or the same
    # result is addressed to it already.
    not_taken: int = 0
    already_there: int = 0
    # Destinations of refused deliveries that are not in the settings.
    unknown: Sequence[str] = ()
    # The name to send from, where nothing is owed to it and nothing was refused under it.
    unaddressed: str = ""

    @property
    def count(self) -> int:
        """All of them."""
        return self.rearmed + self.readdressed + self.hastened

    def __str__(self) -> str:
        parts = [f"{self.rearmed} re-armed"]
        if self.readdressed:
            parts.append(f"{self.readdressed} re-addressed")
        if self.not_taken:
            parts.append(f"{self.not_taken} stay: their kind is not in the destination's `results`")
        if self.already_there:
            parts.append(
                f"{self.already_there} stay: the same results are addressed to the destination "
                "already"
            )
        if self.unaddressed:
            parts.append(f"nothing is owed to {self.unaddressed} or was refused by it")
        if self.hastened:
            parts.append(f"{self.hastened} due now")
        if self.unknown:
            names = ", ".join(self.unknown)
            parts.append(f"deliveries to {names} stay: not in the settings; see --from")
        return "; ".join(parts)


def retry(ledger: Ledger, wanted: Wanted, configured: Mapping[str, Collection[str]]) -> Retried:
    """Carry out the request. `configured`: the kinds of results by destination of the settings."""
    to = wanted.to_destination
    if wanted.from_destination is not None and to is not None:
        done = ledger.readdress(wanted.from_destination, to, configured[to], wanted.uids, wanted.by)
        return Retried(
            0,
            done.moved,
            not_taken=done.not_taken,
            already_there=done.already_there,
            unaddressed="" if any(done) else wanted.from_destination,
            unknown=_unknown(ledger, configured),
        )

    # A failed image has no destination yet.
    states = [DeliveryState.REFUSED.value] if to else wanted.states
    names = [to] if to else list(configured)
    rearmed = ledger.rearm(states, wanted.uids, names, wanted.by)
    hastened = ledger.hasten(names, wanted.uids, wanted.by) if wanted.now else 0
    return Retried(rearmed, hastened=hastened, unknown=_unknown(ledger, configured))


def _unknown(ledger: Ledger, configured: Collection[str]) -> list[str]:
    return sorted(ledger.inspect.refused_destinations() - set(configured))
