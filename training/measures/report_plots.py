"""The plots of a report as data URIs.

The colours are Okabe and Ito's, which the colour-blind tell apart.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inference.contours import contours
from training.measures import metrics

BLUE, ORANGE, GREEN, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#666666"
# On a dark X-ray; the line's style differs too
TRUE_COLOUR, FOUND_COLOUR = "#E69F00", SKY
# A case's picture: (pixels of the longer side)
_SHOWN_PX = 480
_PER_INCH = 100

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]


def ranking(groups: Mapping[str, tuple[Scores, Labels]], threshold: float) -> str:
    """ROC and precision-recall curves of each group of (scores, labels).

    The operating point is marked.
    """
    figure, (left, right) = _figure(2)
    for colour, (name, (scores, labels)) in zip((BLUE, ORANGE), groups.items(), strict=False):
        alarms, sensitivity, thresholds = metrics.roc(scores, labels)
        left.plot(
            alarms,
            sensitivity,
            color=colour,
            label=f"{name}: AUC {metrics.auc(scores, labels):.3f}",
        )

        here = int((thresholds >= threshold).sum()) - 1
        left.plot(alarms[here], sensitivity[here], "o", color=colour)
        recall, precision, _ = metrics.precision_recall(scores, labels)
        average = metrics.average_precision(scores, labels)
        right.step(
            recall,
            precision,
            where="pre",
            color=colour,
            label=f"{name}: average precision {average:.3f}",
        )

        right.plot(recall[here], precision[here], "o", color=colour)
        right.axhline(labels.mean(), color=colour, linestyle=":", linewidth=1)

    left.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1)
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
    right.set(
        xlabel="sensitivity (recall)",
        ylabel="PPV (precision)",
        title="Precision and recall",
        ylim=(0, 1.03),
    )

    for axes in (left, right):
        axes.legend(loc="lower right" if axes is left else "lower left")
    return _png(figure)


def decisions(scores: Scores, labels: Labels, threshold: float) -> str:
    """The confusion matrix at the threshold, and how far the scores are probabilities."""
    figure, (left, right) = _figure(2)
    counts = metrics.Confusion.of(scores >= threshold, labels)
    matrix = np.array(
        [
            [counts.true_positive, counts.false_negative],
            [counts.false_positive, counts.true_negative],
        ],
        dtype=float,
    )
    left.imshow(
        matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1.3
    )

    for (row, column), count in np.ndenumerate(matrix):
        share = count / max(1, matrix[row].sum())
        left.text(column, row, f"{count:.0f}\n{share:.0%}", ha="center", va="center", fontsize=13)

    left.set(
        title=f"Confusion matrix at {threshold:g}", xlabel="the model says", ylabel="the label says"
    )
    left.set_xticks([0, 1], ["positive", "not detected"])
    left.set_yticks([0, 1], ["positive", "negative"], rotation=90, va="center")
    left.grid(False)

    mean, share, images = metrics.calibration(scores, labels)
    right.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1)
    intervals = np.array(
        [metrics.wilson(round(p * n), int(n)) for p, n in zip(share, images, strict=True)]
    )
    errors = np.abs(intervals.T - share)
    right.errorbar(
        mean,
        share,
        errors,
        color=BLUE,
        marker="o",
        capsize=3,
        linewidth=1.5,
        label="95 % interval, Wilson",
    )

    for x, y, n in zip(mean, share, images, strict=True):
        right.annotate(
            str(n), (x, y), textcoords="offset points", xytext=(7, -11), fontsize=8, color=GREY
        )

    right.set(
        title="Calibration (grey: images)", xlabel="mean probability", ylabel="share of positives"
    )
    right.set(xlim=(0, 1.03), ylim=(-0.03, 1.03))
    right.legend(loc="lower right")

    return _png(figure)


def thresholds(curves: Mapping[str, tuple[Scores, Scores]], threshold: float, title: str) -> str:
    """Figures (name -> thresholds, values) over the threshold, with the one in use."""
    figure, (axes,) = _figure(1)
    for colour, style, (name, (x, y)) in zip(
        (BLUE, ORANGE, GREEN, GREY), "-----", curves.items(), strict=False
    ):
        axes.plot(x, y, linestyle=style, color=colour, label=name)
    axes.axvline(threshold, color="black", linewidth=1, linestyle="--")
    axes.annotate(f" in use: {threshold:g}", (threshold, 0.02), fontsize=9)
    axes.set(xlabel="threshold", title=title, xlim=(0, 1), ylim=(0, 1.03))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _png(figure)


def searched(rows: Sequence[Mapping[str, float]], best: Mapping[str, float], name: str) -> str:
    """The best figure for each pair of values of two knobs of the rule.

    It is the best over all other knobs; `best`, one of the rows, is marked.
    """
    knobs = [knob for knob in rows[0] if knob != name and len({row[knob] for row in rows}) > 1]
    knobs = [
        knob for knob in knobs if knob != "top" or any(row["top"] != row["bottom"] for row in rows)
    ]
    pairs = list(pairwise(knobs)) or [(knob, knob) for knob in knobs]
    figure, axes_of = _figure(max(1, len(pairs)))

    for axes, (across, up) in zip(axes_of, pairs, strict=False):
        x, y = (sorted({row[knob] for row in rows}) for knob in (across, up))
        reached = np.full((len(y), len(x)), np.nan)
        for row in rows:
            place = y.index(row[up]), x.index(row[across])
            reached[place] = np.fmax(reached[place], row[name])

        shown = axes.imshow(reached, cmap="cividis", origin="lower", aspect="auto")
        figure.colorbar(shown, ax=axes, label=name.replace("_", " "))
        axes.plot(
            x.index(best[across]),
            y.index(best[up]),
            "D",
            color=ORANGE,
            markeredgecolor="white",
            markersize=10,
        )

        axes.set_xticks(range(len(x)), [f"{value:g}" for value in x], rotation=45)
        axes.set_yticks(range(len(y)), [f"{value:g}" for value in y])
        axes.set(xlabel=across, ylabel=up)
        axes.grid(False)

    return _png(figure)


def breakdown(groups: Sequence[tuple[str, Mapping[str, Any]]], names: Sequence[str]) -> str:
    """These figures of each group, with their intervals."""
    figure = Figure(figsize=(10.4, 0.9 + 0.27 * len(groups)), dpi=_PER_INCH, layout="constrained")
    for axes, name in zip(
        figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True
    ):
        for place, (_, figures) in enumerate(groups):
            if one := figures.get(name):
                low, high = one["interval_95"]
                axes.plot([low, high], [place, place], color=BLUE, linewidth=2)
                axes.plot(one["value"], place, "o", color=BLUE)
        axes.set_yticks(range(len(groups)), [label for label, _ in groups])
        axes.set(title=name.replace("_", " "), xlim=(-0.03, 1.03), ylim=(len(groups) - 0.4, -0.6))
        _clean(axes)

    return _png(figure)


def curve(rows: Sequence[Mapping[str, float]]) -> str:
    """Every column of a network's learning curve over the epochs."""
    names = [name for name in rows[0] if name not in ("epoch", "seconds")]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.4 * lines), dpi=_PER_INCH, layout="constrained")
    for axes, name in zip(
        np.ravel(figure.subplots(lines, columns, squeeze=False)), names, strict=False
    ):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), "o-", color=BLUE, markersize=3)
        axes.set(xlabel="epoch", title=name.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _clean(axes)

    for axes in figure.axes[len(names) :]:
        axes.set_visible(False)
    return _png(figure)


def case(
    pixels: NDArray[np.float32], true: NDArray[np.bool_] | None, found: NDArray[np.bool_]
) -> str:
    """An image, 0 black to 1 white, with the true (orange, solid) and the found (blue, dashed)
    contours.
    """
    rows, columns = pixels.shape
    scale = _SHOWN_PX / max(rows, columns)
    figure = Figure(figsize=(columns * scale / _PER_INCH, rows * scale / _PER_INCH), dpi=_PER_INCH)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="antialiased", aspect="auto")

    for mask, colour, style in ((true, TRUE_COLOUR, "-"), (found, FOUND_COLOUR, (0, (4, 2)))):
        for line in contours(mask) if mask is not None else []:
            axes.plot(line[:, 1], line[:, 0], color=colour, linestyle=style, linewidth=2.2)

    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.axis("off")
    return _uri(figure, "jpeg", pil_kwargs={"quality": 80})


def _figure(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(
        figsize=(4.9 * count if count > 1 else 8, 4.1), dpi=_PER_INCH, layout="constrained"
    )
    axes = np.ravel(figure.subplots(1, count, squeeze=False)).tolist()
    for one in axes:
        _clean(one)
    return figure, axes


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _png(figure: Figure) -> str:
    return _uri(figure, "png")


def _uri(figure: Figure, kind: str, **how: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **how)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
