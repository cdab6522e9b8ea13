"""The figures of the monthly report: volumes, times, positives, outages, failures. All pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from daemon.drift.statistics import Interval, wilson
from daemon.drift.weeks import INBOX
from daemon.ledger import DeliveryState, ImageState
from daemon.ledger.period import DeliveryTimes, ImageTimes

# Work that waited longer indicates an outage.
_OUTAGE_S = 600.0


@dataclass(frozen=True)
class Day:
    """The images that were received on one local day."""

    day: date
    analysed: int = 0
    not_analysed: int = 0
    failed: int = 0
    waiting: int = 0

    @property
    def images(self) -> int:
        """All of them."""
        return self.analysed + self.not_analysed + self.failed + self.waiting


@dataclass(frozen=True)
class Times:
    """How long something took, in seconds: how often, the median, and the 95 % quantile."""

    name: str
    number: int
    median_s: float
    most_s: float


@dataclass(frozen=True)
class Source:
    """The images of one AE title."""

    ae_title: str
    images: int
    analysed: int
    positive: int

    @property
    def rate(self) -> float | None:
        """The share of positives among the analysed."""
        return self.positive / self.analysed if self.analysed else None

    @property
    def interval(self) -> Interval:
        """The 95 % interval of that share."""
        return wilson(self.positive, self.analysed)


@dataclass(frozen=True)
class OutageTime:
    """A period in which work waited for the analysis or for a destination."""

    what: str
    began_at: float
    ended_at: float
    # How much waited meanwhile; some of it may still wait.
    number: int
    is_over: bool


def by_day(images: Iterable[ImageTimes], first: date, last: date) -> list[Day]:
    """Each local day from the first to the last, also those without an image."""
    counted: dict[date, Counter[str]] = defaultdict(Counter)
    for image in images:
        counted[datetime.fromtimestamp(image.received_at).astimezone().date()][image.state] += 1

    days = [first + timedelta(number) for number in range((last - first).days + 1)]
    return [
        Day(
            day,
            counted[day][ImageState.ANALYSED.value],
            counted[day][ImageState.NOT_ANALYSED.value],
            counted[day][ImageState.FAILED.value],
            counted[day][ImageState.RECEIVED.value],
        )
        for day in days
    ]


def times(images: Iterable[ImageTimes], deliveries: Iterable[DeliveryTimes]) -> list[Times]:
    """From receipt to the answer, and from receipt until each destination has a result."""
    answered = [
        image.completed_at - image.received_at for image in images if image.completed_at is not None
    ]
    stored: dict[str, list[float]] = defaultdict(list)
    for delivery in deliveries:
        if delivery.stored_at is not None:
            stored[delivery.destination].append(delivery.stored_at - delivery.received_at)

    found = {"from receipt to the answer": answered}
    found |= {f"from receipt to {name}": stored[name] for name in sorted(stored)}
    return [_times(name, seconds) for name, seconds in found.items() if seconds]


def _times(name: str, seconds: Sequence[float]) -> Times:
    return Times(name, len(seconds), quantile(seconds, 0.5), quantile(seconds, 0.95))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of `values` does not exceed; `values` is not empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def by_source(images: Iterable[ImageTimes]) -> list[Source]:
    """The images of each AE title, the largest first."""
    grouped: dict[str, list[ImageTimes]] = defaultdict(list)
    for image in images:
        grouped[image.ae_title or INBOX].append(image)

    sources = [
        Source(
            ae_title,
            len(group),
            sum(image.state == ImageState.ANALYSED.value for image in group),
            sum(bool(image.positive) for image in group),
        )
        for ae_title, group in grouped.items()
    ]
    return sorted(sources, key=lambda source: (-source.images, source.ae_title))


def reasons(images: Iterable[ImageTimes]) -> list[tuple[str, str, int]]:
    """State, reason and number of the images without an answer, the most frequent first."""
    counted = Counter(
        (image.state, image.reason or "unknown")
        for image in images
        if image.state in (ImageState.NOT_ANALYSED.value, ImageState.FAILED.value)
    )
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return [(state, reason, number) for (state, reason), number in ordered]


def refused(deliveries: Iterable[DeliveryTimes]) -> list[tuple[str, int]]:
    """Destination and number of the results that it refused."""
    counted = Counter(
        each.destination for each in deliveries if each.state == DeliveryState.REFUSED.value
    )
    return sorted(counted.items())


def outages(
    images: Iterable[ImageTimes], deliveries: Iterable[DeliveryTimes], now: float
) -> list[OutageTime]:
    """Periods in which work waited for more than ten minutes, oldest first.

    The ledger keeps no history of outages: overlapping long waits count as one outage.
    """
    waits: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    for image in images:
        ended_at = image.completed_at
        waits["analysis"].append((image.received_at, ended_at or now, ended_at is not None))
    for delivery in deliveries:
        if delivery.state == DeliveryState.REFUSED.value:
            continue
        ended_at = delivery.stored_at
        wait = (delivery.completed_at, ended_at or now, ended_at is not None)
        waits[delivery.destination].append(wait)

    found = [outage for what, each in waits.items() for outage in _merged(what, each)]
    return sorted(found, key=lambda outage: outage.began_at)


def _merged(what: str, waits: Iterable[tuple[float, float, bool]]) -> list[OutageTime]:
    merged: list[OutageTime] = []
    for began_at, ended_at, is_over in sorted(waits):
        if ended_at - began_at < _OUTAGE_S:
            continue
        last = merged[-1] if merged else None
        if last is None or began_at > last.ended_at:
            merged.append(OutageTime(what, began_at, ended_at, 1, is_over))
            continue

        merged[-1] = OutageTime(
            what,
            last.began_at,
            max(last.ended_at, ended_at),
            last.number + 1,
            last.is_over and is_over,
        )
    return merged
