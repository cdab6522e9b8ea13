"""systemd's watchdog, fed while every watched thread makes progress (sd_watchdog_enabled(3)).

A thread is watched inside `watched(name)`, and calls `beat()` at each step, also while it waits. A
thread that hangs in a decoder, a lock or a system call stays silent. Then the watchdog is no longer
fed, and systemd restarts the process. Its work is claimed again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger("pleura.service")

# systemd recommends feeding in half of its time; a busy machine may be late.
_FEEDINGS_PER_PERIOD = 4


@dataclass
class _Thread:
    name: str
    beat_at: float


# Thread identifier -> its last beat. Each thread writes only its own entry.
_threads: dict[int, _Thread] = {}


@contextmanager
def watched(name: str) -> Iterator[None]:
    """Watch the calling thread until the block ends."""
    identifier = threading.get_ident()
    _threads[identifier] = _Thread(name, time.monotonic())
    try:
        yield
    finally:
        del _threads[identifier]


def beat() -> None:
    """The calling thread makes progress. Does nothing if the thread is not watched."""
    thread = _threads.get(threading.get_ident())
    if thread is not None:
        thread.beat_at = time.monotonic()


def silent(limit_s: float) -> list[str]:
    """The watched threads whose last beat is older than `limit_s`, in words."""
    now = time.monotonic()
    return [
        f"{thread.name} ({now - thread.beat_at:.0f} s)"
        for thread in [*_threads.values()]
        if now - thread.beat_at > limit_s
    ]


def period_s() -> float | None:
    """The time within which systemd wants to be fed (WatchdogSec=); None without a watchdog."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    process = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdigit() or process != str(os.getpid()):
        return None
    return int(microseconds) / 1e6


class Feeder:
    """Feeds the watchdog while the block runs and no watched thread is stuck."""

    def __init__(self, feed: Callable[[], None], every_s: float, limit_s: float) -> None:
        """`limit_s`: a thread without a beat for this long is stuck."""
        self._feed = feed
        self._every_s = every_s
        self.limit_s = limit_s
        self._told = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            stuck = silent(self.limit_s)
            if not stuck:
                self._told = False
                self._feed()
            elif not self._told:
                self._tell(stuck)

    def _tell(self, stuck: list[str]) -> None:
        self._told = True
        log.error(
            "no progress: %s; allowed: %g s; the watchdog is not fed any more, and systemd "
            "restarts this process; the stacks of its threads follow",
            ", ".join(stuck),
            self.limit_s,
        )
        # Names of files and functions only, so no patient's values.
        faulthandler.dump_traceback(sys.stderr)


def feeder(feed: Callable[[], None], limit_s: float) -> Feeder | None:
    """The thread that feeds systemd's watchdog; None if this process has no watchdog."""
    wanted_s = period_s()
    return None if wanted_s is None else Feeder(feed, wanted_s / _FEEDINGS_PER_PERIOD, limit_s)
