"""What a shadow model answered, beside the model's own answers (docs/shadow.md).

A row is written before the shadow looks at an image: one that ends its process has a row without
an answer, and is not tried again. Nothing here touches an image, a result or a delivery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa

from daemon.ledger.database import Database
from daemon.ledger.distinct import distinct
from daemon.ledger.schema import instances, reported, shadow_answers, state_is, state_is_not
from daemon.ledger.states import ImageState
from daemon.ledger.tallies import count_shadow
from daemon.ledger.weekly import ReportedImage, week_of

# A comparison looks at this many of the newest images, so that its cost does not grow with the
# ledger.
MOST_COMPARED = 2_000

_BEGIN = sa.text(
    "INSERT INTO shadow_answers (model, instance_id, begun_at) VALUES (:model, :image, :at)"
    " ON CONFLICT (model, instance_id) DO NOTHING"
)
_LAST = sa.func.max(shadow_answers.c.instance_id)


class ShadowJob(NamedTuple):
    """An image that the model has answered, and whose file is kept."""

    instance_id: int
    spool_name: str
    # The model that answered it, as `instances.model`.
    model: str


@dataclass(frozen=True)
class Pairs:
    """How the model and its shadow answered the same images, counted, newest first."""

    # As `instances.model` names packages: id, version, digest.
    model: str
    shadow: str
    both_positive: int = 0
    only_model: int = 0
    only_shadow: int = 0
    both_negative: int = 0
    # The shadow gave no answer: it failed, or did not take the image for a frontal chest.
    unanswered: int = 0


class ShadowView:
    """Queries about shadow models; nothing here writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next(self, after: int) -> ShadowJob | None:
        """The next analysed image with its file; None while any image waits or is in work."""
        image = instances.c
        waits = sa.exists().where(state_is(instances, "received"))
        query = (
            sa.select(image.id, image.spool_name, image.model)
            .where(
                image.state == ImageState.ANALYSED.value,
                state_is_not(instances, "received"),
                image.id > after,
                image.removed_at.is_(None),
                sa.not_(waits),
            )
            .order_by(image.id)
            .limit(1)
        )

        with self._database.reading() as conn:
            row = conn.execute(query).first()
        return None if row is None else ShadowJob(row.id, row.spool_name, row.model or "")

    def last(self, model: str) -> int:
        """The newest image that this shadow has looked at; 0: none."""
        query = sa.select(_LAST).where(shadow_answers.c.model == model)
        with self._database.reading() as conn:
            return conn.execute(query).scalar() or 0

    def newest(self) -> str | None:
        """The shadow that looked at an image last; None: there was no shadow yet."""
        answer = shadow_answers.c
        newest: dict[str, float] = {}

        with self._database.reading() as conn:
            # Only the last row of each model.
            for model in distinct(conn, answer.model):
                last = (
                    sa.select(answer.begun_at)
                    .where(answer.model == model)
                    .order_by(answer.instance_id.desc())
                    .limit(1)
                )
                newest[model] = conn.execute(last).scalar_one()

        return max(newest, key=lambda model: newest[model], default=None)

    def pairs(self, shadow: str) -> Pairs | None:
        """The answers of a shadow beside those of the model that answered the newest image."""
        answer = shadow_answers.c
        newest = (
            sa.select(answer.instance_id, answer.positive)
            .where(answer.model == shadow)
            .order_by(answer.instance_id.desc())
            .limit(MOST_COMPARED)
            .subquery()
        )
        said = sa.select(
            instances.c.model,
            instances.c.positive,
            newest.c.positive.label("shadow_positive"),
            sa.func.count().label("images"),
            sa.func.max(newest.c.instance_id).label("last"),
        ).join(newest, newest.c.instance_id == instances.c.id)
        grouped = said.group_by(instances.c.model, instances.c.positive, newest.c.positive)
        with self._database.reading() as conn:
            rows = conn.execute(grouped).all()
        if not rows:
            return None

        model = max(rows, key=lambda row: int(row.last)).model
        counts = {
            (row.positive, row.shadow_positive): row.images for row in rows if row.model == model
        }
        return Pairs(
            model=model or "",
            shadow=shadow,
            both_positive=counts.get((True, True), 0),
            only_model=counts.get((True, False), 0),
            only_shadow=counts.get((False, True), 0),
            both_negative=counts.get((False, False), 0),
            unanswered=sum(images for (_, said), images in counts.items() if said is None),
        )

    def reported(self, shadow: str, model: str) -> list[tuple[ReportedImage, ReportedImage]]:
        """The reports on images that both answered: the model's answer, and the shadow's."""
        image, answer = instances.c, shadow_answers.c
        answers = (
            sa.select(
                reported.c.image,
                reported.c.finding,
                sa.func.max(image.completed_at).label("completed_at"),
                sa.func.max(sa.case((image.positive, 1), else_=0)).label("positive"),
                sa.func.max(image.probability).label("probability"),
                sa.func.max(sa.case((answer.positive, 1), else_=0)).label("shadow_positive"),
                sa.func.max(answer.probability).label("shadow_probability"),
            )
            .where(
                image.state == ImageState.ANALYSED.value,
                image.model == model,
                image.probability.is_not(None),
                answer.model == shadow,
                answer.probability.is_not(None),
            )
            .group_by(reported.c.image, reported.c.finding)
        )

        found = []
        with self._database.reading() as conn:
            for column in (image.sop_instance_uid, image.accession_digest):
                joined = reported.join(instances, column == reported.c.image).join(
                    shadow_answers, answer.instance_id == image.id
                )
                for row in conn.execute(answers.select_from(joined)):
                    week = week_of(row.completed_at)
                    found.append(
                        (
                            ReportedImage(week, row.finding, bool(row.positive), row.probability),
                            ReportedImage(
                                week,
                                row.finding,
                                bool(row.shadow_positive),
                                row.shadow_probability,
                            ),
                        )
                    )
        return found


class ShadowBook:
    """What the shadow role writes: only its own rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, job: ShadowJob, model: str) -> bool:
        """Note that this shadow looks at an image; False: it, or another process, has before."""
        with self._database.transaction() as (conn, now):
            row = {"model": model, "image": job.instance_id, "at": now}
            return conn.execute(_BEGIN, row).rowcount == 1

    def answer(
        self, job: ShadowJob, model: str, probability: float | None, positive: bool | None, why: str
    ) -> None:
        """Note and count what the shadow answered. `why`: in place of an answer; "" with one."""
        mine = sa.and_(
            shadow_answers.c.model == model, shadow_answers.c.instance_id == job.instance_id
        )
        values = {"probability": probability, "positive": positive, "why": why}
        theirs = sa.select(instances.c.positive).where(instances.c.id == job.instance_id)
        with self._database.transaction() as (conn, _):
            conn.execute(shadow_answers.update().where(mine).values(**values))
            count_shadow(conn, model, positive, conn.execute(theirs).scalar())
