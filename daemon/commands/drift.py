"""`pleura drift`: the newest weeks against the baseline, and answers against reports, as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from daemon.drift import (
    EVERY_AE,
    Agreement,
    Alarm,
    Comparison,
    Drift,
    Week,
    agreement,
    comparison,
    drift,
    monday_of,
)
from daemon.ledger import Inspection


@dataclass(frozen=True)
class Look:
    """The answer of one look at the ledger."""

    drift: Drift
    agreement: Agreement | None
    # None: no shadow model has looked at an image.
    comparison: Comparison | None = None


def look(inspect: Inspection, weeks: int) -> Look:
    """Read the figures."""
    return Look(drift(inspect, weeks), agreement(inspect), comparison(inspect))


def lines(found: Look) -> Iterator[str]:
    """The figures for people."""
    baseline = found.drift.baseline
    if baseline is None:
        yield "baseline: none; pleura drift baseline --from DATE --to DATE"
    else:
        yield (
            f"baseline: the weeks of {monday_of(baseline.first_week)} to "
            f"{monday_of(baseline.last_week)}, set by {baseline.set_by}"
        )

    for week in found.drift.weeks:
        yield _week_line(week)
    yield from _agreement_lines(found.agreement)
    yield from _comparison_lines(found.comparison)
    for alarm in found.drift.alarms:
        yield f"DRIFT {monday_of(alarm.week)} {_named(alarm.ae_title)}: {alarm.words}"


def _week_line(week: Week) -> str:
    low, high = week.positive_interval
    rate = week.positive_rate
    share = "" if rate is None else f" ({rate:.1%}; 95 %: {low:.1%} to {high:.1%})"
    rest = "".join(f"; {number} {reason}" for reason, number in week.unanswered.items())
    return (
        f"{week.monday} {_named(week.ae_title)}: {week.images} images, {week.positive} of "
        f"{week.analysed} positive{share}{rest}"
    )


def _named(ae_title: str) -> str:
    return "all" if ae_title == EVERY_AE else ae_title


def _agreement_lines(agreed: Agreement | None) -> Iterator[str]:
    if agreed is None:
        return
    for name, (share, (low, high)) in (
        ("sensitivity", agreed.sensitivity),
        ("positive predictive value", agreed.predictive_value),
    ):
        words = "-" if share is None else f"{share:.1%} (95 %: {low:.1%} to {high:.1%})"
        yield f"{name} against {agreed.reports} reports: {words}"


def _comparison_lines(found: Comparison | None) -> Iterator[str]:
    if found is None:
        return
    pairs = found.pairs
    share, (low, high) = found.agreement
    words = "-" if share is None else f"{share:.1%} (95 %: {low:.1%} to {high:.1%})"
    yield (
        f"shadow {found.shadow} beside {found.model}: the same answer on {found.agreed} of "
        f"{found.images} images, {words}; positive for the model alone {pairs.only_model}, for the "
        f"shadow alone {pairs.only_shadow}; without the shadow's answer {pairs.unanswered}"
    )

    for name, agreed in (
        ("model", found.model_with_reports),
        ("shadow", found.shadow_with_reports),
    ):
        for line in _agreement_lines(agreed):
            yield f"{name}: {line}"
        if agreed is not None and agreed.auc is not None:
            yield f"{name}: area under the ROC curve: {agreed.auc:.3f}"


def summary(found: Look) -> dict[str, Any]:
    """The figures as JSON."""
    return {
        "weeks": [_week_summary(week) for week in found.drift.weeks],
        "alarms": [_alarm_summary(alarm) for alarm in found.drift.alarms],
        "agreement": _agreement_summary(found.agreement),
        "shadow": _comparison_summary(found.comparison),
    }


def _week_summary(week: Week) -> dict[str, Any]:
    return {
        "week": str(week.monday),
        "ae_title": week.ae_title or None,
        "images": week.images,
        "analysed": week.analysed,
        "positive": week.positive,
        "unanswered": week.unanswered,
        "scores": week.histogram,
    }


def _alarm_summary(alarm: Alarm) -> dict[str, Any]:
    return {
        "week": str(monday_of(alarm.week)),
        "ae_title": alarm.ae_title or None,
        "what": alarm.what,
        "words": alarm.words,
    }


def _comparison_summary(found: Comparison | None) -> dict[str, Any] | None:
    if found is None:
        return None
    share, interval = found.agreement
    return {
        **asdict(found.pairs),
        "images": found.images,
        "agreement": share,
        "agreement_95": interval,
        "model_with_reports": _agreement_summary(found.model_with_reports),
        "shadow_with_reports": _agreement_summary(found.shadow_with_reports),
    }


def _agreement_summary(agreed: Agreement | None) -> dict[str, Any] | None:
    if agreed is None:
        return None
    sensitivity, sensitivity_interval = agreed.sensitivity
    value, value_interval = agreed.predictive_value
    return {
        "reports": agreed.reports,
        "sensitivity": sensitivity,
        "sensitivity_95": sensitivity_interval,
        "positive_predictive_value": value,
        "positive_predictive_value_95": value_interval,
        "auc": agreed.auc,
    }
