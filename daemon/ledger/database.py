"""The connections to the ledger's database: durable transactions on its clock, and a doorbell.

SQLite (WAL, synchronous FULL) serves one machine, PostgreSQL any number; the statements are the
same.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import OperationalError

from daemon.ledger import bells
from daemon.ledger.bells import CHANNEL, Bell, ClosedError, FileBell, PollingBell, ServerBell
from daemon.ledger.copies import copy_ledger
from daemon.ledger.errors import (
    LedgerError,
    UndecidedError,
    is_hopeless,
    is_locked_out,
    not_opened,
    require_sqlite_file,
)
from daemon.ledger.schema import STEPS, create_tables, metadata, schema_version
from daemon.ledger.version import SCHEMA_VERSION, require_not_too_new, require_version

log = logging.getLogger("pleura.ledger")

# A writer takes the lock at once: a read that turns into a write cannot wait for it (SQLITE_BUSY).
_BEGIN_WRITING = "BEGIN IMMEDIATE"
# PostgreSQL: the advisory lock that a process holds while it creates or changes the tables.
_CREATING = 0x706C6575
# How long to wait for the writers of a table. Their transactions take milliseconds.
_WRITERS_S = 2
# How long a statement waits for a lock that another program holds, such as a backup or a person's
# session. Then it fails, the sender keeps its image, and the log names the lock.
_LOCK_S = 30
# The pause of a waiting thread while the server is unreachable.
_WITHOUT_BELL_S = 0.2
# libpq gives up on a server that vanished silently after half a minute. A later try finds its
# successor.
_LIBPQ: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # milliseconds
}
# PostgreSQL: part of the first statement of each transaction. The database's own limit stays.
_LIMIT_LOCKS = f"""
       set_config('lock_timeout',
                  CASE WHEN current_setting('lock_timeout') = '0' THEN '{_LOCK_S}s'
                       ELSE current_setting('lock_timeout') END, true)
"""
# PostgreSQL: the first statement of each writing transaction. Its settings end with the
# transaction, because PgBouncer in transaction mode lends a connection for no longer, and refuses
# settings at its start. An answered commit survives power loss, whatever the server's default; a
# stronger setting stays. The server gives up on a vanished host of ours after half a minute, so
# that no row stays locked.
_BEGIN_ON_SERVER = f"""
SELECT extract(epoch FROM clock_timestamp()), {_LIMIT_LOCKS},
       set_config('synchronous_commit',
                  CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'
                       ELSE current_setting('synchronous_commit') END, true),
       set_config('idle_in_transaction_session_timeout', '30000', true),
       set_config('tcp_keepalives_idle', '10', true),
       set_config('tcp_keepalives_interval', '5', true),
       set_config('tcp_keepalives_count', '3', true),
       set_config('tcp_user_timeout', '25000', true)
"""  # noqa: S608
# PostgreSQL: the first statement of each transaction that reads. Only the lock of a whole table can
# hold it up.
_BEGIN_READING_ON_SERVER = f"SELECT {_LIMIT_LOCKS}"
_BEGIN_READ_ONLY_ON_SERVER = (
    f"{_BEGIN_READING_ON_SERVER}, set_config('transaction_read_only', 'on', true)"
)
_BEGAN_AT = "began at"
_RINGS = "rings"


class Database:
    """The database behind one URL.

    Its clock is this machine's on SQLite, and the server's on PostgreSQL, which all hosts share.
    `clock` replaces it in tests: seconds since 1970.
    """

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] | None = None,
        migrate: bool = True,
        read_only: bool = False,
    ) -> None:
        """Open it. `migrate` creates the tables, or migrates those of an earlier version.

        `read_only`: the database itself refuses every change, and nothing is migrated.

        Raises:
            LedgerError: it cannot be used. Faults that may pass (a full disk, an unreachable
                server) raise the driver's error.
        """
        self.engine = _engine(url, read_only)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        # Whether this process created the tables.
        self.is_new = False
        self._clock = clock or (time.time if self.is_sqlite else None)
        self._reader = self.engine.execution_options(write=False)
        self._appending = threading.Lock()
        # The connection that only append() uses.
        self._appender: sa.PoolProxiedConnection | None = None

        self._bells: dict[threading.Thread, Bell] = {}
        self._closed = False

        # PostgreSQL: a connection pooler lies between, so LISTEN does not reach us.
        self._is_pooled = False
        try:
            if migrate and not read_only:
                self._create_or_migrate()
            else:
                self._require_version()
        except Exception as error:
            self.engine.dispose()
            cause = getattr(error, "orig", None)
            if is_hopeless(cause):
                raise not_opened(url, Path(str(self.engine.url.database)), cause) from error
            raise
        self._file = _file_at(self.engine.url) if self.is_sqlite else None

    @contextmanager
    def transaction(self) -> Iterator[tuple[Connection, float]]:
        """A writing transaction and its time; committed durably when the block ends."""
        with self.engine.begin() as conn:
            # The server reported its clock when the transaction began.
            conn.info[_RINGS] = False
            yield conn, self._clock() if self._clock else conn.info[_BEGAN_AT]
            is_to_ring = conn.info[_RINGS]
        if is_to_ring:
            bells.ring(str(self.engine.url.database))

    def now(self) -> float:
        """The clock, outside a transaction."""
        if self._clock is not None:
            return self._clock()
        with self.reading() as conn:
            epoch = sa.select(sa.extract("epoch", sa.func.clock_timestamp()))
            return float(conn.execute(epoch).scalar_one())

    def append(
        self,
        table: sa.Table,
        columns: tuple[str, ...],
        rows: Callable[[float], Sequence[tuple[Any, ...]]],
    ) -> None:
        """Insert the rows that `rows` builds from the time, commit, and ring.

        Each row has the values of `columns`, in their order.

        Raises:
            UndecidedError: a later query may find the rows or not.
        """
        if self.is_sqlite:
            self._append_to_file(table, columns, rows)
            return

        try:
            with self.transaction() as (conn, now):
                values = rows(now)
                statement = _insert(table.name, columns, len(values), "%s")
                conn.exec_driver_sql(statement, tuple(chain.from_iterable(values)))
                self.ring(conn)
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated:
                raise UndecidedError from error
            raise

    def _append_to_file(
        self,
        table: sa.Table,
        columns: tuple[str, ...],
        rows: Callable[[float], Sequence[tuple[Any, ...]]],
    ) -> None:
        """SQLite: append() past SQLAlchemy.

        Every sender waits for this commit, and SQLAlchemy's handling of the connection takes as
        long as the write itself.
        """
        with self._appending:
            self._require_file()
            if self._appender is None:
                self._appender = self.engine.raw_connection()

            connection = cast(sqlite3.Connection, self._appender.driver_connection)
            values = rows(cast(Callable[[], float], self._clock)())
            statement = _insert(table.name, columns, len(values), "?")
            try:
                execute_and_commit(connection, statement, tuple(chain.from_iterable(values)))
            except BaseException as error:
                # Closed, which rolls back.
                self._appender.invalidate()
                self._appender = None
                if isinstance(error, sqlite3.OperationalError):
                    raise OperationalError(None, None, error) from error
                raise
        bells.ring(str(self.engine.url.database))

    def wait_for_writers(self, table: sa.Table) -> None:
        """Return when every transaction that now writes to `table` has ended, and is visible.

        Other writers wait meanwhile, so the wait has a short limit; after that, the lock's error is
        raised.
        """
        # SQLite has one writer at a time: this transaction.
        with self.transaction() as (conn, _):
            if not self.is_sqlite:
                conn.exec_driver_sql(f"SET LOCAL lock_timeout = '{_WRITERS_S}s'")
                conn.exec_driver_sql(f"LOCK TABLE {table.name} IN SHARE MODE")

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection that only reads."""
        return self._reader.connect()

    def lock_until_commit(self, conn: Connection, text: str) -> None:
        """Make other transactions that name the same text wait until this one ends.

        SQLite has one writer at a time anyway.
        """
        if not self.is_sqlite:
            key = sa.func.hashtextextended(text, _CREATING)
            conn.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))

    def ring(self, conn: Connection) -> None:
        """Wake all sleepers once this transaction is committed."""
        if self.is_sqlite:
            # After the commit: a thread that wakes earlier would find nothing.
            conn.info[_RINGS] = True
        else:
            conn.exec_driver_sql(f"NOTIFY {CHANNEL}")

    def wait(self, timeout_s: float) -> None:
        """Sleep until another transaction may have been committed, at most `timeout_s`.

        Each waiting thread has its own bell: a commit since it last woke wakes it at once.
        """
        thread = threading.current_thread()
        bell = self._bells.get(thread)
        try:
            if bell is None:
                self._close_idle_bells()
                bell = self._bells[thread] = self._new_bell()
            if self._closed:
                raise ClosedError
            bell.wait(timeout_s)

        except Exception:
            # The server is unreachable, the file beside the database is gone, or the database is
            # closed: the caller finds out by looking.
            if bell is not None:
                del self._bells[thread]
                bell.close()
            time.sleep(min(timeout_s, _WITHOUT_BELL_S))

    def close(self) -> None:
        """Close all connections, and wake waiting threads."""
        self._closed = True
        for bell in list(self._bells.values()):
            bell.close()
        with self._appending:
            if self._appender is not None:
                self._appender.close()
                self._appender = None
        self.engine.dispose()

    def _close_idle_bells(self) -> None:
        """Close the bells of threads that have ended."""
        for thread in list(self._bells):
            if not thread.is_alive() and (bell := self._bells.pop(thread, None)):
                bell.close()

    def _new_bell(self) -> Bell:
        if self.is_sqlite:
            return FileBell(str(self.engine.url.database))
        if self._is_pooled:
            return PollingBell()

        bell = ServerBell(self.engine.url, _LIBPQ)
        if bell.is_pooled:
            bell.close()
            self._is_pooled = True
            return PollingBell()
        return bell

    def _require_file(self) -> None:
        """SQLite goes on writing to a file that was removed or replaced: refuse that."""
        if _file_at(self.engine.url) != self._file:
            raise LedgerError(
                f"ledger {self.engine.url.database}: no longer the file that was opened; put it "
                "back, or start the roles again"
            )

    def _require_version(self) -> None:
        """Raises LedgerError if the tables are not of this version."""
        with self.reading() as conn:
            found: int | None = None
            if sa.inspect(conn).has_table(schema_version.name):
                found = conn.execute(sa.select(schema_version.c.version)).scalar_one()
        require_version(found, self.engine.url.render_as_string())

    def _create_or_migrate(self) -> None:
        """Make tables of this version. If several roles start at once, one of them does it."""
        with self.engine.begin() as conn:
            if not self.is_sqlite:
                _wait_for_the_creator(conn)
            if not sa.inspect(conn).has_table(schema_version.name):
                create_tables(conn)
                conn.execute(schema_version.insert().values(version=SCHEMA_VERSION))
                self.is_new = True
                return

            version = conn.execute(sa.select(schema_version.c.version)).scalar_one()
            require_not_too_new(version, self.engine.url.render_as_string())
            if version == SCHEMA_VERSION:
                return

            kept = f"; as it was: {self._keep_copy(version)}" if self.is_sqlite else ""
            for step in range(version, SCHEMA_VERSION):
                for statement in STEPS.get(step, ()):
                    conn.exec_driver_sql(statement)
            conn.execute(schema_version.update().values(version=SCHEMA_VERSION))

        log.info("ledger: migrated from schema version %d to %d%s", version, SCHEMA_VERSION, kept)

    def _keep_copy(self, version: int) -> Path:
        """Keep the ledger as an earlier version left it, for a rollback to that version."""
        ledger = Path(str(self.engine.url.database))
        copy = ledger.with_name(f"{ledger.name}.version-{version}")
        try:
            copy_ledger(ledger, copy)
        except sqlite3.Error as error:
            # Treated like any other statement: the node waits until the disk has room.
            raise sa.exc.OperationalError(f"copy to {copy}", None, error) from error
        return copy


@cache
def _insert(table: str, columns: tuple[str, ...], rows: int, mark: str) -> str:
    """The statement that inserts as many rows. `mark`: the driver's placeholder of a value."""
    row = f"({', '.join([mark] * len(columns))})"
    # The names are the schema's, never a peer's.
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES " + ", ".join([row] * rows)  # noqa: S608


def execute_and_commit(
    connection: sqlite3.Connection, statement: str, values: tuple[Any, ...]
) -> None:
    """Execute a statement that is a transaction of its own, durable on return.

    Outside BEGIN and COMMIT, SQLite begins it as a writer, and commits at its end. So Python gives
    its lock up once, and not at each of three statements, while other associations wait for it.
    """
    connection.execute(statement, values)


def _file_at(url: sa.URL) -> tuple[int, int] | None:
    """Device and inode of the file at this URL: they tell it from any other file."""
    try:
        # Without a Path: this runs in each commit.
        status = os.stat(str(url.database))  # noqa: PTH116
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _wait_for_the_creator(conn: Connection) -> None:
    """Take PostgreSQL's lock of the tables, for as long as another role needs to change them."""
    limit = conn.execute(sa.select(sa.func.current_setting("lock_timeout"))).scalar_one()
    conn.execute(sa.select(sa.func.set_config("lock_timeout", "0", True)))
    conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATING)))
    conn.execute(sa.select(sa.func.set_config("lock_timeout", limit, True)))


def require_file(url: str) -> None:
    """Raises LedgerError where SQLite's file is absent: a mistyped path must not make a ledger."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        require_sqlite_file(url, Path(str(parsed.database)))


def lock_of_another(url: str, within_s: float) -> OperationalError | None:
    """The database's error if another program's lock keeps every writer out for that long.

    Other errors are not asked for: this user need not be the one who writes. Only for a ledger that
    a role has open: SQLite's last connection changes the files as it closes.
    """
    parsed = make_url(url)
    is_file = parsed.get_backend_name() == "sqlite"
    engine = _sqlite(parsed, within_s) if is_file else _postgresql(parsed, read_only=False)
    try:
        # SQLite takes the lock of a writer at the beginning.
        with engine.connect() as conn, conn.begin() as nothing:
            if not is_file:
                conn.exec_driver_sql(f"SET LOCAL lock_timeout = '{within_s:g}s'")
                names = ", ".join(metadata.tables)
                conn.exec_driver_sql(f"LOCK TABLE {names} IN ROW EXCLUSIVE MODE")
            nothing.rollback()
    except OperationalError as error:
        return error if is_locked_out(error) else None
    finally:
        engine.dispose()
    return None


def _engine(url: str, read_only: bool) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return _postgresql(parsed, read_only)
    return _sqlite_read_only(parsed) if read_only else _sqlite(parsed, _LOCK_S)


def _postgresql(url: sa.URL, read_only: bool) -> Engine:
    # pre_ping: a connection from before the server's restart is replaced, not handed out.
    # prepare_threshold: a prepared statement belongs to a session, which PgBouncer lends in turns.
    engine = sa.create_engine(
        url,
        pool_pre_ping=True,
        pool_size=8,
        connect_args=_LIBPQ | {"prepare_threshold": None},
    )

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not read_only and connection.get_execution_options().get("write", True):
            now = connection.exec_driver_sql(_BEGIN_ON_SERVER).scalar_one()
            connection.info[_BEGAN_AT] = float(now)
            return

        # Bypasses SQLAlchemy, which would declare a cursor for it when rows are streamed.
        with cast(Any, connection.connection.driver_connection).cursor() as cursor:
            cursor.execute(_BEGIN_READ_ONLY_ON_SERVER if read_only else _BEGIN_READING_ON_SERVER)

    return engine


def _sqlite_read_only(url: sa.URL) -> Engine:
    def connect() -> sqlite3.Connection:
        at = f"{Path(str(url.database)).resolve().as_uri()}?mode=ro"
        return sqlite3.connect(at, uri=True, timeout=_LOCK_S, check_same_thread=False)

    engine = sa.create_engine(url, creator=connect, paramstyle="named")

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _sqlite(url: sa.URL, lock_s: float) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": lock_s}, paramstyle="named")

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        # The event "begin" below starts transactions, not the driver.
        connection.isolation_level = None
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            _switch_to_wal(connection)
        # An answered commit survives power loss.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("write", True)
        statement = _BEGIN_WRITING if writes else "BEGIN"
        # Bypasses SQLAlchemy, whose execution of a statement takes longer than the rest of a small
        # transaction.
        try:
            cast(sqlite3.Connection, connection.connection.driver_connection).execute(statement)
        except sqlite3.Error as error:
            raise sa.exc.OperationalError(statement, None, error) from error

    return engine


def _switch_to_wal(connection: Any) -> None:
    """Switch a new file to WAL. The switch locks the whole file, without the usual time-out."""
    for _ in range(200):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            # Another role is doing the same.
            time.sleep(0.05)


def whole(conn: Connection, value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The value without its fraction. In a cast, SQLite truncates and PostgreSQL rounds."""
    if conn.dialect.name == "sqlite":
        return sa.cast(value, sa.Integer)
    return sa.cast(sa.func.floor(value), sa.Integer)
