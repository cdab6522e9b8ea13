"""Small drawings as SVG, styled by classes: the Content-Security-Policy forbids inline style."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

# The hours' bars, in the drawing's units.
_BAR, _GAP, _HIGH = 22, 8, 96
# Room for an hour's label on a telephone, whose letters are larger in these units (style.css).
_FOOT = 26
# The meter and the reliability diagram.
_METER_WIDE, _METER_HIGH = 300, 44
_SIDE, _EDGE = 220, 28

_svg = Markup(
    '<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
    "{body}</svg>"
)
_rect = Markup('<rect class="{kind}" x="{x}" y="{y}" width="{w}" height="{h}" rx="{r}"></rect>')
_text = Markup('<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>')
_line = Markup('<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"></line>')


def hours(
    received: Sequence[int], found: Sequence[int], names: Sequence[str], label: str
) -> Markup:
    """A bar for each hour, oldest first; its lower part counts the suspected."""
    most = max(1, *received)
    body = Markup("")

    for index, (number, suspected) in enumerate(zip(received, found, strict=True)):
        x = index * (_BAR + _GAP)
        body += _bar("all", x, number / most)
        body += _bar("found", x, suspected / most)
        if (len(received) - 1 - index) % 4 == 0:
            body += _text.format(
                kind="axis",
                x=x + _BAR / 2,
                y=_HIGH + _FOOT - 6,
                anchor="middle",
                words=names[index],
            )

    width = len(received) * (_BAR + _GAP) - _GAP
    body += _line.format(kind="axis", x1=0, y1=_HIGH, x2=width, y2=_HIGH)
    return _svg.format(kind="hours", width=width, height=_HIGH + _FOOT, label=label, body=body)


def _bar(kind: str, x: float, share: float) -> Markup:
    if not share:
        return Markup("")
    height = max(2.0, share * (_HIGH - 4))
    return _rect.format(kind=kind, x=x, y=f"{_HIGH - height:.1f}", w=_BAR, h=f"{height:.1f}", r=2)


def meter(value: float, threshold: float | None, words: str, label: str) -> Markup:
    """A score from 0 to 1 as a bar, with a line at the threshold."""
    is_over = threshold is not None and value >= threshold
    kind = "over" if is_over else "under"
    body = _rect.format(kind="track", x=0, y=6, w=_METER_WIDE, h=14, r=7)
    body += _rect.format(kind=kind, x=0, y=6, w=f"{max(4.0, value * _METER_WIDE):.1f}", h=14, r=7)
    if threshold is not None:
        at = threshold * _METER_WIDE
        body += _line.format(kind="limit", x1=f"{at:.1f}", y1=1, x2=f"{at:.1f}", y2=25)
        anchor = "start" if threshold < 0.5 else "end"
        body += _text.format(kind="axis", x=f"{at:.1f}", y=39, anchor=anchor, words=words)
    return _svg.format(kind="meter", width=_METER_WIDE, height=_METER_HIGH, label=label, body=body)


def reliability(bins: Sequence[tuple[float, float, int]], x: str, y: str, label: str) -> Markup:
    """Reliability plot: a dot for each bin, on the diagonal where score and truth agree."""
    whole = _SIDE + 2 * _EDGE
    body = _rect.format(kind="track", x=_EDGE, y=_EDGE / 2, w=_SIDE, h=_SIDE, r=2)
    top, foot = _EDGE / 2, _EDGE / 2 + _SIDE
    body += _line.format(kind="diagonal", x1=_EDGE, y1=foot, x2=_EDGE + _SIDE, y2=top)

    for said, was, _ in bins:
        body += Markup('<circle class="dot" cx="{x}" cy="{y}" r="4"></circle>').format(
            x=f"{_EDGE + said * _SIDE:.1f}", y=f"{foot - was * _SIDE:.1f}"
        )
    for value in (0, 1):
        body += _text.format(
            kind="axis", x=_EDGE + value * _SIDE, y=foot + 14, anchor="middle", words=value
        )
        body += _text.format(
            kind="axis", x=_EDGE - 6, y=foot - value * _SIDE + 4, anchor="end", words=value
        )
    body += _text.format(kind="axis", x=_EDGE + _SIDE / 2, y=foot + 14, anchor="middle", words=x)
    body += Markup(
        '<text class="axis" transform="translate({x} {y}) rotate(-90)" text-anchor="middle">'
        "{words}</text>"
    ).format(x=_EDGE - 10, y=top + _SIDE / 2, words=y)
    return _svg.format(kind="reliability", width=whole, height=whole, label=label, body=body)
