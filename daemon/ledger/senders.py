"""How many images each AE title sends, and when: counted in the background, never by receive
itself.

Receiving writes to as few pages as possible, so a C-STORE touches no counter. The deliver role
counts the new rows every few seconds, and a reader adds the few that have come since.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.database import Database
from daemon.ledger.leaps import do_ages_count
from daemon.ledger.schema import arrival_cursor, arrivals, instances, senders
from daemon.ledger.tallies import OTHER, bounded

HOUR_S = 3600
# How long each sender's hourly counts are kept.
WEEKS_KEPT = 9
# AE titles that are counted by name.
MOST_SENDERS = 200
# PostgreSQL gives out a row's number before its commit: rows are counted once no earlier number
# can still appear.
_SETTLED_S = 120.0
_AT_ONCE = 1000
_CURSOR = "instances"


@dataclass(frozen=True)
class Sender:
    """Counts of the images of one calling AE title."""

    ae_title: str
    images: int
    last_at: float


def count_arrivals(database: Database) -> int:
    """Count the images that were received since the last call. Returns how many."""
    # Most calls find nothing to count, and take no lock.
    with database.reading() as conn:
        newer = sa.select(instances.c.id).where(instances.c.id > _position(conn)).limit(1)
        if conn.execute(newer).first() is None:
            return 0

    with database.transaction() as (conn, now):
        database.lock_until_commit(conn, "arrivals")
        position = _position(conn)
        oldest = int(now // HOUR_S) - WEEKS_KEPT * 7 * 24
        new = (
            sa.select(instances.c.id, instances.c.calling_ae_title, instances.c.received_at)
            .where(instances.c.id > position)
            .order_by(instances.c.id)
            .limit(_AT_ONCE)
        )
        rows = [row for row in conn.execute(new) if _is_settled(row.received_at, now)]
        if not rows:
            return 0

        known = set(conn.execute(sa.select(senders.c.ae_title)).scalars())
        named = [(_named(row.calling_ae_title, known), row.received_at) for row in rows]
        for title in sorted({title for title, _ in named}):
            times = [received_at for each, received_at in named if each == title]
            # A time in the future is from a clock that was set back.
            _add_sender(conn, title, len(times), min(max(times), now))
            _add_hours(conn, title, [time for time in times if time // HOUR_S >= oldest])

        _move(conn, rows[-1].id)
        if do_ages_count(conn, now):
            conn.execute(arrivals.delete().where(arrivals.c.hour < oldest))
        return len(rows)


def senders_now(conn: Connection) -> dict[str, Sender]:
    """By AE title, what was counted and what came since."""
    found = {
        row.ae_title: Sender(row.ae_title, row.images, row.last_at)
        for row in conn.execute(sa.select(senders))
    }
    since = (
        sa.select(
            instances.c.calling_ae_title,
            sa.func.count().label("images"),
            sa.func.max(instances.c.received_at).label("last_at"),
        )
        .where(instances.c.id > _position(conn))
        .group_by(instances.c.calling_ae_title)
    )

    for row in conn.execute(since):
        title = _named(row.calling_ae_title, found)
        counted = found.get(title, Sender(title, 0, 0.0))
        last_at = max(counted.last_at, row.last_at)
        found[title] = Sender(title, counted.images + row.images, last_at)
    return found


def hours_of(conn: Connection) -> dict[str, dict[int, int]]:
    """By AE title, the images of each hour (hours since 1970) that had any, for some weeks."""
    found: dict[str, dict[int, int]] = {}
    for row in conn.execute(sa.select(arrivals)):
        found.setdefault(row.ae_title, {})[row.hour] = row.images
    return found


def _is_settled(received_at: float, now: float) -> bool:
    # A time in the future comes from a clock that was set back.
    return received_at <= now - _SETTLED_S or received_at > now + _SETTLED_S


def _named(ae_title: str, known: set[str] | dict[str, Sender]) -> str:
    title = bounded(ae_title)
    if title not in known and len(known) >= MOST_SENDERS:
        return OTHER
    if isinstance(known, set):
        known.add(title)
    return title


def _add_sender(conn: Connection, title: str, images: int, last_at: float) -> None:
    mine = senders.c.ae_title == title
    before = conn.execute(sa.select(senders).where(mine)).first()
    if before is None:
        row = {"ae_title": title, "images": images, "last_at": last_at}
        conn.execute(senders.insert().values(**row))
    else:
        newer = {"images": before.images + images, "last_at": max(before.last_at, last_at)}
        conn.execute(senders.update().where(mine).values(**newer))


def _add_hours(conn: Connection, title: str, times: list[float]) -> None:
    for hour, images in sorted(Counter(int(time // HOUR_S) for time in times).items()):
        same = sa.and_(arrivals.c.ae_title == title, arrivals.c.hour == hour)
        more = arrivals.update().where(same).values(images=arrivals.c.images + images)
        if not conn.execute(more).rowcount:
            row = {"ae_title": title, "hour": hour, "images": images}
            conn.execute(arrivals.insert().values(**row))


def _position(conn: Connection) -> int:
    """The number of the last instance that was counted."""
    return int(conn.execute(sa.select(arrival_cursor.c.last_id)).scalar() or 0)


def _move(conn: Connection, last_id: int) -> None:
    if not conn.execute(arrival_cursor.update().values(last_id=last_id)).rowcount:
        conn.execute(arrival_cursor.insert().values(name=_CURSOR, last_id=last_id))
