"""From bytes to an accepted instance: durable in the spool first, then one committed row."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from daemon.ledger import (
    Arrival,
    Ledger,
    LedgerError,
    UndecidedError,
    describe,
    is_locked_out,
    is_outage,
)
from daemon.spool import BytesLike, Spool, SpoolError, Unfinished

log = logging.getLogger("pleura.receive")

# How long a measured free room is used, less the bytes written since: statvfs for each piece is
# slow.
_LOOK_S = 0.1

# How long a group commit waits for files that are about to ask for their row.
_SIBLINGS_S = 0.002

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoRoomError(Exception):
    """The instance cannot be accepted now: no room in the spool, or no commit.

    The sender must keep it.
    """


class NotCommittedError(NoRoomError):
    """The spool or the ledger cannot commit it. The message says which, and why."""


class Intake:
    """Takes instances in:

    `file = intake.begin(); file.write(...); file.keep(Arrival(file.name, ...))`.

    Group commit: one thread leads and commits every queued row in one transaction. It then wakes
    their threads, and passes the lead to the first row that was queued meanwhile.
    """

    def __init__(self, ledger: Ledger, spool: Spool, reserve_bytes: int = 0) -> None:
        """Accepts nothing if less than `reserve_bytes` would stay free: results need room."""
        self._ledger = ledger
        self._spool = spool
        self._reserve_bytes = reserve_bytes

        # Room beyond the reserve, and when it was measured.
        self._room_bytes = 0
        self._looked = 0.0

        # Rows whose threads wait for the leader.
        self._waiting: SimpleQueue[_Row] = SimpleQueue()
        self._lead = threading.Condition()
        self._is_led = False
        # Files that are about to ask for their row.
        self._finishing: set[IncomingFile] = set()

    def reserve(self, megabytes: int) -> None:
        """Change the reserve, from the next look at the disk on."""
        self._reserve_bytes = megabytes * 1024 * 1024
        self._looked = 0.0

    def begin(self) -> IncomingFile:
        """Begin a file in the spool, whose bytes come piece by piece.

        Raises:
            NoRoomError: the message says why.
            OSError: the disk failed.
        """
        try:
            return IncomingFile(self, self._spool.begin())
        except OSError as error:
            raise no_room_or(error) from error

    def require_room(self, size: int) -> None:
        """Raises NoRoomError if there is no room for `size` more bytes."""
        now = time.monotonic()
        if size > self._room_bytes or now > self._looked + _LOOK_S:
            self._room_bytes = self._spool.free_bytes() - self._reserve_bytes
            self._looked = now

        if size > self._room_bytes:
            raise NoRoomError(
                f"{size} bytes would leave less than the reserve of {self._reserve_bytes} bytes "
                "free; free room on the spool's disk, or lower spool_reserve_mb"
            )
        self._room_bytes -= size

    def finish(self, file: IncomingFile, unfinished: Unfinished) -> None:
        """Make the bytes of `file` durable. Meanwhile a group commit waits briefly for its row.

        Raises:
            OSError: the disk failed; nothing of it is left.
        """
        self._finishing.add(file)
        try:
            unfinished.finish()
        finally:
            self._finishing.discard(file)

    def commit(self, arrival: Arrival) -> None:
        """Returns when file name and row are durable.

        Raises NotCommittedError; then the bytes are removed too.
        """
        row = _Row(arrival)
        if not self._take_lead(row):
            row.turn.acquire()
        if not row.is_done:
            self._commit_group(row)
        if row.error is None:
            return

        why = _in_words(row.error)
        if is_locked_out(row.error):
            # To ask the ledger would be to wait for the same lock.
            self._spool.remove(arrival.spool_name)
            raise NotCommittedError(f"it cannot be committed ({why})") from row.error

        is_undecided = isinstance(row.error, UndecidedError)
        if not self._was_committed(arrival.spool_name, is_undecided):
            raise NotCommittedError(f"it cannot be committed ({why})") from row.error
        log.warning("a received object was committed, though the answer was lost (%s)", why)

    def stop(self) -> None:
        """Returns when the running commits are over."""
        with self._lead:
            self._lead.wait_for(lambda: not self._is_led)

    def _take_lead(self, row: _Row) -> bool:
        """Whether the row's thread leads now. If another thread leads, queue the row for it."""
        with self._lead:
            if self._is_led:
                self._waiting.put(row)
                return False
            self._is_led = True
        return True

    def _hand_on(self) -> None:
        """Let the thread of the first queued row lead, if there is one."""
        with self._lead:
            try:
                heir = self._waiting.get_nowait()
            except Empty:
                self._is_led = False
                self._lead.notify_all()
                return
        heir.turn.release()

    def _was_committed(self, name: str, is_undecided: bool) -> bool:
        """Whether the row stands although the commit's answer was lost.

        Without a row the bytes are removed. While the database has not decided, or cannot be asked,
        they stay until the row appears or the sweep finds them.
        """
        try:
            if self._ledger.inspect.known_spool_names([name]):
                return True
        except Exception:
            # The refusal's line gives the ledger's error.
            return False
        if not is_undecided:
            self._spool.remove(name)
        return False

    def _commit_group(self, first: _Row) -> None:
        group = [first]
        try:
            self._gather(group)
            error = self._commit([row.arrival for row in group])
            for row in group:
                row.error = error
        finally:
            self._hand_on()
            for row in group:
                row.is_done = True
                row.turn.release()

    def _gather(self, group: list[_Row]) -> None:
        """Add every queued row, and those about to be queued: a commit costs the same for one row
        and for many.
        """
        deadline = time.monotonic() + _SIBLINGS_S
        with contextlib.suppress(Empty):
            while self._finishing or not self._waiting.empty():
                left_s = max(0.0, deadline - time.monotonic())
                group.append(self._waiting.get(timeout=left_s))

    def _commit(self, arrivals: list[Arrival]) -> Exception | None:
        """Make names and rows durable. Returns what prevented it: each waiter's answer."""
        try:
            self._spool.sync(arrival.spool_name for arrival in arrivals)
            # An unmounted spool leaves an empty folder that accepts files, and hides them once it
            # is mounted again.
            self._spool.require_whole({row.spool_name: row.size_bytes for row in arrivals})
            self._ledger.receive(arrivals)
        except Exception as failure:
            return failure
        return None


# A row's error until its group is committed.
_LEFT_OUT = RuntimeError("the group commit left it out")


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class _Row:
    """A row waiting for its commit."""

    arrival: Arrival
    # Set when the row is committed, or when its thread shall lead the next commit.
    turn: threading.Lock = field(default_factory=_taken_lock)
    is_done: bool = False
    error: Exception | None = _LEFT_OUT


class IncomingFile:
    """One instance being received. If a method raises, nothing of it is left."""

    def __init__(self, intake: Intake, file: Unfinished) -> None:
        self._intake = intake
        self._file = file

    @property
    def name(self) -> str:
        """Its name in the spool, for its Arrival."""
        return self._file.name

    def write(self, *chunks: BytesLike) -> None:
        """Append the bytes of `chunks`. Raises NoRoomError, OSError."""
        try:
            self._intake.require_room(sum(len(chunk) for chunk in chunks))
            self._file.write(*chunks)
        except NoRoomError:
            self.drop()
            raise
        except OSError as error:
            self.drop()
            raise no_room_or(error) from error

    def keep(self, arrival: Arrival) -> None:
        """Make the bytes durable, then commit the row `arrival`. Returns when both are durable.

        Raises:
            NoRoomError: nothing was accepted; the message says why.
            OSError: the disk failed; nothing was accepted.
        """
        try:
            self._intake.finish(self, self._file)
        except OSError as error:
            raise no_room_or(error) from error
        self._intake.commit(arrival)

    def drop(self) -> None:
        """Remove what was written. A kept file stays."""
        self._file.drop()


def no_room_or(error: OSError) -> Exception:
    """A full disk as NoRoomError, any other failure as it is."""
    return NoRoomError(f"spool: {error.strerror}") if error.errno in _NO_ROOM else error


def _in_words(error: Exception) -> str:
    """An error of the spool or the ledger in words.

    Of any other error only the type: its text may hold values of a row.
    """
    if isinstance(error, LedgerError | SpoolError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"spool: {error.strerror}"
    if isinstance(error, UndecidedError) or is_outage(error):
        return f"ledger: {describe(error)}"
    return type(error).__name__
