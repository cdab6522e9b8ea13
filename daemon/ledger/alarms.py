"""Troubles that last, and the messages about them that are still owed.

A trouble and its message are one transaction, so a crash loses neither. A message is deleted once
its route has taken it. After a crash in between, it is sent again under the same ID.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.database import Database
from daemon.ledger.leaps import do_ages_count
from daemon.ledger.processes import host_of
from daemon.ledger.schema import alarm_messages, alarms, roles

_LOCK = "alarms"
# No wait of a message and no lease lasts longer.
_LONGEST_S = 900.0
# So few that a sender can deliver them over slow routes within its lease.
_MOST_CLAIMED = 10
_ABANDONED_S = 86400.0


@dataclass(frozen=True)
class Alarm:
    """One trouble as it is seen now."""

    # Identifies the trouble as long as it lasts.
    key: str
    # One of daemon/alerts/kinds.py.
    kind: str
    # A destination, an AE title, a role, a file.
    subject: str
    # What was found and what is allowed, for people.
    words: str
    # The only machine that can tell whether it is over; empty: any machine can.
    machine: str = ""


@dataclass(frozen=True)
class LastingAlarm:
    """A trouble that the deliver role has noted, and since when (seconds since 1970)."""

    kind: str
    subject: str
    words: str
    since: float


@dataclass(frozen=True)
class AlarmMessage:
    """One message that a route is owed. `facts`: event, node and those of its alarm."""

    id: str
    route: str
    facts: Mapping[str, Any]
    made_at: float
    failures: int


class Alarms:
    """The transitions of troubles and messages."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(
        self, found: Sequence[Alarm], routes: Collection[str], machine: str, settle_s: float
    ) -> tuple[list[Alarm], list[str]]:
        """Compare the troubles found now with those that last, and owe each route a message.

        A new route is sent every lasting trouble as soon as it is seen again. The end is sent to
        the routes that were sent the beginning, also those of another machine. A trouble is over
        once it has been absent for `settle_s`. A trouble of another machine is left to that
        machine, as long as a role sends heartbeats there. Returns the troubles that began, and the
        keys of those that are over.
        """
        # Most looks find no trouble, and take no lock.
        if not found and not self.lasting():
            return [], []

        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(conn, _LOCK)
            known = {row["key"]: row for row in conn.execute(sa.select(alarms)).mappings()}
            present = {alarm.key: alarm for alarm in found}

            began = [alarm for key, alarm in present.items() if key not in known]
            for alarm in began:
                named = json.dumps(sorted(routes))
                conn.execute(alarms.insert().values(since=now, told=named, **vars(alarm)))
                _owe(conn, now, routes, {"event": "began", "since": now, **_facts(alarm)})

            late = False
            for key in present.keys() & known.keys():
                told = _told(known[key]) or set()
                if new := set(routes) - told:
                    since = known[key]["since"]
                    _owe(conn, now, new, {"event": "began", "since": since, **_facts(present[key])})
                    late = True
                still = {
                    "words": present[key].words,
                    "absent_since": None,
                    "told": json.dumps(sorted(told | new)),
                }
                if any(known[key][name] != value for name, value in still.items()):
                    _change(conn, key, still)

            others = _living_machines(conn, now) - {machine}
            mine = [row for row in known.values() if row["machine"] not in others]
            absent = [row for row in mine if row["key"] not in present]
            over = [row for row in absent if self._is_over(conn, row, now, settle_s)]
            for row in over:
                heard = _told(row)
                heard = set(routes) if heard is None else heard
                _owe(conn, now, heard, {"event": "over", "over": now, **_row_facts(row)})

            if began or late or over:
                self._database.ring(conn)
            return began, [row["key"] for row in over]

    def _is_over(self, conn: Connection, row: sa.RowMapping, now: float, settle_s: float) -> bool:
        """Whether an absent trouble is over; its row is then deleted."""
        absent_since = row["absent_since"]
        # A time in the future is from a clock that was set back.
        if absent_since is None or absent_since > now:
            _change(conn, row["key"], {"absent_since": now})
            absent_since = now
        if now - absent_since < settle_s:
            return False
        conn.execute(alarms.delete().where(alarms.c.key == row["key"]))
        return True

    def lasting(self) -> list[dict[str, Any]]:
        """The troubles that last, oldest first: the columns of `alarms`."""
        with self._database.reading() as conn:
            ordered = _lasting()
            return [dict(row) for row in conn.execute(ordered).mappings()]

    def claim(self, owner: str, routes: Collection[str], lease_s: float) -> list[AlarmMessage]:
        """Lease the messages that are due, oldest first, at most `_MOST_CLAIMED`.

        A message waits until its route has taken the earlier messages of the same trouble, so that
        no end arrives before its beginning. A route that left the settings gets no messages; they
        are dropped after a day, because another machine may have that route.
        """
        with self._database.reading() as conn:
            if conn.execute(sa.select(alarm_messages.c.id).limit(1)).first() is None:
                return []

        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(conn, _LOCK)
            message = alarm_messages.c
            is_mine = message.route.in_(list(routes))
            if do_ages_count(conn, now):
                abandoned = alarm_messages.delete().where(
                    sa.not_(is_mine), message.made_at < now - _ABANDONED_S
                )
                conn.execute(abandoned)

            is_due = sa.and_(_is_past(message.due_at, now), _is_past(message.lease_until, now))
            owed = sa.select(alarm_messages, is_due.label("is_due")).where(is_mine)
            rows = _first_of_each_trouble(conn.execute(owed.order_by(message.made_at)).all())
            due = [row for row in rows if row.is_due][:_MOST_CLAIMED]

            lease = {"owner": owner, "lease_until": now + lease_s}
            ids = [row.id for row in due]
            conn.execute(alarm_messages.update().where(message.id.in_(ids)).values(**lease))
            return [
                AlarmMessage(row.id, row.route, json.loads(row.facts), row.made_at, row.failures)
                for row in due
            ]

    def mark_sent(self, message: AlarmMessage) -> None:
        """The route has taken the message."""
        with self._database.transaction() as (conn, _):
            conn.execute(alarm_messages.delete().where(alarm_messages.c.id == message.id))

    def retry_later(self, message: AlarmMessage, delay_s: float, is_failure: bool = True) -> None:
        """Still owed, due after `delay_s`."""
        with self._database.transaction() as (conn, now):
            failures = message.failures + (1 if is_failure else 0)
            again = {"due_at": now + delay_s, "lease_until": 0.0, "failures": failures}
            mine = alarm_messages.c.id == message.id
            conn.execute(alarm_messages.update().where(mine).values(owner=None, **again))

    def owed(self) -> int:
        """How many messages are still owed."""
        with self._database.reading() as conn:
            number = sa.select(sa.func.count()).select_from(alarm_messages)
            return int(conn.execute(number).scalar_one())


def _lasting() -> sa.Select[Any]:
    return sa.select(alarms).order_by(alarms.c.since, alarms.c.key)


def lasting(conn: Connection, most: int) -> list[LastingAlarm]:
    """The troubles that last, oldest first, at most `most` of them."""
    rows = conn.execute(_lasting().limit(most)).mappings()
    return [LastingAlarm(**_row_facts(row)) for row in rows]


def _living_machines(conn: Connection, now: float) -> set[str]:
    """The host names of roles that sent a heartbeat today."""
    recent = sa.select(roles.c.owner).where(roles.c.beat_at >= now - _ABANDONED_S)
    owners = conn.execute(recent).scalars()
    return {host_of(owner) for owner in owners}


def _first_of_each_trouble(rows: Sequence[sa.Row[Any]]) -> list[sa.Row[Any]]:
    """The earliest message of each route and trouble, in the order of `rows`."""
    first: dict[tuple[str, str, str], tuple[float, bool]] = {}
    placed = []
    for row in rows:
        facts = json.loads(row.facts)
        trouble = (row.route, facts["kind"], facts["subject"])
        # Ordered by the trouble's own times, which a clock that was set back does not change.
        order = (float(facts["since"]), facts["event"] == "over")
        first[trouble] = min(order, first.get(trouble, order))
        placed.append((row, trouble, order))
    return [row for row, trouble, order in placed if first[trouble] == order]


def _is_past(time: sa.Column[float], now: float) -> sa.ColumnElement[bool]:
    """Whether a time is past. A time far in the future comes from a clock that was set back."""
    return sa.or_(time <= now, time > now + _LONGEST_S)


def _told(row: sa.RowMapping) -> set[str] | None:
    """The routes that were told of the beginning; None: an earlier version did not note them."""
    return None if row["told"] is None else set(json.loads(row["told"]))


def _facts(alarm: Alarm) -> dict[str, Any]:
    return {"kind": alarm.kind, "subject": alarm.subject, "words": alarm.words}


def _row_facts(row: sa.RowMapping) -> dict[str, Any]:
    return {name: row[name] for name in ("kind", "subject", "words", "since")}


def _change(conn: Connection, key: str, values: Mapping[str, Any]) -> None:
    conn.execute(alarms.update().where(alarms.c.key == key).values(**values))


def _owe(conn: Connection, now: float, routes: Collection[str], facts: Mapping[str, Any]) -> None:
    for route in sorted(routes):
        row = {"id": uuid.uuid4().hex, "route": route, "facts": json.dumps(facts)}
        times = {"made_at": now, "due_at": now, "failures": 0, "lease_until": 0.0}
        conn.execute(alarm_messages.insert().values(**row, **times))
