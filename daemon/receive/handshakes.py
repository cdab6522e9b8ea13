"""The threads that compute the handshakes of the listener's TLS connections.

A step of a handshake takes a millisecond or two of computing and never waits for its peer. In the
listener's thread it would delay every other connection. A few threads run from the start, so a peer
that stops half-way costs a file descriptor, but no thread.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from socket import socket

from daemon import watchdog
from daemon.receive.connections import Served
from daemon.receive.waiting import Waiting

# More handshakes at a time would take CPU time from associations.
_MOST_THREADS = 4

# The outcome of `Waiting.served()`: its value, or what it raised.
Step = Future[Served | None]


class Handshakes:
    """Calls `served()` of waiting connections, oldest call first.

    Only the listener calls its methods. Between begin() and finished() only the computing thread
    uses the connection.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called, by any thread, when a step has finished."""
        self._wake = wake
        self._changed = threading.Condition()
        self._due: dict[socket, tuple[Waiting, int]] = {}
        self._finished: deque[tuple[Waiting, Step]] = deque()
        self._is_stopping = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads, as many as there are processors, four at most."""
        count = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._threads = [
            threading.Thread(target=self._run, name="handshakes", daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Start no further step. Returns when the running steps have finished."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def begin(self, waiting: Waiting, limit_bytes: int) -> None:
        """The connection has bytes: compute its next step."""
        with self._changed:
            self._due[waiting.socket] = (waiting, limit_bytes)
            self._changed.notify()

    def withdraw(self, connection: socket) -> bool:
        """Cancel the step of `connection`. False if it has already started."""
        with self._changed:
            return self._due.pop(connection, None) is not None

    def finished(self) -> Iterator[tuple[Waiting, Step]]:
        """The steps that have finished since the last call."""
        while self._finished:
            yield self._finished.popleft()

    def _run(self) -> None:
        while (due := self._next()) is not None:
            self._finished.append((due[0], _computed(*due)))
            self._wake()

    def _next(self) -> tuple[Waiting, int] | None:
        with self._changed:
            while not self._due and not self._is_stopping:
                self._changed.wait()
            if self._is_stopping:
                return None
            return self._due.pop(next(iter(self._due)))


def _computed(waiting: Waiting, limit_bytes: int) -> Step:
    step: Step = Future()
    try:
        with watchdog.watched(f"handshake with {waiting.address}"):
            step.set_result(waiting.served(limit_bytes))
    except Exception as error:
        # The listener re-raises it in its own thread.
        step.set_exception(error)
    return step
