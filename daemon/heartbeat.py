"""Keeps leases alive while their owner is at work, and says that a role is alive."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from daemon.ledger import DeliveryJob, ImageJob, Ledger, Outage, describe, owner_name

log = logging.getLogger("pleura.service")

Jobs = Sequence[ImageJob] | Sequence[DeliveryJob]

# A lease outlives three beats that fail.
_BEATS_PER_LEASE = 4


class Heartbeat:
    """Renews the leases of work in hand for as long as the block runs.

    `jobs` may be a function, which is asked at each beat.
    """

    def __init__(self, ledger: Ledger, jobs: Jobs | Callable[[], Jobs]) -> None:
        self._ledger = ledger
        self._jobs = jobs
        self._period_s = ledger.limits.lease_s / _BEATS_PER_LEASE
        self._outage = Outage(log, "leases cannot be renewed: the ledger")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._period_s):
            jobs = self._jobs() if callable(self._jobs) else self._jobs
            if jobs:
                self._renew(jobs)

    def _renew(self, jobs: Jobs) -> None:
        try:
            self._ledger.renew(jobs)
        except Exception as error:
            # The lease may run out. Then a later owner wins, and nothing is lost.
            self._outage.failed(error)
        else:
            self._outage.over()


class RoleHeartbeat:
    """Records in the ledger that this process of a role is alive, for as long as the block runs.

    A process that cannot write the ledger is silent there, and logs it once for each outage.
    """

    def __init__(self, ledger: Ledger, role: str, detail: str) -> None:
        self._ledger = ledger
        self._role = role
        self._detail = detail
        self._period_s = ledger.limits.lease_s / _BEATS_PER_LEASE
        self._outage = Outage(log, f"{role}: no heartbeat: the ledger")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{role} heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._beat()
            if self._done.wait(self._period_s):
                break
        try:
            self._ledger.end_role(self._role, owner_name())
        except Exception as error:
            log.warning("%s: the last heartbeat failed (%s)", self._role, describe(error))

    def _beat(self) -> None:
        try:
            self._ledger.beat(self._role, owner_name(), self._detail)
        except Exception as error:
            self._outage.failed(error)
        else:
            self._outage.over()
