"""The one place where states live: what was received, what became of it, what is owed to whom.

Every transition is one method and one transaction. A caller holds work by a lease: a claim names its attempt, and
every later transition names that attempt and changes nothing when another has taken over since (design, "Leases").
SQLAlchemy Core over SQLite (WAL, synchronous FULL) or PostgreSQL; the statements are the same.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url

from daemon.schema import SCHEMA_VERSION, deliveries, instances, metadata, results, schema_version

LEASE_S = 60.0  # a dead owner's work is claimable after this; owners at work renew it (heartbeat)
_HOPELESS = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_NOTADB", "SQLITE_PERM")  # no other start would do better
_LONGEST_WAIT_S = 3600.0  # nothing is put off for longer; a later date is a clock that was set back
_DOORBELL_S = 0.01  # PRAGMA data_version costs 2 microseconds
_POLL_S = 0.2  # where there is no doorbell (PostgreSQL, until LISTEN is built)


@dataclass(frozen=True)
class Arrival:
    """One object whose bytes are already durable in the spool. UIDs are the command set's, never used as names."""

    spool_name: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    origin: str  # dimse, inbox
    priority: int  # 0 stat, 1 routine, 2 low
    size_bytes: int


@dataclass(frozen=True)
class ImageJob:
    """One claimed image. `alone` says that it has earlier unfinished attempts and was claimed without neighbours."""

    id: int
    attempt: int
    spool_name: str
    sop_instance_uid: str
    unfinished_alone: int  # solitary attempts that began before this one and never ended
    claimed_at: float  # the ledger's clock, seconds since 1970


@dataclass(frozen=True)
class StoredResult:
    """One result object in the spool."""

    kind: str
    spool_name: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class Completion:
    """The end of one image, as the ledger keeps it."""

    state: str
    content_digest: str
    study_instance_uid: str | None = None
    reason: str | None = None
    detail: str = ""
    probability: float | None = None
    positive: bool | None = None
    model: str | None = None
    results: tuple[StoredResult, ...] = ()


@dataclass(frozen=True)
class DeliveryJob:
    """One claimed delivery."""

    id: int
    attempt: int
    destination: str
    failures: int  # how often the destination has answered this object with a failure status
    result: StoredResult


def owner_name() -> str:
    """Who holds a lease: host and process, for a reader of the ledger."""
    return f"{socket.gethostname()}:{os.getpid()}"


class LedgerError(Exception):
    """The ledger cannot be used as it is: the message says where and what to do."""


class Ledger:
    """States behind one URL. `clock` gives seconds since 1970 on SQLite; PostgreSQL uses its own."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time, lease_s: float = LEASE_S) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._engine = _engine(url)
        self._reader = self._engine.execution_options(write=False)
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        self._bell = threading.local()
        try:
            self._create()
        except sa.exc.DBAPIError as error:
            if getattr(error.orig, "sqlite_errorname", "").startswith(_HOPELESS):
                raise LedgerError(f"ledger {url}: cannot be opened or created ({error.orig})") from error
            raise  # a full disk, a lock or a server that is away: the role is started again until that is over

    @classmethod
    def existing(cls, url: str) -> Ledger:
        """The ledger of a node that has run; raises LedgerError rather than make an empty one at a mistyped path."""
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
            raise LedgerError(f"ledger {url}: there is no such file; the node has not run with these settings yet")
        return cls(url)

    def close(self) -> None:
        self._engine.dispose()

    # -- receive ------------------------------------------------------------------------------------------------

    def receive(self, arrivals: Sequence[Arrival]) -> list[int]:
        """Record what was received, all of it in one commit. Returns the row ids, in order."""
        with self._transaction() as (conn, now):
            ids = []
            for arrival in arrivals:
                values = {name: getattr(arrival, name) for name in Arrival.__dataclass_fields__}
                row = conn.execute(
                    instances.insert().values(
                        **values,
                        received_at=now,
                        state="received",
                        lease_until=0.0,
                        attempt=0,
                        unfinished=0,
                        unfinished_alone=0,
                    )
                )
                assert row.inserted_primary_key is not None
                ids.append(int(row.inserted_primary_key[0]))
            return ids

    def known_spool_names(self, names: Iterable[str]) -> set[str]:
        """Which of these spool names any row owns; the others are orphans of a crash before the commit."""
        known: set[str] = set()
        wanted = list(names)
        with self._reader.connect() as conn:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                for table in (instances, results):
                    known.update(
                        conn.execute(sa.select(table.c.spool_name).where(table.c.spool_name.in_(part))).scalars()
                    )
        return known

    # -- analyse ------------------------------------------------------------------------------------------------

    def claim_images(self, owner: str, limit: int) -> list[ImageJob]:
        """Lease what is waiting: stat first, then oldest, at most `limit`.

        An image with an unfinished earlier attempt comes alone, so that what kills a worker is known by name.
        """
        with self._transaction() as (conn, now):
            waiting = (
                sa.select(instances)
                .where(instances.c.state == "received", _past(instances.c.lease_until, now))
                .order_by(instances.c.priority, instances.c.id)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            rows = conn.execute(waiting).mappings().all()
            if not rows:
                return []
            suspects = [row for row in rows if row["unfinished"] > 0]
            alone = rows[0]["unfinished"] > 0
            chosen = suspects[:1] if alone else [row for row in rows if row["unfinished"] == 0]
            jobs = []
            for row in chosen:
                conn.execute(
                    instances.update()
                    .where(instances.c.id == row["id"])
                    .values(
                        owner=owner,
                        lease_until=now + self._lease_s,
                        attempt=row["attempt"] + 1,
                        unfinished=row["unfinished"] + 1,
                        unfinished_alone=row["unfinished_alone"] + (1 if alone else 0),
                    )
                )
                jobs.append(
                    ImageJob(
                        id=row["id"],
                        attempt=row["attempt"] + 1,
                        spool_name=row["spool_name"],
                        sop_instance_uid=row["sop_instance_uid"],
                        unfinished_alone=row["unfinished_alone"],
                        claimed_at=now,
                    )
                )
            return jobs

    def renew(self, jobs: Sequence[ImageJob]) -> None:
        """The heartbeat of an owner at work."""
        with self._transaction() as (conn, now):
            for job in jobs:
                conn.execute(_held(instances, job).values(lease_until=now + self._lease_s))

    def give_back(self, job: ImageJob) -> None:
        """Return an image whose attempt ended for no fault of its own (shutdown, full disk): it does not count."""
        with self._transaction() as (conn, now):
            conn.execute(
                _held(instances, job).values(
                    owner=None,
                    lease_until=now,
                    attempt=job.attempt + 1,  # this attempt is over: giving back twice changes nothing
                    unfinished=instances.c.unfinished - 1,
                    unfinished_alone=job.unfinished_alone,
                )
            )

    def abandon(self, job: ImageJob) -> None:
        """End an attempt that broke: it counts as unfinished, and the image is claimable at once, alone."""
        with self._transaction() as (conn, now):
            conn.execute(_held(instances, job).values(owner=None, lease_until=now, attempt=job.attempt + 1))

    def complete(self, job: ImageJob, completion: Completion, owed: Mapping[str, Sequence[str]]) -> str | None:
        """Image done, deliveries owed: one transaction. `owed` maps a destination's name to the kinds it takes.

        Returns the state written ("duplicate" when the same content was completed before), or None when the
        attempt is stale: then nothing changed, and the caller's result files belong to nobody.
        """
        with self._transaction() as (conn, now):
            held = conn.execute(
                sa.select(instances)
                .where(instances.c.id == job.id, instances.c.attempt == job.attempt)
                .with_for_update()
            )
            row = held.mappings().first()
            if row is None or row["state"] != "received":
                return None
            original = self._earlier_same(conn, job, completion.content_digest)
            if original is not None:
                # Design, "Duplicates": no new work, no new result, whatever model is loaded now.
                conn.execute(
                    _held(instances, job).values(
                        state="duplicate",
                        duplicate_of=original,
                        content_digest=completion.content_digest,
                        study_instance_uid=completion.study_instance_uid,
                        completed_at=now,
                        owner=None,
                    )
                )
                return "duplicate"
            conn.execute(
                _held(instances, job).values(
                    state=completion.state,
                    reason=completion.reason,
                    detail=completion.detail,
                    content_digest=completion.content_digest,
                    study_instance_uid=completion.study_instance_uid,
                    probability=completion.probability,
                    positive=completion.positive,
                    model=completion.model,
                    completed_at=now,
                    owner=None,
                )
            )
            for result in completion.results:
                self._owe(conn, now, (job.id, row["priority"]), result, owed)
            return completion.state

    def _earlier_same(self, conn: Connection, job: ImageJob, content_digest: str) -> int | None:
        # A failed one is no original: who sends it again wants it tried again.
        found = conn.execute(
            sa.select(instances.c.id)
            .where(
                instances.c.sop_instance_uid == job.sop_instance_uid,
                instances.c.content_digest == content_digest,
                instances.c.state.in_(("analysed", "not_analysed")),
                instances.c.id != job.id,
            )
            .order_by(instances.c.id)
        ).scalar()
        return None if found is None else int(found)

    def _owe(
        self,
        conn: Connection,
        now: float,
        image: tuple[int, int],
        result: StoredResult,
        owed: Mapping[str, Sequence[str]],
    ) -> None:
        instance_id, priority = image
        same = conn.execute(
            sa.select(results.c.id).where(results.c.sop_instance_uid == result.sop_instance_uid)
        ).scalar()
        if same is not None:
            # Derived UIDs make an identical result identical (a retried failure that failed alike): owed already.
            return
        row = conn.execute(results.insert().values(instance_id=instance_id, **_fields(result)))
        assert row.inserted_primary_key is not None
        for destination, kinds in owed.items():
            if result.kind in kinds:
                conn.execute(
                    deliveries.insert().values(
                        result_id=row.inserted_primary_key[0],
                        destination=destination,
                        priority=priority,
                        state="owed",
                        due_at=now,
                        lease_until=0.0,
                        attempt=0,
                        failures=0,
                    )
                )

    def made(self, sop_instance_uid: str) -> bool:
        """Whether this UID is one of our own results: such an object is never analysed."""
        with self._reader.connect() as conn:
            found = conn.execute(sa.select(results.c.id).where(results.c.sop_instance_uid == sop_instance_uid)).first()
        return found is not None

    # -- deliver ------------------------------------------------------------------------------------------------

    def claim_deliveries(self, destination: str, owner: str, limit: int) -> list[DeliveryJob]:
        """Lease what is owed to one destination and due: stat first, then oldest."""
        with self._transaction() as (conn, now):
            due = (
                sa.select(
                    deliveries.c.id,
                    deliveries.c.attempt,
                    deliveries.c.failures,
                    *(results.c[name] for name in _RESULT_FIELDS),
                )
                .join(results, results.c.id == deliveries.c.result_id)
                .where(
                    deliveries.c.destination == destination,
                    deliveries.c.state == "owed",
                    _past(deliveries.c.due_at, now),
                    _past(deliveries.c.lease_until, now),
                )
                .order_by(deliveries.c.priority, deliveries.c.id)
                .limit(limit)
                .with_for_update(skip_locked=True, of=deliveries)
            )
            jobs = []
            for row in conn.execute(due).mappings().all():
                conn.execute(
                    deliveries.update()
                    .where(deliveries.c.id == row["id"])
                    .values(owner=owner, lease_until=now + self._lease_s, attempt=row["attempt"] + 1)
                )
                result = StoredResult(**{name: row[name] for name in _RESULT_FIELDS})
                jobs.append(DeliveryJob(row["id"], row["attempt"] + 1, destination, row["failures"], result))
            return jobs

    def stored(self, job: DeliveryJob, status: int) -> None:
        """The destination has it."""
        with self._transaction() as (conn, now):
            done = {"state": "stored", "status": status, "why": None, "owner": None, "stored_at": now}
            conn.execute(_held(deliveries, job).values(**done))

    def refused(self, job: DeliveryJob, why: str, status: int | None = None) -> None:
        """The destination will not take this object; visible until `pleura retry` re-arms it."""
        with self._transaction() as (conn, _):
            conn.execute(_held(deliveries, job).values(state="refused", why=why, status=status, owner=None))

    def retry_later(self, job: DeliveryJob, why: str, delay_s: float, status: int | None = None) -> None:
        """Still owed, due again after `delay_s`; `status` only where the destination answered with one."""
        with self._transaction() as (conn, now):
            later = {"why": why, "status": status, "owner": None, "due_at": now + delay_s, "lease_until": now}
            later["failures"] = job.failures + (status is not None)
            conn.execute(_held(deliveries, job).values(**later))

    def refuse_unknown_destinations(self, known: Iterable[str]) -> int:
        """Deliveries owed to a name that left the YAML become refused, visibly. Returns how many."""
        with self._transaction() as (conn, _):
            gone = deliveries.update().where(deliveries.c.state == "owed", deliveries.c.destination.not_in(list(known)))
            return conn.execute(
                gone.values(state="refused", why="destination is no longer configured", owner=None)
            ).rowcount

    # -- people -------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, dict[str, int]]:
        """What `pleura status` shows: each accepted instance and each delivery in exactly one count."""
        with self._reader.connect() as conn:
            groups = [
                ("instances", instances.c.state, ("received", "analysed", "not_analysed", "failed")),
                ("deliveries", deliveries.c.state, ("owed", "stored", "committed", "refused")),
            ]
            answer: dict[str, dict[str, int]] = {}
            for name, column, states in groups:
                found = {
                    state: int(n) for state, n in conn.execute(sa.select(column, sa.func.count()).group_by(column))
                }
                answer[name] = {state: found.get(state, 0) for state in states}
            return answer

    def troubles(self, limit: int = 20) -> dict[str, list[dict[str, Any]]]:
        """The newest not analysed, failed and refused, and what is owed and why, as UIDs and reasons."""
        c, d = instances.c, deliveries.c
        of_images = (
            sa.select(c.sop_instance_uid, c.state, c.reason, c.detail)
            .where(c.state.in_(("failed", "not_analysed")))
            .order_by(c.id.desc())
            .limit(limit)
        )
        of_deliveries = (
            sa.select(results.c.sop_instance_uid, results.c.kind, d.destination, d.state, d.attempt, d.why)
            .join(results, results.c.id == d.result_id)
            .where(d.why.is_not(None))
            .order_by(d.id.desc())
            .limit(limit)
        )
        with self._reader.connect() as conn:
            return {
                "instances": [dict(row) for row in conn.execute(of_images).mappings()],
                "deliveries": [dict(row) for row in conn.execute(of_deliveries).mappings()],
            }

    def history(self, sop_instance_uid: str) -> list[dict[str, Any]]:
        """What became of one image, each time it was received, oldest first; with its results and their deliveries."""
        c, d = instances.c, deliveries.c
        received = (
            sa.select(
                c.id, c.received_at, c.calling_ae_title, c.origin, c.state, c.reason, c.detail, c.positive,
                c.probability, c.model, c.completed_at,
            )
            .where(c.sop_instance_uid == sop_instance_uid)
            .order_by(c.id)
        )  # fmt: skip
        made = (
            sa.select(results.c.instance_id, results.c.kind, results.c.sop_instance_uid, d.destination, d.state, d.why)
            .join(deliveries, d.result_id == results.c.id, isouter=True)
            .join(instances, c.id == results.c.instance_id)
            .where(c.sop_instance_uid == sop_instance_uid)
            .order_by(results.c.id, d.id)
        )
        with self._reader.connect() as conn:
            rows = [dict(row) for row in conn.execute(received).mappings()]
            of_results = [dict(row) for row in conn.execute(made).mappings()]
        for row in rows:
            row["results"] = [one for one in of_results if one["instance_id"] == row["id"]]
        return rows

    def rearm(self, states: Sequence[str], uids: Sequence[str]) -> int:
        """`pleura retry`: failed images wait again, refused deliveries are owed again. Returns how many.

        `uids` are SOP Instance UIDs of images or results; none means all in these states.
        """
        with self._transaction() as (conn, now):
            count = 0
            if "failed" in states:
                failed = instances.update().where(instances.c.state == "failed")
                if uids:
                    failed = failed.where(instances.c.sop_instance_uid.in_(uids))
                count += conn.execute(
                    failed.values(
                        state="received",
                        reason=None,
                        detail=None,
                        completed_at=None,
                        lease_until=now,
                        unfinished=0,
                        unfinished_alone=0,
                    )
                ).rowcount
            if "refused" in states:
                refused = deliveries.update().where(deliveries.c.state == "refused")
                if uids:
                    named = sa.select(results.c.id).where(results.c.sop_instance_uid.in_(uids))
                    refused = refused.where(deliveries.c.result_id.in_(named))
                count += conn.execute(
                    refused.values(state="owed", why=None, due_at=now, lease_until=now, failures=0)
                ).rowcount
            return count

    # -- the bell -----------------------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> None:
        """Sleep until another process or thread may have committed something, at most `timeout_s`.

        Each waiting thread has a bell of its own: what was committed since it last woke wakes it at once.
        """
        deadline = time.monotonic() + timeout_s
        if not self._is_sqlite:
            time.sleep(min(timeout_s, _POLL_S))
            return
        bell: sqlite3.Connection | None = getattr(self._bell, "connection", None)
        if bell is None:
            bell = sqlite3.connect(str(self._engine.url.database), isolation_level=None)
            self._bell.connection = bell
            self._bell.heard = None
        while True:
            version = bell.execute("PRAGMA data_version").fetchone()[0]
            if version != self._bell.heard:
                self._bell.heard = version
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(_DOORBELL_S, left_s))

    # -- the engine ---------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Connection, float]]:
        with self._engine.begin() as conn:
            if self._is_sqlite:
                yield conn, self._clock()
            else:
                now = conn.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one()
                yield conn, float(now)

    def _create(self) -> None:
        with self._engine.begin() as conn:
            if not self._is_sqlite:
                # Several roles start at once: one creates, the others wait.
                conn.execute(sa.select(sa.func.pg_advisory_xact_lock(0x706C6575)))
            metadata.create_all(conn)
            version = conn.execute(sa.select(schema_version.c.version)).scalar()
            if version is None:
                conn.execute(schema_version.insert().values(version=SCHEMA_VERSION))
            elif version != SCHEMA_VERSION:
                raise LedgerError(
                    f"ledger {self._engine.url.render_as_string()}: schema version {version} found, "
                    f"{SCHEMA_VERSION} wanted; run the Pleura version that wrote it, or start with a new ledger"
                )


_RESULT_FIELDS = tuple(StoredResult.__dataclass_fields__)


def _fields(result: StoredResult) -> dict[str, str]:
    return {name: getattr(result, name) for name in _RESULT_FIELDS}


def _past(column: sa.Column[float], now: float) -> sa.ColumnElement[bool]:
    return sa.or_(column <= now, column > now + _LONGEST_WAIT_S)


def _held(table: sa.Table, job: ImageJob | DeliveryJob) -> sa.Update:
    """An update that changes nothing when another attempt has taken over since."""
    open_state = "received" if table is instances else "owed"
    return table.update().where(table.c.id == job.id, table.c.attempt == job.attempt, table.c.state == open_state)


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": 30})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's "begin" below starts transactions, not the driver
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            # Only for a new file; the switch asks for the whole file, and takes no time-out from "connect".
            for _ in range(200):
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    break
                except sqlite3.OperationalError:  # another role is at it
                    time.sleep(0.05)
        connection.execute("PRAGMA synchronous=FULL")  # a commit that was answered survives power loss
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer takes the lock at once: a read that turns into a write could not wait for it (SQLITE_BUSY).
        writes = connection.get_execution_options().get("write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
