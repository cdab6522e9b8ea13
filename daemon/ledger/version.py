"""The version of the ledger's tables."""

from __future__ import annotations

from daemon.ledger.errors import LedgerError

# schema.py holds the tables, and the steps from each earlier version.
SCHEMA_VERSION = 10


def require_version(found: int | None, url: str) -> None:
    """`found`: the version of the ledger at `url`; None if it has no tables.

    Raises:
        LedgerError: the tables are not of this version.
    """
    if found is None:
        raise LedgerError(
            f"ledger {url}: the database holds no ledger yet; the node has not run with these "
            "settings"
        )

    if found < SCHEMA_VERSION:
        raise LedgerError(
            f"ledger {url}: schema version {found} found, {SCHEMA_VERSION} wanted; an earlier "
            "version is migrated when the node is started"
        )

    require_not_too_new(found, url)


def require_not_too_new(found: int, url: str) -> None:
    """An earlier version is accepted.

    Raises:
        LedgerError: a later version of Pleura has written it, as before a rollback.
    """
    if found > SCHEMA_VERSION:
        raise LedgerError(
            f"ledger {url}: schema version {found} found, at most {SCHEMA_VERSION} wanted; run the "
            "Pleura version that wrote it, or put the ledger of before the upgrade in its place: "
            "the file .version-N beside it, or a backup (docs/packages.md)"
        )
