"""Security alerts of the receive role: refused connections and associations.

A refusal is not a transition of the ledger. One thread writes all refusals, so that neither the
listener nor a thread that still has to answer waits for a commit.
"""

from __future__ import annotations

import logging
import threading
import time
from queue import Full, Queue

from daemon.ledger import Ledger, Outage

log = logging.getLogger("pleura.audit")

# The shortest time between two records of the same refusal of the same address.
_QUIET_S = 60.0
_REMEMBERED = 1000
_WAITING = 1000
_RETRY_S = 2.0


class Alerts:
    """Records refusals; refuse() never blocks and never raises."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._queue: Queue[dict[str, str] | None] = Queue(_WAITING)
        self._told: dict[tuple[str, str], float] = {}
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
        now = time.monotonic()
        if now < self._told.get((address, why), 0.0) + _QUIET_S:
            return
        if len(self._told) >= _REMEMBERED:
            self._told.clear()
        self._told[address, why] = now
        try:
            self._queue.put_nowait({"address": address, "why": why})
        except Full:
            log.warning("audit: too many refusals at a time; one of %s is not recorded", address)

    def _run(self) -> None:
        while (facts := self._queue.get()) is not None:
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
