"""Database errors in one line, and one line for each outage instead of one for each try."""

from __future__ import annotations

import logging
import re
import time

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from daemon.ledger.errors import LedgerError, UndecidedError

# libpq does not pass on the SQLSTATE of a refused connection, so the message's words identify the
# class. PostgreSQL, Appendix A: error codes. Advice for the operator in the third column.
_REFUSALS = (
    ("password authentication failed", "28P01", "wrong password or user in `ledger`"),
    ("no password supplied", "28P01", "`ledger` has no password"),
    ("no pg_hba.conf entry", "28000", "the server's pg_hba.conf does not admit this host"),
    ("role .* does not exist", "28000", "no such user on the server"),
    ("database .* does not exist", "3D000", "create the database, or correct `ledger`"),
    ("too many clients|remaining connection slots", "53300", "raise max_connections"),
    ("starting up", "57P03", "the server starts"),
    ("shutting down", "57P01", "the server stops"),
    ("Connection refused", "08001", "no server listens there"),
    ("could not translate host name|Name or service not known", "08001", "unknown host"),
    (
        "database is locked",
        None,
        "another program holds its lock: end it (`fuser -v` with the file's path shows it)",
    ),
    (
        "lock timeout",
        None,
        "another session holds a lock on its tables: end it (`select * from pg_stat_activity`)",
    ),
    (
        "readonly database|unable to open database file|Permission denied",
        None,
        "this user may not write to a file of the ledger or to its folder: `pleura doctor`, run as "
        "this user, names it",
    ),
    (
        "permission denied for|must be owner of",
        None,
        "make the user of `ledger` the owner of the database and of its tables (docs/machines.md)",
    ),
    ("is malformed", None, "the file is damaged: restore it from a backup (docs/backup.md)"),
    ("timeout|timed out", "08001", "the server does not answer"),
    ("closed the connection|connection is lost|closed unexpectedly", "08006", "the server went"),
)
_MOST_CHARACTERS = 200
_PASSWORD = re.compile(r"(://[^:/@\s]+:)[^@\s]+@|(password=)\S+")


def describe(error: BaseException) -> str:
    """One line: SQLSTATE or SQLite's code, class, text and advice. Never a password or a value."""
    if isinstance(error, LedgerError):
        return str(error)
    if isinstance(error, UndecidedError) and error.__cause__ is not None:
        return f"{describe(error.__cause__)}; the commit was not answered"
    if not isinstance(error, DBAPIError) or error.orig is None:
        is_ours = isinstance(error, SQLAlchemyError)
        return type(error).__name__ if is_ours else f"{type(error).__name__}: {_words(error)}"

    cause = error.orig
    words = _words(cause)
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    advice = ""
    for pattern, sqlstate, meaning in _REFUSALS:
        if re.search(pattern, words):
            code = code or sqlstate
            advice = f"; {meaning}"
            break
    return f"{code or 'no SQLSTATE'} {type(cause).__name__}: {words}{advice}"


def _words(error: BaseException) -> str:
    """The first non-empty line, bounded, without a password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # psycopg lists each address that it tried. The server's own message follows "FATAL:".
    fatal = [line.partition("FATAL:")[2].strip() for line in lines if "FATAL:" in line]
    chosen = (fatal or lines or [""])[0]
    return _PASSWORD.sub(r"\1\2***", chosen)[:_MOST_CHARACTERS]


def is_outage(error: BaseException) -> bool:
    """Whether the database cannot do its work now: its text holds no value of a row."""
    return isinstance(error, OperationalError)


def is_expected(error: BaseException) -> bool:
    """Whether a server, a disk or a file may fail like this. Any other error may be our bug."""
    return isinstance(error, (SQLAlchemyError, LedgerError, OSError))


def log_failure(log: logging.Logger, what: str, error: Exception) -> None:
    """One line about one failure. `what`: for the log, such as "a report is not recorded"."""
    log.error("%s: %s", what, describe(error), exc_info=None if is_expected(error) else error)


class Outage:
    """Logs one line when trouble begins or changes, and one when it is over.

    An error that is neither the database's nor the operating system's may be a bug of ours: it is
    logged with its traceback.
    """

    def __init__(self, log: logging.Logger, what: str) -> None:
        """`what`: for the log, such as "the ledger"."""
        self._log = log
        self._what = what
        self._said = ""
        self._began = 0.0

    def failed(self, error: BaseException) -> None:
        """A try has failed."""
        said = describe(error)
        if not self._said:
            self._began = time.monotonic()
        if said != self._said:
            traceback = None if is_expected(error) else error
            self._log.error("%s: %s; retrying", self._what, said, exc_info=traceback)
        self._said = said

    def over(self) -> None:
        """A try has succeeded."""
        if self._said:
            lasted_s = time.monotonic() - self._began
            self._log.info("%s answers again after %.0f s", self._what, lasted_s)
        self._said = ""
