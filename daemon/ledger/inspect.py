"""Read-only queries: for `pleura status`, `verify` and `doctor`, and for the roles.

Nothing here writes, changes the schema or takes SQLite's write lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.database import Database, require_file
from daemon.ledger.figures import Snapshot, Unresolved, sending_hours, snapshot, unresolved
from daemon.ledger.generations import SettingsView
from daemon.ledger.overview import Ask, Overview
from daemon.ledger.period import PeriodView
from daemon.ledger.records import KeptFile
from daemon.ledger.schema import (
    audit_state,
    deliveries,
    destinations,
    folders,
    instances,
    results,
    state_is,
    state_is_not,
)
from daemon.ledger.shadow import ShadowView
from daemon.ledger.states import DeliveryState, ImageState
from daemon.ledger.weekly import DriftView

# Databases bound how many values one statement may name.
_NAMES_AT_ONCE = 500
_ROWS_AT_ONCE = 1000
# Enough that every kind which is still made is among them.
_NEWEST_RESULTS = 100

_RESULTS_OF_IMAGES = results.join(instances, instances.c.id == results.c.instance_id)
_DELIVERIES_OF_IMAGES = deliveries.join(results, results.c.id == deliveries.c.result_id).join(
    instances, instances.c.id == results.c.instance_id
)
_KEPT = instances.c.removed_at.is_(None)


class Inspection(Overview):
    """Queries of one ledger: the overview's, and more."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.settings = SettingsView(database)
        self.drift = DriftView(database)
        self.period = PeriodView(database)
        self.shadow = ShadowView(database)

    @classmethod
    def open(cls, url: str) -> Self:
        """The ledger of a node that has run, over a connection that can only read.

        It never creates, migrates or locks anything.

        Raises:
            LedgerError: there is no ledger of this version.
        """
        require_file(url)
        return cls(Database(url, read_only=True))

    def close(self) -> None:
        """Only for an Inspection from open(): a ledger closes its own."""
        self._database.close()

    def now(self) -> float:
        """The ledger's clock: seconds since 1970."""
        return self._database.now()

    @contextmanager
    def _asking(self) -> Iterator[Ask]:
        with self._database.reading() as conn:
            yield partial(_ask, conn)

    # -- files ----------------------------------------------------------------------------------

    def known_spool_names(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that the ledger refers to. The others are orphans, or were given up."""
        known: set[str] = set()
        with self._database.reading() as conn:
            for part in in_parts(names):
                images = sa.select(instances.c.spool_name).where(
                    instances.c.spool_name.in_(part), _KEPT
                )
                made = (
                    sa.select(results.c.spool_name)
                    .select_from(_RESULTS_OF_IMAGES)
                    .where(results.c.spool_name.in_(part), _KEPT)
                )

                known.update(conn.execute(images).scalars())
                known.update(conn.execute(made).scalars())
        return known

    def unknown_spool_names(self, names: Iterable[str]) -> set[str]:
        """The files of `names` that no row ever named, not even one whose bytes were given up."""
        unknown = set(names)
        with self._database.reading() as conn:
            for part in in_parts(sorted(unknown)):
                for column in (instances.c.spool_name, results.c.spool_name):
                    named = sa.select(column).where(column.in_(part))
                    unknown.difference_update(conn.execute(named).scalars())
        return unknown

    def kept_files(self) -> Iterator[KeptFile]:
        """Every spool file that the ledger refers to: the bytes of images and of results.

        An image that ended `bytes_missing` is left out: its state shows the loss.
        """
        images = sa.select(
            instances.c.spool_name,
            instances.c.size_bytes,
            instances.c.sop_instance_uid,
            sa.literal("image").label("kind"),
        ).where(sa.func.coalesce(instances.c.reason, "") != "bytes_missing")
        made = sa.select(
            results.c.spool_name,
            results.c.size_bytes,
            results.c.sop_instance_uid,
            results.c.kind,
        ).select_from(_RESULTS_OF_IMAGES)

        for query in (images, made):
            with self._database.reading() as conn:
                streamed = conn.execution_options(yield_per=_ROWS_AT_ONCE)
                for row in streamed.execute(query.where(_KEPT)):
                    whose = f"{row.kind} {row.sop_instance_uid}"
                    yield KeptFile(row.spool_name, row.size_bytes, whose)

    def knows_folder(self, path: str) -> bool:
        """Whether results ever went to this folder."""
        with self._database.reading() as conn:
            return _exists(conn, sa.select(folders.c.path).where(folders.c.path == path))

    # -- images and leases ----------------------------------------------------------------------

    def is_own_result(self, sop_instance_uid: str) -> bool:
        """Whether this UID is one of our results, which are never analysed."""
        named = sa.select(results.c.id).where(results.c.sop_instance_uid == sop_instance_uid)
        with self._database.reading() as conn:
            return _exists(conn, named)

    def newest_syntaxes(self, kinds: Collection[str]) -> list[tuple[str, str]]:
        """The pairs of SOP class and transfer syntax UID of the newest results of these kinds."""
        newest = (
            sa.select(results.c.kind, results.c.sop_class_uid, results.c.transfer_syntax_uid)
            .order_by(results.c.id.desc())
            .limit(_NEWEST_RESULTS)
            .subquery()
        )
        pairs = sa.select(newest.c.sop_class_uid, newest.c.transfer_syntax_uid).distinct()
        with self._database.reading() as conn:
            found = conn.execute(pairs.where(newest.c.kind.in_(list(kinds))))
            return sorted((sop_class, syntax) for sop_class, syntax in found)

    def lease_owners(self) -> set[str]:
        """The owners of all leases, in the form of owner_name()."""
        owners: set[str] = set()
        with self._database.reading() as conn:
            for table, state in ((instances, "received"), (deliveries, "owed")):
                held = sa.select(table.c.owner).where(
                    state_is(table, state), table.c.owner.is_not(None)
                )
                owners.update(conn.execute(held.distinct()).scalars())
            sends_audit = sa.select(audit_state.c.owner).where(audit_state.c.owner.is_not(None))
            owners.update(conn.execute(sends_audit).scalars())
        return owners

    # -- health ---------------------------------------------------------------------------------

    def figures(self) -> Snapshot:
        """The figures of the running node. Their cost does not grow with the ledger."""
        return snapshot(self._database)

    def unresolved(self) -> list[Unresolved]:
        """The failed images and refused results of each day that wait for a person."""
        return unresolved(self._database)

    def sending_hours(self) -> dict[str, dict[int, int]]:
        """By AE title, the images of each hour (hours since 1970) that had any, for some weeks."""
        return sending_hours(self._database)

    # -- people ---------------------------------------------------------------------------------

    def troubles(self, limit: int = 20) -> dict[str, list[dict[str, Any]]]:
        """The newest images without an answer, and deliveries with a reason."""
        image, delivery = instances.c, deliveries.c
        without_answer = (
            sa.select(image.sop_instance_uid, image.state, image.reason, image.detail)
            .where(
                image.state.in_((ImageState.FAILED.value, ImageState.NOT_ANALYSED.value)),
                state_is_not(instances, "received"),
            )
            .order_by(image.id.desc())
            .limit(limit)
        )
        with_reason = (
            sa.select(
                results.c.sop_instance_uid,
                results.c.kind,
                delivery.destination,
                delivery.state,
                delivery.attempt,
                delivery.why,
            )
            .join(results, results.c.id == delivery.result_id)
            .where(delivery.why.is_not(None))
            .order_by(delivery.id.desc())
            .limit(limit)
        )

        with self._database.reading() as conn:
            return {
                "instances": _as_dicts(conn, without_answer),
                "deliveries": _as_dicts(conn, with_reason),
            }

    def history(self, sop_instance_uid: str) -> list[dict[str, Any]]:
        """Each time that one image was received, oldest first, with its results and deliveries."""
        image = instances.c
        received = (
            sa.select(
                image.id, image.received_at, image.calling_ae_title, image.origin, image.state,
                image.reason, image.detail, image.positive, image.probability, image.model,
                image.device, image.completed_at,
            )
            .where(image.sop_instance_uid == sop_instance_uid)
            .order_by(image.id)
        )  # fmt: skip
        made = (
            sa.select(
                results.c.instance_id,
                results.c.kind,
                results.c.sop_instance_uid,
                deliveries.c.destination,
                deliveries.c.state,
                deliveries.c.why,
            )
            .select_from(_RESULTS_OF_IMAGES)
            .join(deliveries, deliveries.c.result_id == results.c.id, isouter=True)
            .where(image.sop_instance_uid == sop_instance_uid)
            .order_by(results.c.id, deliveries.c.id)
        )
        with self._database.reading() as conn:
            images = _as_dicts(conn, received)
            of_results = _as_dicts(conn, made)

        for row in images:
            row["results"] = [result for result in of_results if result["instance_id"] == row["id"]]
        return images

    def next_try_is_due(self, destination: str) -> bool:
        """Whether the pause of this destination's courier is over on the ledger's clock."""
        row = sa.select(destinations.c.next_try_at).where(destinations.c.name == destination)
        with self._database.reading() as conn:
            due_at = conn.execute(row).scalar()
        return due_at is not None and due_at <= self.now()

    def refused_destinations(self) -> set[str]:
        """The names that refused deliveries are addressed to."""
        refused = sa.select(deliveries.c.destination).where(
            deliveries.c.state == DeliveryState.REFUSED.value, state_is_not(deliveries, "owed")
        )
        with self._database.reading() as conn:
            return set(conn.execute(refused.distinct()).scalars())

    def images_of(self, uid: str) -> list[str]:
        """SOP Instance UIDs of the images that a UID names, oldest first.

        The UID is of an image, a study or a result.
        """
        image = instances.c
        named = sa.or_(image.sop_instance_uid == uid, image.study_instance_uid == uid)
        of_result = sa.select(results.c.instance_id).where(results.c.sop_instance_uid == uid)
        return self._uids_oldest_first(sa.or_(named, image.id.in_(of_result)))

    def images_of_accession(self, digest: str) -> list[str]:
        """SOP Instance UIDs of the images with this accession_digest(), oldest first."""
        return self._uids_oldest_first(instances.c.accession_digest == digest)

    def _uids_oldest_first(self, condition: sa.ColumnElement[bool]) -> list[str]:
        image = instances.c
        query = (
            sa.select(image.sop_instance_uid)
            .where(condition)
            .group_by(image.sop_instance_uid)
            .order_by(sa.func.min(image.id))
        )
        with self._database.reading() as conn:
            return list(conn.execute(query).scalars())

    def contradictions(self) -> list[str]:
        """Rows that contradict each other, a line each."""
        with self._database.reading() as conn:
            return [
                f"{uid} {contradiction}"
                for contradiction, query in _CONTRADICTIONS.items()
                for uid in conn.execute(query).scalars()
            ]


def in_parts(values: Iterable[str]) -> Iterator[list[str]]:
    """A few hundred at a time: databases bound how many values one statement may name."""
    every = list(values)
    for start in range(0, len(every), _NAMES_AT_ONCE):
        yield every[start : start + _NAMES_AT_ONCE]


def _ask(conn: Connection, statement: str, **values: int) -> list[dict[str, Any]]:
    return [dict(row) for row in conn.execute(sa.text(statement), values).mappings()]


def _exists(conn: Connection, query: sa.Select[Any]) -> bool:
    return conn.execute(query.limit(1)).first() is not None


def _as_dicts(conn: Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in conn.execute(query).mappings()]


def _contradictions() -> dict[str, sa.Select[Any]]:
    image = instances.c
    original = instances.alias()
    no_original = ~sa.exists().where(original.c.id == image.duplicate_of)
    result_uid = sa.select(results.c.sop_instance_uid)

    return {
        "is finished, but has no end time": sa.select(image.sop_instance_uid).where(
            image.state != "received", image.completed_at.is_(None)
        ),
        "is a duplicate of an image that is not there": sa.select(image.sop_instance_uid).where(
            image.state == "duplicate", no_original
        ),
        "has lost its bytes to retention while it waits": sa.select(image.sop_instance_uid).where(
            image.state == "received", image.removed_at.is_not(None)
        ),
        "is owed, but its bytes were given up": result_uid.select_from(_DELIVERIES_OF_IMAGES).where(
            state_is(deliveries, "owed"), image.removed_at.is_not(None)
        ),
        "is owed twice to one destination": result_uid.join(
            deliveries, deliveries.c.result_id == results.c.id
        )
        .group_by(results.c.sop_instance_uid, deliveries.c.destination)
        .having(sa.func.count() > 1),
    }


_CONTRADICTIONS = _contradictions()
