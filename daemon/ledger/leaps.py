"""Leaps of the ledger's clock: a machine without a battery starts in 1970, and a wrong time server
moves the clock by years.

The clock is looked at each minute. A large step between two looks is a leap, or nobody looked
meanwhile. The ledger cannot tell which, and cannot know which of the two times is right. So after
each leap, what depends on an age of days waits until the clock has been steady for some days: a
person can correct the clock before anything is removed.

A node that is off each weekend makes a step ahead each week. If each were a leap, it would alert
each week, and one that is never on for long would never remove bytes by age.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.schema import (
    clock,
    deliveries,
    destinations,
    instances,
    senders,
    state_is,
    unknown_destinations,
)

log = logging.getLogger("pleura.ledger")

_DAY_S = 86400.0
# A smaller step of the clock changes little where ages are days.
_LEAP_BACK_S = _DAY_S
# A node that is off for a weekend, or for the public holidays beside it, was off for less.
_LEAP_AHEAD_S = 7 * _DAY_S
# After this time without a look, it is not known how long a delivery has failed.
_UNSEEN_S = _DAY_S
# A weekend: somebody has seen the alert by then.
STEADY_AFTER_S = 3 * _DAY_S
# Times may have been noted between a leap and the next look.
_MARGIN_S = 3600.0
_CLOCK = "ledger"


@dataclass(frozen=True)
class Leap:
    """The last leap of the clock."""

    # Seconds; negative: backwards.
    by_s: float
    # The time that the clock leapt to. Seconds since 1970.
    to: float
    # When ages count again, if the clock does not leap until then. Seconds since 1970.
    ages_count_at: float


def look_at_clock(conn: Connection, now: float) -> bool:
    """Note a look at the clock, and correct times that a wrong clock has left.

    Returns whether ages of days count. The caller holds a lock, so that one process looks at a
    time.
    """
    before = conn.execute(sa.select(clock)).first()
    if before is None:
        row = {"seen_at": now, "steady_since": now - STEADY_AFTER_S, "leapt_s": 0.0}
        conn.execute(clock.insert().values(name=_CLOCK, **row))
        return True

    step_s = now - before.seen_at
    if abs(step_s) > _UNSEEN_S:
        _begin_waits_anew(conn, now)
    if _is_leap(step_s):
        _note_leap(conn, before, now)
        return False

    conn.execute(clock.update().values(seen_at=now))
    if _is_steady(now, before.steady_since) and not _is_steady(before.seen_at, before.steady_since):
        log.info("the ledger's clock is steady: bytes are removed by age again")
    return _is_steady(now, before.steady_since)


def is_long_unseen(conn: Connection, now: float) -> bool:
    """Whether the last look at the clock was more than a day ago, or ahead; changes nothing."""
    found = conn.execute(sa.select(clock.c.seen_at)).first()
    return found is not None and abs(now - found.seen_at) > _UNSEEN_S


def do_ages_count(conn: Connection, now: float) -> bool:
    """Whether ages of days count; changes nothing."""
    found = conn.execute(sa.select(clock)).first()
    if found is None:
        return True
    return not _is_leap(now - found.seen_at) and _is_steady(now, found.steady_since)


def last_leap(conn: Connection, now: float) -> Leap | None:
    """The leap after which ages do not count yet."""
    found = conn.execute(sa.select(clock)).first()
    if found is None or not found.leapt_s or _is_steady(now, found.steady_since):
        return None
    since = found.steady_since
    return Leap(found.leapt_s, since, since + STEADY_AFTER_S)


def _is_leap(step_s: float) -> bool:
    return step_s < -_LEAP_BACK_S or step_s > _LEAP_AHEAD_S


def _is_steady(now: float, since: float) -> bool:
    return now - since >= STEADY_AFTER_S


def _note_leap(conn: Connection, before: sa.Row[tuple[float, ...]], now: float) -> None:
    step_s = now - before.seen_at
    log.error(
        "the ledger's clock moved by %+.1f days between two looks: it was set, or the deliver role "
        "did not run; is it right now? No bytes are removed by age for %g days",
        step_s / _DAY_S,
        STEADY_AFTER_S / _DAY_S,
    )
    conn.execute(clock.update().values(seen_at=now, steady_since=now, leapt_s=step_s))

    # A short time between two opposite leaps: the clock was wrong, and is right again.
    is_back = before.leapt_s * step_s < 0
    if is_back and not _is_steady(before.seen_at, before.steady_since):
        corrected = _set_to_now(conn, now, before.steady_since, before.seen_at)
        log.warning("%d times that were noted under the wrong clock count as now", corrected)


def _begin_waits_anew(conn: Connection, now: float) -> None:
    """What refuses a delivery after some minutes or hours counts from now on."""
    conn.execute(unknown_destinations.delete())
    is_failing = sa.and_(state_is(deliveries, "owed"), deliveries.c.failing_since.is_not(None))
    conn.execute(deliveries.update().where(is_failing).values(failing_since=now))


def _set_to_now(conn: Connection, now: float, first: float, last: float) -> int:
    """Correct the times between `first` and `last` that decide on alerts and on retention."""
    is_uncommitted = sa.and_(
        state_is(deliveries, "stored"), deliveries.c.commit_due_at.is_not(None)
    )
    noted = (
        (instances, "completed_at", instances.c.removed_at.is_(None)),
        (instances, "received_at", state_is(instances, "received")),
        (deliveries, "owed_at", state_is(deliveries, "owed")),
        (deliveries, "stored_at", is_uncommitted),
        (destinations, "down_since", sa.true()),
        (senders, "last_at", sa.true()),
    )
    number = 0
    for table, name, is_open in noted:
        wrong = table.c[name].between(first - _MARGIN_S, last + _MARGIN_S)
        number += conn.execute(table.update().where(is_open, wrong).values({name: now})).rowcount
    return number
