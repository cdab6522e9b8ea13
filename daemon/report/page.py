"""The monthly report as one self-contained HTML page that names no patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from html import escape

from daemon.drift import EVERY_AE, Agreement, Comparison, Drift, monday_of
from daemon.drift.statistics import Interval
from daemon.report.figures import Day, OutageTime, Source, Times
from daemon.report.plots import Bar, Point, bars, rates

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --paper: #fff; --soft: #5b6470; --line: #d5dae0;
  --analysed: #2f6fb3; --not-analysed: #b8862b; --failed: #b3312f; --waiting: #8a93a0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #16191d; --soft: #a3acb8;
  --line: #363c44; --analysed: #6aa5e3; --not-analysed: #dcb25e; --failed: #ee7a76; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 820px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p.soft, figcaption { color: var(--soft); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; }
dl div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; }
dt { color: var(--soft); } dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
figure { margin: 0; } svg { width: 100%; height: auto; }
svg .grid { stroke: var(--line); } svg .axis { fill: var(--soft); font-size: 11px; }
svg .baseline { stroke: var(--soft); stroke-dasharray: 5 4; }
svg .interval { stroke: var(--analysed); stroke-width: 2; } svg .value { fill: var(--analysed); }
svg .analysed { fill: var(--analysed); } svg .not-analysed { fill: var(--not-analysed); }
svg .failed { fill: var(--failed); } svg .waiting { fill: var(--waiting); }
.alarm { border-left: 4px solid var(--failed); padding: .3rem .8rem; margin: .4rem 0; }
.key::before { content: "■ "; } .key.analysed { color: var(--analysed); }
.key.not-analysed { color: var(--not-analysed); } .key.failed { color: var(--failed); }
.key.waiting { color: var(--waiting); }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } }
"""


@dataclass(frozen=True)
class Report:
    """The content of the page."""

    ae_title: str
    first: date
    last: date
    made_at: datetime
    days: Sequence[Day]
    times: Sequence[Times]
    sources: Sequence[Source]
    reasons: Sequence[tuple[str, str, int]]
    refused: Sequence[tuple[str, int]]
    outages: Sequence[OutageTime]
    drift: Drift
    agreement: Agreement | None
    # From the newest images, whenever they were received.
    comparison: Comparison | None = None


def page(report: Report) -> str:
    """The whole page."""
    title = f"{report.ae_title}: {report.first} to {report.last}"
    sections = [
        _summary(report),
        _volumes(report),
        _times(report.times),
        _positives(report),
        _drift(report.drift),
        _agreement(report.agreement),
        _comparison(report.comparison),
        _outages(report.outages),
        _failures(report),
    ]

    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="soft">Pleura, a node that finds pneumothorax on chest X-rays; research use '
        f"only. Written {report.made_at:%Y-%m-%d %H:%M}. No patient is named here.</p>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def _summary(report: Report) -> str:
    images = sum(day.images for day in report.days)
    analysed = sum(day.analysed for day in report.days)
    positive = sum(source.positive for source in report.sources)
    failed = sum(day.failed for day in report.days)

    figures = [
        ("images", f"{images:,}"),
        ("analysed", f"{analysed:,}"),
        ("positive", f"{positive:,}" + (f" ({positive / analysed:.1%})" if analysed else "")),
        ("failed", f"{failed:,}"),
    ]
    if report.times:
        figures.append(("median time to the answer", seconds(report.times[0].median_s)))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    return f"<dl>{cells}</dl>"


def _volumes(report: Report) -> str:
    items = [
        Bar(
            f"{day.day:%d %b}",
            (
                ("analysed", day.analysed),
                ("not-analysed", day.not_analysed),
                ("failed", day.failed),
                ("waiting", day.waiting),
            ),
        )
        for day in report.days
    ]

    keys = " ".join(
        f'<span class="key {name}">{text}</span>'
        for name, text in (
            ("analysed", "analysed"),
            ("not-analysed", "not analysed"),
            ("failed", "failed"),
            ("waiting", "waiting"),
        )
    )

    plot = bars("Images by day", items)
    return f"<h2>Images by day</h2><figure>{plot}<figcaption>{keys}</figcaption></figure>"


def _times(found: Sequence[Times]) -> str:
    rows = [
        (each.name, f"{each.number:,}", seconds(each.median_s), seconds(each.most_s))
        for each in found
    ]
    return _section("Times", ("", "number", "median", "95 % within"), rows)


def _positives(report: Report) -> str:
    rows = [
        (
            source.ae_title,
            f"{source.images:,}",
            f"{source.analysed:,}",
            f"{source.positive:,}",
            share(source.rate, source.interval),
        )
        for source in report.sources
    ]
    head = ("modality", "images", "analysed", "positive", "share (95 % interval)")
    return _section("Positives by modality", head, rows)


def _drift(found: Drift) -> str:
    weeks = found.of(EVERY_AE)
    if not weeks:
        return ""

    base = found.baseline_of.get(EVERY_AE)
    points = [
        Point(f"{week.monday:%d %b}", week.positive_rate, *week.positive_interval) for week in weeks
    ]
    plot = rates("Share of positives by week", points, base.positive_rate if base else None)
    caption = "share of positives by week, with 95 % intervals"
    if found.baseline is None:
        caption += "; no baseline is set (pleura drift baseline)"
    else:
        first, last = monday_of(found.baseline.first_week), monday_of(found.baseline.last_week)
        caption += f"; dashed: the baseline, the weeks of {first} to {last}"

    alarms = "".join(
        f'<p class="alarm">Week of {monday_of(alarm.week)}, '
        f"{escape(alarm.ae_title or 'all modalities')}: {escape(alarm.words)}</p>"
        for alarm in found.alarms
    )
    quiet = "" if found.baseline is None else "<p>No figure differs from the baseline.</p>"
    return (
        f"<h2>Drift</h2><figure>{plot}<figcaption>{caption}</figcaption></figure>{alarms or quiet}"
    )


def _agreement(found: Agreement | None) -> str:
    if found is None:
        return ""
    rows = [
        ("reports with an analysed image", f"{found.reports:,}"),
        ("sensitivity", share(*found.sensitivity)),
        ("positive predictive value", share(*found.predictive_value)),
        ("area under the ROC curve", _area(found)),
    ]
    return _section("Agreement with reports", ("", "value"), rows)


def _comparison(found: Comparison | None) -> str:
    if found is None:
        return ""

    pairs = found.pairs
    rows = [
        ("images that both answered", f"{found.images:,}", ""),
        ("the same answer", share(*found.agreement), ""),
        ("positive for one alone", f"{pairs.only_model:,}", f"{pairs.only_shadow:,}"),
        ("without an answer", "", f"{pairs.unanswered:,}"),
    ]

    model, shadow = found.model_with_reports, found.shadow_with_reports
    if model is not None and shadow is not None:
        rows += [
            ("reports on these images", f"{model.reports:,}", f"{shadow.reports:,}"),
            ("sensitivity", share(*model.sensitivity), share(*shadow.sensitivity)),
            (
                "positive predictive value",
                share(*model.predictive_value),
                share(*shadow.predictive_value),
            ),
            ("area under the ROC curve", _area(model), _area(shadow)),
        ]

    head = ("newest images", found.model, f"shadow: {found.shadow}")
    return _section("The shadow model, whose answers are not sent", head, rows)


def _area(found: Agreement) -> str:
    return "-" if found.auc is None else f"{found.auc:.3f}"


def _outages(found: Sequence[OutageTime]) -> str:
    rows = [
        (
            each.what,
            f"{datetime.fromtimestamp(each.began_at).astimezone():%Y-%m-%d %H:%M}",
            seconds(each.ended_at - each.began_at) + ("" if each.is_over else ", not over"),
            f"{each.number:,}",
        )
        for each in found
    ]
    head = ("what", "since", "for", "waited")
    return _section("Outages: work that waited for more than ten minutes", head, rows)


def _failures(report: Report) -> str:
    rows = [
        (state.replace("_", " "), reason, f"{number:,}") for state, reason, number in report.reasons
    ]
    rows += [("refused", name, f"{number:,}") for name, number in report.refused]
    return _section("Without an answer, or refused", ("state", "reason", "number"), rows)


def _section(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A heading and a table, whose columns after the first hold numbers; "none" without rows."""
    lines = [_row(row, "td") for row in rows]
    if not lines:
        return f"<h2>{title}</h2><p>None.</p>"
    return f"<h2>{title}</h2><table>{_row(head, 'th')}{''.join(lines)}</table>"


def _row(cells: Sequence[str], tag: str) -> str:
    is_number = ["", *(' class="number"' for _ in cells[1:])]
    return (
        "<tr>"
        + "".join(
            f"<{tag}{number}>{escape(cell)}</{tag}>"
            for number, cell in zip(is_number, cells, strict=True)
        )
        + "</tr>"
    )


def seconds(value: float) -> str:
    """A time in the unit that a person would use."""
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    if value < 172_800:
        return f"{value / 3600:.1f} h"
    return f"{value / 86400:.1f} days"


def share(value: float | None, interval: Interval) -> str:
    """A share with its 95 % interval."""
    if value is None:
        return "-"
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"
