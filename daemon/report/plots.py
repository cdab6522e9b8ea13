"""Two plots as inline SVG: stacked bars by day, and a rate with its interval by week.

Colours are classes of the page's own style sheet, so that they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 10, 26
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
# The most labels on the horizontal axis.
_MOST_LABELS = 10


@dataclass(frozen=True)
class Bar:
    """One bar: its label, and the heights of its parts by the class of their colour."""

    label: str
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Point:
    """A value with its interval; None: no value, and nothing is drawn."""

    label: str
    value: float | None
    low: float = 0.0
    high: float = 0.0


def bars(title: str, items: Sequence[Bar]) -> str:
    """Stacked bars on a vertical axis from 0."""
    totals = [sum(value for _, value in item.parts) for item in items]
    top = _round_up(max(totals, default=0.0))
    number_format = "{:.0f}" if top >= 4 else "{:g}"
    drawn = [_grid(top, number_format), _labels([item.label for item in items])]

    step = _PLOT_WIDTH / max(1, len(items))
    for number, item in enumerate(items):
        drawn += _stack(item, _LEFT + number * step, step, top)
    return _svg(title, drawn)


def _stack(item: Bar, left: float, step: float, top: float) -> Iterator[str]:
    """The parts of one bar, upon each other; `step` is the bar's width with its margins."""
    base = 0.0
    for name, value in item.parts:
        if value:
            y = _y(base + value, top)
            height = _y(base, top) - y
            yield (
                f'<rect class="{name}" x="{left + step * 0.1:.1f}" y="{y:.1f}" '
                f'width="{step * 0.8:.1f}" height="{height:.1f}"/>'
            )
        base += value


def rates(title: str, items: Sequence[Point], baseline: float | None = None) -> str:
    """Rates (0 to 1) with their intervals, and the baseline's rate as a dashed line."""
    highs = [item.high for item in items if item.value is not None]
    top = min(1.0, _round_up(max([*highs, baseline or 0.0, 0.01])))
    step = _PLOT_WIDTH / max(1, len(items))
    drawn = [_grid(top, "{:.1%}"), _labels([item.label for item in items])]

    if baseline is not None:
        y = _y(baseline, top)
        drawn.append(
            f'<line class="baseline" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" '
            f'y2="{y:.1f}"/>'
        )

    for number, item in enumerate(items):
        if item.value is None:
            continue

        x = _LEFT + (number + 0.5) * step
        drawn.append(
            f'<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(item.low, top):.1f}" '
            f'y2="{_y(item.high, top):.1f}"/>'
            f'<circle class="value" cx="{x:.1f}" cy="{_y(item.value, top):.1f}" r="4"/>'
        )
    return _svg(title, drawn)


def _svg(title: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(drawn)}</svg>"
    )


def _y(value: float, top: float) -> float:
    return _TOP + _PLOT_HEIGHT * (1 - min(value, top) / top)


def _grid(top: float, number_format: str) -> str:
    """Horizontal lines at five values from 0 to `top`, with their numbers."""
    lines = []
    for number in range(5):
        value = top * number / 4
        y = _y(value, top)
        lines.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{number_format.format(value)}</text>"
        )
    return "".join(lines)


def _labels(labels: Sequence[str]) -> str:
    """Every label, or every n-th where there are many."""
    step = _PLOT_WIDTH / max(1, len(labels))
    every = math.ceil(len(labels) / _MOST_LABELS) or 1
    return "".join(
        f'<text class="axis" x="{_LEFT + (number + 0.5) * step:.1f}" y="{_HEIGHT - 8}" '
        f'text-anchor="middle">{escape(label)}</text>'
        for number, label in enumerate(labels)
        if number % every == 0
    )


def _round_up(value: float) -> float:
    """Round up to 1, 2, 4 or 8 times a power of ten, so that a quarter of it has few digits."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 8, 10) if value <= factor * power * 1.0001)
