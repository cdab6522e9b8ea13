"""`pleura verify`: does the spool hold what the ledger counts on, whole, and nothing that nobody knows?

It reads only, and may run beside the roles: what they are in the middle of is told apart from a fault by asking the
ledger again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from daemon.ledger import KeptFile, Ledger
from daemon.spool import Spool

_BATCH = 1000


@dataclass
class Report:
    """What was found. Faults need a person; files without an owner are swept by themselves once they are old."""

    files: int = 0
    faults: list[str] = field(default_factory=list)
    unowned: int = 0

    @property
    def clean(self) -> bool:
        """Nothing is missing or damaged."""
        return not self.faults


def verify(ledger: Ledger, spool: Spool) -> Report:
    """Compare all of the spool with all of the ledger, and the ledger with itself."""
    report = Report()
    report.faults += ledger.contradictions()
    for kept in ledger.kept_files():
        report.files += 1
        fault = _fault(kept, spool)
        # Between the two looks its bytes may have been given up, or made again under another name.
        if fault and ledger.known_spool_names([kept.spool_name]):
            report.faults.append(f"{kept.what}: {fault}")
    for names in _batches(spool.names()):
        report.unowned += len(set(names) - ledger.known_spool_names(names))
    return report


def _fault(kept: KeptFile, spool: Spool) -> str | None:
    path = spool.path(kept.spool_name)
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        return f"{path} is gone"
    if kept.size_bytes not in (None, size_bytes):
        return f"{path} has {size_bytes} of {kept.size_bytes} bytes"
    return None


def _batches(names: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(names, _BATCH)):
        yield batch
