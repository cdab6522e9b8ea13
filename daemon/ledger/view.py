"""Read-only queries for the operator's page.

The work of each query is bounded, whatever the ledger holds: it reads from an index, newest first,
and stops after a fixed number of rows. A count that reaches its bound says "or more".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.alarms import LastingAlarm, lasting
from daemon.ledger.database import whole
from daemon.ledger.distinct import distinct
from daemon.ledger.figures import PRIORITIES, owed_since, waiting_since
from daemon.ledger.inspect import Inspection
from daemon.ledger.schema import (
    deliveries,
    destinations,
    instances,
    is_positive,
    results,
    state_is,
    state_is_not,
)
from daemon.ledger.states import DeliveryState, ImageState

# The most rows that one page of a search looks at.
MOST_SCANNED = 1000
# The most rows that one count counts.
MOST_COUNTED = 10_000
# The most alarms that are shown; a node in more trouble than this is described by the oldest.
MOST_ALARMS = 50
# The figures of the last day use at most this many of the newest images and deliveries.
MOST_RECENT = 2000
_MOST_TIMES = 200
_HOUR_S = 3600.0

# Ended deliveries that reached their destination.
_ARRIVED = (DeliveryState.STORED, DeliveryState.COMMITTED)

# The ends of nearly all images.
_COMMON = (ImageState.ANALYSED, ImageState.NOT_ANALYSED)

_COLUMNS = (
    instances.c.id, instances.c.sop_instance_uid, instances.c.study_instance_uid,
    instances.c.calling_ae_title, instances.c.received_at, instances.c.completed_at,
    instances.c.state, instances.c.reason, instances.c.probability, instances.c.positive,
)  # fmt: skip

# A binary search in one statement. SQLite allows the recursive name once, and not inside a
# subquery, so the row in the middle is queried twice.
_MIDDLE = "(SELECT received_at FROM instances WHERE id >= (low + high) / 2 ORDER BY id LIMIT 1)"
_HALVING = sa.text(
    "WITH RECURSIVE bounds(low, high) AS ("  # noqa: S608 - our own text alone
    # Each in its own query: SQLite answers each alone from an index, but both together by reading
    # all rows.
    " SELECT (SELECT min(id) FROM instances), (SELECT max(id) + 1 FROM instances)"
    " UNION ALL SELECT"
    f" CASE WHEN {_MIDDLE} < :at THEN (low + high) / 2 + 1 ELSE low END,"
    f" CASE WHEN {_MIDDLE} < :at THEN high ELSE (low + high) / 2 END"
    " FROM bounds WHERE low < high"
    ") SELECT max(low) FROM bounds"
)


@dataclass(frozen=True)
class Search:
    """A search for images. Every condition that is given must hold."""

    # Of an image, a study or a result.
    uid: str = ""
    # accession_digest() of a number.
    accession_digest: str = ""
    sender: str = ""
    # An ImageState; "": every state.
    state: str = ""
    is_positive: bool = False
    reason: str = ""
    # Seconds since 1970, by the time of receipt.
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True)
class Listing:
    """One page of a search, newest first. `older`: the row from which the next page goes on."""

    rows: list[dict[str, Any]]
    older: int | None = None
    # The scan reached its bound before the page was full: when the last scanned row was received.
    searched_back_to: float | None = None


@dataclass(frozen=True)
class Count:
    """How many; `is_more`: the bound was reached, there may be more."""

    number: int
    is_more: bool = False


@dataclass(frozen=True)
class Queue:
    """The images that wait or are in work, and when the oldest was received."""

    waiting: Count
    since: float | None


@dataclass(frozen=True)
class Activity:
    """The last day, from the newest MOST_RECENT images. `from_at`: the first of them."""

    # By hour, oldest first; the last entry is the hour that ends now.
    received: list[int]
    positive: list[int]
    # ImageState -> how many.
    states: dict[str, int] = field(default_factory=dict)
    # Reason of not analysed -> how many.
    reasons: dict[str, int] = field(default_factory=dict)
    from_at: float = 0.0


@dataclass(frozen=True)
class Refused:
    """Refused deliveries to one destination, and the newest reason."""

    destination: str
    number: int
    why: str


class View(Inspection):
    """The operator's page's queries of one ledger."""

    # -- the last day ---------------------------------------------------------------------------

    def queue(self) -> Queue:
        """The images that wait or are in work, and since when the oldest waits."""
        waiting = sa.select(instances.c.id).where(state_is(instances, "received"))
        with self._database.reading() as conn:
            return Queue(_bounded_count(conn, waiting), waiting_since(conn))

    def activity(self, now: float, hours: int = 24) -> Activity:
        """The images of the last `hours`, counted by state."""
        image = instances.c
        start = now - hours * _HOUR_S
        with self._database.reading() as conn:
            first = _first_id_since(conn, start)
            newest = conn.execute(sa.select(sa.func.max(image.id))).scalar() or 0
            first = max(first, newest - MOST_RECENT + 1)
            from_at = conn.execute(
                sa.select(image.received_at).where(image.id >= first).order_by(image.id).limit(1)
            ).scalar()

            hour = whole(conn, (image.received_at - start) / _HOUR_S).label("hour")
            grouped = (
                sa.select(hour, image.state, image.reason, image.positive, sa.func.count())
                .where(image.id >= first)
                .group_by(hour, image.state, image.reason, image.positive)
            )
            rows = conn.execute(grouped).all()
        return _activity([tuple(row) for row in rows], hours, start if from_at is None else from_at)

    def times_to_archive(self) -> list[float]:
        """Seconds from receipt to the destination's answer of the newest deliveries, sorted."""
        image, delivery = instances.c, deliveries.c
        took: list[float] = []
        with self._database.reading() as conn:
            for state in _ARRIVED:
                newest = (
                    sa.select(delivery.result_id, delivery.stored_at)
                    .where(delivery.state == state.value, state_is_not(deliveries, "owed"))
                    .order_by(delivery.id.desc())
                    .limit(_MOST_TIMES)
                    .subquery()
                )
                seconds = (
                    sa.select(newest.c.stored_at - image.received_at)
                    .join(results, results.c.id == newest.c.result_id)
                    .join(instances, image.id == results.c.instance_id)
                    .where(newest.c.stored_at.is_not(None))
                )
                took += conn.execute(seconds).scalars()

        return sorted(took)

    def owed_to(self, configured: Sequence[str]) -> dict[str, dict[str, Any]]:
        """By destination: owed (a Count) and owed_since, for the settings' and all that is owed."""
        found: dict[str, dict[str, Any]] = {}
        with self._database.reading() as conn:
            for name in sorted({*configured, *_owed_names(conn)}):
                owed = sa.select(deliveries.c.id).where(
                    state_is(deliveries, "owed"), deliveries.c.destination == name
                )
                count = _bounded_count(conn, owed)
                found[name] = {"owed": count, "owed_since": owed_since(conn, name)}
        return found

    def destination_notes(self) -> dict[str, dict[str, Any]]:
        """By name: down_since, last_answer, answered_at, next_try_at, as the couriers wrote."""
        with self._database.reading() as conn:
            rows = conn.execute(sa.select(destinations)).mappings().all()
        return {row["name"]: dict(row) for row in rows}

    # -- what needs a person --------------------------------------------------------------------

    def alarms(self) -> list[LastingAlarm]:
        """The troubles that mail, webhook and Prometheus report, oldest first."""
        with self._database.reading() as conn:
            return lasting(conn, MOST_ALARMS)

    def failed_images(self, limit: int = 5) -> tuple[Count, list[dict[str, Any]]]:
        """How many images failed, and the newest of them."""
        is_failed = (
            instances.c.state == ImageState.FAILED.value,
            state_is_not(instances, "received"),
        )
        newest = sa.select(*_COLUMNS).where(*is_failed).order_by(instances.c.id.desc()).limit(limit)
        with self._database.reading() as conn:
            count = _bounded_count(conn, sa.select(instances.c.id).where(*is_failed))
            return count, [dict(row) for row in conn.execute(newest).mappings()]

    def refused(self) -> list[Refused]:
        """The newest refused deliveries, counted by destination."""
        delivery = deliveries.c
        newest = (
            sa.select(delivery.id, delivery.destination)
            .where(delivery.state == DeliveryState.REFUSED.value, state_is_not(deliveries, "owed"))
            .order_by(delivery.id.desc())
            .limit(MOST_COUNTED)
            .subquery()
        )
        grouped = sa.select(
            newest.c.destination, sa.func.count().label("number"), sa.func.max(newest.c.id)
        ).group_by(newest.c.destination)

        with self._database.reading() as conn:
            rows = conn.execute(grouped.order_by(newest.c.destination)).all()
            whys = {
                name: conn.execute(sa.select(delivery.why).where(delivery.id == last)).scalar()
                for name, _, last in rows
            }
        return [Refused(name, number, whys[name] or "") for name, number, _ in rows]

    # -- images ---------------------------------------------------------------------------------

    def images(self, search: Search, before: int | None = None, limit: int = 50) -> Listing:
        """The images that a search finds, newest first, from the row `before` on.

        One condition is answered by an index, the others by looking at its rows: at most
        MOST_SCANNED of them for one page.
        """
        with self._database.reading() as conn:
            bounds = _id_bounds(conn, search, before)
            parts, rest = _indexed(search, bounds)
            # The rows are read one by one, so that a full page ends the work early.
            last = _last_scanned(parts)
            wanted = (
                [part.where(instances.c.id >= last, *rest) for part in parts] if rest else parts
            )

            page = _newest(wanted, limit + 1)
            found = (
                sa.select(*_COLUMNS)
                .join(page, page.c.id == instances.c.id)
                .order_by(instances.c.id.desc())
            )
            rows = [dict(row) for row in conn.execute(found).mappings()]

            if len(rows) > limit:
                return Listing(rows[:limit], older=rows[limit - 1]["id"])
            if not rest:
                return Listing(rows)
            return _with_bound(conn, rows, last)

    def image(self, number: int) -> dict[str, Any] | None:
        """One row of instances, with its results and their deliveries; None: there is no such row.

        `others`: up to 20 other rows with the same SOP Instance UID, newest first.
        """
        with self._database.reading() as conn:
            row = conn.execute(sa.select(instances).where(instances.c.id == number)).mappings()
            found = row.first()
            if found is None:
                return None

            same = (
                sa.select(*_COLUMNS)
                .where(instances.c.sop_instance_uid == found["sop_instance_uid"])
                .where(instances.c.id != number)
                .order_by(instances.c.id.desc())
                .limit(20)
            )
            return {
                **found,
                "results": _results_of(conn, number),
                "others": [dict(other) for other in conn.execute(same).mappings()],
            }

    def result(self, number: int) -> dict[str, Any] | None:
        """One result, with removed_at and study_instance_uid of its image; None: no such."""
        wanted = (
            sa.select(results, instances.c.removed_at, instances.c.study_instance_uid)
            .join(instances, instances.c.id == results.c.instance_id)
            .where(results.c.id == number)
        )
        with self._database.reading() as conn:
            found = conn.execute(wanted).mappings().first()
        return None if found is None else dict(found)

    def senders(self, limit: int = 50) -> list[str]:
        """AE titles that sent images which have ended, found by skipping through their index."""
        ended = state_is_not(instances, "received")
        with self._database.reading() as conn:
            return list(islice(distinct(conn, instances.c.calling_ae_title, ended), limit))

    def reasons_seen(self, limit: int = 50) -> list[str]:
        """Every reason for which an image ended, found by skipping through the index."""
        reason = instances.c.reason
        with self._database.reading() as conn:
            return list(islice(distinct(conn, reason, reason.is_not(None)), limit))


# -- queries in pieces -----------------------------------------------------------------------------


def _bounded_count(conn: Connection, query: sa.Select[Any]) -> Count:
    """How many rows a query has, counted up to MOST_COUNTED."""
    bounded = query.limit(MOST_COUNTED + 1).subquery()
    number = int(conn.execute(sa.select(sa.func.count()).select_from(bounded)).scalar_one())
    return Count(min(number, MOST_COUNTED), number > MOST_COUNTED)


def _first_id_since(conn: Connection, at: float) -> int:
    """The first row that was received at `at` or later, found by binary search.

    Rows are numbered in the order of their commits, so their times rise with their numbers, unless
    the clock was set back. An index of times would be written for each image received.
    """
    return int(conn.execute(_HALVING, {"at": at}).scalar() or 0)


def _activity(rows: Sequence[tuple[Any, ...]], hours: int, from_at: float) -> Activity:
    received, positive = [0] * hours, [0] * hours
    states: dict[str, int] = {}
    reasons: dict[str, int] = {}

    for hour, state, reason, found, number in rows:
        # If the clock was set, a row may lie just before or after the day.
        at = min(max(int(hour), 0), hours - 1)
        received[at] += number
        if found:
            positive[at] += number

        states[state] = states.get(state, 0) + number
        if state == ImageState.NOT_ANALYSED and reason:
            reasons[reason] = reasons.get(reason, 0) + number
    return Activity(received, positive, states, reasons, from_at)


def _owed_names(conn: Connection) -> list[str]:
    """The destinations that something is owed to, found by skipping through their index."""
    names: list[str] = []
    while True:
        after = sa.select(sa.func.min(deliveries.c.destination)).where(state_is(deliveries, "owed"))
        if names:
            after = after.where(deliveries.c.destination > names[-1])
        name = conn.execute(after).scalar()
        if name is None:
            return names
        names.append(name)


def _id_bounds(
    conn: Connection, search: Search, before: int | None
) -> list[sa.ColumnElement[bool]]:
    """The search's times, and its place, as bounds of the rows' numbers."""
    number = instances.c.id
    bounds: list[sa.ColumnElement[bool]] = []
    if search.since is not None:
        bounds.append(number >= _first_id_since(conn, search.since))
    if search.until is not None:
        bounds.append(number < _first_id_since(conn, search.until))
    if before is not None:
        bounds.append(number < before)
    return bounds


def _indexed(
    search: Search, bounds: Sequence[sa.ColumnElement[bool]]
) -> tuple[list[sa.Select[Any]], list[sa.ColumnElement[bool]]]:
    """The search as queries that an index answers in order, and the conditions that are left.

    Together the queries name every row that the search finds.
    """
    image = instances.c
    conditions: dict[str, sa.ColumnElement[bool]] = {}
    if search.is_positive:
        conditions["positive"] = is_positive
    if search.reason:
        conditions["reason"] = image.reason == search.reason
    if search.state:
        conditions["state"] = image.state == search.state
    if search.sender:
        conditions["sender"] = image.calling_ae_title == search.sender

    queries, used = _by_best_index(search, bounds, conditions)
    return queries, [_unindexed(search)[key] for key in conditions if key not in used]


def _unindexed(search: Search) -> dict[str, sa.ColumnElement[bool]]:
    """The conditions in a form that no index answers.

    A planner that used an index for such a condition would read more rows than _last_scanned()
    counted.
    """
    image = instances.c
    return {
        "positive": sa.case((is_positive, 1), else_=0) == 1,
        "reason": image.reason.concat("") == search.reason,
        "state": image.state.concat("") == search.state,
        "sender": image.calling_ae_title.concat("") == search.sender,
    }


def _by_best_index(
    search: Search,
    bounds: Sequence[sa.ColumnElement[bool]],
    conditions: dict[str, sa.ColumnElement[bool]],
) -> tuple[list[sa.Select[Any]], set[str]]:
    """The queries of the most selective index, and the names of the conditions that they answer.

    A reason or a rare end selects fewer rows than a sender does; a common end selects more.
    """
    image = instances.c
    base = sa.select(image.id).where(*bounds)
    has_ended = state_is_not(instances, "received")

    if search.accession_digest:
        return [base.where(image.accession_digest == search.accession_digest)], set()
    if search.uid:
        of_result = sa.select(results.c.instance_id).where(results.c.sop_instance_uid == search.uid)
        return [
            base.where(image.sop_instance_uid == search.uid),
            base.where(image.study_instance_uid == search.uid),
            base.where(image.id.in_(of_result)),
        ], set()

    for name in ("positive", "reason"):
        if name in conditions:
            return [base.where(conditions[name])], {name}
    if search.state == ImageState.RECEIVED:
        is_waiting = state_is(instances, "received")
        return [base.where(is_waiting, image.priority == each) for each in PRIORITIES], {"state"}
    if search.state and not (search.sender and search.state in _COMMON):
        return [base.where(conditions["state"], has_ended)], {"state"}
    if search.sender:
        ended = base.where(conditions["sender"], has_ended)
        if search.state:
            return [ended], {"sender"}
        waiting = [
            base.where(
                state_is(instances, "received"), image.priority == each, conditions["sender"]
            )
            for each in PRIORITIES
        ]
        return [ended, *waiting], {"sender"}
    return [base], set()


def _newest(parts: Sequence[sa.Select[Any]], limit: int) -> sa.Subquery:
    """The newest row numbers that any of the queries names."""
    newest = [part.order_by(instances.c.id.desc()).limit(limit).subquery() for part in parts]
    if len(newest) == 1:
        return newest[0]
    every = sa.union(*(sa.select(part.c.id) for part in newest)).subquery()
    return sa.select(every.c.id).order_by(every.c.id.desc()).limit(limit).subquery()


def _last_scanned(parts: Sequence[sa.Select[Any]]) -> sa.ColumnElement[int]:
    """The number of the last row that a page of these queries looks at; 0: it looks at all.

    It is counted in the index, at a tenth of the cost of reading the rows.
    """
    scanned = _newest(parts, MOST_SCANNED + 1)
    number = sa.select(scanned.c.id).order_by(scanned.c.id.desc()).limit(1).offset(MOST_SCANNED)
    return sa.func.coalesce(number.scalar_subquery(), 0)


def _with_bound(
    conn: Connection, rows: list[dict[str, Any]], last: sa.ColumnElement[int]
) -> Listing:
    """Complete the page of a search that read rows one by one: did it read all of them?"""
    seen = sa.select(instances.c.id, instances.c.received_at).where(instances.c.id == last)
    found = conn.execute(seen).first()
    if found is None:
        return Listing(rows)
    return Listing(rows, older=found.id, searched_back_to=found.received_at)


def _results_of(conn: Connection, number: int) -> list[dict[str, Any]]:
    """The results of one image; `deliveries` of each, oldest first."""
    of_image = sa.select(results).where(results.c.instance_id == number).order_by(results.c.id)
    made = [dict(row) for row in conn.execute(of_image).mappings()]
    owed = (
        sa.select(deliveries)
        .join(results, results.c.id == deliveries.c.result_id)
        .where(results.c.instance_id == number)
        .order_by(deliveries.c.id)
    )
    every = [dict(row) for row in conn.execute(owed).mappings()]
    for result in made:
        result["deliveries"] = [row for row in every if row["result_id"] == result["id"]]
    return made
