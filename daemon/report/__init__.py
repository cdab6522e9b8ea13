"""`pleura report`: the node's work over a period, on one HTML page, for a department's meeting."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta

from daemon.drift import agreement, comparison, drift
from daemon.drift.weeks import weeks_between
from daemon.ledger import Inspection
from daemon.report import figures
from daemon.report.page import Report, page

__all__ = ["Report", "page", "read"]


def read(inspect: Inspection, ae_title: str, first: date, last: date) -> Report:
    """The figures of the local days from the first to the last."""
    since, until = _midnight(first), _midnight(last + timedelta(1))
    images = inspect.period.images(since, until)
    deliveries = inspect.period.deliveries(since, until)
    now = inspect.now()
    first_week, last_week = weeks_between(first, last)
    weeks = last_week - first_week + 1

    return Report(
        ae_title,
        first,
        last,
        datetime.fromtimestamp(now).astimezone(),
        figures.by_day(images, first, last),
        figures.times(images, deliveries),
        figures.by_source(images),
        figures.reasons(images),
        figures.refused(deliveries),
        figures.outages(images, deliveries, now),
        drift(inspect, weeks, last_week, alarming=weeks),
        agreement(inspect, first_week, last_week),
        comparison(inspect),
    )


def _midnight(day: date) -> float:
    return datetime.combine(day, time()).astimezone().timestamp()
