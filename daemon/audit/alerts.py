"""Security alerts of the receive role: refused connections and associations.

A refusal is not a transition of the ledger. One thread writes all refusals, so that neither the
listener nor a thread that still has to answer waits for a commit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, Full, Queue

from daemon.ledger import Ledger, Outage

log = logging.getLogger("pleura.audit")

# The shortest time between two records of the same refusal of the same address, and between two
# records of how many were left out.
_QUIET_S = 60.0
# The most reasons of one address that are recorded in that time. A peer can make up any number, for
# example by new AE titles, and would fill the audit trail until recording stops.
_MOST_REASONS = 30
_REMEMBERED = 1000
_WAITING = 1000
_RETRY_S = 2.0


@dataclass
class _Address:
    """What is recorded of one address: reason -> when, and how many refusals were left out."""

    reasons: dict[str, float] = field(default_factory=dict)
    left_out: int = 0


class Alerts:
    """Records refusals; refuse() never blocks and never raises."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._queue: Queue[dict[str, str] | None] = Queue(_WAITING)
        self._lock = threading.Lock()
        self._addresses: dict[str, _Address] = {}
        self._counted_at = clock()
        self._stopping = threading.Event()
        self._outage = Outage(log, "audit: a refusal is not recorded yet: the ledger")
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> None:
        """Start the thread if there is an audit trail."""
        if self._ledger.is_audited:
            self._thread.start()

    def stop(self) -> None:
        """Returns when every waiting refusal is written, or cannot be written."""
        if not self._thread.is_alive():
            return
        self._stopping.set()
        self._queue.put(None)
        self._thread.join()

    def refuse(self, address: str, why: str) -> None:
        """A peer at `address` was refused."""
        if not self._ledger.is_audited:
            return
        now = self._clock()
        with self._lock:
            known = self._known(address)
            known.reasons = {
                reason: at for reason, at in known.reasons.items() if now < at + _QUIET_S
            }
            if why in known.reasons:
                return
            if len(known.reasons) >= _MOST_REASONS:
                known.left_out += 1
                return
            try:
                self._queue.put_nowait({"address": address, "why": why})
                known.reasons[why] = now
            except Full:
                known.left_out += 1

    def _known(self, address: str) -> _Address:
        """What is recorded of an address. The address that came first is forgotten for a new one.

        Called with the lock held.
        """
        if address not in self._addresses and len(self._addresses) >= _REMEMBERED:
            # An address of which something is left out stays until that is recorded.
            quiet = (each for each, known in self._addresses.items() if not known.left_out)
            del self._addresses[next(quiet, next(iter(self._addresses)))]
        return self._addresses.setdefault(address, _Address())

    def _run(self) -> None:
        while not self._stopping.is_set() or not self._queue.empty():
            try:
                facts = self._queue.get(timeout=_QUIET_S)
            except Empty:
                facts = None
            if facts is not None:
                self._record_at_last(facts)
            if self._clock() >= self._counted_at + _QUIET_S:
                self._count_left_out()
        self._count_left_out()

    def _count_left_out(self) -> None:
        """Record how many refusals were left out, one record for each address."""
        self._counted_at = self._clock()
        with self._lock:
            counts = {each: known.left_out for each, known in self._addresses.items()}
            for known in self._addresses.values():
                known.left_out = 0

        for address, count in counts.items():
            if count:
                words = f"{count} further refusals of this address; the log has each of them"
                log.warning("audit: %s: %s", address, words)
                self._record_at_last({"address": address, "why": words})

    def _record_at_last(self, facts: dict[str, str]) -> None:
        """Record it, however often the ledger fails, or until stop()."""
        while not self._record(facts):
            if self._stopping.wait(_RETRY_S):
                break

    def _record(self, facts: dict[str, str]) -> bool:
        try:
            self._ledger.record_audit("refused", facts)
        except Exception as error:
            # The loop's only catch-all: an unreachable ledger comes back.
            self._outage.failed(error)
            return False
        self._outage.over()
        return True
