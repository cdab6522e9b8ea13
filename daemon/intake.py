"""From bytes in memory to an accepted instance: durable in the spool, then one committed row. Never the other way."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import cast

from daemon.ledger import Arrival, Ledger
from daemon.spool import BytesLike, Spool, Unfinished

log = logging.getLogger("pleura.receive")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoRoomError(Exception):
    """The instance cannot be taken now: no room in the spool or in the ledger. The sender has to keep it."""


class Intake:
    """The one way in. A thread writes all rows that wait at a time with one commit, which is what makes it scale."""

    def __init__(self, ledger: Ledger, spool: Spool, reserve_bytes: int = 0) -> None:
        """Nothing is taken when less than `reserve_bytes` would stay free: results need room too."""
        self._ledger = ledger
        self._spool = spool
        self._reserve_bytes = reserve_bytes
        self._queue: SimpleQueue[tuple[Arrival, Future[None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_rows, name="intake", daemon=True)
        self._thread.start()

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
        if self._spool.free_bytes() < self._reserve_bytes + size:
            raise NoRoomError(f"{size} bytes would leave less than the reserve of {self._reserve_bytes} bytes free")

    def commit(self, arrival: Arrival) -> None:
        """Returns when the row is committed. Raises NoRoomError; then the bytes are gone as well."""
        done: Future[None] = Future()
        self._queue.put((arrival, done))
        try:
            done.result()
        except Exception as error:
            log.error("the ledger cannot be written (%s)", _kind(error))
            if not self._was_committed(arrival.spool_name):
                raise NoRoomError("the ledger cannot be written") from error

    def stop(self) -> None:
        """Returns when what was handed over before is committed."""
        self._queue.put(None)
        self._thread.join()

    def _was_committed(self, name: str) -> bool:
        """A commit may have taken place although its answer was lost: then the row stands, and so do the bytes."""
        try:
            if self._ledger.known_spool_names([name]):
                return True
        except Exception as error:
            log.error("whether it was committed is unknown (%s): the bytes stay until they are swept", _kind(error))
        else:
            self._spool.remove(name)
        return False

    def _write_rows(self) -> None:
        last = False
        while not last:
            group = [self._queue.get()]
            while not self._queue.empty():
                group.append(self._queue.get())
            last = None in group
            waiting = [one for one in group if one is not None]
            try:
                if waiting:
                    self._ledger.receive([arrival for arrival, _ in waiting])
            except Exception as error:  # the loop's one catch-all: each sender gets its answer
                for _, done in waiting:
                    done.set_exception(error)
            else:
                for _, done in waiting:
                    done.set_result(None)


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
        try:
            file.keep()
        except OSError as error:
            self._spool.remove(file.name)  # there, if only the last fsync failed
            raise _told_apart(error) from error
        self._intake.commit(arrival(file.name))

    def drop(self) -> None:
        """Remove what was written."""
        if self._file is not None:
            self._file.drop()


def _told_apart(error: OSError) -> Exception:
    return NoRoomError(f"spool: {error.strerror}") if error.errno in _NO_ROOM else error


def _kind(error: Exception) -> str:
    return type(error).__name__  # its text may hold the statement's values
