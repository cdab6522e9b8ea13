"""Tallies of each week's images by AE title, counted as each image ends, for figures of drift.

A page reads some hundred rows, however many images the ledger holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.database import Database
from daemon.ledger.schema import baselines, instances, reported, weekly
from daemon.ledger.states import ImageState
from daemon.ledger.tallies import bounded

WEEK_S = 7 * 86400.0
# 1970-01-05, a Monday, 0 h UTC.
FIRST_MONDAY_S = 4 * 86400.0

# The lower edges of the bins of a probability. Calibrated probabilities cluster near 0 and near 1,
# so the bins have about equal widths in log-odds.
EDGES = (
    0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3,
    0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999,
)  # fmt: skip

POSITIVE = "positive"
NOT_DETECTED = "not detected"
_NO_SCORE = -1
_DRIFT = "drift"

_ADD = sa.text(
    "INSERT INTO weekly (week, ae_title, outcome, bin, images)"
    " VALUES (:week, :ae_title, :outcome, :bin, 1)"
    " ON CONFLICT (week, ae_title, outcome, bin) DO UPDATE SET images = weekly.images + 1"
)


class WeeklyCount(NamedTuple):
    """How many images of an AE title ended in this way in one week."""

    week: int
    ae_title: str
    # POSITIVE, NOT_DETECTED, or "not_analysed: REASON", "failed: REASON".
    outcome: str
    # The place in EDGES; -1 without a probability.
    bin: int
    images: int


@dataclass(frozen=True)
class BaselineWeeks:
    """The weeks that a person took for the baseline, the last one included."""

    first_week: int
    last_week: int
    set_by: str
    set_at: float


class ReportedImage(NamedTuple):
    """A radiologist's report beside the node's answer on its images."""

    # The week in which the last of the images ended.
    week: int
    finding: bool
    # Whether any image of the report was positive, and the highest probability of them.
    positive: bool
    probability: float


def week_of(seconds: float) -> int:
    """The number of the week, from Monday to Sunday UTC, of a time in seconds since 1970."""
    return int((seconds - FIRST_MONDAY_S) // WEEK_S)


def count_image(conn: Connection, image: sa.RowMapping, ended: Mapping[str, Any]) -> None:
    """Count the end of an image. Only the first end counts: its results may be made again."""
    if image["result_time"] is not None:
        return

    probability = ended.get("probability")
    if ended["state"] == ImageState.ANALYSED.value:
        outcome = POSITIVE if ended.get("positive") else NOT_DETECTED
    else:
        outcome = f"{ended['state']}: {ended.get('reason') or 'unknown'}"
    conn.execute(
        _ADD,
        {
            "week": week_of(ended["completed_at"]),
            "ae_title": bounded(image["calling_ae_title"]),
            "outcome": outcome,
            "bin": _NO_SCORE if probability is None else bisect_right(EDGES, probability) - 1,
        },
    )


class DriftView:
    """Queries about drift; nothing here writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def counts(self, first_week: int, last_week: int) -> list[WeeklyCount]:
        """The counts of these weeks, the last one included."""
        query = (
            sa.select(weekly)
            .where(weekly.c.week.between(first_week, last_week))
            .order_by(weekly.c.week, weekly.c.ae_title)
        )
        with self._database.reading() as conn:
            return [WeeklyCount(*row) for row in conn.execute(query)]

    def baseline(self) -> BaselineWeeks | None:
        """The baseline that a person set."""
        row = baselines.c
        query = sa.select(row.first_week, row.last_week, row.set_by, row.set_at)
        with self._database.reading() as conn:
            found = conn.execute(query).first()
        return None if found is None else BaselineWeeks(*found)

    def reported(self) -> list[ReportedImage]:
        """The reports with an analysed image, each with the node's answer."""
        image = instances.c
        answers = (
            sa.select(
                reported.c.image,
                reported.c.finding,
                sa.func.max(image.completed_at).label("completed_at"),
                sa.func.max(sa.case((image.positive, 1), else_=0)).label("positive"),
                sa.func.max(image.probability).label("probability"),
            )
            .where(image.state == ImageState.ANALYSED.value, image.probability.is_not(None))
            .group_by(reported.c.image, reported.c.finding)
        )

        found = []
        with self._database.reading() as conn:
            for column in (image.sop_instance_uid, image.accession_digest):
                joined = reported.join(instances, column == reported.c.image)
                for row in conn.execute(answers.select_from(joined)):
                    week = week_of(row.completed_at)
                    found.append(
                        ReportedImage(week, row.finding, bool(row.positive), row.probability)
                    )
        return found


class DriftBook:
    """The site's own entries on drift: baselines and reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_baseline(self, first_week: int, last_week: int, set_by: str) -> None:
        """Make these weeks the baseline, in place of an earlier one."""
        with self._database.transaction() as (conn, now):
            conn.execute(baselines.delete())
            conn.execute(
                baselines.insert().values(
                    name=_DRIFT,
                    first_week=first_week,
                    last_week=last_week,
                    set_by=set_by,
                    set_at=now,
                )
            )
            self._database.ring(conn)

    def tell_reports(self, findings: Mapping[str, bool]) -> None:
        """Record reports: SOP Instance UID or accession_digest() -> pneumothorax or not.

        A later report on the same image replaces an earlier one.
        """
        with self._database.transaction() as (conn, now):
            for names in _in_parts([*findings]):
                conn.execute(reported.delete().where(reported.c.image.in_(names)))
                rows = [
                    {"image": name, "finding": findings[name], "told_at": now} for name in names
                ]
                conn.execute(reported.insert(), rows)


def _in_parts(names: list[str], size: int = 500) -> Collection[list[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]
