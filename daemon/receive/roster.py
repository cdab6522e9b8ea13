"""The open associations, each with its thread, and the rule for when every place is taken."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from daemon.dicom.acceptor import Association, Limits
from daemon.receive.session import Session

_GIVE_UP_S = 5.0  # after the time to drain, for threads to end
_GIVING_WAY_S = 2.0  # for an association that gives way to be gone


class Roster:
    """The open associations. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._running: set[Association] = set()
        self._threads: set[threading.Thread] = set()

    def __len__(self) -> int:
        return len(self._running)

    def enter(self, association: Association, run: Callable[[Association], None]) -> bool:
        """Start the association's thread.

        False where there are far too many, those that are ending included.

        As many again as may be open are let in, to be told so by a rejection.

        """

        def run_and_forget() -> None:
            try:
                run(association)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run_and_forget, name="association", daemon=True)
        with self._lock:
            if len(self._threads) >= 2 * self._limits.associations:
                return False
            self._running.add(association)
            self._threads.add(thread)
        thread.start()
        return True

    def leave(self, association: Association) -> None:
        """It has ended; its connection may still be closing."""
        with self._lock:
            self._running.discard(association)

    def has_room_for(self, newcomer: Session) -> bool:
        """Whether there is a place for an association that has entered; one that is open may have
        to give way.

        When every place is taken and one AE holds more than half, end its least productive
        association. An honest sender re-sends one object; otherwise a slow-drip peer could lock
        every other sender out.
        """
        if len(self._running) <= self._limits.associations:
            return True
        least_productive = self._least_productive_of_a_crowd(newcomer)
        if least_productive is None:
            return False

        least_productive.cut("every place is taken, and this AE holds most of them")
        deadline = time.monotonic() + _GIVING_WAY_S
        while len(self._running) > self._limits.associations:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _least_productive_of_a_crowd(self, newcomer: Session) -> Association | None:
        with self._lock:
            running = [*self._running]
        held = [
            (association, association.session)
            for association in running
            if isinstance(association.session, Session)
        ]
        crowds = Counter(session.origin for _, session in held)
        largest, size = max(crowds.items(), key=lambda crowd: crowd[1], default=(("", ""), 0))
        if size <= self._limits.associations // 2 or largest == newcomer.origin:
            return None

        theirs = [pair for pair in held if pair[1].origin == largest]
        association, session = min(theirs, key=lambda pair: pair[1].productive_at)
        if time.monotonic() < session.productive_at + self._limits.unproductive_s:
            return None
        return association

    def stop(self) -> None:
        """End every association after its message in hand; those that take too long at once."""
        with self._lock:
            running = [*self._running]
        for association in running:
            association.stop()

        deadline = time.monotonic() + self._limits.drain_s
        while self._running and time.monotonic() < deadline:
            time.sleep(0.01)
        with self._lock:
            running, threads = [*self._running], [*self._threads]
        for association in running:
            association.cut(f"this node stops, and waited {self._limits.drain_s:g} s for it")

        deadline = time.monotonic() + _GIVE_UP_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
