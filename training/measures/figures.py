"""Answers -> the figures of the case studies, each with its 95 % interval by bootstrap over
patients.

Nearly every figure is a ratio of sums over images. So a resample of the patients is a row of
weights, all resamples are one matrix product, and 2,000 of them are cheap even for 12,000 images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.measures import metrics
from training.measures.answers import Answer
from training.measures.metrics import Confusion

Values = NDArray[np.float64]
# Column -> its sum, one per resample
Sums = Mapping[str, Values]

DRAWS = 2000
# Suffix of a figure of the segmenter alone; without it, a figure of both stages
ALONE = "_segmenter_alone"
# The score of an empty mask for every image
NOTHING = "_finding_nothing"
_OF_MASKS = ("", ALONE, NOTHING)
_COUNTS = tuple(field.name for field in fields(Confusion))
# Proportion of images -> of which.
_PROPORTIONS = {
    "sensitivity": ("true_positive", "false_negative"),
    "specificity": ("true_negative", "false_positive"),
    "ppv": ("true_positive", "false_positive"),
    "npv": ("true_negative", "false_negative"),
    "accuracy": _COUNTS,
}
_DECISIONS = (*_PROPORTIONS, "f1", "f2", "mcc")
_POOLED = {"pixel_accuracy": "accuracy", "pixel_f1": "f1", "pixel_f2": "f2"}
# Figure -> (what is summed, over which number of images it is the mean); names and meanings:
# metrics.mask_figures.
_MEANS = {
    "dice": ("dice", "masks"),
    "dice_positives": ("dice_some", "masks_some"),
    "iou": ("iou", "masks"),
    "iou_positives": ("iou_some", "masks_some"),
    "mean_iou": ("mean_iou", "masks"),
    "competition_score": ("dice", "masks"),
}
_CREDIT_NOTHING = (
    "dice",
    "iou",
    "mean_iou",
    "pixel_accuracy",
    "competition_score",
    # The others give it 0
)


def figures_of(answers: Sequence[Answer], threshold: float, from_run: bool) -> dict[str, Any]:
    """Figures of all images, of those as published alone, and of the part of each that reports.

    `from_run`: the answers' parts are those of a training run's split, not those published with the
    data.
    """
    part = "report" if any(answer.of("report") for answer in answers) else "validate"
    reported = [answer for answer in answers if answer.of(part)]
    folds = sorted({answer.fold for answer in reported if answer.fold is not None})
    key = _report_key(part, folds) if reported else None

    figures: dict[str, Any] = {
        "images": len(answers),
        "trained_on": sum(answer.of("train") for answer in answers) if from_run else None,
        "report": {
            "key": key,
            "part": part,
            "folds": folds,
            "note": _note(part if key else "", from_run) + _trained_too(reported, from_run),
        },
        "notes": [_OWN_PATIENTS]
        if len({answer.patient for answer in answers}) == len(answers)
        else [],
    }
    as_published = [answer for answer in answers if answer.as_published]
    groups = {"all": answers} | (
        {"jpeg_baseline": as_published} if 0 < len(as_published) < len(answers) else {}
    )

    for name, group in groups.items():
        figures[name] = measured(group, threshold)
        within = [answer for answer in group if answer.of(part)]
        if key is not None and within:
            own = measured(within, threshold)
            figures[name] |= {f"auc_{key}": own["auc"]} if "auc" in own else {}
            figures[name][key] = own | ({"dice_all_images": own["dice"]} if "dice" in own else {})

    return figures


def _report_key(part: str, folds: Sequence[int]) -> str:
    """The name of the reported part: "fold_3", or the part itself without published folds."""
    return "_".join(["fold", *map(str, folds)]) if folds else part


def measured(
    answers: Sequence[Answer], threshold: float, draws: int | None = None
) -> dict[str, dict[str, Any]]:
    """Every figure that these answers allow: value, interval_95, and the images that it is from.

    Figures of masks are from the images whose mask is known; those `_positives` from those of them
    with a mask. Proportions of images also say how many were `right` `of` how many, and Wilson's
    interval, which stays honest where all of a few were right. A figure without a denominator (no
    positives, no masks) is left out.
    """
    of_images, masks, sums = _resampled(answers, threshold, draws or DRAWS)
    found: dict[str, dict[str, Any]] = {}

    for name, values in (of_images | masks).items():
        if np.isnan(values[0]):
            continue
        low, high = np.nanpercentile(values[1:], (2.5, 97.5))
        images, positive = ("masks", "masks_some") if name in masks else ("images", "positive")
        images = positive if "_positives" in name else images
        found[name] = {
            "value": float(values[0]), "interval_95": [float(low), float(high)],
            "images": int(sums[images][0]), "positive": int(sums[positive][0]),
        }  # fmt: skip
        if name in _PROPORTIONS:
            of = int(sum(sums[f"images {count}"][0] for count in _PROPORTIONS[name]))
            right = round(of * float(values[0]))
            found[name] |= {"right": right, "of": of, "wilson_95": list(metrics.wilson(right, of))}

    return found


def resampled(
    answers: Sequence[Answer], threshold: float, draws: int | None = None
) -> dict[str, Values]:
    """Every figure: first of these answers, then of each resample of their patients.

    Two models' answers for the same images get the same resamples: their differences are paired.
    """
    of_images, masks, _ = _resampled(answers, threshold, draws or DRAWS)
    return of_images | masks


def _resampled(
    answers: Sequence[Answer], threshold: float, draws: int
) -> tuple[dict[str, Values], dict[str, Values], Sums]:
    """(figures of images, figures of masks, the sums they are from), of each resample."""
    patients, patient_of = np.unique([answer.patient for answer in answers], return_inverse=True)
    weights = _resamples(len(patients), draws)
    columns = _columns(answers, threshold)
    per_patient = np.stack(
        [np.bincount(patient_of, column, len(patients)) for column in columns.values()], axis=1
    )
    sums: Sums = dict(zip(columns, (weights @ per_patient).T, strict=True))

    drawn = _ranking(answers, weights, patient_of)
    drawn |= {name: getattr(_confusion(sums, "images "), name) for name in _DECISIONS}
    drawn |= {"brier": sums["squared_error"] / sums["images"]}
    return drawn, _masks(sums), sums


def _masks(sums: Sums) -> dict[str, Values]:
    """The figures of masks: of both stages, of the segmenter alone, and of finding nothing."""
    pooled = {suffix: _confusion(sums, f"pixels{suffix} ") for suffix in _OF_MASKS}
    figures: dict[str, Values] = {}
    for name, figure in _POOLED.items():
        figures |= {name + suffix: getattr(pooled[suffix], figure) for suffix in _OF_MASKS}

    for name, (of, over) in _MEANS.items():
        figures |= {name + suffix: _mean(sums[of + suffix], sums[over]) for suffix in _OF_MASKS}
    trivial = {name + NOTHING for name in _CREDIT_NOTHING}
    return {
        name: values
        for name, values in figures.items()
        if name in trivial or not name.endswith(NOTHING)
    }


def _resamples(patients: int, draws: int) -> Values:
    """(1 + draws, patients): how often each patient counts. In the first row each counts once."""
    rng = np.random.default_rng(0)
    rows = [
        np.bincount(rng.integers(patients, size=patients), minlength=patients) for _ in range(draws)
    ]
    return np.stack([np.ones(patients), *rows])


def _columns(answers: Sequence[Answer], threshold: float) -> dict[str, Values]:
    """The sums that each image adds to."""
    score = np.array([answer.probability for answer in answers])
    label = np.array([answer.positive for answer in answers])
    said = score >= threshold
    masked = np.array([answer.true is not None for answer in answers])
    true = np.array([answer.true or 0 for answer in answers])
    found, common = (
        np.array([getattr(answer, name) for answer in answers]) * masked
        for name in ("found", "common")
    )
    pixels, some = np.array([answer.pixels for answer in answers]) * masked, true > 0
    columns = {
        "images": np.ones(len(answers)),
        "positive": label,
        "squared_error": (score - label) ** 2,
        "masks": masked,
        "masks_some": some,
    }

    columns |= {
        f"images {name}": count for name, count in _counts(said & label, said, label, 1).items()
    }
    for suffix, drawn in zip(
        _OF_MASKS, (said, np.ones_like(said), np.zeros_like(said)), strict=True
    ):
        counts = _counts(common * drawn, found * drawn, true, pixels)
        images = Confusion(*counts.values())
        dice, iou, background = (
            np.nan_to_num(figure, nan=1.0) * masked
            for figure in (images.f1, images.iou, images.of_background().iou)
        )

        columns |= {f"pixels{suffix} {name}": count for name, count in counts.items()}
        means = {
            "dice": dice,
            "iou": iou,
            "mean_iou": (iou + background) / 2,
            "dice_some": dice * some,
            "iou_some": iou * some,
        }
        columns |= {name + suffix: mean for name, mean in means.items()}

    return {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}


def _counts(common: Any, found: Any, true: Any, all_: Any) -> dict[str, Values]:
    """The counts of a Confusion."""
    both, said, is_so = (np.asarray(pixels, dtype=np.float64) for pixels in (common, found, true))
    return dict(
        zip(_COUNTS, (both, said - both, is_so - both, all_ - said - is_so + both), strict=True)
    )


def _confusion(sums: Sums, prefix: str) -> Confusion:
    return Confusion(**{name: sums[prefix + name] for name in _COUNTS})


def _mean(total: Values, count: Values) -> Values:
    return np.asarray(total / np.where(count == 0, np.nan, count))


def _ranking(
    answers: Sequence[Answer], weights: Values, patient_of: NDArray[np.intp]
) -> dict[str, Values]:
    """AUC and average precision, one per row of `weights` (resamples, patients): as metrics.py's,
    weighted.
    """
    score = np.array([answer.probability for answer in answers])
    label = np.array([answer.positive for answer in answers])
    order = np.argsort(-score, kind="stable")
    hit = label[order]

    # Where each group of equal scores begins
    ties = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    found = np.full((2, len(weights)), np.nan)
    for row, weight in enumerate(weights):
        positive, negative = (
            np.add.reduceat(weight[patient_of[order]] * chosen, ties) for chosen in (hit, ~hit)
        )
        positives, negatives = positive.sum(), negative.sum()
        if positives and negatives:
            found[0, row] = (negative * (positive.cumsum() - positive / 2)).sum() / (
                positives * negatives
            )
        if positives:
            above = positive.cumsum()
            precision = above / np.maximum(above + negative.cumsum(), 1e-12)
            found[1, row] = (positive * precision).sum() / positives

    return {"auc": found[0], "average_precision": found[1]}


_OWN_PATIENTS = "each image counts as its own patient: the data name no patients"
_NOTES = {
    "report": "report part of the run's split: these images trained nothing and chose nothing",
    "validate": (
        "the split has no report part: these images chose weights and thresholds, so their "
        "figures are too good"
    ),
    "": "none of these images reports or validates in the run's split",
}
_NOTES_WITHOUT_SPLIT = {
    "report": (
        "fold published with the data, which the model's recipe leaves out; the run's split is "
        "not known, so any of the other images may have trained the model"
    ),
    "": (
        "no split of a run was given: any of these images may have trained the model, so no "
        "published figures stand beside; give the run's split.csv with --split"
    ),
}


def _trained_too(reported: Sequence[Answer], from_run: bool) -> str:
    """The end of the note where images that are reported trained as well."""
    trained = sum(answer.of("train") for answer in reported)
    if not trained or not from_run:
        return ""
    return f"; {trained} of these {len(reported)} images also trained"


def _note(part: str, from_run: bool) -> str:
    return (_NOTES if from_run else _NOTES_WITHOUT_SPLIT)[part]


# The lines of a table; `--json` and figures.json have every figure of every part.
_MAIN = (
    "auc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "accuracy", "f1", "mcc",
    "brier", "dice", "dice_finding_nothing", "dice_positives", "iou", "iou_positives", "pixel_f1",
    "competition_score",
)  # fmt: skip


def table(figures: Mapping[str, Any], published: Mapping[str, float] | None = None) -> str:
    """The main figures of the part that reports, a line each, with interval and number of images.

    Where no part reports, of all images. The published figures stand beside ours.
    """
    lines = [f"model {figures['model']} {figures['version']}, threshold {figures['threshold']}"]
    lines += [f"labels: {figures['labels']}", *([figures["warning"]] if figures["warning"] else [])]
    lines += [f"{figures['report']['key'] or 'note'}: {figures['report']['note']}"]
    lines += [f"note: {note}" for note in figures["notes"]]
    if figures["trained_on"]:
        lines.append(
            f"{figures['trained_on']} of the {figures['images']} images trained this model: "
            "the figures under `all` count them"
        )

    key = figures["report"]["key"]
    for group in ("all", "jpeg_baseline"):
        own = figures.get(group, {})
        part = own.get(key, own)
        path = f"{group} {key}" if part is not own else group
        lines += [f"{f'{path} {name}':45} {text(part[name])}" for name in _MAIN if name in part]

    rows = beside(figures, published or {})
    lines += ["published figures beside ours; " + CAVEAT] if rows else []
    for name, said, ours in rows:
        by_group = "; ".join(f"{group}: {text(figure)}" for group, figure in ours.items())
        lines.append(f"{name:30} published {said}   ours {by_group}")

    return "\n".join(lines)


CAVEAT = (
    "theirs are of other images and another split and, of masks, by definitions that they do not "
    "state; ours of the images named here: a difference says nothing by itself"
)
# By SIIM-ACR 2019; no study says how it computed another figure of masks
_DEFINED = "competition_score"


def beside(
    figures: Mapping[str, Any], published: Mapping[str, float]
) -> list[tuple[str, str, dict[str, Mapping[str, Any]]]]:
    """(name, published value in words, ours by group) of each published figure.

    Empty where no part of the images reports.

    Beside a figure of masks stands what finding nothing scores on the same images.
    """
    key = figures["report"]["key"]
    if not key:
        return []

    rows = []
    for name, value in published.items():
        is_theirs = name in metrics.MASK_FIGURES and name != _DEFINED
        words = f"{value:.3f}" + (", by their definition" if is_theirs else "")
        rows.append((name, words, _ours(figures, key, name)))
    return rows


def _ours(figures: Mapping[str, Any], key: str, name: str) -> dict[str, Mapping[str, Any]]:
    """Our own values of one figure, by group; of masks also what finding nothing scores."""
    ours = {}
    for group in ("all", "jpeg_baseline"):
        own = figures.get(group, {}).get(key, {})
        for suffix in ("", NOTHING):
            if node := own.get(name + suffix):
                ours[f"{group} {key}{suffix.replace('_', ' ')}"] = node
    return ours


def text(figure: Mapping[str, Any]) -> str:
    """One figure in words."""
    low, high = figure["interval_95"]
    images = figure.get("of", figure["images"])
    return f"{figure['value']:.3f}  (95 % {low:.3f} to {high:.3f}; {images} images)"
