"""Keeps leases alive while their owner is at work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from daemon.ledger import LEASE_S, DeliveryJob, ImageJob, Ledger

log = logging.getLogger("pleura.service")

_HEARTBEAT_S = LEASE_S / 4

Jobs = Sequence[ImageJob] | Sequence[DeliveryJob]


class Heartbeat:
    """Renews the leases of what is in work, for as long as the block runs. `jobs` may be asked anew at each beat."""

    def __init__(self, ledger: Ledger, jobs: Jobs | Callable[[], Jobs]) -> None:
        self._ledger = ledger
        self._jobs = jobs
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._done.wait(_HEARTBEAT_S):
            jobs = self._jobs() if callable(self._jobs) else self._jobs
            if not jobs:
                continue
            try:
                self._ledger.renew(jobs)
            except Exception:  # the lease may run out; then a later owner wins and nothing is lost
                log.exception("leases could not be renewed")
