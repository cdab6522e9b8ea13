"""A modality's weeks against the baseline: positives, scores, and images without an answer.

    found = drift(inspect)              # of the ledger, or a read-only Inspection of it
    found.alarms                        # what differs, in words
    found.weeks                         # the newest last; for a page and a report

`drift` reads; everything else computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from daemon.drift.statistics import Interval, difference, psi, psi_limit, wilson
from daemon.ledger import BaselineWeeks, Inspection, WeeklyCount
from daemon.ledger.weekly import (
    EDGES,
    FIRST_MONDAY_S,
    NOT_DETECTED,
    POSITIVE,
    WEEK_S,
    week_of,
)

# Stands for all modalities together.
EVERY_AE = ""
# The name of the inbox folder, whose files no AE sent; the ledger has "" for them.
INBOX = "(inbox)"

# A week with fewer images is mostly chance.
FEWEST_IMAGES = 50
# A rate that differs by less raises no alarm, however significant the difference.
_LEAST_DIFFERENCE = 0.05
_LEAST_DIFFERENCE_OF_POSITIVES = 0.03


@dataclass(frozen=True)
class Week:
    """The images of one AE title in one week, counted."""

    number: int
    ae_title: str
    analysed: int = 0
    positive: int = 0
    # "not_analysed: REASON", "failed: REASON" -> images.
    unanswered: dict[str, int] = field(default_factory=dict)
    # Images by the bin of their probability (ledger.weekly.EDGES).
    histogram: tuple[int, ...] = (0,) * len(EDGES)

    @property
    def images(self) -> int:
        """All that ended."""
        return self.analysed + sum(self.unanswered.values())

    @property
    def monday(self) -> date:
        """The first day."""
        return monday_of(self.number)

    @property
    def positive_rate(self) -> float | None:
        """The share of positives among the analysed; None without images."""
        return self.positive / self.analysed if self.analysed else None

    @property
    def positive_interval(self) -> Interval:
        """The 95 % interval of that share."""
        return wilson(self.positive, self.analysed)


@dataclass(frozen=True)
class Alarm:
    """One figure of one week that differs from the baseline by more than chance."""

    week: int
    # EVERY_AE: all of them together.
    ae_title: str
    # positives, scores, or the reason.
    what: str
    words: str


@dataclass(frozen=True)
class Drift:
    """The newest weeks of each AE title and of all together, and what differs."""

    weeks: tuple[Week, ...]
    # None: no baseline was set, so nothing raises an alarm.
    baseline: BaselineWeeks | None
    # By AE title; the number of its week is that of the first.
    baseline_of: dict[str, Week]
    alarms: tuple[Alarm, ...]

    def of(self, ae_title: str) -> tuple[Week, ...]:
        """The weeks of one AE title, the oldest first."""
        return tuple(week for week in self.weeks if week.ae_title == ae_title)


def drift(
    inspect: Inspection, weeks: int = 8, last_week: int | None = None, alarming: int = 2
) -> Drift:
    """The figures of this many weeks. Alarms are about the last `alarming` of them.

    `last_week`: the number of the last; default this week's.
    """
    this_week = week_of(inspect.now()) if last_week is None else last_week
    shown = summed(inspect.drift.counts(this_week - weeks + 1, this_week))

    baseline = inspect.drift.baseline()
    if baseline is None:
        return Drift(shown, None, {}, ())
    counts = inspect.drift.counts(baseline.first_week, baseline.last_week)
    of_baseline = {
        week.ae_title: week
        for week in summed(count._replace(week=baseline.first_week) for count in counts)
    }

    alarms = [
        alarm
        for week in shown
        if week.number > this_week - alarming and week.ae_title in of_baseline
        for alarm in compare(week, of_baseline[week.ae_title])
    ]
    return Drift(shown, baseline, of_baseline, tuple(alarms))


def summed(counts: Iterable[WeeklyCount]) -> tuple[Week, ...]:
    """The weeks of each AE title, and of all together (EVERY_AE), by week and AE title."""
    rows: dict[tuple[int, str], list[WeeklyCount]] = {}
    for count in counts:
        for ae_title in (EVERY_AE, count.ae_title or INBOX):
            rows.setdefault((count.week, ae_title), []).append(count)
    return tuple(
        _week(number, ae_title, rows[number, ae_title]) for number, ae_title in sorted(rows)
    )


def _week(number: int, ae_title: str, counts: Collection[WeeklyCount]) -> Week:
    outcomes: Counter[str] = Counter()
    histogram = [0] * len(EDGES)
    for count in counts:
        outcomes[count.outcome] += count.images
        if count.bin >= 0:
            histogram[count.bin] += count.images

    positive, not_detected = outcomes.pop(POSITIVE, 0), outcomes.pop(NOT_DETECTED, 0)
    unanswered = dict(sorted(outcomes.items()))
    return Week(number, ae_title, positive + not_detected, positive, unanswered, tuple(histogram))


def compare(week: Week, baseline: Week) -> list[Alarm]:
    """The differences of a week from the baseline of the same AE title."""
    if week.images < FEWEST_IMAGES or baseline.images < FEWEST_IMAGES:
        return []
    found = [*_positives(week, baseline), *_scores(week, baseline)]
    for reason in sorted({*week.unanswered, *baseline.unanswered}):
        found += _unanswered(week, baseline, reason)
    return found


def _positives(week: Week, baseline: Week) -> list[Alarm]:
    rate = (week.positive, week.analysed, baseline.positive, baseline.analysed)
    return _rate(week, "positives", rate, _LEAST_DIFFERENCE_OF_POSITIVES)


def _unanswered(week: Week, baseline: Week, reason: str) -> list[Alarm]:
    hits, base_hits = week.unanswered.get(reason, 0), baseline.unanswered.get(reason, 0)
    return _rate(week, reason, (hits, week.images, base_hits, baseline.images), _LEAST_DIFFERENCE)


def _rate(
    week: Week, what: str, rate: tuple[int, int, int, int], least_difference: float
) -> list[Alarm]:
    hits, number, base_hits, base = rate
    low, high = difference(hits, number, base_hits, base)
    if not number or not base or low <= 0 <= high:
        return []
    if abs(hits / number - base_hits / base) < least_difference:
        return []

    words = (
        f"{what}: {hits} of {number} images ({hits / number:.1%}); baseline {base_hits} of {base} "
        f"({base_hits / base:.1%})"
    )
    return [Alarm(week.number, week.ae_title, what, words)]


def _scores(week: Week, baseline: Week) -> list[Alarm]:
    index, limit = (
        psi(week.histogram, baseline.histogram),
        psi_limit(week.histogram, baseline.histogram),
    )
    if sum(week.histogram) < FEWEST_IMAGES or index <= limit:
        return []
    words = f"scores: stability index {index:.2f}; allowed: at most {limit:.2f}"
    return [Alarm(week.number, week.ae_title, "scores", words)]


def monday_of(week: int) -> date:
    """The first day of a week."""
    return datetime.fromtimestamp(FIRST_MONDAY_S + week * WEEK_S, UTC).date()


def weeks_between(first: date, last: date) -> tuple[int, int]:
    """The numbers of the weeks of two days."""
    numbers: Sequence[int] = [
        week_of(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp())
        for day in (first, last)
    ]
    return numbers[0], numbers[1]
