"""The figures of a running node, from counters and partial indexes.

The cost of a snapshot does not grow with the number of images in the ledger.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.database import Database, whole
from daemon.ledger.distinct import distinct
from daemon.ledger.leaps import Leap, last_leap
from daemon.ledger.schema import (
    alarms,
    audit,
    deliveries,
    destinations,
    instances,
    results,
    roles,
    spools,
    state_is,
    state_is_not,
    tallies,
)
from daemon.ledger.senders import Sender, hours_of, senders_now
from daemon.ledger.states import DeliveryState, ImageState

# DIMSE priorities: stat, routine, low.
PRIORITIES = (0, 1, 2)
# More troubles at a time would help nobody.
_MOST_TROUBLES = 200
_MOST_NAMED = 5
_DAY_S = 86400


@dataclass(frozen=True)
class Tally:
    """One counter: a name of tallies.Counter, its labels, its value."""

    name: str
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class Owed:
    """Results owed to one destination.

    Since when the oldest is owed (seconds since 1970), and how its last try ended, if it was tried.
    """

    results: int
    since: float
    why: str = ""


@dataclass(frozen=True)
class Uncommitted:
    """The oldest result that one destination stored and has not committed to.

    When it was stored, and why the last request was not accepted, if it was not.
    """

    since: float
    why: str = ""


@dataclass(frozen=True)
class RoleProcess:
    """One process of a role: its last heartbeat, and what it reported of itself."""

    role: str
    owner: str
    beat_at: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Circuit:
    """A destination that was in trouble at least once. `down_since` None: it works."""

    down_since: float | None
    last_answer: str
    next_try_at: float | None


@dataclass(frozen=True)
class Snapshot:
    """Everything at one time of the ledger's clock."""

    now: float
    tallies: tuple[Tally, ...]
    senders: Mapping[str, Sender]
    waiting: int
    waiting_since: float | None
    failed: int
    owed: Mapping[str, Owed]
    uncommitted: Mapping[str, Uncommitted]
    refused: Mapping[str, int]
    circuits: Mapping[str, Circuit]
    roles: tuple[RoleProcess, ...]
    audit_waiting: int
    # The kind and subject of each trouble that lasts.
    troubles: tuple[tuple[str, str], ...]
    # The identity of the spool that this ledger's files lie in; None: it never had a spool.
    spool: str | None
    # The last leap of the ledger's clock, until ages count again.
    leap: Leap | None = None


def snapshot(database: Database) -> Snapshot:
    """The figures now."""
    now = database.now()
    with database.reading() as conn:
        return Snapshot(
            now=now,
            tallies=_tallies(conn),
            senders=senders_now(conn),
            waiting=_count(conn, instances, state_is(instances, "received")),
            waiting_since=waiting_since(conn),
            failed=_count(conn, instances, *_ended(instances, ImageState.FAILED.value)),
            owed=_owed(conn),
            uncommitted=_uncommitted(conn),
            refused=_refused(conn),
            circuits=_circuits(conn),
            roles=_roles(conn),
            audit_waiting=_count(conn, audit),
            troubles=_troubles(conn),
            spool=conn.execute(sa.select(spools.c.identity)).scalar(),
            leap=last_leap(conn, now),
        )


@dataclass(frozen=True)
class Unresolved:
    """The failed images or refused results of one day that wait for a person."""

    # failed, refused
    kind: str
    # The reason of the failed images, or the destination that refused.
    subject: str
    # Days since 1970, UTC: when the images ended.
    day: int
    number: int
    # The newest SOP Instance UIDs, at most _MOST_NAMED.
    sop_instance_uids: tuple[str, ...]


def unresolved(database: Database) -> list[Unresolved]:
    """Every failed image and refused result that `pleura retry` can try again, by day.

    The ledger counts them: a day of many failures hides none of another day.
    """
    is_kept = instances.c.removed_at.is_(None)
    with database.reading() as conn:
        day = whole(conn, instances.c.completed_at / _DAY_S).label("day")

        failed = sa.select(
            instances.c.reason.label("subject"),
            day,
            instances.c.sop_instance_uid.label("uid"),
            instances.c.id.label("id"),
        ).where(*_ended(instances, ImageState.FAILED.value), is_kept)

        refused = (
            sa.select(
                deliveries.c.destination.label("subject"),
                day,
                results.c.sop_instance_uid.label("uid"),
                deliveries.c.id.label("id"),
            )
            .select_from(deliveries)
            .join(results, results.c.id == deliveries.c.result_id)
            .join(instances, instances.c.id == results.c.instance_id)
            .where(*_ended(deliveries, DeliveryState.REFUSED.value), is_kept)
        )

        return [*_by_day(conn, "failed", failed), *_by_day(conn, "refused", refused)]


def _by_day(conn: Connection, kind: str, ended: sa.Select[Any]) -> Iterator[Unresolved]:
    """Count rows of (subject, day, uid, id) by subject and day, with the newest UIDs of each."""
    row = ended.subquery().c
    of_day: dict[str, Any] = {"partition_by": (row.subject, row.day)}
    ranked = sa.select(
        row.subject,
        row.day,
        row.uid,
        sa.func.count().over(**of_day).label("number"),
        sa.func.row_number().over(**of_day, order_by=row.id.desc()).label("rank"),
    ).subquery()
    newest = (
        sa.select(ranked)
        .where(ranked.c.rank <= _MOST_NAMED)
        .order_by(ranked.c.subject, ranked.c.day, ranked.c.rank)
    )

    found = conn.execute(newest).all()
    for (subject, day), rows in itertools.groupby(found, lambda row: (row.subject, row.day)):
        same = list(rows)
        uids = tuple(row.uid for row in same)
        yield Unresolved(kind, subject or "", day or 0, same[0].number, uids)


def sending_hours(database: Database) -> dict[str, dict[int, int]]:
    """By AE title, the images of each hour (hours since 1970) that had any, for some weeks."""
    with database.reading() as conn:
        return hours_of(conn)


def _tallies(conn: Connection) -> tuple[Tally, ...]:
    ordered = sa.select(tallies).order_by(tallies.c.name, tallies.c.labels)
    return tuple(
        Tally(row.name, tuple(json.loads(row.labels)), row.value) for row in conn.execute(ordered)
    )


def _count(conn: Connection, table: sa.Table, *chosen: sa.ColumnElement[bool]) -> int:
    number = sa.select(sa.func.count()).select_from(table).where(*chosen)
    return int(conn.execute(number).scalar_one())


def _ended(table: sa.Table, state: str) -> tuple[sa.ColumnElement[bool], ...]:
    """Rows that ended in this state, found by the partial index of ended rows."""
    first = ImageState.RECEIVED if table is instances else DeliveryState.OWED
    return table.c.state == state, state_is_not(table, first.value)


def waiting_since(conn: Connection) -> float | None:
    """When the oldest waiting image was received: the first in the queue of each priority."""
    found: list[float] = []
    for priority in PRIORITIES:
        first = (
            sa.select(instances.c.received_at)
            .where(state_is(instances, "received"), instances.c.priority == priority)
            .order_by(instances.c.id)
            .limit(1)
        )
        found += conn.execute(first).scalars()
    return min(found, default=None)


def _owed(conn: Connection) -> dict[str, Owed]:
    number = (
        sa.select(deliveries.c.destination, sa.func.count().label("number"))
        .where(state_is(deliveries, "owed"))
        .group_by(deliveries.c.destination)
    )
    counted = conn.execute(number).all()
    owed: dict[str, Owed] = {}
    for row in counted:
        oldest = conn.execute(_oldest_owed(row.destination)).first()
        if oldest is not None:
            owed[row.destination] = Owed(row.number, oldest.owed_at, oldest.why or "")
    return owed


def owed_since(conn: Connection, destination: str) -> float | None:
    """Since when the oldest result is owed to this destination; None: nothing is."""
    since: float | None = conn.execute(_oldest_owed(destination)).scalar()
    return since


def _oldest_owed(destination: str) -> sa.Select[Any]:
    return (
        sa.select(deliveries.c.owed_at, deliveries.c.why)
        .where(
            state_is(deliveries, "owed"),
            deliveries.c.destination == destination,
            deliveries.c.owed_at.is_not(None),
        )
        .order_by(deliveries.c.owed_at)
        .limit(1)
    )


def _uncommitted(conn: Connection) -> dict[str, Uncommitted]:
    """Of each destination the oldest: an archive that never commits leaves any number of rows."""
    is_uncommitted = sa.and_(
        state_is(deliveries, "stored"), deliveries.c.commit_due_at.is_not(None)
    )
    found: dict[str, Uncommitted] = {}

    for name in distinct(conn, deliveries.c.destination, is_uncommitted):
        oldest = (
            sa.select(deliveries.c.stored_at, deliveries.c.why)
            .where(
                is_uncommitted,
                deliveries.c.destination == name,
                deliveries.c.stored_at.is_not(None),
            )
            .order_by(deliveries.c.stored_at)
            .limit(1)
        )
        row = conn.execute(oldest).first()
        if row is not None:
            found[name] = Uncommitted(row.stored_at, row.why or "")

    return found


def _refused(conn: Connection) -> dict[str, int]:
    number = (
        sa.select(deliveries.c.destination, sa.func.count().label("number"))
        .where(*_ended(deliveries, DeliveryState.REFUSED.value))
        .group_by(deliveries.c.destination)
    )
    return {row.destination: row.number for row in conn.execute(number)}


def _circuits(conn: Connection) -> dict[str, Circuit]:
    return {
        row.name: Circuit(row.down_since, row.last_answer, row.next_try_at)
        for row in conn.execute(sa.select(destinations))
    }


def _troubles(conn: Connection) -> tuple[tuple[str, str], ...]:
    # The oldest are kept: if new troubles displaced them, they would seem to be over.
    named = (
        sa.select(alarms.c.kind, alarms.c.subject)
        .group_by(alarms.c.kind, alarms.c.subject)
        .order_by(sa.func.min(alarms.c.since), alarms.c.kind, alarms.c.subject)
        .limit(_MOST_TROUBLES)
    )
    return tuple((row.kind, row.subject) for row in conn.execute(named))


def _roles(conn: Connection) -> tuple[RoleProcess, ...]:
    ordered = sa.select(roles).order_by(roles.c.role, roles.c.owner)
    return tuple(
        RoleProcess(row.role, row.owner, row.beat_at, json.loads(row.facts or "{}"))
        for row in conn.execute(ordered)
    )
