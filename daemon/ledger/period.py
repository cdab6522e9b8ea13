"""The images and deliveries of a period, one by one, for the monthly report.

Rows hold times and states; no row names an image or a patient.
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from daemon.ledger.database import Database
from daemon.ledger.schema import deliveries, instances, results
from daemon.ledger.states import ImageState


class ImageTimes(NamedTuple):
    """One image; times in seconds since 1970."""

    ae_title: str
    received_at: float
    # None: it waits.
    completed_at: float | None
    # states.ImageState
    state: str
    reason: str | None
    positive: bool | None


class DeliveryTimes(NamedTuple):
    """One result for one destination; times in seconds since 1970."""

    destination: str
    received_at: float
    completed_at: float
    # None: not stored yet, or refused.
    stored_at: float | None
    # states.DeliveryState
    state: str


class PeriodView:
    """Queries about the images that were received in a period."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def images(self, since: float, until: float) -> list[ImageTimes]:
        """The images that were received in the period, without duplicates."""
        image = instances.c
        query = sa.select(
            image.calling_ae_title,
            image.received_at,
            image.completed_at,
            image.state,
            image.reason,
            image.positive,
        ).where(
            image.received_at >= since,
            image.received_at < until,
            image.state != ImageState.DUPLICATE.value,
        )

        with self._database.reading() as conn:
            return [ImageTimes(*row) for row in conn.execute(query)]

    def deliveries(self, since: float, until: float) -> list[DeliveryTimes]:
        """The deliveries of images that were received in the period."""
        image, delivery = instances.c, deliveries.c
        joined = deliveries.join(results, results.c.id == delivery.result_id).join(
            instances, image.id == results.c.instance_id
        )
        query = (
            sa.select(
                delivery.destination,
                image.received_at,
                image.completed_at,
                delivery.stored_at,
                delivery.state,
            )
            .select_from(joined)
            .where(
                image.received_at >= since,
                image.received_at < until,
                image.completed_at.is_not(None),
            )
        )

        with self._database.reading() as conn:
            return [DeliveryTimes(*row) for row in conn.execute(query)]
