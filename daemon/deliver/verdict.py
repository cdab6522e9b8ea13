"""The meaning of a C-STORE status for the object that it answers: one table (docs/rules.md,
"Delivery").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# After this many answers 0xCxxx an object is refused...
MAXIMUM_FAILURES = 8
# ...if the destination has stored others meanwhile, or after this time. Archives also give these
# answers for faults of their own: the restart of a database must not cost a result.
FAILING_HOURS = 6
CANNOT_UNDERSTAND = range(0xC000, 0xD000)


class Verdict(Enum):
    """The consequence of an answer."""

    STORED = "stored"
    # The destination's fault, not the object's: pause, then probe it with one object.
    BUSY = "busy"
    # Owed, and tried again, later each time.
    RETRY = "retry"
    # Not sent again until a person asks for it.
    REFUSED = "refused"
    # RETRY at first, then REFUSED once the object is clearly at fault.
    REFUSED_IN_THE_END = "refused in the end"


@dataclass(frozen=True)
class Meaning:
    """A run of statuses with one meaning."""

    statuses: range
    words: str
    verdict: Verdict


def _one(status: int, words: str, verdict: Verdict) -> Meaning:
    return Meaning(range(status, status + 1), words, verdict)


# PS3.4 Table B.2-1 and PS3.7 Annex C. A status that is not here is retried.
MEANINGS = (
    _one(0x0000, "success", Verdict.STORED),
    # PS3.7 C.4.2: the operation was performed.
    _one(0x0001, "warning", Verdict.STORED),
    _one(0x0107, "attribute list error, a warning", Verdict.STORED),
    # The archive already has the object, and the UID guarantees its content.
    _one(0x0111, "duplicate SOP instance", Verdict.STORED),
    _one(0x0116, "attribute value out of range, a warning", Verdict.STORED),
    _one(0x0122, "SOP class not supported", Verdict.REFUSED),
    Meaning(range(0xA700, 0xA800), "out of resources", Verdict.BUSY),
    Meaning(range(0xA900, 0xAA00), "data set does not match SOP class", Verdict.REFUSED),
    Meaning(range(0xB000, 0xC000), "warnings", Verdict.STORED),
    Meaning(CANNOT_UNDERSTAND, "cannot understand", Verdict.REFUSED_IN_THE_END),
)


# What a person does about a refused object, by the first status of its meaning.
_CURES = {
    0x0122: "take its kind out of `results`, or let the archive accept its SOP class",
    0xA900: "correct the archive's checks, or take its kind out of `results`",
    0xC000: "look into the archive's own log, and correct its checks",
}


def cure(status: int | None) -> str:
    """The meaning of a status and the remedy, for the log; "" without a rule."""
    for meaning in MEANINGS:
        if status in meaning.statuses and meaning.statuses.start in _CURES:
            return f"; {meaning.words}: {_CURES[meaning.statuses.start]}, then `pleura retry`"
    return ""


def verdict(
    status: int, failures: int, failing_s: float = 0.0, stores_others: bool = False
) -> Verdict:
    """The verdict on an object by the `status` that answers it.

    It was answered 0xCxxx `failures` times before, the first time `failing_s` ago. `stores_others`:
    the destination has stored another object since the last of these answers.
    """
    for meaning in MEANINGS:
        if status in meaning.statuses:
            break
    else:
        return Verdict.RETRY

    if meaning.verdict is not Verdict.REFUSED_IN_THE_END:
        return meaning.verdict
    is_at_fault = stores_others or failing_s >= FAILING_HOURS * 3600.0
    is_final = is_at_fault and failures + 1 >= MAXIMUM_FAILURES
    return Verdict.REFUSED if is_final else Verdict.RETRY
