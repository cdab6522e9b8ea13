"""The one place where states live: what was received, what became of it, what is owed to whom.

Every transition is one method and one transaction. A caller holds work by a lease: a claim names its attempt, and
every later transition names that attempt and changes nothing when another has taken over since (design, "Leases").
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

from daemon.ledger.database import Database, LedgerError
from daemon.ledger.schema import (
    commitments,
    deliveries,
    folders,
    instances,
    results,
    spools,
    state_is,
    state_is_not,
)

LEASE_S = 60.0  # a dead owner's work is claimable after this; owners at work renew it (heartbeat)
LONGEST_WAIT_S = 3600.0  # nothing is put off for longer; a later date is a clock that was set back
_MAXIMUM_REMAKES = 3  # of the results of one image whose files were lost
_REMAKE_S = 30.0  # when a delivery whose file is being made again is looked at again
_FORGETFUL_S = 60.0  # how long what an archive has lost a second time waits; doubled each time
_RETENTION = "retention"  # who gives up bytes, or owes them again, does it one after the other
_COMMITMENTS_KEPT_S = 90 * 86400.0  # an archive that reports later is asked again


class Arrival(NamedTuple):
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
    size_bytes: int  # what was accepted; a file of another size was damaged since
    result_time: float  # what its results say: the ledger's clock at the first completion, or now


@dataclass(frozen=True)
class StoredResult:
    """One result object in the spool."""

    kind: str
    spool_name: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size_bytes: int | None = None  # None: written by a version that did not count


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


@dataclass(frozen=True)
class CommitmentRequest:
    """What one destination is asked to commit to, under a transaction UID that its report will name."""

    transaction_uid: str
    references: tuple[tuple[str, str], ...]  # SOP class UID, SOP Instance UID


@dataclass(frozen=True)
class KeptFile:
    """A spool file that the ledger counts on."""

    spool_name: str
    size_bytes: int | None
    what: str  # for people: whose file it is


def owner_name() -> str:
    """Who holds a lease: where it runs, and its process ID."""
    return f"{this_machine()}:{os.getpid()}"


def this_machine() -> str:
    """Within what process IDs are unique: host, boot and (containers) namespace, for a reader of the ledger."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


class Ledger:
    """States behind one URL. `clock`, for tests, takes the place of the engine's own."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] | None = None,
        lease_s: float = LEASE_S,
        as_it_is: bool = False,
    ) -> None:
        """Open the ledger at `url`, creating it or bringing it forward, unless it is wanted as it is.

        Raises:
            LedgerError: it cannot be used.
        """
        self.url = url
        self._database = Database(url, clock, as_it_is)
        self._lease_s = lease_s
        # Compiled here and not in each commit, whose Python the associations wait for.
        columns = [*Arrival._fields, *_WAITING, "received_at"]
        self._receive = str(
            sa.insert(instances).compile(self._database.engine, column_keys=columns)
        )

    @classmethod
    def existing(cls, url: str, as_it_is: bool = False) -> Ledger:
        """The ledger of a node that has run; raises LedgerError rather than make an empty one at a mistyped path."""
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
            raise LedgerError(
                f"ledger {url}: there is no such file; the node has not run with these settings yet"
            )
        return cls(url, as_it_is=as_it_is)

    def close(self) -> None:
        self._database.close()

    # -- receive ------------------------------------------------------------------------------------------------

    def receive(self, arrivals: Sequence[Arrival]) -> None:
        """Record what was received, all of it in one commit.

        Raises:
            UndecidedError: the answer was lost on the way, and it may be committed at any time yet.
        """
        self._database.append(
            self._receive,
            lambda now: [
                arrival._asdict() | _WAITING | {"received_at": now} for arrival in arrivals
            ],
        )

    def settle(self) -> None:
        """Returns when what is being committed anywhere is there, or never will be; raises where that takes long."""
        self._database.wait_for_writers(instances)

    def known_spool_names(self, names: Iterable[str]) -> set[str]:
        """Which of these files are still counted on; the others are orphans of a crash, or were to be removed."""
        known: set[str] = set()
        wanted = list(names)
        with self._database.reading() as conn:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                for table, files in (
                    (instances, sa.select(instances.c.spool_name)),
                    (results, _RESULT_FILES),
                ):
                    kept = files.where(
                        table.c.spool_name.in_(part), instances.c.removed_at.is_(None)
                    )
                    known.update(conn.execute(kept).scalars())
        return known

    # -- analyse ------------------------------------------------------------------------------------------------

    def claim_images(self, owner: str, limit: int) -> list[ImageJob]:
        """Lease what is waiting: stat first, then oldest, at most `limit`.

        An image with an unfinished earlier attempt comes alone, so that what kills a worker is known by name; so does
        one whose results are made again, for they say a time of their own.
        """
        with self._database.transaction() as (conn, now):
            waiting = (
                sa.select(instances)
                .where(state_is(instances, "received"), _past(instances.c.lease_until, now))
                .order_by(instances.c.priority, instances.c.id)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            rows = conn.execute(waiting).mappings().all()
            if not rows:
                return []
            fresh = [row for row in rows if row["unfinished"] == 0 and row["result_time"] is None]
            alone = rows[0]["unfinished"] > 0
            chosen = fresh if rows[0] in fresh else rows[:1]
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
                        size_bytes=row["size_bytes"],
                        result_time=row["result_time"] or now,
                    )
                )
            return jobs

    def renew(self, jobs: Sequence[ImageJob] | Sequence[DeliveryJob]) -> None:
        """The heartbeat of an owner at work."""
        with self._database.transaction() as (conn, now):
            for job in jobs:
                table = instances if isinstance(job, ImageJob) else deliveries
                # Not what was given back meanwhile: it must not wait for a lease that nobody holds.
                conn.execute(
                    _held(job)
                    .where(table.c.owner.is_not(None))
                    .values(lease_until=now + self._lease_s)
                )

    def give_back(self, job: ImageJob) -> None:
        """Return an image whose attempt ended for no fault of its own (shutdown, full disk): it does not count."""
        with self._database.transaction() as (conn, now):
            conn.execute(
                _held(job).values(
                    owner=None,
                    lease_until=now,
                    attempt=job.attempt
                    + 1,  # this attempt is over: giving back twice changes nothing
                    unfinished=instances.c.unfinished - 1,
                    unfinished_alone=job.unfinished_alone,
                )
            )
            self._database.ring(conn)

    def abandon(self, job: ImageJob) -> None:
        """End an attempt that broke: it counts as unfinished, and the image is claimable at once, alone."""
        with self._database.transaction() as (conn, now):
            conn.execute(_held(job).values(owner=None, lease_until=now, attempt=job.attempt + 1))
            self._database.ring(conn)

    def complete(
        self, job: ImageJob, completion: Completion, owed: Mapping[str, Sequence[str]]
    ) -> str | None:
        """Image done, deliveries owed: one transaction. `owed` maps a destination's name to the kinds it takes.

        Returns the state written ("duplicate" when the same content was completed before), or None when the
        attempt is stale: then nothing changed, and the caller's result files belong to nobody.
        """
        with self._database.transaction() as (conn, now):
            # Of two copies of one image that end at the same time, on two hosts, one has to be the duplicate.
            self._database.lock_until_commit(conn, job.sop_instance_uid)
            held = conn.execute(
                sa.select(instances)
                .where(instances.c.id == job.id, instances.c.attempt == job.attempt)
                .with_for_update()
            )
            row = held.mappings().first()
            if row is None or row["state"] != "received":
                return None
            # One whose lost results are made again stays their owner, whoever was sent meanwhile.
            original = (
                None if row["remakes"] else self._earlier_same(conn, job, completion.content_digest)
            )
            if original is not None:
                # Design, "Duplicates": no new work, no new result, whatever model is loaded now.
                conn.execute(
                    _held(job).values(
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
                _held(job).values(
                    state=completion.state,
                    reason=completion.reason,
                    detail=completion.detail,
                    content_digest=completion.content_digest,
                    study_instance_uid=completion.study_instance_uid,
                    probability=completion.probability,
                    positive=completion.positive,
                    model=completion.model,
                    completed_at=now,
                    result_time=job.result_time,
                    owner=None,
                )
            )
            for result in completion.results:
                self._owe(conn, now, row, result, owed)
            self._database.ring(conn)
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
        image: sa.RowMapping,
        result: StoredResult,
        owed: Mapping[str, Sequence[str]],
    ) -> None:
        same = conn.execute(
            sa.select(results.c.id, results.c.instance_id).where(
                results.c.sop_instance_uid == result.sop_instance_uid
            )
        ).first()
        if same is not None:
            # Derived UIDs make an identical result identical: owed already. Where it was made again because its file
            # was lost, it is owed from the new file; where a second image failed alike, the first one's file stands.
            if same.instance_id == image["id"]:
                newer = {"spool_name": result.spool_name, "size_bytes": result.size_bytes}
                conn.execute(results.update().where(results.c.id == same.id).values(**newer))
                still_owed = deliveries.update().where(
                    deliveries.c.result_id == same.id, state_is(deliveries, "owed")
                )
                conn.execute(still_owed.values(due_at=now))
            return
        if image["remakes"]:
            return  # made again by another version or with other settings: a second answer is not what was lost
        row = conn.execute(results.insert().values(instance_id=image["id"], **_fields(result)))
        assert row.inserted_primary_key is not None
        for destination, kinds in owed.items():
            if result.kind in kinds:
                conn.execute(
                    deliveries.insert().values(
                        result_id=row.inserted_primary_key[0],
                        destination=destination,
                        priority=image["priority"],
                        state="owed",
                        due_at=now,
                        lease_until=0.0,
                        attempt=0,
                        failures=0,
                    )
                )

    def made(self, sop_instance_uid: str) -> bool:
        """Whether this UID is one of our own results: such an object is never analysed."""
        with self._database.reading() as conn:
            found = conn.execute(
                sa.select(results.c.id).where(results.c.sop_instance_uid == sop_instance_uid)
            ).first()
        return found is not None

    # -- deliver ------------------------------------------------------------------------------------------------

    def claim_deliveries(self, destination: str, owner: str, limit: int) -> list[DeliveryJob]:
        """Lease what is owed to one destination and due: stat first, then oldest."""
        with self._database.transaction() as (conn, now):
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
                    state_is(deliveries, "owed"),
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
                    .values(
                        owner=owner, lease_until=now + self._lease_s, attempt=row["attempt"] + 1
                    )
                )
                result = StoredResult(**{name: row[name] for name in _RESULT_FIELDS})
                jobs.append(
                    DeliveryJob(row["id"], row["attempt"] + 1, destination, row["failures"], result)
                )
            return jobs

    def stored(self, job: DeliveryJob, status: int, commitment: bool = False) -> None:
        """The destination has it; with `commitment` it is to be asked whether it keeps it."""
        with self._database.transaction() as (conn, now):
            done = {
                "state": "stored",
                "status": status,
                "why": None,
                "owner": None,
                "stored_at": now,
            }
            conn.execute(_held(job).values(**done, commit_due_at=now if commitment else None))
            if commitment:
                self._database.ring(conn)

    def refused(self, job: DeliveryJob, why: str, status: int | None = None) -> None:
        """The destination will not take this object; visible until `pleura retry` re-arms it."""
        with self._database.transaction() as (conn, _):
            conn.execute(_held(job).values(state="refused", why=why, status=status, owner=None))

    def retry_later(
        self, job: DeliveryJob, why: str, delay_s: float, status: int | None = None
    ) -> None:
        """Still owed, due again after `delay_s`; `status` only where the destination answered with one."""
        with self._database.transaction() as (conn, now):
            later = {
                "why": why,
                "status": status,
                "owner": None,
                "due_at": now + delay_s,
                "lease_until": now,
            }
            later["failures"] = job.failures + (status is not None)
            conn.execute(_held(job).values(**later))

    def give_back_delivery(self, job: DeliveryJob, why: str | None = None) -> None:
        """Return a delivery whose turn did not come; `why`: what is wrong with its destination, if anything."""
        with self._database.transaction() as (conn, now):
            conn.execute(
                _held(job).values(owner=None, lease_until=now, **({"why": why} if why else {}))
            )
            self._database.ring(conn)

    def remake(self, job: DeliveryJob, why: str) -> bool:
        """The result's file is lost: its image is analysed again, and the same result is owed from a new file.

        Returns False where that cannot be: the image's own bytes are gone, or it was tried often enough.
        """
        with self._database.transaction() as (conn, now):
            image = sa.select(results.c.instance_id).join(
                deliveries, deliveries.c.result_id == results.c.id
            )
            again = instances.update().where(
                instances.c.id == image.where(*_is_held(job)).scalar_subquery(),
                instances.c.removed_at.is_(None),
            )
            finished = instances.c.state.in_(("analysed", "not_analysed"))
            # Another of its results may have been found lost at the same time: then it waits already.
            waits = conn.execute(
                again.where(finished, instances.c.remakes < _MAXIMUM_REMAKES).values(
                    remakes=instances.c.remakes + 1, **_waits_again(now)
                )
            ).rowcount or (
                conn.execute(
                    again.where(state_is(instances, "received")).values(remakes=instances.c.remakes)
                ).rowcount
            )
            if waits:
                conn.execute(
                    _held(job).values(why=why, owner=None, due_at=now + _REMAKE_S, lease_until=now)
                )
                self._database.ring(conn)
            return bool(waits)

    def refuse_unknown_destinations(self, known: Iterable[str], owed_for_s: float = 0.0) -> int:
        """What has been owed for so long to a name that is not in the settings becomes refused. Returns how many."""
        with self._database.transaction() as (conn, now):
            gone = deliveries.update().where(
                state_is(deliveries, "owed"),
                deliveries.c.destination.not_in(list(known)),
                deliveries.c.due_at <= now - owed_for_s,
            )
            return conn.execute(
                gone.values(state="refused", why="destination is no longer configured", owner=None)
            ).rowcount

    def knows_folder(self, path: str) -> bool:
        """Whether results ever went to this folder."""
        with self._database.reading() as conn:
            return (
                conn.execute(sa.select(folders.c.path).where(folders.c.path == path)).first()
                is not None
            )

    def remember_folder(self, path: str) -> None:
        """Results go to this folder from now on."""
        with self._database.transaction() as (conn, _):
            self._database.lock_until_commit(conn, "folders")
            if (
                conn.execute(sa.select(folders.c.path).where(folders.c.path == path)).first()
                is None
            ):
                conn.execute(folders.insert().values(path=path))

    # -- leases -------------------------------------------------------------------------------------------------

    def owners(self) -> set[str]:
        """Who holds a lease, as owner_name() has it."""
        with self._database.reading() as conn:
            return {
                owner
                for table, state in ((instances, "received"), (deliveries, "owed"))
                for owner in conn.execute(
                    sa.select(table.c.owner)
                    .where(state_is(table, state), table.c.owner.is_not(None))
                    .distinct()
                ).scalars()
            }

    def expire(self, owner: str) -> None:
        """End the leases of an owner that is known to be dead: what it held need not wait for them to run out."""
        with self._database.transaction() as (conn, now):
            for table, state in ((instances, "received"), (deliveries, "owed")):
                held = table.update().where(state_is(table, state), table.c.owner == owner)
                conn.execute(held.values(owner=None, lease_until=now))
            self._database.ring(conn)

    # -- storage commitment --------------------------------------------------------------------------------------

    def ask_commitment(
        self, destination: str, limit: int, first_wait_s: float
    ) -> CommitmentRequest | None:
        """What to ask one destination for now, if anything. The question is recorded before it is asked.

        Without a report it comes up again after `first_wait_s` seconds, then after twice as long each time.
        """
        with self._database.transaction() as (conn, now):
            due = (
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
                    _past(deliveries.c.commit_due_at, now),
                )
                .order_by(deliveries.c.commit_due_at)
                .limit(limit)
                .with_for_update(skip_locked=True, of=deliveries)
            )
            rows = conn.execute(due).all()
            if not rows:
                return None
            for row in rows:
                wait_s = _doubling(first_wait_s, row.commit_asks)
                again = {"commit_due_at": now + wait_s, "commit_asks": row.commit_asks + 1}
                conn.execute(deliveries.update().where(deliveries.c.id == row.id).values(**again))
            transaction_uid = f"2.25.{uuid.uuid4().int}"
            asked = {
                "transaction_uid": transaction_uid,
                "destination": destination,
                "asked_at": now,
            }
            conn.execute(commitments.insert().values(**asked))
            return CommitmentRequest(
                transaction_uid, tuple((row.sop_class_uid, row.sop_instance_uid) for row in rows)
            )

    def commitment_not_asked(
        self, destination: str, request: CommitmentRequest, why: str, delay_s: float
    ) -> None:
        """The question did not get through: it comes up again after `delay_s`."""
        with self._database.transaction() as (conn, now):
            for part in _parts([uid for _, uid in request.references]):
                again = {
                    "commit_due_at": now + delay_s,
                    "commit_asks": deliveries.c.commit_asks - 1,
                    "why": why,
                }
                conn.execute(_stored_at(destination, part).values(**again))

    def commitment_reported(
        self,
        destination: str,
        transaction_uid: str,
        committed: Collection[str],
        lost: Mapping[str, str],
        refused: Mapping[str, str],
    ) -> bool:
        """A destination's report, in one transaction: SOP Instance UIDs, the failed ones with the reason.

        What it has lost is owed again, later each time. Returns False, and changes nothing, for a transaction UID that
        this destination was not asked under. What a report does not mention is asked for again when that is due.
        """
        with self._database.transaction() as (conn, now):
            known = commitments.update().where(
                commitments.c.transaction_uid == transaction_uid,
                commitments.c.destination == destination,
            )
            if not conn.execute(known.values(reported_at=now)).rowcount:
                return False
            for part in _parts(committed):
                done = {"state": "committed", "committed_at": now, "why": None}
                conn.execute(_stored_at(destination, part).values(**done))
            for uid, why in lost.items():
                asks = sa.select(deliveries.c.id, deliveries.c.commit_asks).where(
                    _is_stored_at(destination, [uid])
                )
                for row in conn.execute(asks).all():
                    # At once the first time. An archive that forgets everything must not be sent to in a circle.
                    due_at = now + (
                        _doubling(_FORGETFUL_S, row.commit_asks - 2) if row.commit_asks > 1 else 0.0
                    )
                    again = _owed_again(now) | {"why": why, "due_at": due_at, "commit_due_at": None}
                    conn.execute(
                        deliveries.update().where(deliveries.c.id == row.id).values(**again)
                    )
            for uid, why in refused.items():
                conn.execute(_stored_at(destination, [uid]).values(state="refused", why=why))
            self._database.ring(conn)
            return True

    # -- retention ----------------------------------------------------------------------------------------------

    def release(
        self, kept_s: float, kept_failed_s: float, committing: Collection[str], limit: int
    ) -> list[str]:
        """Give up bytes of the oldest images on which nothing is owed, at most `limit`. Returns the files to remove.

        They are kept for `kept_s` seconds; where the image failed, or a result of it was refused, for `kept_failed_s`:
        a person may want that tried again. They are always kept while a destination of `committing` has not committed
        to a result it stored. The caller removes the files; after a crash they are orphans, and are swept.
        """
        of_image = deliveries.join(results, results.c.id == deliveries.c.result_id)
        mine = (
            sa.select(deliveries.c.id)
            .select_from(of_image)
            .where(results.c.instance_id == instances.c.id)
        )
        awaited = sa.and_(
            deliveries.c.state == "stored",
            deliveries.c.commit_due_at.is_not(None),
            deliveries.c.destination.in_(list(committing)),
        )
        owed = mine.where(sa.or_(deliveries.c.state == "owed", awaited)).exists()
        troubled = sa.or_(
            instances.c.state == "failed", mine.where(deliveries.c.state == "refused").exists()
        )
        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(conn, _RETENTION)
            kept_since = sa.case((troubled, now - kept_failed_s), else_=now - kept_s)
            old = (
                sa.select(instances.c.id, instances.c.spool_name)
                .where(
                    instances.c.removed_at.is_(None),
                    instances.c.state != "received",
                    instances.c.completed_at
                    <= now - min(kept_s, kept_failed_s),  # as far as the index can tell
                    instances.c.completed_at <= kept_since,
                    sa.not_(owed),
                )
                .order_by(instances.c.completed_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            rows = conn.execute(old).all()
            ids = [row.id for row in rows]
            conn.execute(instances.update().where(instances.c.id.in_(ids)).values(removed_at=now))
            made = sa.select(results.c.spool_name).where(results.c.instance_id.in_(ids))
            conn.execute(
                commitments.delete().where(commitments.c.asked_at < now - _COMMITMENTS_KEPT_S)
            )
            return [row.spool_name for row in rows] + list(conn.execute(made).scalars())

    def kept_files(self) -> Iterator[KeptFile]:
        """Every spool file that is counted on: images' own bytes and their results'.

        An image that ended for want of its bytes is told of by its state, and not again here.
        """
        c, r = instances.c, results.c
        own = sa.select(
            c.spool_name, c.size_bytes, c.sop_instance_uid, sa.literal("image").label("kind")
        )
        own = own.where(sa.func.coalesce(c.reason, "") != "bytes_missing")
        made = sa.select(r.spool_name, r.size_bytes, r.sop_instance_uid, r.kind).join(
            instances, c.id == r.instance_id
        )
        for query in (own, made):
            with self._database.reading() as conn:
                rows = conn.execution_options(yield_per=1000).execute(
                    query.where(c.removed_at.is_(None))
                )
                for row in rows:
                    yield KeptFile(
                        row.spool_name, row.size_bytes, f"{row.kind} {row.sop_instance_uid}"
                    )

    def contradictions(self) -> list[str]:
        """What cannot be, one line each: rows that deny each other."""
        c, d = instances.c, deliveries.c
        of_image = deliveries.join(results, results.c.id == d.result_id).join(
            instances, c.id == results.c.instance_id
        )
        other = instances.alias()
        queries = {
            "is finished, but has no end time": sa.select(c.sop_instance_uid).where(
                c.state != "received", c.completed_at.is_(None)
            ),
            "is a duplicate of an image that is not there": sa.select(c.sop_instance_uid).where(
                c.state == "duplicate", ~sa.exists().where(other.c.id == c.duplicate_of)
            ),
            "has lost its bytes to retention while it waits": sa.select(c.sop_instance_uid).where(
                c.state == "received", c.removed_at.is_not(None)
            ),
            "is owed, but its bytes were given up": sa.select(results.c.sop_instance_uid)
            .select_from(of_image)
            .where(state_is(deliveries, "owed"), c.removed_at.is_not(None)),
            "is owed twice to one destination": sa.select(results.c.sop_instance_uid)
            .join(deliveries, d.result_id == results.c.id)
            .group_by(results.c.sop_instance_uid, d.destination)
            .having(sa.func.count() > 1),
        }
        with self._database.reading() as conn:
            return [
                f"{uid} {what}"
                for what, query in queries.items()
                for uid in conn.execute(query).scalars()
            ]

    def spool_identity(self, proposed: str | None) -> str | None:
        """Which spool this ledger's files lie in: the one that was proposed first. None: none was."""
        with self._database.transaction() as (conn, _):
            self._database.lock_until_commit(conn, "spool")
            known: str | None = conn.execute(sa.select(spools.c.identity)).scalar()
            if known is None and proposed is not None:
                conn.execute(spools.insert().values(identity=proposed))
            return known or proposed

    # -- people -------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, dict[str, int]]:
        """What `pleura status` shows: each accepted instance and each delivery in exactly one count."""
        with self._database.reading() as conn:
            groups = [
                ("instances", instances, ("received", "analysed", "not_analysed", "failed")),
                ("deliveries", deliveries, ("owed", "stored", "committed", "refused")),
            ]
            answer: dict[str, dict[str, int]] = {}
            for name, table, states in groups:
                of_each = sa.select(table.c.state, sa.func.count()).group_by(table.c.state)
                parts = (
                    of_each.where(state_is(table, states[0])),
                    of_each.where(state_is_not(table, states[0])),
                )
                found = {state: int(n) for state, n in conn.execute(sa.union_all(*parts))}
                answer[name] = {state: found.get(state, 0) for state in states}
            return answer

    def troubles(self, limit: int = 20) -> dict[str, list[dict[str, Any]]]:
        """The newest not analysed, failed and refused, and what is owed and why, as UIDs and reasons."""
        c, d = instances.c, deliveries.c
        of_images = (
            sa.select(c.sop_instance_uid, c.state, c.reason, c.detail)
            .where(c.state.in_(("failed", "not_analysed")), state_is_not(instances, "received"))
            .order_by(c.id.desc())
            .limit(limit)
        )
        of_deliveries = (
            sa.select(
                results.c.sop_instance_uid, results.c.kind, d.destination, d.state, d.attempt, d.why
            )
            .join(results, results.c.id == d.result_id)
            .where(d.why.is_not(None))
            .order_by(d.id.desc())
            .limit(limit)
        )
        with self._database.reading() as conn:
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
            sa.select(
                results.c.instance_id,
                results.c.kind,
                results.c.sop_instance_uid,
                d.destination,
                d.state,
                d.why,
            )
            .join(deliveries, d.result_id == results.c.id, isouter=True)
            .join(instances, c.id == results.c.instance_id)
            .where(c.sop_instance_uid == sop_instance_uid)
            .order_by(results.c.id, d.id)
        )
        with self._database.reading() as conn:
            rows = [dict(row) for row in conn.execute(received).mappings()]
            of_results = [dict(row) for row in conn.execute(made).mappings()]
        for row in rows:
            row["results"] = [one for one in of_results if one["instance_id"] == row["id"]]
        return rows

    def rearm(self, states: Sequence[str], uids: Sequence[str]) -> int:
        """`pleura retry`: failed images wait again, refused deliveries are owed again. Returns how many.

        Not those whose bytes are gone: what was refused and given up by retention since cannot be sent any more.
        `uids` are SOP Instance UIDs of images or results; none means all in these states.
        """
        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(
                conn, _RETENTION
            )  # what retention just gives up cannot be owed again
            count = 0
            if "failed" in states:
                failed = instances.update().where(
                    instances.c.state == "failed",
                    state_is_not(instances, "received"),
                    instances.c.removed_at.is_(None),
                )
                if uids:
                    failed = failed.where(instances.c.sop_instance_uid.in_(uids))
                count += conn.execute(
                    failed.values(reason=None, detail=None, completed_at=None, **_waits_again(now))
                ).rowcount
            if "refused" in states:
                refused = deliveries.update().where(
                    deliveries.c.state == "refused", state_is_not(deliveries, "owed")
                )
                there = sa.select(results.c.id).join(
                    instances, instances.c.id == results.c.instance_id
                )
                there = there.where(instances.c.removed_at.is_(None))
                if uids:
                    there = there.where(results.c.sop_instance_uid.in_(uids))
                refused = refused.where(deliveries.c.result_id.in_(there))
                count += conn.execute(
                    refused.values(why=None, failures=0, **_owed_again(now))
                ).rowcount
            self._database.ring(conn)
            return count

    def wait(self, timeout_s: float) -> None:
        """Sleep until another process or thread may have made work, at most `timeout_s`. Never raises."""
        self._database.wait(timeout_s)


_WAITING = {
    "state": "received",
    "lease_until": 0.0,
    "attempt": 0,
    "unfinished": 0,
    "unfinished_alone": 0,
}
_RESULT_FILES = sa.select(results.c.spool_name).join(
    instances, instances.c.id == results.c.instance_id
)
_RESULT_FIELDS = tuple(StoredResult.__dataclass_fields__)


def _fields(result: StoredResult) -> dict[str, str]:
    return {name: getattr(result, name) for name in _RESULT_FIELDS}


def _past(column: sa.Column[float], now: float) -> sa.ColumnElement[bool]:
    return sa.or_(column <= now, column > now + LONGEST_WAIT_S)


def _is_held(job: ImageJob | DeliveryJob) -> tuple[sa.ColumnElement[bool], ...]:
    table, open_state = (
        (instances, "received") if isinstance(job, ImageJob) else (deliveries, "owed")
    )
    return table.c.id == job.id, table.c.attempt == job.attempt, table.c.state == open_state


def _held(job: ImageJob | DeliveryJob) -> sa.Update:
    """An update that changes nothing when another attempt has taken over since."""
    table = instances if isinstance(job, ImageJob) else deliveries
    return table.update().where(*_is_held(job))


def _waits_again(now: float) -> dict[str, Any]:
    """A finished image goes back to those that wait, with no attempt held against it, and none from before valid."""
    return {
        "state": "received",
        "lease_until": now,
        "attempt": instances.c.attempt + 1,
        "unfinished": 0,
        "unfinished_alone": 0,
    }


def _owed_again(now: float) -> dict[str, Any]:
    """A delivery that had ended is owed once more; no attempt from before is valid."""
    return {"state": "owed", "due_at": now, "lease_until": now, "attempt": deliveries.c.attempt + 1}


def _is_stored_at(destination: str, uids: Sequence[str]) -> sa.ColumnElement[bool]:
    named = sa.select(results.c.id).where(results.c.sop_instance_uid.in_(uids))
    return sa.and_(
        deliveries.c.destination == destination,
        deliveries.c.state == "stored",
        deliveries.c.result_id.in_(named),
    )


def _stored_at(destination: str, uids: Sequence[str]) -> sa.Update:
    return deliveries.update().where(_is_stored_at(destination, uids))


def _parts(uids: Collection[str]) -> Iterator[list[str]]:
    """A few hundred at a time: databases bound how many values one statement may name."""
    every = list(uids)
    for start in range(0, len(every), 500):
        yield every[start : start + 500]


def _doubling(first_s: float, times: int) -> float:
    return min(LONGEST_WAIT_S, first_s * 2.0 ** min(times, 30))
