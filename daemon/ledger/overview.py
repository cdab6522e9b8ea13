"""The queries of `pleura status`, in SQL that both databases understand.

With an SQLite ledger the command does not load SQLAlchemy: FileOverview uses Python's own driver.
Every other reader uses an Inspection, which runs the same SQL over SQLAlchemy's connections. Only
schema.py creates the tables and documents them. A state is written into the SQL, never passed as a
value: a planner uses a partial index only if it can read the condition.
"""

from __future__ import annotations

import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from daemon.ledger.errors import LedgerError, is_hopeless, not_opened, require_sqlite_file
from daemon.ledger.states import DeliveryState, ImageState
from daemon.ledger.version import require_version

Row = Mapping[str, Any]

# The states that are counted: a duplicate makes no work, and is not counted.
_COUNTED: Mapping[str, tuple[ImageState | DeliveryState, ...]] = {
    "instances": tuple(state for state in ImageState if state is not ImageState.DUPLICATE),
    "deliveries": tuple(DeliveryState),
}
# The open state and the ended states have an index each.
_COUNTS = """
SELECT 'instances' AS subject, state, count(*) AS number FROM instances
WHERE state = 'received' GROUP BY state
UNION ALL
SELECT 'instances', state, count(*) FROM instances WHERE state != 'received' GROUP BY state
UNION ALL
SELECT 'deliveries', state, count(*) FROM deliveries WHERE state = 'owed' GROUP BY state
UNION ALL
SELECT 'deliveries', state, count(*) FROM deliveries WHERE state != 'owed' GROUP BY state
"""
_WAITING_SINCE = "SELECT min(received_at) AS since FROM instances WHERE state = 'received'"
_REASONS = """
SELECT reason, count(*) AS number, max(completed_at) AS last FROM instances
WHERE state = 'not_analysed' AND state != 'received'
GROUP BY reason ORDER BY count(*) DESC
"""
_NEWEST_ENDINGS = """
SELECT state, reason FROM instances
WHERE completed_at IS NOT NULL AND removed_at IS NULL AND state != 'duplicate'
ORDER BY completed_at DESC LIMIT :most
"""
_FAILED_IMAGES = """
SELECT sop_instance_uid, study_instance_uid, reason, detail, completed_at FROM instances
WHERE state = 'failed' AND state != 'received'
ORDER BY id DESC LIMIT :most
"""
_REFUSED_DELIVERIES = """
SELECT results.sop_instance_uid, results.kind, deliveries.destination, deliveries.why,
       instances.completed_at
FROM deliveries
JOIN results ON results.id = deliveries.result_id
JOIN instances ON instances.id = results.instance_id
WHERE deliveries.state = 'refused' AND deliveries.state != 'owed'
ORDER BY deliveries.id DESC LIMIT :most
"""
_DESTINATIONS = "SELECT name, down_since, last_answer, answered_at, next_try_at FROM destinations"
# Later messages wait behind one that failed, so that they keep their order.
_ALERTS_WAITING = """
SELECT route, count(*) AS waiting, min(made_at) AS since FROM alarm_messages
GROUP BY route
HAVING max(failures) > 0
ORDER BY route
"""
_OWED = """
SELECT destination AS name, count(*) AS owed, min(owed_at) AS owed_since FROM deliveries
WHERE state = 'owed'
GROUP BY destination
"""
# Why the last try of the oldest of them failed.
_OWED_WHY = """
SELECT name, owed_why FROM (
    SELECT destination AS name, why AS owed_why,
           row_number() OVER (PARTITION BY destination ORDER BY owed_at, id) AS place
    FROM deliveries WHERE state = 'owed'
) AS oldest
WHERE place = 1
"""
# Asked for again because no report came, or because the request was not accepted.
_UNREPORTED = """
SELECT destination AS name, count(*) AS unreported, min(stored_at) AS unreported_since,
       max(why) AS unreported_why
FROM deliveries
WHERE state = 'stored' AND commit_due_at IS NOT NULL AND (commit_asks > 1 OR why IS NOT NULL)
GROUP BY destination
"""
_ROLES = "SELECT role, owner, beat_at, facts FROM roles ORDER BY role, owner"
_TROUBLES = "SELECT kind, subject, words, since FROM alarms ORDER BY since, kind, subject"
_SETTINGS_OF_ROLES = """
SELECT takers.role, takers.owner, takers.generation, generations.digest
FROM takers LEFT JOIN generations ON generations.number = takers.generation
ORDER BY takers.role, takers.owner
"""


@dataclass(frozen=True)
class SameReason:
    """The newest `images` ended images were all excluded from analysis for one reason."""

    reason: str
    images: int


class Ask(Protocol):
    """Answers one question: the rows, by column. `values` fill the `:names` of the statement."""

    def __call__(self, statement: str, **values: int) -> list[dict[str, Any]]: ...


class Overview(ABC):
    """What a person wants to know about a node at a glance."""

    @abstractmethod
    def now(self) -> float:
        """The ledger's clock: seconds since 1970."""

    @abstractmethod
    def _asking(self) -> AbstractContextManager[Ask]:
        """Run several queries on one consistent state of the ledger."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Each accepted instance and each delivery in exactly one count."""
        with self._asking() as ask:
            found = {(row["subject"], row["state"]): row["number"] for row in ask(_COUNTS)}
        return {
            subject: {state.value: found.get((subject, state.value), 0) for state in states}
            for subject, states in _COUNTED.items()
        }

    def waiting_since(self) -> float | None:
        """When the oldest image that still waits, or is in work, was received."""
        since: float | None = self._one(_WAITING_SINCE, "since")
        return since

    def reasons(self) -> list[dict[str, Any]]:
        """How many images ended not analysed, by reason: reason, number, last (a time)."""
        with self._asking() as ask:
            return ask(_REASONS)

    def same_reason(self, images: int = 20) -> SameReason | None:
        """The reason for which the newest `images` ended images were all excluded, if there is one.

        A typo in `admission` (such as a body part that no modality sends) has this effect.
        """
        with self._asking() as ask:
            rows = ask(_NEWEST_ENDINGS, most=images)

        endings = {(row["state"], row["reason"]) for row in rows}
        if len(rows) < images or len(endings) != 1:
            return None
        ((state, reason),) = endings
        return SameReason(reason, images) if state == ImageState.NOT_ANALYSED else None

    def failed(self, limit: int) -> dict[str, list[dict[str, Any]]]:
        """The newest failed images and refused deliveries, with reason and time."""
        with self._asking() as ask:
            return {
                "instances": ask(_FAILED_IMAGES, most=limit),
                "deliveries": ask(_REFUSED_DELIVERIES, most=limit),
            }

    def destinations(self) -> dict[str, dict[str, Any]]:
        """By name: the last answer in words, down since, next try, how much is owed since when, and
        why the oldest of that is still owed.

        A destination that never failed has only what is owed to it.
        """
        found: dict[str, dict[str, Any]] = {}
        with self._asking() as ask:
            for statement in (_DESTINATIONS, _OWED, _OWED_WHY, _UNREPORTED):
                for row in ask(statement):
                    found.setdefault(row.pop("name"), {}).update(row)
        return found

    def roles(self) -> list[dict[str, Any]]:
        """The processes of each role that sent a heartbeat: role, owner, beat_at, facts."""
        with self._asking() as ask:
            return ask(_ROLES)

    def lasting_troubles(self) -> list[dict[str, Any]]:
        """The troubles that the deliver role has noted: kind, subject, words, since."""
        with self._asking() as ask:
            return ask(_TROUBLES)

    def settings_of_roles(self) -> list[dict[str, Any]]:
        """The settings that each process works under: role, owner, generation, digest."""
        with self._asking() as ask:
            return ask(_SETTINGS_OF_ROLES)

    def adopted(self) -> int:
        """How many images were adopted from the spool because the ledger did not know them."""
        statement = "SELECT count(*) AS number FROM instances WHERE origin = 'adopted'"
        return int(self._one(statement, "number"))

    def audit_waiting(self) -> int:
        """How many audit events still wait."""
        return int(self._one("SELECT count(*) AS number FROM audit", "number"))

    def audit_lost(self) -> int:
        """How many events were not recorded, ever, because too many waited."""
        return int(self._one("SELECT lost FROM audit_state", "lost") or 0)

    def alerts_waiting(self) -> list[dict[str, Any]]:
        """The routes of alerts that took no message at the last try: route, waiting, since."""
        with self._asking() as ask:
            return ask(_ALERTS_WAITING)

    def spool_identity(self) -> str | None:
        """The spool that this ledger's files lie in; None for a ledger that never had a spool."""
        identity: str | None = self._one("SELECT identity FROM spools", "identity")
        return identity

    def _one(self, statement: str, column: str) -> Any:
        """The first row's value; None where there is no row."""
        with self._asking() as ask:
            rows = ask(statement)
        return rows[0][column] if rows else None


class FileOverview(Overview):
    """The queries of SQLite's file, over a read-only connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """The ledger of a node that has run. It never creates, migrates or locks anything.

        Raises:
            LedgerError: there is no ledger of this version.
        """
        url = f"sqlite:///{path}"
        require_sqlite_file(url, path)

        connection: sqlite3.Connection | None = None
        try:
            at = f"{path.resolve().as_uri()}?mode=ro"
            connection = sqlite3.connect(at, uri=True, timeout=30, isolation_level=None)
            connection.row_factory = sqlite3.Row
            require_version(_version_of(connection), url)
        except (sqlite3.Error, LedgerError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise _trouble(url, path, error) from error
            raise
        return cls(connection)

    def now(self) -> float:
        """This machine's clock."""
        return time.time()

    @contextmanager
    def _asking(self) -> Iterator[Ask]:
        def ask(statement: str, **values: int) -> list[dict[str, Any]]:
            return [dict(row) for row in self._connection.execute(statement, values)]

        try:
            self._connection.execute("BEGIN")
            try:
                yield ask
            finally:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _in_sqlalchemys_words(error) from error


def _version_of(connection: sqlite3.Connection) -> int | None:
    """None if there are no tables."""
    tables = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'"
    if connection.execute(tables).fetchone() is None:
        return None
    (version,) = connection.execute("SELECT version FROM schema_version").fetchone()
    return int(version)


def _trouble(url: str, path: Path, error: sqlite3.Error) -> Exception:
    return not_opened(url, path, error) if is_hopeless(error) else _in_sqlalchemys_words(error)


def _in_sqlalchemys_words(error: sqlite3.Error) -> Exception:
    """The error type that every user of a ledger handles.

    Only an error is worth importing SQLAlchemy.
    """
    from sqlalchemy.exc import OperationalError

    return OperationalError(None, None, error)
