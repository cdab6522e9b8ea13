"""Counters that only grow, written in the transaction of the transition that they count.

A scrape of the metrics reads a few hundred counters, however many images the ledger holds. Each is
a name and a list of labels. Labels that a peer chooses are bounded in length and in number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.schema import deliveries, instances, results, tallies

# The upper bounds of the histograms of stages, in seconds.
BOUNDS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)

# Pairs of AE title and X-ray system that have counters of their own; later pairs share OTHER.
MOST_SOURCES = 100
OTHER = "other"
_MOST_CHARACTERS = 64

_ADD = sa.text(
    "INSERT INTO tallies (name, labels, value) VALUES (:name, :labels, :value)"
    " ON CONFLICT (name, labels) DO UPDATE SET value = tallies.value + excluded.value"
)


class Counter(StrEnum):
    """The names of the counters, with their labels."""

    # AE title, model of the X-ray system. It bounds the number of such pairs.
    SOURCES = "sources"
    # AE title, model of the X-ray system, state.
    IMAGES = "images"
    # AE title, model of the X-ray system.
    POSITIVES = "positives"
    # State, reason.
    REASONS = "reasons"
    # Destination, outcome: stored, committed, refused.
    DELIVERIES = "deliveries"
    # Stage, destination or "", upper bound in seconds or "+Inf".
    STAGE_BUCKETS = "stage_buckets"
    # Stage, destination or "": the sum of its seconds.
    STAGE_SECONDS = "stage_seconds"
    # Digest of a shadow's package, outcome: agreed, disagreed, failed.
    SHADOW_IMAGES = "shadow_images"


class Stage(StrEnum):
    """The stages in the life of an image."""

    # From receipt to the claim.
    WAITING = "waiting"
    # From the claim to the answer.
    ANALYSIS = "analysis"
    # From the answer until a destination has stored one result.
    DELIVERY = "delivery"
    # From receipt until a destination has stored one result.
    WHOLE = "whole"


class Step(NamedTuple):
    """One addition to one counter."""

    name: Counter
    labels: tuple[str, ...]
    value: float = 1.0


def bounded(text: str) -> str:
    """A peer's text as a label: printable, at most 64 characters."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:_MOST_CHARACTERS])
    return shown[:_MOST_CHARACTERS]


def add(conn: Connection, steps: Iterable[Step]) -> None:
    """Add to the counters.

    It is a transaction's last statement and always uses the same order, so that there are no
    deadlocks.
    """
    rows = [
        {"name": step.name.value, "labels": json.dumps(step.labels), "value": step.value}
        for step in sorted(steps)
    ]
    if rows:
        conn.execute(_ADD, rows)


def count_image(
    conn: Connection, image: sa.RowMapping, ended: dict[str, Any], claimed_at: float
) -> None:
    """Count the end of an image: `image` is its row before, `ended` the columns that changed."""
    source = _source(conn, image["calling_ae_title"], ended.get("device_model") or "")
    state = str(ended["state"])
    steps = [Step(Counter.SOURCES, source), Step(Counter.IMAGES, (*source, state))]
    if ended.get("positive"):
        steps.append(Step(Counter.POSITIVES, source))
    if ended.get("reason"):
        steps.append(Step(Counter.REASONS, (state, str(ended["reason"]))))

    # An image whose results are made again was timed the first time.
    if image["result_time"] is None:
        steps += _timed(Stage.WAITING, "", claimed_at - image["received_at"])
        steps += _timed(Stage.ANALYSIS, "", ended["completed_at"] - claimed_at)
    add(conn, steps)


def count_stored(conn: Connection, delivery_id: int, destination: str, now: float) -> None:
    """Count a result that a destination stored, and the time that it took."""
    times = (
        sa.select(instances.c.received_at, instances.c.completed_at)
        .join(results, results.c.instance_id == instances.c.id)
        .join(deliveries, deliveries.c.result_id == results.c.id)
        .where(deliveries.c.id == delivery_id)
    )
    row = conn.execute(times).first()
    steps = [Step(Counter.DELIVERIES, (destination, "stored"))]
    if row is not None and row.completed_at is not None:
        steps += _timed(Stage.DELIVERY, destination, now - row.completed_at)
        steps += _timed(Stage.WHOLE, destination, now - row.received_at)
    add(conn, steps)


def count_deliveries(conn: Connection, destination: str, outcome: str, number: int = 1) -> None:
    """Count results that a destination refused or committed to."""
    if number:
        add(conn, [Step(Counter.DELIVERIES, (destination, outcome), number)])


def count_shadow(conn: Connection, shadow: str, mine: bool | None, theirs: bool | None) -> None:
    """Count an image that a shadow looked at: its answer, and the model's; None: no answer.

    `shadow`: as `instances.model` names a package.
    """
    digest = shadow.rpartition(" ")[2]
    answered = "agreed" if mine == theirs else "disagreed"
    outcome = "failed" if mine is None else answered
    add(conn, [Step(Counter.SHADOW_IMAGES, (bounded(digest), outcome))])


def _timed(stage: Stage, destination: str, seconds: float) -> list[Step]:
    # The clock was set back between two roles' transactions.
    seconds = max(0.0, seconds)
    bound = next((f"{bound}" for bound in BOUNDS_S if seconds <= bound), "+Inf")
    return [
        Step(Counter.STAGE_BUCKETS, (stage.value, destination, bound)),
        Step(Counter.STAGE_SECONDS, (stage.value, destination), seconds),
    ]


def _source(conn: Connection, ae_title: str, device_model: str) -> tuple[str, str]:
    """AE title and X-ray system, or OTHER for both where too many pairs were seen already."""
    source = (bounded(ae_title), bounded(device_model))
    of_sources = tallies.c.name == Counter.SOURCES.value
    known = sa.select(tallies.c.value).where(of_sources, tallies.c.labels == json.dumps(source))
    if conn.execute(known).first() is not None:
        return source

    number = sa.select(sa.func.count()).select_from(tallies).where(of_sources)
    return source if conn.execute(number).scalar_one() < MOST_SOURCES else (OTHER, OTHER)
