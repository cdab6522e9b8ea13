"""What wakes a thread that sleeps on the ledger: one bell for each such thread (Database.wait)."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

import sqlalchemy as sa

# PostgreSQL: the channel of LISTEN and NOTIFY.
CHANNEL = "pleura"
# SQLite: how often a sleeper reads PRAGMA data_version, which costs 2 microseconds.
_DOORBELL_S = 0.01
# And how often within a second of a commit: an image that was received is soon claimed, then
# answered, then owed, and each of these steps wakes the next.
_DOORBELL_AT_WORK_S = 0.002
_AT_WORK_S = 1.0
# PostgreSQL: how often a listener looks whether the database is being closed.
_LOOK_UP_S = 0.5
# Behind a connection pooler nothing rings: waiting threads look as often as this.
_POLL_S = 0.5


class ClosedError(Exception):
    """Wakes waiting threads: the database is being closed."""


class Bell(Protocol):
    """One thread's alarm clock."""

    def wait(self, timeout_s: float) -> None: ...

    def close(self) -> None: ...


class FileBell:
    """SQLite: a counter that changes when another connection has committed."""

    def __init__(self, path: str) -> None:
        # Another thread may close the database, but never while this thread uses the connection:
        # that crashes the process.
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._in_use = threading.Lock()
        self._heard: int | None = None
        self._at_work_until = 0.0

    def wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            with self._in_use:
                version = self._connection.execute("PRAGMA data_version").fetchone()[0]

            now = time.monotonic()
            if version != self._heard:
                self._heard = version
                self._at_work_until = now + _AT_WORK_S
                return
            if now >= deadline:
                return

            pause_s = _DOORBELL_AT_WORK_S if now < self._at_work_until else _DOORBELL_S
            time.sleep(min(pause_s, deadline - now))

    def close(self) -> None:
        with self._in_use:
            self._connection.close()


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
        # Commits before LISTEN were not heard: the first wait returns at once.
        self._new = True

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler lends us the session: it tells another process ID than the server."""
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
