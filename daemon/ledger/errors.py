"""Why a ledger cannot be used."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

# Errors of SQLite that a restart does not cure.
_HOPELESS = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_NOTADB", "SQLITE_PERM")

# The codes of SQLite and PostgreSQL for a lock that was not given up in time.
_LOCKED = {"SQLITE_BUSY", "55P03"}


class LedgerError(Exception):
    """The ledger cannot be used as it is. The message says where and what to do."""


class UndecidedError(Exception):
    """The connection was lost before the answer to a commit, which may or may not happen.

    PostgreSQL completes a commit that waits for a standby even if its client is gone.
    """


def is_hopeless(cause: BaseException | None) -> bool:
    """Whether this error of the driver would come again at each start."""
    return getattr(cause, "sqlite_errorname", "").startswith(_HOPELESS)


def is_locked_out(error: BaseException) -> bool:
    """Whether a statement ended because another program's lock was not given up in time.

    It has changed nothing.
    """
    cause = getattr(error, "orig", None)
    codes = {getattr(cause, name, None) for name in ("sqlite_errorname", "sqlstate")}
    return bool(codes & _LOCKED)


def require_sqlite_file(url: str, path: Path) -> None:
    """Raises LedgerError where SQLite's file is absent: a mistyped path must not make a ledger."""
    try:
        is_there = path.is_file()
    except PermissionError as error:
        raise LedgerError(
            f"ledger {url}: this user may not look there{_owner_advice(path)}"
        ) from error
    if not is_there:
        raise LedgerError(
            f"ledger {url}: there is no such file; the node has not run with these settings yet"
        )


def not_opened(url: str, path: Path, cause: BaseException | None) -> LedgerError:
    """A hopeless error of SQLite's file, in words."""
    advice = _owner_advice(path)
    return LedgerError(f"ledger {url}: cannot be opened or created ({cause}){advice}")


def _owner_advice(path: Path) -> str:
    """Who owns the file that is closed to this user, or the folder that hides it, and the remedy.

    "" if this user may read and write there.
    """
    beside = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    for place in (path, *beside, *path.parents):
        try:
            owner = place.lstat().st_uid
        except OSError:
            continue

        if os.access(place, os.R_OK | os.W_OK, effective_ids=True):
            if place.is_dir():
                return ""
            continue
        if owner == os.geteuid():
            return f"; its user may not write to {place}: chmod u+rwX {place}"
        name = _user(owner)
        # No node should run as root, so there is no command for that.
        command = f": sudo -u {name} pleura ..." if owner else ""
        return f"; {place} belongs to {name}{command}"

    return ""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"'#{number}'"
