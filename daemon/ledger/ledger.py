"""The one place where states live: every transition is one method and one transaction.

states.py has the transitions as a table. A caller holds work by a lease: a claim names its attempt,
and every later transition names that attempt and changes nothing when another has begun since
(docs/rules.md, "Leases"). Questions that change nothing are in inspect.py.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.backoff import doubled_s
from daemon.ledger import tallies, weekly
from daemon.ledger.alarms import Alarms
from daemon.ledger.database import Database, require_file
from daemon.ledger.generations import Generations
from daemon.ledger.inspect import Inspection, in_parts
from daemon.ledger.leaps import is_long_unseen, look_at_clock
from daemon.ledger.records import (
    Arrival,
    AuditRow,
    CommitmentRequest,
    Completion,
    DeliveryJob,
    ImageJob,
    LedgerLimits,
    Readdressed,
    Recipient,
    StoredResult,
)
from daemon.ledger.schema import (
    audit,
    audit_state,
    commitments,
    deliveries,
    destinations,
    folders,
    instances,
    results,
    roles,
    settings,
    spools,
    state_is,
    state_is_not,
    unknown_destinations,
)
from daemon.ledger.senders import count_arrivals
from daemon.ledger.shadow import ShadowBook
from daemon.ledger.states import (
    ENDINGS,
    DeliveryEvent,
    DeliveryState,
    ImageEvent,
    ImageState,
    deliveries_before,
    delivery_after,
    image_after,
    images_before,
)
from daemon.ledger.weekly import DriftBook

# Names of advisory locks: transitions that give up bytes and transitions that owe them again
# exclude each other.
_RETENTION = "retention"
_SPOOL = "spool"
_FOLDERS = "folders"
_DESTINATIONS = "destinations"
_ADOPTION = "adoption"
_AUDIT = "audit"

# The columns of a delivery that is owed again, to this destination or another.
_UNTRIED = {"failures": 0, "failing_since": None}
_AS_NEVER_SENT = {**_UNTRIED, "commit_due_at": None, "commit_asks": 0, "committed_at": None}

# Seconds since 1970 that no clock shows.
_END_OF_TIME = 1e18

log = logging.getLogger("pleura.audit")

_RECEIVED = {
    "state": ImageState.RECEIVED.value,
    "lease_until": 0.0,
    "attempt": 0,
    "unfinished": 0,
    "unfinished_alone": 0,
}
# The columns of a received object's row that have a value.
_ARRIVAL_COLUMNS = (*Arrival._fields, *_RECEIVED, "received_at")
_RESULT_FIELDS = tuple(StoredResult.__dataclass_fields__)
# The tables that are worked on by lease, each with the state in which a lease can be held.
_LEASED = ((instances, ImageState.RECEIVED.value), (deliveries, DeliveryState.OWED.value))
# State of a copy -> states in which an image counts as its original. A failed image never does: a
# sender that repeats it asks for a new try (docs/rules.md, "Duplicates").
_ORIGINALS = {
    ImageState.ANALYSED.value: (ImageState.ANALYSED.value,),
    ImageState.NOT_ANALYSED.value: (ImageState.ANALYSED.value, ImageState.NOT_ANALYSED.value),
    ImageState.FAILED.value: (ImageState.ANALYSED.value, ImageState.NOT_ANALYSED.value),
}


class Ledger:
    """The states behind one URL. `clock` replaces the engine's clock in tests."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] | None = None,
        limits: LedgerLimits | None = None,
        migrate: bool = True,
    ) -> None:
        """Open the ledger at `url`. `migrate` creates it, or migrates an earlier version.

        Raises:
            LedgerError: it cannot be used.
        """
        self.url = url
        self.limits = limits or LedgerLimits()
        self._database = Database(url, clock, migrate)
        # Whether this process created the tables.
        self.is_new = self._database.is_new
        self.inspect = Inspection(self._database)
        self.alarms = Alarms(self._database)
        self.drift = DriftBook(self._database)
        self.shadow = ShadowBook(self._database)
        self.generations = Generations(
            self._database, self._note_settings, self._note_refused_settings
        )
        # Whether transitions record their audit events, in the same transaction.
        self.is_audited = False

    @classmethod
    def existing(cls, url: str, migrate: bool = True) -> Ledger:
        """The ledger of a node that has run.

        Raises:
            LedgerError: there is no file. A mistyped path must not make an empty ledger.
        """
        require_file(url)
        return cls(url, migrate=migrate)

    def close(self) -> None:
        self._database.close()

    def wait(self, timeout_s: float) -> None:
        """Sleep until a process or thread may have made work, at most `timeout_s`. Never raises."""
        self._database.wait(timeout_s)

    # -- receive --------------------------------------------------------------------------------

    def receive(self, arrivals: Sequence[Arrival]) -> None:
        """Record received objects, all of them in one commit.

        Raises:
            UndecidedError: the answer to the commit was lost; it may still happen at any time.
        """
        self._database.append(
            instances,
            _ARRIVAL_COLUMNS,
            lambda now: [(*arrival, *_RECEIVED.values(), now) for arrival in arrivals],
        )

    def wait_for_commits(self) -> None:
        """Return when every arrival now being committed, on any host, has become visible or failed.

        Raises if that takes long.
        """
        self._database.wait_for_writers(instances)

    def adopt(self, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Record spool files that no row names (adoption.py). Returns the arrivals that were new.

        If several processes adopt one file at the same time, one of them succeeds.
        """
        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(conn, _ADOPTION)
            new = []
            for arrival in arrivals:
                named = [
                    sa.select(column).where(column == arrival.spool_name)
                    for column in (instances.c.spool_name, results.c.spool_name)
                ]

                if conn.execute(sa.union_all(*named)).first() is None:
                    row = arrival._asdict() | _RECEIVED | {"received_at": now}
                    conn.execute(instances.insert().values(**row))
                    new.append(arrival)
            self._database.ring(conn)
            return new

    # -- analyse --------------------------------------------------------------------------------

    def claim_images(self, owner: str, limit: int) -> list[ImageJob]:
        """Lease waiting images: stat first, then oldest, at most `limit`.

        An image with an unfinished earlier attempt comes alone, so that an image that kills workers
        is identified. An image whose results are made again also comes alone, because its results
        carry their first time.
        """
        with self._database.transaction() as (conn, now):
            rows = conn.execute(self._waiting(now, limit)).mappings().all()
            if not rows:
                return []

            fresh = [row for row in rows if row["unfinished"] == 0 and row["result_time"] is None]
            chosen = fresh if rows[0] in fresh else rows[:1]
            is_solitary = rows[0]["unfinished"] > 0
            return [self._lease_image(conn, now, owner, row, is_solitary) for row in chosen]

    def _waiting(self, now: float, limit: int) -> sa.Select[Any]:
        return (
            sa.select(instances)
            .where(
                state_is(instances, "received"), self._is_lease_over(instances.c.lease_until, now)
            )
            .order_by(instances.c.priority, instances.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )

    def _lease_image(
        self, conn: Connection, now: float, owner: str, row: sa.RowMapping, is_solitary: bool
    ) -> ImageJob:
        attempt = row["attempt"] + 1

        conn.execute(
            instances.update()
            .where(instances.c.id == row["id"])
            .values(
                owner=owner,
                lease_until=now + self.limits.lease_s,
                attempt=attempt,
                unfinished=row["unfinished"] + 1,
                unfinished_alone=row["unfinished_alone"] + (1 if is_solitary else 0),
            )
        )

        return ImageJob(
            id=row["id"],
            attempt=attempt,
            spool_name=row["spool_name"],
            sop_instance_uid=row["sop_instance_uid"],
            unfinished_alone=row["unfinished_alone"],
            size_bytes=row["size_bytes"],
            result_time=row["result_time"] or now,
        )

    def renew(self, jobs: Sequence[ImageJob] | Sequence[DeliveryJob]) -> None:
        """Extend the leases of a working owner."""
        with self._database.transaction() as (conn, now):
            for job in jobs:
                # Work that was given back meanwhile must not wait for a lease without an owner.
                is_leased = _table_of(job).c.owner.is_not(None)
                lease = {"lease_until": now + self.limits.lease_s}
                conn.execute(_held(job).where(is_leased).values(**lease))

    def give_back(self, job: ImageJob) -> None:
        """Return an image whose attempt ended for a reason outside it (shutdown, full disk).

        The attempt does not count.
        """
        with self._database.transaction() as (conn, now):
            conn.execute(
                _held(job).values(
                    owner=None,
                    lease_until=now,
                    # The attempt is over, so giving back twice changes nothing.
                    attempt=job.attempt + 1,
                    unfinished=instances.c.unfinished - 1,
                    unfinished_alone=job.unfinished_alone,
                )
            )
            self._database.ring(conn)

    def abandon(self, job: ImageJob) -> None:
        """End an attempt that broke: it counts, and the image can be claimed at once, alone."""
        with self._database.transaction() as (conn, now):
            conn.execute(
                _held(job).values(
                    owner=None,
                    lease_until=now,
                    attempt=job.attempt + 1,
                )
            )
            self._database.ring(conn)

    def complete(
        self, job: ImageJob, completion: Completion, owed: Mapping[str, Sequence[str]]
    ) -> str | None:
        """End an image and owe its results. `owed`: a destination's name -> the kinds it takes.

        Returns the state written: "duplicate" when the same content ended before; None when the
        attempt is stale. In both cases the caller must remove its result files.
        """
        with self._database.transaction() as (conn, now):
            # Two copies of one image may end at the same time on two hosts: one becomes the
            # duplicate.
            self._database.lock_until_commit(conn, job.sop_instance_uid)
            image = self._held_image(conn, job)
            if image is None:
                return None

            original = self._original(conn, image, completion)
            if original is not None:
                duplicate = _duplicate_of(original, completion, now)
                conn.execute(_held(job).values(**duplicate))
                self._audit_received(conn, image, completion)
                tallies.count_image(conn, image, duplicate, job.result_time)
                return image_after(ImageEvent.RECOGNISE)

            ended = _ended(job, completion, now)
            conn.execute(_held(job).values(**ended))
            self._audit_received(conn, image, completion)
            for result in completion.results:
                self._owe(conn, now, image, result, owed)
            tallies.count_image(conn, image, ended, job.result_time)
            weekly.count_image(conn, image, ended)
            self._database.ring(conn)
            return completion.state

    def _held_image(self, conn: Connection, job: ImageJob) -> sa.RowMapping | None:
        """The row of an image that this attempt still holds, locked until the commit."""
        same_attempt = (
            sa.select(instances)
            .where(instances.c.id == job.id, instances.c.attempt == job.attempt)
            .with_for_update()
        )
        row = conn.execute(same_attempt).mappings().first()
        if row is None or row["state"] != ImageState.RECEIVED:
            return None
        return row

    def _original(
        self, conn: Connection, image: sa.RowMapping, completion: Completion
    ) -> int | None:
        """The first ended image with the same UID and content, if there is one.

        An image that was not analysed is not the original of a copy that was: the settings or the
        model that excluded it were corrected meanwhile.
        """
        # An image whose lost results are made again keeps them, whatever copies arrived meanwhile.
        if image["remakes"]:
            return None

        same_content = (
            sa.select(instances.c.id)
            .where(
                instances.c.sop_instance_uid == image["sop_instance_uid"],
                instances.c.content_digest == completion.content_digest,
                instances.c.state.in_(_ORIGINALS[completion.state]),
                instances.c.id != image["id"],
            )
            .order_by(instances.c.id)
        )

        number: int | None = conn.execute(same_content).scalar()
        return number

    def _owe(
        self,
        conn: Connection,
        now: float,
        image: sa.RowMapping,
        result: StoredResult,
        owed: Mapping[str, Sequence[str]],
    ) -> None:
        named = sa.select(results.c.id, results.c.instance_id).where(
            results.c.sop_instance_uid == result.sop_instance_uid
        )
        same = conn.execute(named).first()
        if same is not None:
            # A derived UID identifies the content: this result is owed already. A second image that
            # failed in the same way leaves the first image's file in place.
            if same.instance_id == image["id"]:
                self._owe_new_file(conn, now, same.id, result)
            return

        # Made by another version or with other settings: not the lost result.
        if image["remakes"]:
            return

        fields = {name: getattr(result, name) for name in _RESULT_FIELDS}
        row = conn.execute(results.insert().values(instance_id=image["id"], **fields))
        assert row.inserted_primary_key is not None
        for destination, kinds in owed.items():
            if result.kind in kinds:
                delivery = _new_delivery(row.inserted_primary_key[0], destination, image, now)
                conn.execute(deliveries.insert().values(**delivery))

    def _owe_new_file(
        self, conn: Connection, now: float, result_id: int, result: StoredResult
    ) -> None:
        """A lost result file was made again: what is still owed is owed from the new file."""
        newer = {"spool_name": result.spool_name, "size_bytes": result.size_bytes}
        conn.execute(results.update().where(results.c.id == result_id).values(**newer))
        still_owed = deliveries.update().where(
            deliveries.c.result_id == result_id, state_is(deliveries, "owed")
        )
        conn.execute(still_owed.values(due_at=now))

    # -- deliver --------------------------------------------------------------------------------

    def claim_deliveries(self, destination: str, owner: str, limit: int) -> list[DeliveryJob]:
        """Lease deliveries that are due to one destination: stat first, then oldest."""
        urgent_first = (deliveries.c.priority, deliveries.c.id)
        return self._claim_deliveries(destination, owner, limit, urgent_first)

    def claim_probe(self, destination: str, owner: str) -> list[DeliveryJob]:
        """Lease the delivery that shows best whether a destination in trouble stores again.

        A delivery that was never put off comes first, then that whose time came first. So objects
        that are never stored keep no other from being tried, however many they are.
        """
        was_put_off = deliveries.c.due_at != deliveries.c.owed_at
        in_turn = (
            sa.case((was_put_off, deliveries.c.due_at), else_=0.0),
            deliveries.c.priority,
            deliveries.c.id,
        )
        return self._claim_deliveries(destination, owner, 1, in_turn)

    def _claim_deliveries(
        self, destination: str, owner: str, limit: int, order: Sequence[sa.ColumnElement[Any]]
    ) -> list[DeliveryJob]:
        with self._database.transaction() as (conn, now):
            jobs = []
            due = self._due(destination, now).order_by(*order).limit(limit)
            rows = conn.execute(due).mappings().all()
            is_any_failing = any(row["failing_since"] is not None for row in rows)
            do_hours_count = is_any_failing and not is_long_unseen(conn, now)
            for row in rows:
                attempt = row["attempt"] + 1
                lease = {
                    "owner": owner,
                    "lease_until": now + self.limits.lease_s,
                    "attempt": attempt,
                }
                conn.execute(
                    deliveries.update().where(deliveries.c.id == row["id"]).values(**lease)
                )

                result = StoredResult(**{name: row[name] for name in _RESULT_FIELDS})
                since = row["failing_since"]
                failing_s = max(0.0, now - since) if do_hours_count and since is not None else 0.0
                job = DeliveryJob(
                    row["id"], attempt, destination, row["failures"], result, failing_s
                )
                jobs.append(job)
            return jobs

    def _due(self, destination: str, now: float) -> sa.Select[Any]:
        return (
            sa.select(
                deliveries.c.id,
                deliveries.c.attempt,
                deliveries.c.failures,
                deliveries.c.failing_since,
                *(results.c[name] for name in _RESULT_FIELDS),
            )
            .join(results, results.c.id == deliveries.c.result_id)
            .where(
                deliveries.c.destination == destination,
                state_is(deliveries, "owed"),
                self._is_delivery_due(now),
                self._is_lease_over(deliveries.c.lease_until, now),
            )
            .with_for_update(skip_locked=True, of=deliveries)
        )

    def mark_stored(
        self,
        job: DeliveryJob,
        status: int,
        commitment: bool = False,
        recipient: Recipient | None = None,
        steps: Mapping[str, float] | None = None,
    ) -> None:
        """The destination has the object. `commitment`: ask later whether it keeps the object.

        `recipient`: the destination as the audit trail names it. `steps`: as in a Completion.
        """
        with self._database.transaction() as (conn, now):
            stored = conn.execute(
                _held(job).values(
                    state=delivery_after(DeliveryEvent.STORE),
                    status=status,
                    why=None,
                    owner=None,
                    stored_at=now,
                    failing_since=None,
                    steps=json.dumps(steps) if steps else None,
                    commit_due_at=now if commitment else None,
                )
            )
            if stored.rowcount and recipient is not None:
                self._audit_sent(conn, now, job, recipient)
            if stored.rowcount:
                tallies.count_stored(conn, job.id, job.destination, now)

            if commitment:
                self._database.ring(conn)

    def mark_refused(self, job: DeliveryJob, why: str, status: int | None = None) -> None:
        """The destination does not take this object.

        It stays visible until `pleura retry` re-arms it.
        """
        with self._database.transaction() as (conn, _):
            refused = delivery_after(DeliveryEvent.REFUSE)
            row = {"state": refused, "why": why, "status": status, "owner": None}
            number = conn.execute(_held(job).values(**row)).rowcount
            tallies.count_deliveries(conn, job.destination, refused, number)

    def retry_later(
        self, job: DeliveryJob, why: str, delay_s: float, status: int | None = None
    ) -> None:
        """Still owed, due after `delay_s`. `status`: only if the destination answered with one."""
        is_failure = status is not None

        with self._database.transaction() as (conn, now):
            # A time in the future is from a clock that was set back.
            first = deliveries.c.failing_since
            since = sa.case((first <= now, first), else_=now) if is_failure else first
            conn.execute(
                _held(job).values(
                    failing_since=since,
                    why=why,
                    status=status,
                    owner=None,
                    due_at=now + min(delay_s, self.limits.longest_delivery_wait_s),
                    lease_until=now,
                    failures=job.failures + (1 if is_failure else 0),
                )
            )

    def give_back_delivery(self, job: DeliveryJob, why: str | None = None) -> None:
        """Return a delivery whose turn did not come. `why`: the destination's fault, if any."""
        with self._database.transaction() as (conn, now):
            reason = {"why": why} if why else {}
            conn.execute(_held(job).values(owner=None, lease_until=now, **reason))
            self._database.ring(conn)

    def remake(self, job: DeliveryJob, why: str) -> bool:
        """Analyse an image again whose result file is lost: the result is owed from a new file.

        Returns False if that is impossible: the image's bytes are gone, or it was tried too often.
        """
        with self._database.transaction() as (conn, now):
            image = (
                sa.select(results.c.instance_id)
                .join(deliveries, deliveries.c.result_id == results.c.id)
                .where(*_is_held(job))
            )
            if not self._receive_again(conn, now, image.scalar_subquery()):
                return False

            conn.execute(
                _held(job).values(
                    why=why,
                    owner=None,
                    due_at=now + self.limits.remake_s,
                    lease_until=now,
                )
            )
            self._database.ring(conn)
            return True

    def _receive_again(self, conn: Connection, now: float, image: sa.ScalarSelect[Any]) -> bool:
        """Let an image wait again for its results to be made again; True where it waits now."""
        kept = instances.update().where(instances.c.id == image, instances.c.removed_at.is_(None))
        may_be_remade = (
            instances.c.state.in_(images_before(ImageEvent.REMAKE)),
            state_is_not(instances, "received"),
            instances.c.remakes < self.limits.maximum_remakes,
        )
        waits = _waits_again(now, ImageEvent.REMAKE) | {"remakes": instances.c.remakes + 1}
        if conn.execute(kept.where(*may_be_remade).values(**waits)).rowcount:
            return True

        # Another of its results may have been found lost at the same time; then it already waits.
        unchanged = {"remakes": instances.c.remakes}
        waiting = kept.where(state_is(instances, "received")).values(**unchanged)
        return bool(conn.execute(waiting).rowcount)

    def refuse_unknown_destinations(
        self, known: Iterable[str], owed_for_s: float = 0.0
    ) -> dict[str, int]:
        """Refuse what is owed to names that have been outside the settings for this long.

        A name counts as known while any process knows it, because hosts take new settings one after
        another. A delivery in flight may finish. Returns how many were refused, by name.
        """
        with self._database.transaction() as (conn, now):
            # The minutes that have passed are not known until retention has looked at the clock.
            if is_long_unseen(conn, now):
                return {}

            refused = delivery_after(DeliveryEvent.FORGET_DESTINATION)
            row = {"state": refused, "why": "destination is no longer configured", "owner": None}

            numbers = {}
            for name in self._unknown_destinations(conn, now, list(known), owed_for_s):
                gone = deliveries.update().where(
                    state_is(deliveries, "owed"),
                    deliveries.c.destination == name,
                    self._is_lease_over(deliveries.c.lease_until, now),
                )
                number = conn.execute(gone.values(**row)).rowcount
                tallies.count_deliveries(conn, name, refused, number)
                if number:
                    numbers[name] = number
            return numbers

    def _unknown_destinations(
        self, conn: Connection, now: float, known: list[str], for_s: float
    ) -> list[str]:
        """Names outside the settings, for this long already, with results owed to them.

        `unknown_destinations` records since when. The age of a delivery does not show it: a backlog
        may be old because its archive was down.
        """
        self._database.lock_until_commit(conn, _DESTINATIONS)
        is_owed = sa.select(deliveries.c.destination).where(state_is(deliveries, "owed")).distinct()
        owed = set(conn.execute(is_owed.where(deliveries.c.destination.not_in(known))).scalars())
        seen = {row.name: row.since for row in conn.execute(sa.select(unknown_destinations))}

        # A time in the future is from a clock that has been set back since.
        over = [name for name, since in seen.items() if name not in owed or since > now]
        conn.execute(unknown_destinations.delete().where(unknown_destinations.c.name.in_(over)))
        since = {name: at for name, at in seen.items() if name not in over}
        new = [{"name": name, "since": now} for name in sorted(owed - since.keys())]
        if new:
            conn.execute(unknown_destinations.insert(), new)
        return sorted(name for name in owed if since.get(name, now) <= now - for_s)

    def remember_folder(self, path: str) -> None:
        """Results go to this folder from now on."""
        with self._database.transaction() as (conn, _):
            self._database.lock_until_commit(conn, _FOLDERS)
            same = sa.select(folders.c.path).where(folders.c.path == path)
            if conn.execute(same).first() is None:
                conn.execute(folders.insert().values(path=path))

    # -- leases ---------------------------------------------------------------------------------

    def release_leases(self, owner: str) -> None:
        """End the leases of a dead owner, so that its work need not wait for them to expire."""
        with self._database.transaction() as (conn, now):
            for table, state in _LEASED:
                held = table.update().where(state_is(table, state), table.c.owner == owner)
                conn.execute(held.values(owner=None, lease_until=now))
            sender = audit_state.update().where(audit_state.c.owner == owner)
            conn.execute(sender.values(owner=None, lease_until=now))
            self._database.ring(conn)

    # -- the audit trail ------------------------------------------------------------------------

    def record_audit(self, event: str, facts: Mapping[str, str]) -> None:
        """Record an event that belongs to no transition. Does nothing without an audit trail."""
        if not self.is_audited:
            return
        with self._database.transaction() as (conn, now):
            self._audit(conn, now, event, facts)
            self._database.ring(conn)

    def record_settings(self, digests: Mapping[str, str]) -> list[str]:
        """Compare the settings (a digest for each key) with those of the last start.

        Returns the keys that differ, and records them as one event; none at the first start.
        """
        with self._database.transaction() as (conn, now):
            return self._note_settings(conn, now, digests, {})

    def _note_settings(
        self,
        conn: Connection,
        now: float,
        digests: Mapping[str, str],
        facts: Mapping[str, str],
    ) -> list[str]:
        """record_settings() in the transaction that changes them. `facts`: added to the event."""
        self._database.lock_until_commit(conn, _AUDIT)
        known = {row.key: row.digest for row in conn.execute(sa.select(settings))}
        changed = sorted(key for key, digest in digests.items() if known.get(key) != digest)
        if not changed:
            return []

        conn.execute(settings.delete().where(settings.c.key.in_(changed)))
        rows = [{"key": key, "digest": digests[key]} for key in changed]
        conn.execute(settings.insert(), rows)
        if not known:
            return []
        if self.is_audited:
            self._audit(conn, now, "settings", {"keys": ", ".join(changed), **facts})
        return changed

    def _note_refused_settings(
        self, conn: Connection, now: float, facts: Mapping[str, str]
    ) -> None:
        if self.is_audited:
            self._audit(conn, now, "settings_refused", facts)

    def claim_audit(self, owner: str, limit: int) -> tuple[list[AuditRow], int]:
        """The oldest events, and the last number that the file has.

        No events while another owner holds the lease: one process sends at a time, which keeps the
        order.
        """
        with self._database.reading() as conn:
            if conn.execute(sa.select(audit.c.number).limit(1)).first() is None:
                return [], 0

        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(conn, _AUDIT)
            state = conn.execute(sa.select(audit_state)).one()
            is_free = state.owner in (None, owner) or state.lease_until <= now
            if not is_free and state.lease_until <= now + 2 * self.limits.lease_s:
                return [], 0

            lease = {"owner": owner, "lease_until": now + self.limits.lease_s}
            conn.execute(audit_state.update().values(**lease))
            oldest = sa.select(audit).order_by(audit.c.number).limit(limit)
            rows = [
                AuditRow(row.number, row.made_at, row.event, json.loads(row.facts))
                for row in conn.execute(oldest)
            ]
            return rows, int(state.filed)

    def note_audit_filed(self, number: int) -> None:
        """The file has every message up to this number."""
        with self._database.transaction() as (conn, _):
            conn.execute(audit_state.update().values(filed=number))

    def drop_audit(self, owner: str, number: int) -> None:
        """Events up to this number have been sent. Only for the owner of the lease."""
        with self._database.transaction() as (conn, _):
            if conn.execute(sa.select(audit_state.c.owner)).scalar() == owner:
                conn.execute(audit.delete().where(audit.c.number <= number))

    def _audit(
        self, conn: Connection, made_at: float, event: str, facts: Mapping[str, str]
    ) -> None:
        """Record an event in the transaction that it describes.

        When `limits.audit_rows` events wait, recording stops until they have gone out. One event
        records the stop, another the restart. Lost events use up numbers too, so that a receiver
        sees the gap.
        """
        self._database.lock_until_commit(conn, _AUDIT)
        state = conn.execute(sa.select(audit_state)).one_or_none()
        if state is None:
            first = {"name": _AUDIT, "last_number": 0, "filed": 0, "lease_until": 0.0}
            conn.execute(audit_state.insert().values(**first))

        number = 1 if state is None else state.last_number + 1
        stopped_at = None if state is None else state.stopped_at
        oldest = conn.execute(sa.select(sa.func.min(audit.c.number))).scalar()
        waiting = 0 if oldest is None else number - oldest

        if stopped_at is None and waiting >= self.limits.audit_rows:
            self._stop_audit(conn, now=made_at, number=number, waiting=waiting)
            return
        if stopped_at is not None and oldest is not None:
            lost = {"last_number": number, "lost": audit_state.c.lost + 1}
            conn.execute(audit_state.update().values(**lost))
            return
        if stopped_at is not None:
            self._restart_audit(conn, now=made_at, number=number, lost=number - stopped_at)
            number += 1
        self._insert_audit(conn, number, made_at, event, facts)

    def _stop_audit(self, conn: Connection, now: float, number: int, waiting: int) -> None:
        log.error(
            "audit: %d messages wait for the repository, at most %d may; recording stops until "
            "they have gone out; make the repository (audit.repository) or the file (audit.file) "
            "reachable",
            waiting,
            self.limits.audit_rows,
        )
        self._insert_audit(conn, number, now, "recording_stopped", {"waiting": str(waiting)})
        stopped = {"stopped_at": number, "lost": audit_state.c.lost + 1}
        conn.execute(audit_state.update().values(**stopped))

    def _restart_audit(self, conn: Connection, now: float, number: int, lost: int) -> None:
        log.error("audit: recording goes on; %d events were not recorded", lost)
        self._insert_audit(conn, number, now, "recording_started", {"lost": str(lost)})
        conn.execute(audit_state.update().values(stopped_at=None))

    def _insert_audit(
        self, conn: Connection, number: int, made_at: float, event: str, facts: Mapping[str, str]
    ) -> None:
        row = {"number": number, "made_at": made_at, "event": event}
        conn.execute(audit.insert().values(facts=json.dumps(dict(facts)), **row))
        conn.execute(audit_state.update().values(last_number=number))

    def _audit_received(
        self, conn: Connection, image: sa.RowMapping, completion: Completion
    ) -> None:
        """Recorded when the image ends, because only then its study is known.

        An image ends again if its results are made again, or if a person retries it.
        """
        if not self.is_audited or image["result_time"] is not None:
            return

        facts = {
            "ae_title": image["calling_ae_title"],
            "address": image["calling_address"] or "",
            "study_instance_uid": completion.study_instance_uid or "",
            "sop_class_uid": image["sop_class_uid"],
            "sop_instance_uid": image["sop_instance_uid"],
            "spool_name": image["spool_name"],
        }
        self._audit(conn, image["received_at"], "received", facts)

    def _audit_sent(
        self, conn: Connection, now: float, job: DeliveryJob, recipient: Recipient
    ) -> None:
        if not self.is_audited:
            return
        study = (
            sa.select(instances.c.study_instance_uid)
            .join(results, results.c.instance_id == instances.c.id)
            .join(deliveries, deliveries.c.result_id == results.c.id)
            .where(deliveries.c.id == job.id)
        )

        there = (
            {"ae_title": recipient.name, "address": recipient.host}
            if recipient.host
            else {"folder": recipient.name}
        )
        facts = there | {
            "study_instance_uid": conn.execute(study).scalar() or "",
            "sop_class_uid": job.result.sop_class_uid,
            "sop_instance_uid": job.result.sop_instance_uid,
            "spool_name": job.result.spool_name,
        }
        self._audit(conn, now, "sent" if recipient.host else "exported", facts)

    def _audit_command(self, conn: Connection, now: float, by: str, what: str) -> None:
        if self.is_audited and by:
            self._audit(conn, now, "command", {"by": by, "what": what})

    # -- storage commitment ---------------------------------------------------------------------

    def ask_commitment(
        self, destination: str, limit: int, first_wait_s: float
    ) -> CommitmentRequest | None:
        """The next commitment request to one destination, recorded before it is sent; or None.

        Without a report it is due again after `first_wait_s`, and then after twice as long each
        time.
        """
        with self._database.transaction() as (conn, now):
            rows = conn.execute(self._uncommitted(destination, now, limit)).all()
            if not rows:
                return None

            for row in rows:
                again = {
                    "commit_due_at": now + self._doubling(first_wait_s, row.commit_asks),
                    "commit_asks": row.commit_asks + 1,
                    # The outcome of the last request; this one is not accepted yet.
                    "why": None,
                }
                conn.execute(deliveries.update().where(deliveries.c.id == row.id).values(**again))

            transaction_uid = f"2.25.{uuid.uuid4().int}"
            request = {
                "transaction_uid": transaction_uid,
                "destination": destination,
                "asked_at": now,
            }
            conn.execute(commitments.insert().values(**request))
            references = tuple((row.sop_class_uid, row.sop_instance_uid) for row in rows)
            asked_before = sum(row.commit_asks > 0 for row in rows)
            return CommitmentRequest(transaction_uid, references, asked_before)

    def _uncommitted(self, destination: str, now: float, limit: int) -> sa.Select[Any]:
        return (
            sa.select(
                deliveries.c.id,
                deliveries.c.commit_asks,
                results.c.sop_class_uid,
                results.c.sop_instance_uid,
            )
            .join(results, results.c.id == deliveries.c.result_id)
            .where(
                deliveries.c.destination == destination,
                state_is(deliveries, "stored"),
                deliveries.c.commit_due_at.is_not(None),
                self._is_request_due(now),
            )
            .order_by(deliveries.c.commit_due_at)
            .limit(limit)
            .with_for_update(skip_locked=True, of=deliveries)
        )

    def postpone_commitment(
        self, destination: str, request: CommitmentRequest, why: str, delay_s: float
    ) -> None:
        """The request was not accepted: it is due again after `delay_s`."""
        with self._database.transaction() as (conn, now):
            again = {
                "commit_due_at": now + delay_s,
                "commit_asks": deliveries.c.commit_asks - 1,
                "why": why,
            }
            for part in in_parts(uid for _, uid in request.references):
                conn.execute(_stored_at(destination, part).values(**again))

    def record_commitment_report(
        self,
        destination: str,
        transaction_uid: str,
        committed: Collection[str],
        lost: Mapping[str, str],
        refused: Mapping[str, str],
    ) -> bool:
        """Record a destination's report: SOP Instance UIDs, the failed objects with the reason.

        Lost objects are owed again, later each time. An object that the report does not mention is
        asked for again when that is due. Returns False, and changes nothing, for a transaction UID
        under which this destination was not asked.
        """
        with self._database.transaction() as (conn, now):
            request = commitments.update().where(
                commitments.c.transaction_uid == transaction_uid,
                commitments.c.destination == destination,
            )
            if not conn.execute(request.values(reported_at=now)).rowcount:
                return False

            done = {"state": delivery_after(DeliveryEvent.COMMIT), "committed_at": now, "why": None}
            number = 0
            for part in in_parts(committed):
                number += conn.execute(_stored_at(destination, part).values(**done)).rowcount

            for uid, why in lost.items():
                self._owe_lost(conn, now, destination, uid, why)

            for uid, why in refused.items():
                denied = {"state": delivery_after(DeliveryEvent.DENY), "why": why}
                conn.execute(_stored_at(destination, [uid]).values(**denied))

            committed_state = delivery_after(DeliveryEvent.COMMIT)
            tallies.count_deliveries(conn, destination, committed_state, number)
            self._database.ring(conn)
            return True

    def _owe_lost(self, conn: Connection, now: float, destination: str, uid: str, why: str) -> None:
        """Owe an object again because the archive has lost it."""
        asks = sa.select(deliveries.c.id, deliveries.c.commit_asks).where(
            _is_stored_at(destination, [uid])
        )

        for row in conn.execute(asks).all():
            # At once the first time, then later: do not send in an endless loop to an archive that
            # loses everything.
            wait_s = 0.0
            if row.commit_asks > 1:
                longest_s = self.limits.longest_delivery_wait_s
                wait_s = doubled_s(self.limits.forgetful_s, longest_s, row.commit_asks - 2)

            again = _owed_again(now, DeliveryEvent.LOSE) | {
                "why": why,
                "due_at": now + wait_s,
                "commit_due_at": None,
            }
            conn.execute(deliveries.update().where(deliveries.c.id == row.id).values(**again))

    # -- retention ------------------------------------------------------------------------------

    def give_up_bytes(
        self, kept_s: float, kept_failed_s: float, committing: Collection[str], limit: int
    ) -> list[str]:
        """Give up bytes of the oldest images on which nothing is owed, at most `limit` images.

        They are kept for `kept_s` seconds; for `kept_failed_s` where the image failed or a result
        was refused, since a person may want that tried again; and always while a destination of
        `committing` has not committed to a result that it stored. After a leap of the clock an age
        proves nothing for some days (leaps.py): only bytes that are kept for 0 seconds go.

        Returns the files to remove. After a crash they are orphans, and are swept.
        """
        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(conn, _RETENTION)
            do_ages_count = look_at_clock(conn, now)
            kept_since = _ended_before(now, kept_s, do_ages_count)
            kept_failed_since = _ended_before(now, kept_failed_s, do_ages_count)

            done = _done_since(kept_since, kept_failed_since, committing).limit(limit)
            rows = conn.execute(done.with_for_update(skip_locked=True)).all()
            ids = [row.id for row in rows]
            conn.execute(instances.update().where(instances.c.id.in_(ids)).values(removed_at=now))

            made = sa.select(results.c.spool_name).where(results.c.instance_id.in_(ids))
            files = [row.spool_name for row in rows]
            files += conn.execute(made).scalars()

            unanswered_since = _ended_before(now, self.limits.commitments_kept_s, do_ages_count)
            conn.execute(commitments.delete().where(commitments.c.asked_at < unanswered_since))
            return files

    def spool_identity(self, proposed: str | None) -> str | None:
        """The spool of this ledger's files: the first one proposed. None: no spool."""
        with self._database.transaction() as (conn, _):
            self._database.lock_until_commit(conn, _SPOOL)
            known: str | None = conn.execute(sa.select(spools.c.identity)).scalar()
            if known is None and proposed is not None:
                conn.execute(spools.insert().values(identity=proposed))
            return known or proposed

    # -- people ---------------------------------------------------------------------------------

    def rearm(
        self,
        states: Sequence[str],
        uids: Sequence[str],
        to: Collection[str] | None = None,
        by: str = "",
    ) -> int:
        """`pleura retry`: failed images wait again, refused deliveries are owed again.

        `uids` are SOP Instance UIDs of images or results; an empty list means all in these states.
        `to`: deliveries to these destinations only. Work whose bytes retention gave up cannot be
        re-armed. Returns how many were.
        """
        with self._database.transaction() as (conn, now):
            # Bytes that retention is giving up cannot be owed again.
            self._database.lock_until_commit(conn, _RETENTION)
            count = 0
            if ImageState.FAILED in states:
                waits = _waits_again(now, ImageEvent.REARM)
                ended = {"reason": None, "detail": None, "completed_at": None}
                count += conn.execute(_failed_images(uids).values(**ended, **waits)).rowcount

            if DeliveryState.REFUSED in states:
                owed = _owed_again(now, DeliveryEvent.REARM)
                refused = _refused_deliveries(uids)
                if to is not None:
                    refused = refused.where(deliveries.c.destination.in_(list(to)))
                count += conn.execute(refused.values(why=None, **_UNTRIED, **owed)).rowcount

            if count:
                self._audit_command(conn, now, by, f"retry: {count} tried again")
            self._database.ring(conn)
            return count

    def readdress(
        self, old: str, to: str, kinds: Collection[str], uids: Sequence[str] = (), by: str = ""
    ) -> Readdressed:
        """Owe to `to`, and now, what is owed to `old` or was refused under that name.

        For a destination that was renamed: `old` has left the settings. `kinds`: of the results
        that `to` takes. `uids` are SOP Instance UIDs of results; an empty list means all. A result
        that is addressed to `to` already stays, and so does a refused one whose bytes retention
        gave up.
        """
        other = deliveries.alias()
        has_one = sa.exists().where(
            other.c.result_id == deliveries.c.result_id, other.c.destination == to
        )
        owed = deliveries.update().where(state_is(deliveries, "owed"), _is_of_results(uids))
        are_taken = deliveries.c.result_id.in_(
            sa.select(results.c.id).where(results.c.kind.in_(list(kinds)))
        )
        stay = sa.select(sa.func.count(deliveries.c.id)).where(
            deliveries.c.destination == old,
            sa.or_(state_is(deliveries, "owed"), state_is(deliveries, "refused")),
            _is_of_results(uids),
        )

        with self._database.transaction() as (conn, now):
            # Bytes that retention is giving up cannot be owed again.
            self._database.lock_until_commit(conn, _RETENTION)
            fresh = {"destination": to, "why": None, **_AS_NEVER_SENT}
            moves = (
                (owed, {"due_at": now}),
                (_refused_deliveries(uids), _owed_again(now, DeliveryEvent.REARM)),
            )

            count = 0
            for chosen, again in moves:
                mine = chosen.where(
                    deliveries.c.destination == old,
                    deliveries.c.owner.is_(None),
                    are_taken,
                    ~has_one,
                )
                count += conn.execute(mine.values(**fresh, **again)).rowcount
            if count:
                what = f"retry: {count} for {old} are sent to {to}"
                self._audit_command(conn, now, by, what)
            self._database.ring(conn)

            not_taken = conn.execute(stay.where(~are_taken)).scalar_one()
            already_there = conn.execute(stay.where(are_taken, has_one)).scalar_one()
            return Readdressed(count, not_taken, already_there)

    def hasten(
        self, destinations_now: Collection[str], uids: Sequence[str] = (), by: str = ""
    ) -> int:
        """`pleura retry --now`: deliveries to these destinations are due now. Returns how many.

        Their couriers end their pause. `uids` are SOP Instance UIDs of results; an empty list means
        all.
        """
        names = list(destinations_now)
        with self._database.transaction() as (conn, now):
            owed = deliveries.update().where(
                state_is(deliveries, "owed"), deliveries.c.destination.in_(names)
            )
            owed = owed.where(_is_of_results(uids))
            count = conn.execute(owed.values(due_at=now)).rowcount

            paused = destinations.update().where(destinations.c.name.in_(names))
            conn.execute(paused.values(next_try_at=now))
            if count:
                what = f"retry: {count} due now to {', '.join(sorted(names))}"
                self._audit_command(conn, now, by, what)
            self._database.ring(conn)
            return count

    def resend(
        self,
        destination: str,
        since: float | None = None,
        uids: Sequence[str] = (),
        by: str = "",
    ) -> tuple[int, int]:
        """`pleura resend`: owe stored objects again, to an archive that lost them.

        `since`: only objects stored from then on, by the ledger's clock. `uids`: Study Instance
        UIDs, SOP Instance UIDs of images or of results. Returns how many are owed again, and how
        many cannot be, because their bytes were given up.
        """
        of_images = results.join(instances, instances.c.id == results.c.instance_id)
        named = sa.select(results.c.id).select_from(of_images)
        if uids:
            named = named.where(
                sa.or_(
                    results.c.sop_instance_uid.in_(uids),
                    instances.c.sop_instance_uid.in_(uids),
                    instances.c.study_instance_uid.in_(uids),
                )
            )
        chosen = [
            deliveries.c.destination == destination,
            deliveries.c.state.in_(deliveries_before(DeliveryEvent.RESEND)),
            state_is_not(deliveries, "owed"),
        ]
        if since is not None:
            chosen.append(deliveries.c.stored_at >= since)

        with self._database.transaction() as (conn, now):
            # Bytes that retention is giving up cannot be owed again.
            self._database.lock_until_commit(conn, _RETENTION)
            gone = named.where(instances.c.removed_at.is_not(None))
            count_gone = sa.select(sa.func.count()).select_from(deliveries)
            count_gone = count_gone.where(*chosen, deliveries.c.result_id.in_(gone))
            without_bytes = int(conn.execute(count_gone).scalar() or 0)

            kept = named.where(instances.c.removed_at.is_(None))
            again = deliveries.update().where(*chosen, deliveries.c.result_id.in_(kept))
            owed = _owed_again(now, DeliveryEvent.RESEND)
            count = conn.execute(again.values(**_AS_NEVER_SENT, **owed)).rowcount
            if count:
                what = f"resend: {count} objects are sent again to {destination}"
                self._audit_command(conn, now, by, what)
            self._database.ring(conn)
            return count, without_bytes

    # -- heartbeats -----------------------------------------------------------------------------

    def count_arrivals(self) -> int:
        """Add new images to the counters of their senders (senders.py). Returns how many."""
        return count_arrivals(self._database)

    def beat(self, role: str, owner: str, facts: Mapping[str, Any] | None = None) -> None:
        """Record that this process of a role is alive, and delete rows of processes long dead.

        `facts`: what it reports of itself (heartbeat.py).
        """
        with self._database.transaction() as (conn, now):
            mine = sa.and_(roles.c.owner == owner, roles.c.role == role)
            row = {"beat_at": now, "facts": json.dumps(facts or {})}
            if not conn.execute(roles.update().where(mine).values(**row)).rowcount:
                conn.execute(roles.insert().values(owner=owner, role=role, **row))

            long_dead = roles.c.beat_at < now - self.limits.roles_kept_s
            conn.execute(roles.delete().where(_of_idle_processes(long_dead)))

            # After a clock was set back, a process that is dead would seem alive until then.
            ahead = _of_idle_processes(roles.c.beat_at > now)
            conn.execute(roles.update().where(ahead).values(beat_at=now))

    def end_beat(self, role: str, owner: str) -> None:
        """This process of a role ends normally."""
        with self._database.transaction() as (conn, _):
            conn.execute(roles.delete().where(roles.c.owner == owner, roles.c.role == role))

    def note_destination(
        self,
        name: str,
        trouble: str | None,
        pause_s: float = 0.0,
        answer: str = "it stores",
    ) -> None:
        """Record a destination's last answer in words, and when it is tried again.

        `trouble` None: it works again, and `answer` says what it did.
        """
        mine = destinations.c.name == name
        if trouble is None:
            self._note_up(mine & destinations.c.down_since.is_not(None), answer)
            return

        with self._database.transaction() as (conn, now):
            before = conn.execute(sa.select(destinations).where(mine)).first()
            down_since = before.down_since if before is not None else None
            row: dict[str, Any] = {
                # A time in the future is from a clock that was set back.
                "down_since": now if down_since is None else min(down_since, now),
                "last_answer": trouble,
                "answered_at": now,
                "next_try_at": now + pause_s,
            }

            if before is None:
                conn.execute(destinations.insert().values(name=name, **row))
            else:
                conn.execute(destinations.update().where(mine).values(**row))

    def _note_up(self, is_down: sa.ColumnElement[bool], answer: str) -> None:
        # The row decides, not a courier's memory of it: another courier, on another host or from
        # before a reload, may have written since. Usually nothing has changed, and reading takes no
        # lock.
        with self._database.reading() as conn:
            if conn.execute(sa.select(destinations.c.name).where(is_down)).first() is None:
                return

        with self._database.transaction() as (conn, now):
            row = {
                "down_since": None,
                "last_answer": answer,
                "answered_at": now,
                "next_try_at": None,
            }
            conn.execute(destinations.update().where(is_down).values(**row))

    # -- times ----------------------------------------------------------------------------------

    def _is_lease_over(self, until: sa.Column[float], now: float) -> sa.ColumnElement[bool]:
        longest_s = self.limits.leases_outlived * self.limits.lease_s
        return sa.or_(until <= now, until > now + longest_s)

    def _is_delivery_due(self, now: float) -> sa.ColumnElement[bool]:
        """Whether a delivery is due. A delivery that was never put off always is: if its time is
        in the future, the clock was set back.
        """
        due_at = deliveries.c.due_at
        was_put_off = due_at != deliveries.c.owed_at
        longest_s = self.limits.longest_delivery_wait_s
        return sa.or_(due_at <= now, sa.not_(was_put_off), due_at > now + longest_s)

    def _is_request_due(self, now: float) -> sa.ColumnElement[bool]:
        """Whether a commitment request is due. The first waits are short, later waits grow."""
        due_at = deliveries.c.commit_due_at
        longest_s = sa.case(
            (deliveries.c.commit_asks > 1, self.limits.longest_wait_s),
            else_=self.limits.longest_delivery_wait_s,
        )
        return sa.or_(due_at <= now, due_at > now + longest_s)

    def _doubling(self, first_s: float, times: int) -> float:
        return doubled_s(first_s, self.limits.longest_wait_s, times)


# -- rows and statements in pieces -----------------------------------------------------------------


def _table_of(job: ImageJob | DeliveryJob) -> sa.Table:
    return instances if isinstance(job, ImageJob) else deliveries


def _is_held(job: ImageJob | DeliveryJob) -> tuple[sa.ColumnElement[bool], ...]:
    table = _table_of(job)
    open_state = dict(_LEASED)[table]
    return table.c.id == job.id, table.c.attempt == job.attempt, table.c.state == open_state


def _held(job: ImageJob | DeliveryJob) -> sa.Update:
    """An update that changes nothing when another attempt has begun since."""
    return _table_of(job).update().where(*_is_held(job))


def _duplicate_of(original: int, completion: Completion, now: float) -> dict[str, Any]:
    """No new work and no new result, whatever model is loaded now (docs/rules.md, "Duplicates")."""
    return {
        "state": image_after(ImageEvent.RECOGNISE),
        "duplicate_of": original,
        "content_digest": completion.content_digest,
        "study_instance_uid": completion.study_instance_uid,
        "accession_digest": completion.accession_digest,
        "device_model": completion.device_model,
        "completed_at": now,
        "owner": None,
    }


def _ended(job: ImageJob, completion: Completion, now: float) -> dict[str, Any]:
    return {
        "state": image_after(ENDINGS[ImageState(completion.state)]),
        "reason": completion.reason,
        "detail": completion.detail,
        "content_digest": completion.content_digest,
        "study_instance_uid": completion.study_instance_uid,
        "probability": completion.probability,
        "positive": completion.positive,
        "model": completion.model,
        "device": completion.device,
        "accession_digest": completion.accession_digest,
        "device_model": completion.device_model,
        "completed_at": now,
        "steps": json.dumps(completion.steps) if completion.steps else None,
        "result_time": job.result_time,
        "owner": None,
    }


def _new_delivery(
    result_id: int, destination: str, image: sa.RowMapping, now: float
) -> dict[str, Any]:
    return {
        "result_id": result_id,
        "destination": destination,
        "priority": image["priority"],
        "state": DeliveryState.OWED.value,
        "owed_at": now,
        "due_at": now,
        "lease_until": 0.0,
        "attempt": 0,
        "failures": 0,
    }


def _waits_again(now: float, event: ImageEvent) -> dict[str, Any]:
    """An ended image waits again: its attempts are forgotten, and no earlier attempt is valid."""
    return {
        "state": image_after(event),
        "lease_until": now,
        "attempt": instances.c.attempt + 1,
        "unfinished": 0,
        "unfinished_alone": 0,
    }


def _owed_again(now: float, event: DeliveryEvent) -> dict[str, Any]:
    """An ended delivery is owed again; no earlier attempt is valid."""
    return {
        "state": delivery_after(event),
        "owed_at": now,
        "due_at": now,
        "lease_until": now,
        "attempt": deliveries.c.attempt + 1,
    }


def _is_stored_at(destination: str, uids: Sequence[str]) -> sa.ColumnElement[bool]:
    named = sa.select(results.c.id).where(results.c.sop_instance_uid.in_(uids))
    return sa.and_(
        deliveries.c.destination == destination,
        deliveries.c.state == DeliveryState.STORED.value,
        deliveries.c.result_id.in_(named),
    )


def _stored_at(destination: str, uids: Sequence[str]) -> sa.Update:
    return deliveries.update().where(_is_stored_at(destination, uids))


def _failed_images(uids: Sequence[str]) -> sa.Update:
    failed = instances.update().where(
        instances.c.state.in_(images_before(ImageEvent.REARM)),
        state_is_not(instances, "received"),
        instances.c.removed_at.is_(None),
    )
    return failed.where(instances.c.sop_instance_uid.in_(uids)) if uids else failed


def _is_of_results(uids: Sequence[str]) -> sa.ColumnElement[bool]:
    """Deliveries of these results; of all results if the list is empty."""
    if not uids:
        return sa.true()
    named = sa.select(results.c.id).where(results.c.sop_instance_uid.in_(uids))
    return deliveries.c.result_id.in_(named)


def _refused_deliveries(uids: Sequence[str]) -> sa.Update:
    sendable = (
        sa.select(results.c.id)
        .join(instances, instances.c.id == results.c.instance_id)
        .where(instances.c.removed_at.is_(None))
    )
    if uids:
        sendable = sendable.where(results.c.sop_instance_uid.in_(uids))
    return deliveries.update().where(
        deliveries.c.state.in_(deliveries_before(DeliveryEvent.REARM)),
        state_is_not(deliveries, "owed"),
        deliveries.c.result_id.in_(sendable),
    )


def _of_idle_processes(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """The rows of `roles` that `condition` selects, without those that are locked.

    Their processes send a heartbeat at this moment. Two heartbeats that wait for each other's rows
    would be a deadlock.
    """
    key = (roles.c.owner, roles.c.role)
    idle = sa.select(*key).where(condition).with_for_update(skip_locked=True)
    return sa.tuple_(*key).in_(idle.correlate(None))


def _ended_before(now: float, kept_s: float, do_ages_count: bool) -> float:
    """When an image must have ended for its bytes to go: seconds since 1970.

    Bytes that need not be kept go even where the image ended in the future, by a clock that was set
    back. Otherwise they would fill the disk.
    """
    if kept_s <= 0:
        return _END_OF_TIME
    return now - kept_s if do_ages_count else -_END_OF_TIME


def _done_since(
    kept_since: float, kept_failed_since: float, committing: Collection[str]
) -> sa.Select[Any]:
    """Images whose bytes may go: nothing is owed on them, and they ended before these times."""
    mine = (
        sa.select(deliveries.c.id)
        .join(results, results.c.id == deliveries.c.result_id)
        .where(results.c.instance_id == instances.c.id)
    )
    awaits_commitment = sa.and_(
        deliveries.c.state == DeliveryState.STORED.value,
        deliveries.c.commit_due_at.is_not(None),
        deliveries.c.destination.in_(list(committing)),
    )
    is_owed = sa.or_(deliveries.c.state == DeliveryState.OWED.value, awaits_commitment)
    is_troubled = sa.or_(
        instances.c.state == ImageState.FAILED.value,
        mine.where(deliveries.c.state == DeliveryState.REFUSED.value).exists(),
    )

    return (
        sa.select(instances.c.id, instances.c.spool_name)
        .where(
            instances.c.removed_at.is_(None),
            instances.c.state.in_(images_before(ImageEvent.GIVE_UP_BYTES)),
            # The index can use only the first comparison.
            instances.c.completed_at <= max(kept_since, kept_failed_since),
            instances.c.completed_at <= sa.case((is_troubled, kept_failed_since), else_=kept_since),
            sa.not_(mine.where(is_owed).exists()),
        )
        .order_by(instances.c.completed_at)
    )
