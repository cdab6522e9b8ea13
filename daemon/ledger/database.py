"""Connections to the one database behind the ledger: durable transactions on its clock, and a bell that wakes sleepers.

SQLite (WAL, synchronous FULL) for one machine, PostgreSQL for any number of them; the statements are the same.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url

from daemon.ledger.schema import SCHEMA_VERSION, STEPS, metadata, schema_version

_HOPELESS = (
    "SQLITE_CANTOPEN",
    "SQLITE_READONLY",
    "SQLITE_NOTADB",
    "SQLITE_PERM",
)  # no other start would do better
# A writer takes the lock at once: a read that turns into a write could not wait for it (SQLITE_BUSY).
_BEGIN_WRITING = "BEGIN IMMEDIATE"
_CREATING = 0x706C6575  # the advisory lock of who creates or changes the tables on PostgreSQL
_CHANNEL = "pleura"  # LISTEN, NOTIFY
_DOORBELL_S = 0.01  # PRAGMA data_version costs 2 microseconds
_LOOK_UP_S = 0.5  # how often who listens looks whether the database is being closed
_WRITERS_S = 2  # their transactions take milliseconds
_WITHOUT_BELL_S = 0.2  # a pause where the server is away
# What libpq is told. A server that vanished without a word is given up after half a minute, and a later try finds its
# successor; the server gives up a host of ours that vanished as soon, so that no row stays locked by the dead.
_LIBPQ: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # milliseconds
    "options": "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    " -c tcp_user_timeout=25000 -c idle_in_transaction_session_timeout=30000",
}


class LedgerError(Exception):
    """The ledger cannot be used as it is: the message says where and what to do."""


class UndecidedError(Exception):
    """The connection was lost before the answer to a commit: it may have taken place, or still be about to.

    PostgreSQL lets a commit that waits for a standby go on when its client is gone.
    """


class _ClosedError(Exception):
    """Who slept is to wake: the database is being closed."""


class _Bell(Protocol):
    """What one thread sleeps by."""

    def wait(self, timeout_s: float) -> None: ...

    def close(self) -> None: ...


class Database:
    """One URL. Its clock is this machine's on SQLite and the server's on PostgreSQL, the same for all hosts.

    `clock` takes its place: seconds since 1970, for tests.
    """

    def __init__(
        self, url: str, clock: Callable[[], float] | None = None, as_it_is: bool = False
    ) -> None:
        """Open it; create the tables, or bring those of an earlier version forward, unless it is wanted as it is.

        Raises:
            LedgerError: it cannot be used. What time may heal (a full disk, a server that is away) raises as it comes.
        """
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._clock = clock or (time.time if self.is_sqlite else None)
        self._reader = self.engine.execution_options(write=False)
        self._appending = threading.Lock()
        self._appender: sa.PoolProxiedConnection | None = None  # append()'s own connection
        self._bell = threading.local()
        self._bells: set[_Bell] = set()
        self._closed = False
        try:
            if as_it_is:
                self._require()
            else:
                self._create()
        except Exception as error:
            self.engine.dispose()
            cause = getattr(error, "orig", None)
            if getattr(cause, "sqlite_errorname", "").startswith(_HOPELESS):
                raise LedgerError(f"ledger {url}: cannot be opened or created ({cause})") from error
            raise
        self._file = _file_at(self.engine.url) if self.is_sqlite else None

    @contextmanager
    def transaction(self) -> Iterator[tuple[Connection, float]]:
        """A writing transaction and its time; committed, durably, when the block ends."""
        with self.engine.begin() as conn:
            if self._clock is not None:
                yield conn, self._clock()
            else:
                now = conn.execute(
                    sa.select(sa.extract("epoch", sa.func.clock_timestamp()))
                ).scalar_one()
                yield conn, float(now)

    def append(self, statement: str, rows: Callable[[float], list[dict[str, Any]]]) -> None:
        """A writing transaction that does nothing but insert what `rows` makes of its time, and ring.

        Every sender waits for it, so on SQLite, where it is all in this process, it goes past SQLAlchemy: that takes as
        long to hand out a connection and take it back as the database takes to write.

        Raises:
            UndecidedError: who looks for the rows later may find them, or not.
        """
        if not self.is_sqlite:
            try:
                with self.transaction() as (conn, now):
                    conn.exec_driver_sql(statement, rows(now))
                    self.ring(conn)
            except sa.exc.DBAPIError as error:
                if error.connection_invalidated:
                    raise UndecidedError from error
                raise
            return
        with self._appending:
            self._require_file()
            if self._appender is None:
                self._appender = self.engine.raw_connection()
            connection = cast(sqlite3.Connection, self._appender.driver_connection)
            try:
                connection.execute(_BEGIN_WRITING)
                connection.executemany(statement, rows(cast(Callable[[], float], self._clock)()))
                self.engine.dialect.do_commit(self._appender)
            except BaseException:
                self._appender.invalidate()  # closed, which rolls back
                self._appender = None
                raise

    def wait_for_writers(self, table: sa.Table) -> None:
        """Returns when each transaction that writes to `table` now has ended, and what it wrote can be seen.

        Who would write meanwhile waits too: so one that does not end soon is not waited for, but raises what a lock
        that is not to be had raises.
        """
        with self.transaction() as (conn, _):  # on SQLite there is one writer at a time: this one
            if not self.is_sqlite:
                conn.exec_driver_sql(f"SET LOCAL lock_timeout = '{_WRITERS_S}s'")
                conn.exec_driver_sql(f"LOCK TABLE {table.name} IN SHARE MODE")

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection that only reads."""
        return self._reader.connect()

    def lock_until_commit(self, conn: Connection, text: str) -> None:
        """No other transaction that names the same text goes on before this one ends. SQLite has one writer anyway."""
        if not self.is_sqlite:
            conn.execute(
                sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(text, _CREATING)))
            )

    def ring(self, conn: Connection) -> None:
        """Wake all sleepers once this transaction is committed."""
        if not self.is_sqlite:  # there the commit itself is the bell
            conn.exec_driver_sql(f"NOTIFY {_CHANNEL}")

    def wait(self, timeout_s: float) -> None:
        """Sleep until somebody may have committed something, at most `timeout_s`.

        Each waiting thread has a bell of its own: what was committed since it last woke wakes it at once.
        """
        bell: _Bell | None = getattr(self._bell, "bell", None)
        try:
            if bell is None:
                bell = (
                    _FileBell(str(self.engine.url.database))
                    if self.is_sqlite
                    else _ServerBell(self.engine.url)
                )
                self._bell.bell = bell
                self._bells.add(bell)
            if self._closed:
                raise _ClosedError
            bell.wait(timeout_s)
        except Exception:  # the server is away, or we are closed; who sleeps finds out by looking
            if bell is not None:
                self._bells.discard(bell)
                bell.close()
            self._bell.bell = None
            time.sleep(min(timeout_s, _WITHOUT_BELL_S))

    def close(self) -> None:
        """Close all connections; who sleeps wakes."""
        self._closed = True
        for bell in list(self._bells):
            bell.close()
        with self._appending:
            if self._appender is not None:
                self._appender.close()
                self._appender = None
        self.engine.dispose()

    def _require_file(self) -> None:
        """SQLite goes on writing to a file that was removed or replaced, where nobody will look for it."""
        if _file_at(self.engine.url) != self._file:
            raise LedgerError(
                f"ledger {self.engine.url.database}: not the file any more that was opened; put it back, or start the "
                "roles again"
            )

    def _require(self) -> None:
        with self.reading() as conn:
            if not sa.inspect(conn).has_table(schema_version.name):
                raise LedgerError(
                    "the database holds no ledger yet; the node has not run with these settings"
                )
            version = conn.execute(sa.select(schema_version.c.version)).scalar_one()
            if version != SCHEMA_VERSION:
                raise LedgerError(
                    f"schema version {version} found, {SCHEMA_VERSION} wanted; an earlier one is brought forward when "
                    "the node is started"
                )

    def _create(self) -> None:
        """Tables of this version. Several roles start at once: one creates, the others wait for its commit."""
        with self.engine.begin() as conn:
            if not self.is_sqlite:
                conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATING)))
            if not sa.inspect(conn).has_table(schema_version.name):
                metadata.create_all(conn)
                conn.execute(schema_version.insert().values(version=SCHEMA_VERSION))
                return
            version = conn.execute(sa.select(schema_version.c.version)).scalar_one()
            for step in range(version, SCHEMA_VERSION):
                for statement in STEPS.get(step, ()):
                    conn.exec_driver_sql(statement)
            if version < SCHEMA_VERSION:
                conn.execute(schema_version.update().values(version=SCHEMA_VERSION))
            elif version > SCHEMA_VERSION:
                raise LedgerError(
                    f"ledger {self.engine.url.render_as_string()}: schema version {version} found, at most "
                    f"{SCHEMA_VERSION} wanted; run the Pleura version that wrote it, or start with a new ledger"
                )


class _FileBell:
    """SQLite: a counter that changes when another connection has committed."""

    def __init__(self, path: str) -> None:
        # Closed by whoever closes the database, perhaps another thread; never while this one uses it: that crashes.
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._in_use = threading.Lock()
        self._heard: int | None = None

    def wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            with self._in_use:
                version = self._connection.execute("PRAGMA data_version").fetchone()[0]
            left_s = deadline - time.monotonic()
            if version != self._heard or left_s <= 0:
                self._heard = version
                return
            time.sleep(min(_DOORBELL_S, left_s))

    def close(self) -> None:
        with self._in_use:
            self._connection.close()


class _ServerBell:
    """PostgreSQL: a connection that listens. A notification of the past counts: it is kept until it is read."""

    def __init__(self, url: sa.URL) -> None:
        import psycopg

        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(plain, autocommit=True, **_LIBPQ)
        self._connection.execute(f"LISTEN {_CHANNEL}")
        self._in_use = threading.Lock()
        self._closing = False
        self._new = True  # what came before we listened was not heard

    def wait(self, timeout_s: float) -> None:
        if self._new:
            self._new = False
            return
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            with self._in_use:
                if self._closing:
                    raise _ClosedError
                if list(self._connection.notifies(timeout=min(left_s, _LOOK_UP_S), stop_after=1)):
                    return

    def close(self) -> None:
        self._closing = True
        with self._in_use, contextlib.suppress(Exception):
            self._connection.close()


def _file_at(url: sa.URL) -> tuple[int, int] | None:
    """What tells the file there from any other."""
    try:
        found = os.stat(str(url.database))  # noqa: PTH116 - for each commit: not by way of a Path
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    return _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)


def _postgresql(url: sa.URL) -> Engine:
    # pre_ping: a connection from before the server's restart is replaced, not handed out.
    engine = sa.create_engine(url, pool_pre_ping=True, pool_size=8, connect_args=_LIBPQ)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            # A commit that was answered survives power loss, whatever the server's default; stronger ones stay.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
            )
        connection.commit()

    return engine


def _sqlite(url: sa.URL) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": 30}, paramstyle="named")

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = (
            None  # SQLAlchemy's "begin" below starts transactions, not the driver
        )
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            # Only for a new file; the switch asks for the whole file, and takes no time-out from "connect".
            for _ in range(200):
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    break
                except sqlite3.OperationalError:  # another role is at it
                    time.sleep(0.05)
        connection.execute(
            "PRAGMA synchronous=FULL"
        )  # a commit that was answered survives power loss
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("write", True)
        statement = _BEGIN_WRITING if writes else "BEGIN"
        try:  # past SQLAlchemy, whose way to run a statement takes longer than all else of a small transaction
            cast(sqlite3.Connection, connection.connection.driver_connection).execute(statement)
        except sqlite3.Error as error:
            raise sa.exc.OperationalError(statement, None, error) from error

    return engine
