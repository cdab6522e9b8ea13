"""From bytes in memory to an accepted instance: durable in the spool, then one committed row. Never the other way."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import cast

from daemon.ledger import Arrival, Ledger, LedgerError, UndecidedError
from daemon.spool import BytesLike, Spool, Unfinished

log = logging.getLogger("pleura.receive")

_LOOK_S = 0.1  # how long the free room that was found counts, less what was taken since: statvfs for each piece costs
_SIBLINGS_S = 0.002  # how long a commit waits for those that are about to join it
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoRoomError(Exception):
    """The instance cannot be taken now: no room in the spool or in the ledger. The sender has to keep it."""


class Intake:
    """The one way in. Whoever finds nobody committing does it, for all that wait at that time: so it scales."""

    def __init__(self, ledger: Ledger, spool: Spool, reserve_bytes: int = 0) -> None:
        """Nothing is taken when less than `reserve_bytes` would stay free: results need room too."""
        self._ledger = ledger
        self._spool = spool
        self._reserve_bytes = reserve_bytes
        self._room_bytes, self._looked = 0, 0.0  # beyond the reserve, and when that was so
        self._waiting: SimpleQueue[_Row] = SimpleQueue()
        self._committing = threading.Lock()
        self.finishing: set[Entry] = set()  # what will ask for its row in a moment

    def take(self, arrival: Callable[[str], Arrival], *chunks: BytesLike) -> None:
        """Write the bytes of `chunks`, then the row that `arrival` makes of the spool name. Returns when both last.

        Raises:
            NoRoomError: nothing was taken; the message says why.
            OSError: the disk failed; nothing was taken.
        """
        entry = self.begin()
        entry.write(*chunks)
        entry.keep(arrival)

    def begin(self) -> Entry:
        """An instance whose bytes come piece by piece."""
        return Entry(self, self._spool)

    def require_room(self, size: int) -> None:
        """Raises NoRoomError when `size` bytes more would be too many."""
        now = time.monotonic()
        if size > self._room_bytes or now > self._looked + _LOOK_S:
            self._room_bytes, self._looked = self._spool.free_bytes() - self._reserve_bytes, now
        if size > self._room_bytes:
            raise NoRoomError(
                f"{size} bytes would leave less than the reserve of {self._reserve_bytes} bytes free"
            )
        self._room_bytes -= size

    def commit(self, arrival: Arrival) -> None:
        """Returns when file name and row are durable. Raises NoRoomError; then the bytes are gone as well."""
        row = _Row(arrival)
        self._waiting.put(row)
        with self._committing:
            if not row.done:  # then it still waits
                self._commit(self._group())
        if row.error is not None:
            log.error("what was received cannot be committed (%s)", _kind(row.error))
            if not self._was_committed(arrival.spool_name, isinstance(row.error, UndecidedError)):
                raise NoRoomError("the ledger cannot be written") from row.error

    def stop(self) -> None:
        """Returns when what is being committed is."""
        with self._committing:
            pass

    def _was_committed(self, name: str, undecided: bool) -> bool:
        """A commit may have taken place although its answer was lost: then the row stands, and so do the bytes.

        Where that is `undecided` yet, they stay too: until the row is there, or they are swept.
        """
        try:
            if self._ledger.inspect.known_spool_names([name]):
                return True
        except Exception as error:
            log.error(
                "whether it was committed is unknown (%s): the bytes stay until they are swept",
                _kind(error),
            )
        else:
            if not undecided:
                self._spool.remove(name)
        return False

    def _commit(self, group: list[_Row]) -> None:
        arrivals = [row.arrival for row in group]
        error = None
        try:
            self._spool.sync(arrival.spool_name for arrival in arrivals)
            self._spool.require()  # an unmounted spool leaves a folder behind that takes files, and hides them later
            self._ledger.receive(arrivals)
        except Exception as failure:  # each that waits gets its answer
            error = failure
        for row in group:
            row.error, row.done = error, True

    def _group(self) -> list[_Row]:
        """All that wait, and those that are about to: a commit costs the same for one and for many."""
        group, until = [], time.monotonic() + _SIBLINGS_S
        with contextlib.suppress(Empty):
            while self.finishing or not self._waiting.empty():
                group.append(self._waiting.get(timeout=max(0.0, until - time.monotonic())))
        return group


@dataclass(eq=False)
class _Row:
    """A row that is to be committed."""

    arrival: Arrival
    done: bool = False
    error: Exception | None = field(
        default_factory=lambda: RuntimeError("whoever was to commit it did not")
    )


class Entry:
    """One instance on its way in. When a method raises, nothing of it is left."""

    def __init__(self, intake: Intake, spool: Spool) -> None:
        self._intake = intake
        self._spool = spool
        self._file: Unfinished | None = None

    def write(self, *chunks: BytesLike) -> None:
        """Append the bytes of `chunks`. Raises NoRoomError, OSError."""
        try:
            self._intake.require_room(sum(len(chunk) for chunk in chunks))
            if self._file is None:
                self._file = self._spool.begin()
            self._file.write(*chunks)
        except NoRoomError:
            self.drop()
            raise
        except OSError as error:
            self.drop()
            raise _told_apart(error) from error

    def keep(self, arrival: Callable[[str], Arrival]) -> None:
        """Make the bytes durable, then commit the row that `arrival` makes of the spool name.

        Raises:
            NoRoomError: nothing was taken; the message says why.
            OSError: the disk failed; nothing was taken.
        """
        if self._file is None:
            self.write()
        file, self._file = cast(Unfinished, self._file), None
        self._intake.finishing.add(self)
        try:
            file.finish()
        except OSError as error:
            raise _told_apart(error) from error
        finally:
            self._intake.finishing.discard(self)
        self._intake.commit(arrival(file.name))

    def drop(self) -> None:
        """Remove what was written."""
        if self._file is not None:
            self._file.drop()


def _told_apart(error: OSError) -> Exception:
    return NoRoomError(f"spool: {error.strerror}") if error.errno in _NO_ROOM else error


def _kind(error: Exception) -> str:
    return (
        str(error) if isinstance(error, LedgerError) else type(error).__name__
    )  # the text may hold values of a row
