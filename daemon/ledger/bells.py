"""Doorbells, which wake threads that wait for the ledger: one for each thread (Database.wait)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import math
import os
import select
import sqlite3
import struct
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

import sqlalchemy as sa

log = logging.getLogger("pleura.ledger")

# PostgreSQL: the channel of LISTEN and NOTIFY.
CHANNEL = "pleura"
# SQLite: how often a waiting thread reads PRAGMA data_version, because a ring may be missing: a
# process died between its commit and the ring, or another program made the commit.
_LOOK_S = 0.1
# The same on a system without inotify.
_LOOK_UNRUNG_S = 0.01
# inotify(7). Events of one file carry no name: descriptor, mask, cookie, length of the name.
_IN_MODIFY = 0x2
_IN_MOVE_SELF = 0x800
_IN_IGNORED = 0x8000
_EVENT = struct.Struct("iIII")
_EVENTS_BYTES = 256 * _EVENT.size
# PostgreSQL: how often a listener checks whether the database is being closed.
_LOOK_UP_S = 0.5
# Behind a connection pooler nothing rings: waiting threads look this often.
_POLL_S = 0.5


class ClosedError(Exception):
    """Wakes waiting threads: the database is being closed."""


class Bell(Protocol):
    """What one waiting thread sleeps on.

    A bell that raises must be closed: it wakes nobody any more.
    """

    def wait(self, timeout_s: float) -> None: ...

    def close(self) -> None: ...


class FileBell:
    """SQLite: a file beside the database, which every commit that makes work writes to.

    Commits that did not ring are found by PRAGMA data_version, which changes when another
    connection commits.
    """

    def __init__(self, database: str, look_s: float = _LOOK_S) -> None:
        """`look_s`: how often to read the counter while nothing rings."""
        # Another thread may close the database, but never while this thread uses the connection:
        # that crashes the process.
        self._connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        self._in_use = threading.Lock()
        self._closing = False
        self._look_s = look_s

        self._rings: _Rings | None = None
        try:
            self._rings = _Rings(bell_file(database))
        except OSError as error:
            self._look_s = min(look_s, _LOOK_UNRUNG_S)
            log.info("no inotify (%s): polling the ledger", error.strerror)
        # Earlier commits were not heard, so the first wait returns at once.
        self._heard: int | None = None

    def wait(self, timeout_s: float) -> None:
        if self._heard is None:
            timeout_s = 0.0

        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            with self._in_use:
                if self._closing:
                    raise ClosedError
                is_rung = self._pause(min(left_s, self._look_s))
                version = self._connection.execute("PRAGMA data_version").fetchone()[0]

            if is_rung or version != self._heard or time.monotonic() >= deadline:
                self._heard = version
                return

    def _pause(self, seconds: float) -> bool:
        """Sleep until it rings, at most this long. Returns whether it rang."""
        if self._rings is not None:
            return self._rings.within(seconds)
        time.sleep(seconds)
        return False

    def close(self) -> None:
        self._closing = True
        with self._in_use:
            self._connection.close()
            if self._rings is not None:
                self._rings.close()


class _Rings:
    """Writes to one file, as inotify reports them. Events are kept until they are read."""

    def __init__(self, path: str) -> None:
        """Create the file if it is absent. Raises OSError on a system without inotify."""
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, "no inotify on this system")

        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        # Closes once, even if the waiting thread ended long ago.
        self.close = weakref.finalize(self, os.close, self._events)
        try:
            _checked(
                libc.inotify_add_watch(self._events, os.fsencode(path), _IN_MODIFY | _IN_MOVE_SELF)
            )
        except OSError:
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._events, select.POLLIN)

    def within(self, seconds: float) -> bool:
        """Whether an unreported write is there, or comes within this many seconds.

        Raises OSError if the file is no longer in its place.
        """
        if not self._poll.poll(math.ceil(seconds * 1e3)):
            return False
        events = os.read(self._events, _EVENTS_BYTES)
        if any(
            mask & (_IN_MOVE_SELF | _IN_IGNORED) for _, mask, _, _ in _EVENT.iter_unpack(events)
        ):
            raise OSError(errno.ESTALE, "the file that rings was removed or renamed")
        return True


def _checked(result: int) -> int:
    """The result of a C function that returns -1 on error. Raises OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def bell_file(database: str) -> str:
    return f"{database}-bell"


def ring(database: str) -> None:
    """Wake all sleepers on this database, in every process of this machine."""
    # Without the file no thread waits. If the ring fails otherwise, waiting threads look later.
    with contextlib.suppress(OSError):
        descriptor = os.open(bell_file(database), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, b"!", 0)
        finally:
            os.close(descriptor)


class ServerBell:
    """PostgreSQL: a connection that listens. It keeps notifications until they are read."""

    def __init__(self, url: sa.URL, options: Mapping[str, Any]) -> None:
        """`options`: libpq's."""
        import psycopg

        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(plain, autocommit=True, **options)
        self._connection.execute(f"LISTEN {CHANNEL}")
        self._in_use = threading.Lock()
        self._closing = False
        # Commits before LISTEN were not heard, so the first wait returns at once.
        self._new = True

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler lends us the session: it reports another process ID than the server."""
        row = self._connection.execute("SELECT pg_backend_pid()").fetchone()
        return row is None or row[0] != self._connection.info.backend_pid

    def wait(self, timeout_s: float) -> None:
        if self._new:
            self._new = False
            return

        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            with self._in_use:
                if self._closing:
                    raise ClosedError
                if list(self._connection.notifies(timeout=min(left_s, _LOOK_UP_S), stop_after=1)):
                    return

    def close(self) -> None:
        self._closing = True
        with self._in_use, contextlib.suppress(Exception):
            self._connection.close()


class PollingBell:
    """PostgreSQL behind a connection pooler: look again soon."""

    def __init__(self) -> None:
        self._closing = threading.Event()

    def wait(self, timeout_s: float) -> None:
        self._closing.wait(min(timeout_s, _POLL_S))

    def close(self) -> None:
        self._closing.set()
