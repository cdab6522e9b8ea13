"""Values as a page shows them: times, ages, sizes, UIDs."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from markupsafe import Markup

from daemon.ledger import ImageState
from daemon.ledger.timeline import Event
from daemon.ledger.view import Activity, Count
from daemon.web import drawn
from daemon.web.texts import Texts

if TYPE_CHECKING:
    from daemon.web.now import Need

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86400.0
_UNITS = ("B", "kB", "MB", "GB", "TB")
_UID_ENDS = (14, 10)
# Ages are below this, times since 1970 above.
_AGES_END_S = 1e9


class Row(NamedTuple):
    """One image as a row of a table. `exact`: `received` as a machine reads it."""

    number: int
    exact: str
    received: str
    sender: str
    state: str
    is_positive: bool
    # "" where there is none.
    score: str
    reason: str
    uid: str
    short: str


@dataclass(frozen=True)
class Shown:
    """Writes values in one language, in the node's time zone."""

    texts: Texts

    def at(self, seconds: float | None) -> str:
        """A time of day; with its date where that is not today."""
        if seconds is None:
            return "–"
        return _without_today(self.date_time(seconds), _today())

    def date_time(self, seconds: float | None) -> str:
        """Date, time and zone, as a machine reads them."""
        if seconds is None:
            return ""
        return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")

    def age(self, seconds: float | None) -> str:
        """A duration in one fitting unit."""
        if seconds is None:
            return "–"
        span = max(0.0, seconds)
        if span < 10:
            return self.texts.say("span_s", number=self.number(span, 1))
        if span < 2 * _MINUTE_S:
            return self.texts.say("span_s", number=f"{span:.0f}")
        if span < 2 * _HOUR_S:
            return self.texts.say("span_min", number=f"{span / _MINUTE_S:.0f}")
        if span < 2 * _DAY_S:
            return self.texts.say("span_h", number=f"{span / _HOUR_S:.0f}")
        return self.texts.say("span_days", number=f"{span / _DAY_S:.0f}")

    def number(self, value: float, digits: int = 0) -> str:
        """A number with the language's decimal sign and a thin blank between thousands."""
        text = f"{value:,.{digits}f}".replace(",", "\u202f")
        return text.replace(".", ",") if self.texts.language == "de" else text

    def count(self, count: Count) -> str:
        """How many, with "+" if there may be more."""
        return self.number(count.number) + ("+" if count.is_more else "")

    def percent(self, value: float | None, digits: int = 1) -> str:
        """0 to 1 as a percentage."""
        return "–" if value is None else f"{self.number(100 * value, digits)}\u202f%"

    def size(self, size_bytes: float | None) -> str:
        """Bytes, in powers of a thousand."""
        if size_bytes is None:
            return "–"
        power = 0
        while size_bytes >= 1000 and power < len(_UNITS) - 1:
            size_bytes /= 1000
            power += 1
        return f"{self.number(size_bytes, 1 if power > 1 else 0)}\u202f{_UNITS[power]}"

    def short(self, uid: str) -> str:
        """A UID by its two ends."""
        first, last = _UID_ENDS
        return uid if len(uid) <= first + last + 1 else f"{uid[:first]}…{uid[-last:]}"

    def reason(self, reason: str | None) -> str:
        """A reason's code in words; the code itself if the table lacks it."""
        return self.texts.say_or(f"reason_{reason}", reason or "")

    def search(self, **asked: str) -> str:
        """The address of a search."""
        given = {name: value for name, value in asked.items() if value}
        return f"/images?{urlencode(given)}" if given else "/images"

    # -- rows of a table ------------------------------------------------------------------------

    def rows(self, images: Sequence[dict[str, Any]]) -> list[Row]:
        """Images as a table shows them."""
        today = _today()
        return [self._row(image, today) for image in images]

    def _row(self, image: dict[str, Any], today: str) -> Row:
        received, score = self.date_time(image["received_at"]), image["probability"]
        return Row(
            number=image["id"],
            exact=received,
            received=_without_today(received, today),
            sender=image["calling_ae_title"],
            state=image["state"],
            is_positive=image["state"] == ImageState.ANALYSED and bool(image["positive"]),
            score="" if score is None else self.number(score, 3),
            reason=self.reason(image["reason"]),
            uid=image["sop_instance_uid"],
            short=self.short(image["sop_instance_uid"]),
        )

    # -- sentences ------------------------------------------------------------------------------

    def need(self, need: Need, at: float) -> str:
        """A task for a person, in a sentence."""
        return self.texts.say(need.key, **self._words(need.values, at))

    def need_more(self, need: Need, at: float) -> str:
        """The sentence's second line; "" if it has none."""
        values = self._words(need.values, at)
        return self.texts.say_or(f"{need.key}_more", "", **values)

    def event(self, event: Event) -> str:
        """An event of an image, in a sentence."""
        return self.texts.say(event.key, **self._words(event.values, 0.0)).strip()

    def model(self, described: str) -> str:
        """A model's id and version, and the beginning of its digest."""
        return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", described)

    def _words(self, values: dict[str, Any], at: float) -> dict[str, str]:
        """The values of a sentence as text, each by its name."""
        words: dict[str, str] = {}
        for name, value in values.items():
            if name == "reason":
                words[name] = self.reason(value)
            elif name == "since":
                words["age"] = self.texts.say("never") if value is None else self._ago(value, at)
            elif name == "seconds":
                words[name] = self.age(value)
            elif name == "size":
                words[name] = self.size(value)
            elif isinstance(value, Count):
                words[name] = self.count(value)
            elif name == "model":
                words[name] = self.model(value)
            else:
                words[name] = "" if value is None else str(value)

        return words

    def _ago(self, value: float, at: float) -> str:
        # A role's last heartbeat is already an age; a destination's outage is a time.
        return self.age(value if value < _AGES_END_S else at - value)

    # -- drawings -------------------------------------------------------------------------------

    def hours(self, activity: Activity) -> Markup:
        """The images of the last day, by hour."""
        count = len(activity.received)
        now = datetime.fromtimestamp(time.time()).hour
        names = [f"{(now - count + 1 + index) % 24:02d}" for index in range(count)]
        label = self.texts.say(
            "hours_alt", number=sum(activity.received), found=sum(activity.positive)
        )
        return drawn.hours(activity.received, activity.positive, names, label)

    def meter(self, value: float, threshold: float | None) -> Markup:
        """A score against its threshold."""
        score = self.number(value, 3)
        limit = "" if threshold is None else self.number(threshold, 3)
        words = self.texts.say("threshold_at", threshold=limit)
        label = self.texts.say("score_alt", score=score, threshold=limit or "–")
        number = Markup('<p class="figure">{score}</p>').format(score=score)
        return number + drawn.meter(value, threshold, words, label)

    def reliability(self, bins: Sequence[tuple[float, float, int]]) -> Markup:
        """The calibration of a model."""
        say = self.texts.say
        return drawn.reliability(bins, say("said"), say("was"), say("reliability_alt"))


def _today() -> str:
    return datetime.fromtimestamp(time.time()).date().isoformat()


def _without_today(date_time: str, today: str) -> str:
    """`2026-11-29T09:30:00+01:00` -> the time of day, after the date unless that is today."""
    day, clock = date_time[:10], date_time[11:19]
    return clock if day == today else f"{day} {clock}"
