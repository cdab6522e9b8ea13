"""The open associations, each with its thread, and the rule for when every slot is taken."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from daemon.dicom.acceptor import Association, Limits
from daemon.receive.session import Session

log = logging.getLogger("pleura.receive")

_GIVE_UP_S = 5.0  # after the time to drain, for threads to end
_GIVING_WAY_S = 2.0  # for an evicted association to end


class Roster:
    """The open associations. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._running: set[Association] = set()
        # The admitted peers, each with its slot.
        self._slots: set[Session] = set()
        self._threads: set[threading.Thread] = set()
        # Ended associations whose threads wait for the peer to close, oldest first.
        self._closing: dict[Association, threading.Thread] = {}

    def take(self, limits: Limits) -> None:
        """New limits. Associations beyond a smaller number stay until they end."""
        self._limits = limits

    def __len__(self) -> int:
        return len(self._running)

    def enter(self, association: Association, run: Callable[[Association], None]) -> bool:
        """Start the association's thread.

        False if there are far too many. Up to twice as many as may be open are let in, so that the
        rest get a rejection. If that many threads run, an ended association no longer waits for
        its peer to close. Otherwise a peer that is rejected again and again, and never closes,
        would lock out every sender.
        """

        def run_and_forget() -> None:
            try:
                run(association)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())
                    self._closing.pop(association, None)

        thread = threading.Thread(target=run_and_forget, name="association", daemon=True)
        with self._lock:
            most = 2 * self._limits.associations
            if len(self._threads) >= most and not self._hurry():
                log.warning(
                    "connection from %s ended: %d associations are open or being answered, twice "
                    "limits.associations; the sender tries again",
                    association.address,
                    most,
                )
                return False
            self._running.add(association)
            self._threads.add(thread)

        try:
            thread.start()
        except RuntimeError as error:
            # The system cannot start another thread now; it may later.
            log.error("no thread for the association from %s (%s)", association.address, error)
            with self._lock:
                self._running.discard(association)
                self._threads.discard(thread)
            return False
        return True

    def leave(self, association: Association) -> None:
        """It has ended; its connection may still be closing."""
        with self._lock:
            self._running.discard(association)
            if isinstance(association.session, Session):
                self._slots.discard(association.session)
            thread = threading.current_thread()
            if thread in self._threads:
                self._closing[association] = thread

    def _hurry(self) -> bool:
        """Close the oldest ended association of the address with the most. False: there is none.

        Its thread ends at once, and is not counted any more. Called with the lock held.
        """
        if not self._closing:
            return False
        crowds = Counter(association.address for association in self._closing)
        ((largest, _),) = crowds.most_common(1)
        oldest = next(each for each in self._closing if each.address == largest)

        self._threads.discard(self._closing.pop(oldest))
        oldest.hurry()
        return True

    def take_slot(self, newcomer: Session) -> str:
        """Give a slot to an association that has entered; another association may have to end.

        Returns "", or why there is no slot.
        """
        caller = newcomer.caller
        with self._lock:
            held = sum(session.holder == newcomer.holder for session in self._slots)
            if caller.quota is not None and held >= caller.quota:
                return (
                    f"{caller.ae_title} has {held} associations open, its quota "
                    "(peers[].associations)"
                )
            self._slots.add(newcomer)

        if len(self._slots) <= self._limits.associations or self._make_room(newcomer, held):
            return ""
        with self._lock:
            self._slots.discard(newcomer)
        return f"{self._limits.associations} associations are open (limits.associations)"

    def _make_room(self, newcomer: Session, held: int) -> bool:
        """If every slot is taken, end an open association in favour of the newcomer.

        If one holder has more than half: end its least productive association, once that has stored
        nothing for a while. Otherwise a slow-drip peer could lock every other sender out.

        If the newcomer is a configured peer without a slot: end the least productive association of
        the holder with the most. Otherwise several peers together could lock it out.

        An honest sender re-sends one object.
        """
        crowd = self._largest_crowd(newcomer)
        if not crowd:
            return False

        association, session = min(crowd, key=lambda pair: pair[1].productive_at)
        is_idle = time.monotonic() >= session.productive_at + self._limits.unproductive_s
        if len(crowd) > self._limits.associations // 2 and is_idle:
            association.cut("every slot is taken, and this AE holds most of them")
        elif newcomer.caller.entry and not held and len(crowd) > 1:
            association.cut("every slot is taken, and a peer without an association asks for one")
        else:
            return False

        deadline = time.monotonic() + _GIVING_WAY_S
        while len(self._slots) > self._limits.associations:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _largest_crowd(self, newcomer: Session) -> list[tuple[Association, Session]]:
        """The open associations of the holder with the most; none if that is the newcomer.

        Among equals, the holder of the least productive association.
        """
        with self._lock:
            running = [*self._running]
        slots = [
            (association, association.session)
            for association in running
            if isinstance(association.session, Session)
        ]
        sizes = Counter(session.holder for _, session in slots)
        if not sizes:
            return []

        most = max(sizes.values())
        largest = [session for _, session in slots if sizes[session.holder] == most]
        holder = min(largest, key=lambda session: session.productive_at).holder
        if holder == newcomer.holder:
            return []
        return [pair for pair in slots if pair[1].holder == holder]

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
