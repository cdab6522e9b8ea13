"""Heartbeats in the ledger: they renew the leases of work in hand, and show which roles run."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon.ledger import DeliveryJob, ImageJob, Ledger, Outage, describe, owner_name
from daemon.ledger.processes import SIGN_EVERY_S

log = logging.getLogger("pleura.service")

# What a process reports of itself besides its memory: numbers and short texts by name.
Facts = Callable[[], Mapping[str, Any]]

Jobs = Sequence[ImageJob] | Sequence[DeliveryJob]

# A lease survives three failed heartbeats.
_BEATS_PER_LEASE = 4
_PATIENCE_S = 5.0
# A heartbeat that lasts longer is told. A lock of another program ends in an error before that; a
# server whose disk or machine hangs gives no answer at all.
_ANSWER_S = 45.0


class Heartbeat:
    """Renews the leases of work in hand for as long as the block runs.

    `jobs` may be a function, which is asked at each beat.
    """

    def __init__(self, ledger: Ledger, jobs: Jobs | Callable[[], Jobs]) -> None:
        self._ledger = ledger
        self._jobs = jobs
        self._period_s = ledger.limits.lease_s / _BEATS_PER_LEASE
        self._outage = Outage(log, "leases: the ledger")

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
            # The lease may expire. Then a later owner takes over, and nothing is lost.
            self._outage.failed(error)
        else:
            self._outage.over()


class SignsOfLife:
    """Records in the ledger that this process of a role is alive, from READY until the block ends.

    `pleura status` and `doctor` show it. Each heartbeat carries the process's memory and its facts,
    for the metrics.
    """

    def __init__(
        self,
        ledger: Ledger,
        role: str,
        ready: threading.Event,
        every_s: float = SIGN_EVERY_S,
        facts: Facts = dict,
        answer_s: float = _ANSWER_S,
    ) -> None:
        """`ready` is set once the role can do its job.

        A ledger that does not answer for `answer_s` is told in the log.
        """
        self._facts = facts
        self._ledger = ledger
        self._role = role
        self._ready = ready
        self._every_s = every_s
        self._answer_s = answer_s
        self._outage = Outage(log, f"{role}: heartbeat: the ledger")

        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs-of-life", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        # A database that hangs must not delay the end of the role.
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            log.warning("the end of the %s role is not recorded: no answer", self._role)
            return
        try:
            self._ledger.end_beat(self._role, owner_name())
        except Exception as error:
            # The row grows old, which soon says the same.
            log.warning("the end of the %s role is not recorded (%s)", self._role, describe(error))

    def _run(self) -> None:
        while not self._done.is_set():
            if not self._ready.wait(0.2):
                continue
            patience = threading.Timer(self._answer_s, self._miss_answer)
            patience.daemon = True
            patience.start()
            try:
                self._ledger.beat(self._role, owner_name(), self._told())
            except Exception as error:
                # The next heartbeat will record it.
                self._outage.failed(error)
            else:
                self._outage.over()
            finally:
                patience.cancel()
            self._done.wait(self._every_s)

    def _miss_answer(self) -> None:
        """On the timer's thread, while the heartbeat waits."""
        self._outage.failed(TimeoutError(f"no answer for {self._answer_s:g} s; does it hang?"))

    def _told(self) -> dict[str, Any]:
        return {"memory_bytes": memory_bytes(), **self._facts()}


def memory_bytes() -> int:
    """The resident memory of this process; 0 if the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
