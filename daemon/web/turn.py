"""A lock with a bounded queue: each waiting thread is missing in the pool that answers probes."""

from __future__ import annotations

import threading
from types import TracebackType


class BusyError(Exception):
    """The lock is taken, and its queue is full."""


class Turn:
    """A lock that raises BusyError when its queue is full, for `with`."""

    def __init__(self, most_waiting: int) -> None:
        self._lock = threading.Lock()
        self._queue = threading.BoundedSemaphore(1 + most_waiting)

    def __enter__(self) -> None:
        """Wait for the lock. Raises BusyError at once if too many wait."""
        if not self._queue.acquire(blocking=False):
            raise BusyError
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._lock.release()
        self._queue.release()
