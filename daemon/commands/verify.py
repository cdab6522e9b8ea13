"""`pleura verify`: compare the spool with the ledger.

Is every file there and complete? Is every file known?

It only reads, and may run beside the roles. Before it reports a difference it asks the ledger
again, because a role may be in the middle of its work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from daemon.ledger import Inspection
from daemon.spool import Spool

_BATCH = 1000


@dataclass
class Report:
    """The differences. A fault needs a person; the node handles the other differences itself."""

    files: int = 0
    faults: list[str] = field(default_factory=list)
    # Given up by retention, and not removed yet.
    unowned: int = 0
    # Never known to the ledger; they are adopted once they are old enough.
    unknown: int = 0

    @property
    def clean(self) -> bool:
        """Nothing is missing or damaged."""
        return not self.faults


def verify(inspect: Inspection, spool: Spool) -> Report:
    """Compare the whole spool with the whole ledger, and the ledger with itself.

    Raises SpoolError, OSError.
    """
    report = Report()
    report.faults += inspect.contradictions()

    for kept in inspect.kept_files():
        report.files += 1
        damage = spool.damage(kept.spool_name, kept.size_bytes)
        # Meanwhile retention may have given its bytes up, or they were made again under another
        # name.
        if damage and inspect.known_spool_names([kept.spool_name]):
            report.faults.append(f"{kept.what}: {spool.path(kept.spool_name)} {damage}")

    for names in _batches(spool.names()):
        unknown = inspect.unknown_spool_names(names)
        report.unknown += len(unknown)
        report.unowned += len(set(names) - unknown - inspect.known_spool_names(names))

    for name in spool.quarantined():
        report.faults.append(
            f"{spool.quarantine_folder / name}: the ledger does not know it, and it could not be "
            "identified; put it into the inbox if it is an image, or remove it"
        )
    return report


def _batches(names: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(names, _BATCH)):
        yield batch
