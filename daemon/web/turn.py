"""One at a time, while few wait: each that waits holds a thread of the pool that answers probes."""

from __future__ import annotations

import threading
from types import TracebackType


class BusyError(Exception):
    """One is at work, and as many wait as may."""


class Turn:
    """A lock that turns away, instead of a queue without end. For `with`."""

    def __init__(self, most_waiting: int) -> None:
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + most_waiting)

    def __enter__(self) -> None:
        """Wait for the turn. Raises BusyError at once where too many wait."""
        if not self._places.acquire(blocking=False):
            raise BusyError
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._lock.release()
        self._places.release()
