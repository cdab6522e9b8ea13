"""A data set on one HTML page: counts, sex, view, age, where the labels come from, masks, samples,
checks.

The page holds its pictures and needs no other file. Images are named by their id, patients not at
all.
"""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference.preprocess import fit
from training import data
from training.data import checks
from training.data.cases import Case
from training.data.checks import Seen
from training.data.siim import SiimCase
from training.recipe import Layout

_POSITIVE, _NEGATIVE, _OUTLINE = "#c2410c", "#64748b", "#fb923c"
_SAMPLES, _SAMPLE_SIDE = 12, 320
_LOOKS: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "pleura",
}
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1e293b;max-width:70rem;margin:2rem auto;
 padding:0 1.5rem}
h1{font-size:1.7rem;margin-bottom:0}
h2{font-size:1.2rem;margin:2.2rem 0 .5rem;border-bottom:1px solid #cbd5e1}
table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.2rem 1.1rem .2rem 0;text-align:right;font-variant-numeric:tabular-nums}
th{font-weight:600;border-bottom:1px solid #cbd5e1}td:first-child,th:first-child{text-align:left}
.row{display:flex;flex-wrap:wrap;gap:2rem;align-items:flex-start}
.samples{display:grid;grid-template-columns:repeat(4,1fr);gap:.8rem}
figure{margin:0;min-width:0}img{max-width:100%;display:block}
figcaption{font-size:.75rem;color:#475569;overflow-wrap:anywhere}
p{margin:.4rem 0;color:#475569}li{margin:.2rem 0;overflow-wrap:anywhere}.error{color:#b91c1c}
.warning{color:#b45309}
"""
Row = Sequence[str | int | float]


@dataclass(frozen=True, eq=False)
class _Look:
    """One image: its row of the table, and what its pixels show."""

    case: Case
    seen: Seen


def explore(
    folder: Path, layout: Layout, out: Path, done: Callable[[int, int], None] | None = None
) -> checks.Report:
    """Write the page of the data set in `folder` to the file `out`; every image is read once,
    `done(so far, in all)`.

    Returns what the checks found.

    Raises:
        ValueError: the folder does not have the layout.
    """
    cases = data.read(layout, folder)
    seen = checks.examine(cases, done)
    report = checks.check(cases, None, seen)
    looks = [_Look(case, image) for case, image in zip(cases, seen, strict=True)]
    with mpl.rc_context(_LOOKS):
        drawn = [section(looks) for section in (_counts, _groups, _ages, _areas, _places, _samples)]

    title = f"Data set, layout {layout}"
    page = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(data.LAYOUTS[layout].about)}</p>",
        _checked(report),
        *drawn,
    ]

    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(page), encoding="utf-8")
    return report


def _counts(looks: Sequence[_Look]) -> str:
    cases = [look.case for look in looks]
    positive = sum(case.positive for case in cases)
    rows: list[Row] = [
        ("images", len(cases), ""),
        ("patients", len({case.patient for case in cases}), ""),
        ("positive", positive, _percent(positive, len(cases))),
        ("negative", len(cases) - positive, _percent(len(cases) - positive, len(cases))),
        ("with a mask that holds something", sum(bool(look.seen.share) for look in looks), ""),
        ("cannot be used (see the checks)", sum(bool(look.seen.fault) for look in looks), ""),
    ]
    soft = [case.label for case in cases if case.label not in (0, 1)]
    if not soft:
        return _section("Counts", _table(("", "n", "share"), rows))

    figure, axes = _axes(4.6, 2.6)
    axes.hist([case.label for case in cases], bins=20, range=(0, 1), color=_NEGATIVE)
    axes.set(xlabel="label (a probability)", ylabel="images")
    return _section(
        "Counts", _side_by_side(_table(("", "n", "share"), rows), _svg(figure, "labels"))
    )


def _groups(looks: Sequence[_Look]) -> str:
    """Positives by group: where the shares differ, a network can learn the group instead of the
    label.
    """
    kinds: list[tuple[str, Callable[[Case], str]]] = [
        ("sex", lambda case: case.sex or "not given"),
        ("view", lambda case: case.view or "not given"),
        ("provenance", lambda case: "as published" if case.as_published else "re-wrapped copy"),
        ("published fold", lambda case: "none" if case.fold is None else str(case.fold)),
    ]

    figure, axes = _axes(4.6, 2.8)
    tables, place, ticks = [], 0.0, []
    for name, group_of in kinds:
        groups: dict[str, list[bool]] = {}
        for look in looks:
            groups.setdefault(group_of(look.case), []).append(look.case.positive)
        rows: list[Row] = []
        for group, labels in sorted(groups.items()):
            rows.append(
                (
                    group,
                    len(labels),
                    _percent(len(labels), len(looks)),
                    sum(labels),
                    _percent(sum(labels), len(labels)),
                )
            )

            if name != "published fold":
                bar = axes.barh(place, sum(labels) / len(labels) * 100, color=_POSITIVE)
                axes.bar_label(bar, fmt="%.0f %%", padding=3)
                ticks.append((place, f"{name}: {group} (n = {len(labels)})"))
                place -= 1

        place -= 0.6
        tables.append(_table((name, "n", "share", "positive", "of these"), rows))

    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.set(xlabel="positive, % of the group", xlim=(0, 100))
    return _section(
        "Sex, view, provenance", _side_by_side(*tables, _svg(figure, "positives by group"))
    )


def _ages(looks: Sequence[_Look]) -> str:
    known = [look.case for look in looks if look.case.age_years is not None]
    odd = [case for case in known if not checks.plausible(case.age_years)]
    ages = {
        positive: np.array(
            [case.age_years for case in known if case.positive is positive and case not in odd],
            dtype=float,
        )
        for positive in (True, False)
    }
    everyone = np.concatenate(list(ages.values()))
    if not len(everyone):
        return _section("Age", "<p>No image has a plausible age.</p>")

    figure, axes = _axes(7.5, 2.8)
    bins = range(0, checks.OLDEST_YEARS + 1, 5)
    axes.hist(
        [ages[True], ages[False]],
        bins=bins,
        stacked=True,
        color=[_POSITIVE, _NEGATIVE],
        label=["positive", "negative"],
    )

    axes.set(xlabel="age in years", ylabel="images", xlim=(0, max(100.0, everyone.max())))
    axes.legend(frameon=False)
    whole = Counter(np.floor(everyone).astype(int).tolist())
    rows: list[Row] = [
        ("age known", len(known), ""),
        (
            "median (quartiles)",
            len(everyone),
            "{1:g} ({0:g} to {2:g})".format(*np.percentile(everyone, (25, 50, 75))),
        ),
        ("most frequent age", max(whole.values()), max(whole, key=lambda age: (whole[age], -age))),
        ("under 18", int((everyone < 18).sum()), ""),
        (f"outside 0 to {checks.OLDEST_YEARS}, not drawn", len(odd), ""),
    ]

    outliers = (
        _table(("outlier", "age"), [(case.image_id, f"{case.age_years:g}") for case in odd])
        if odd
        else ""
    )

    return _section(
        "Age", _svg(figure, "ages") + _side_by_side(_table(("", "n", "years"), rows), outliers)
    )


def _areas(looks: Sequence[_Look]) -> str:
    masked = [look for look in looks if look.seen.share]
    if not masked:
        return _section("Masks", "<p>No image has a mask that holds something.</p>")
    shares = np.array([look.seen.share for look in masked], dtype=float) * 100
    figure, axes = _axes(5.6, 2.8)
    axes.hist(
        shares,
        bins=np.geomspace(shares.min() * 0.95, shares.max() * 1.05, 30).tolist(),
        color=_POSITIVE,
    )

    axes.set(xscale="log", xlabel="mask, % of the image's area", ylabel="images")
    axes.xaxis.set_major_formatter("{x:g}")
    kinds = [("connected regions", Counter(look.seen.regions for look in masked))]
    rows_of = [len(look.case.runs) for look in masked if isinstance(look.case, SiimCase)]
    if rows_of:
        kinds.append(("rows of the table of masks", Counter(rows_of)))

    several = [
        (key, *(counts[key] for _, counts in kinds))
        for key in sorted({key for _, counts in kinds for key in counts})
    ]
    counted = _table(("in one image", *(f"n, {name}" for name, _ in kinds)), several)
    quantiles = (0, 2, 25, 50, 75, 98, 100)
    values = [f"{value:.3g}" for value in np.percentile(shares, quantiles)]
    areas = _table(
        ("quantile", *(f"{quantile} %" for quantile in quantiles)),
        [(f"mask, % of the image (n = {len(shares)})", *values)],
    )

    small = f"{int((shares < 1).sum())} of {len(shares)} masks cover less than 1 % of their image"
    said = f"<p>{small}; the mean is {shares.mean():.2g} %.</p>"
    return _section("Masks", _side_by_side(_svg(figure, "mask areas"), counted) + areas + said)


def _places(looks: Sequence[_Look]) -> str:
    maps = [look.seen.map for look in looks if look.seen.map is not None]
    if not maps:
        return ""

    figure, axes = _axes(4.6, 3.8)
    drawn = axes.imshow(np.mean(maps, axis=0) * 100, cmap="inferno", vmin=0)
    axes.set_axis_off()
    figure.colorbar(drawn, ax=axes, label=f"% of the {len(maps)} masks", shrink=0.85)

    # The annotated area by column
    across = np.sum(maps, axis=(0, 1))
    left = _percent(float(across[: len(across) // 2].sum()), float(across.sum()))
    text = (
        f"<p>{left} of the annotated area lies in the left half of the images: the patient's right "
        "if upright.</p>"
    )
    return _section("Where masks lie", _side_by_side(_svg(figure, "where masks lie"), text))


def _samples(looks: Sequence[_Look]) -> str:
    usable = [look for look in looks if not look.seen.fault]
    masked = sorted(
        (look for look in usable if look.seen.share), key=lambda look: look.seen.share or 0
    )
    positive = masked or [look for look in usable if look.case.positive]
    negative = [look for look in usable if not look.case.positive]
    shown = (
        ("Positives, from the smallest mask to the largest", _spread(positive, _SAMPLES)),
        ("Negatives", _spread(negative, _SAMPLES // 3 * 2)),
    )

    return "".join(
        _section(
            f"{name} ({len(some)} shown)",
            f'<div class="samples">{"".join(map(_sample, some))}</div>',
        )
        for name, some in shown
        if some
    )


def _spread(looks: Sequence[_Look], count: int) -> list[_Look]:
    return (
        [
            looks[place]
            for place in sorted(
                set(np.linspace(0, len(looks) - 1, count).round().astype(int).tolist())
            )
        ]
        if looks
        else []
    )


def _sample(look: _Look) -> str:
    case, share = look.case, look.seen.share
    side = _SAMPLE_SIDE / 100
    figure = Figure(figsize=(side, side), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(fit(case.pixels(), _SAMPLE_SIDE).pixels, cmap="gray", vmin=0, vmax=1)

    mask = case.mask() if share else None
    if mask is not None:
        axes.contour(
            fit(mask.astype(np.float32), _SAMPLE_SIDE).pixels,
            levels=[0.5],
            colors=[_OUTLINE],
            linewidths=1.2,
        )

    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpg", pil_kwargs={"quality": 85})
    known = [
        case.view,
        case.sex,
        "" if case.age_years is None else f"{case.age_years:g} years",
        f"mask {share:.2%}" if share else "",
    ]
    if case.label not in (0, 1):
        known.append(f"label {case.label:.2f}")

    caption = html.escape(" · ".join([*filter(None, known), case.image_id]))
    picture = _image(buffer, "image/jpeg", case.image_id)
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _checked(report: checks.Report) -> str:
    lines = [
        f'<li class="{finding.level}">{html.escape(str(finding))}</li>'
        for finding in (*report.errors, *report.warnings)
    ]
    said = html.escape(str(report).splitlines()[0])
    return _section("Checks", f"<p>{said}</p><ul>{''.join(lines)}</ul>")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _side_by_side(*parts: str) -> str:
    return f'<div class="row">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def _table(header: Sequence[str], rows: Iterable[Row]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, about: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _image(buffer, "image/svg+xml", about)


def _image(buffer: io.BytesIO, kind: str, about: str) -> str:
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(about)}" src="data:{kind};base64,{encoded}">'


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""
