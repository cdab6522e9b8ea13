"""The figures of a running node, from counters and partial indexes: the cost of a snapshot does
not grow with the images that the ledger holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.database import Database
from daemon.ledger.schema import (
    alarms,
    audit,
    deliveries,
    destinations,
    instances,
    results,
    roles,
    state_is,
    state_is_not,
    tallies,
)
from daemon.ledger.senders import Sender, hours_of, senders_now
from daemon.ledger.states import DeliveryState, ImageState

# DIMSE priorities: stat, routine, low.
PRIORITIES = (0, 1, 2)
# More troubles at a time tell nobody more.
_MOST_TROUBLES = 200


@dataclass(frozen=True)
class Tally:
    """One counter: a name of tallies.Counter, its labels, its value."""

    name: str
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class Owed:
    """Results owed to one destination, and since when the oldest is owed (seconds since 1970)."""

    results: int
    since: float


@dataclass(frozen=True)
class RoleProcess:
    """One process of a role: its last sign of life, and what it told of itself."""

    role: str
    owner: str
    beat_at: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Circuit:
    """A destination that was in trouble at least once. `down_since` None: it takes objects."""

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
    refused: Mapping[str, int]
    circuits: Mapping[str, Circuit]
    roles: tuple[RoleProcess, ...]
    audit_waiting: int
    # The kind and subject of each trouble that lasts.
    troubles: tuple[tuple[str, str], ...]


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
            refused=_refused(conn),
            circuits=_circuits(conn),
            roles=_roles(conn),
            audit_waiting=_count(conn, audit),
            troubles=_troubles(conn),
        )


@dataclass(frozen=True)
class Unresolved:
    """A failed image or a refused result that waits for a person."""

    # failed, refused
    kind: str
    # The reason of a failed image, or the destination that refused.
    subject: str
    sop_instance_uid: str
    ended_at: float


def unresolved(database: Database, most: int = 1000) -> list[Unresolved]:
    """The newest failed images and refused results that `pleura retry` can try again."""
    is_kept = instances.c.removed_at.is_(None)
    failed = (
        sa.select(
            sa.literal("failed").label("kind"),
            instances.c.reason.label("subject"),
            instances.c.sop_instance_uid,
            instances.c.completed_at,
        )
        .where(*_ended(instances, ImageState.FAILED.value), is_kept)
        .order_by(instances.c.id.desc())
        .limit(most)
    )
    refused = (
        sa.select(
            sa.literal("refused").label("kind"),
            deliveries.c.destination.label("subject"),
            results.c.sop_instance_uid,
            instances.c.completed_at,
        )
        .select_from(deliveries)
        .join(results, results.c.id == deliveries.c.result_id)
        .join(instances, instances.c.id == results.c.instance_id)
        .where(*_ended(deliveries, DeliveryState.REFUSED.value), is_kept)
        .order_by(deliveries.c.id.desc())
        .limit(most)
    )

    with database.reading() as conn:
        rows = [*conn.execute(failed), *conn.execute(refused)]
    return [
        Unresolved(row.kind, row.subject or "", row.sop_instance_uid, row.completed_at or 0.0)
        for row in rows
    ]


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
    return {
        row.destination: Owed(row.number, owed_since(conn, row.destination) or 0.0)
        for row in counted
    }


def owed_since(conn: Connection, destination: str) -> float | None:
    """When the image ended whose delivery waits longest, of each priority's first."""
    ended: list[float] = []
    for priority in PRIORITIES:
        first = (
            sa.select(instances.c.completed_at)
            .select_from(deliveries)
            .join(results, results.c.id == deliveries.c.result_id)
            .join(instances, instances.c.id == results.c.instance_id)
            .where(
                state_is(deliveries, "owed"),
                deliveries.c.destination == destination,
                deliveries.c.priority == priority,
            )
            .order_by(deliveries.c.id)
            .limit(1)
        )
        ended += [at for at in conn.execute(first).scalars() if at is not None]

    return min(ended, default=None)


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
    named = sa.select(alarms.c.kind, alarms.c.subject).distinct().limit(_MOST_TROUBLES)
    return tuple((row.kind, row.subject) for row in conn.execute(named))


def _roles(conn: Connection) -> tuple[RoleProcess, ...]:
    ordered = sa.select(roles).order_by(roles.c.role, roles.c.owner)
    return tuple(
        RoleProcess(row.role, row.owner, row.beat_at, json.loads(row.facts or "{}"))
        for row in conn.execute(ordered)
    )
