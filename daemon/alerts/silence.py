"""How many images of a sender are missing, compared with its own recent weeks."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

HOUR_S = 3600
_WEEK_H = 7 * 24
_WEEKS = 8
# Fewer weeks say nothing about an hour of the week.
_FEWEST_WEEKS = 3


def missing_images(hours: Mapping[int, int], last_at: float, now: float) -> float:
    """The images that the sender would usually have sent between its last one and now.

    `hours`: its images of each hour (hours since 1970) that had any. The usual number of an hour
    is the median over the same hour of the last eight weeks, so that neither a holiday nor a busy
    week decides. Times in seconds since 1970.
    """
    if not hours:
        return 0.0

    # After a leap of the clock, the silence seems to have lasted for years: weeks say enough.
    now = min(now, last_at + _WEEKS * _WEEK_H * HOUR_S)
    first = min(hours)
    missing = 0.0
    for hour in range(int(last_at // HOUR_S), int(now // HOUR_S) + 1):
        begins = max(last_at, hour * HOUR_S)
        ends = min(now, (hour + 1) * HOUR_S)
        missing += _usual(hours, hour, first) * max(0.0, ends - begins) / HOUR_S
    return missing


def _usual(hours: Mapping[int, int], hour: int, first: int) -> float:
    earlier = [hour - week * _WEEK_H for week in range(1, _WEEKS + 1)]
    counts = [hours.get(each, 0) for each in earlier if each >= first]
    return median(counts) if len(counts) >= _FEWEST_WEEKS else 0.0
