"""Why a ledger cannot be used."""

from __future__ import annotations

# Errors of SQLite that another start does not heal.
_HOPELESS = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_NOTADB", "SQLITE_PERM")


class LedgerError(Exception):
    """The ledger cannot be used as it is: the message says where and what to do."""


class UndecidedError(Exception):
    """The connection was lost before the answer to a commit, which may or may not take place.

    PostgreSQL lets a commit that waits for a standby go on when its client is gone.
    """


def is_hopeless(cause: BaseException | None) -> bool:
    """Whether this error of the driver comes again at each start."""
    return getattr(cause, "sqlite_errorname", "").startswith(_HOPELESS)


def no_file(url: str) -> LedgerError:
    """SQLite's file is absent: a mistyped path must not make a ledger."""
    return LedgerError(
        f"ledger {url}: there is no such file; the node has not run with these settings yet"
    )


def not_opened(url: str, cause: BaseException | None) -> LedgerError:
    """A hopeless error, in words."""
    return LedgerError(f"ledger {url}: cannot be opened or created ({cause})")
