"""Measures a package by cross-validation and calibrates it: `python -m
training.measures.crossfitted`.

The package's segmenter has trained on every image with a mask. The networks that were trained
without one fold each (training/fitting/crossfit.py) therefore replace it in every figure: each
answers the images of its own held-out fold, by the run's split.csv. Where the segmenter's map votes
in the score, they vote instead. The other classifiers must not have trained on any of these images;
otherwise the run is refused.

Three parameters are fitted on the labels: the calibration, the threshold and the mask threshold.
For the figures they are fitted on three folds and applied to the fourth; the package gets those
fitted on all folds.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from inference import package, postprocess
from inference.engine import Engine, choose_device
from inference.manifest import Segmenter
from training import data as labelled
from training.data import split as splits
from training.data.cases import Case
from training.measures import metrics, thresholds
from training.measures.answers import Answer, write_rows
from training.measures.figures import measured
from training.plausibility import export as plausibility
from training.recipe import Recipe

SomeCase = TypeVar("SomeCase", bound=Case)
Values = NDArray[np.float64]

# The share of positives in SIIM-ACR's training set, which a probability is stated for.
PREVALENCE = 0.22
# Of positives that are to be found: the threshold is the highest that keeps it.
SENSITIVITY = 0.9
# From which probability on a mask may be drawn.
BOTTOMS = (0.1, 0.2, 0.3, 0.4, 0.5)
# A Dice so near to the best is as good: of such bottoms the highest draws the fewest regions.
_AS_GOOD = 0.01
_PREVALENCES = (0.01, 0.05, 0.22)
_BINS = 10
_FEW = ("auc", "sensitivity", "specificity", "dice_positives", "dice")
_SHOWN = (
    *_FEW,
    "average_precision",
    "ppv",
    "npv",
    "mcc",
    "accuracy",
    "dice_positives_segmenter_alone",
    "dice_segmenter_alone",
    "iou_positives",
)
_NEARLY_ZERO = 1e-9
_BATCH = 8


def logits(probabilities: Sequence[float]) -> Values:
    """The logit of each, bounded."""
    bounded = np.clip(np.asarray(probabilities, float), _NEARLY_ZERO, 1 - _NEARLY_ZERO)
    return np.asarray(np.log(bounded / (1 - bounded)))


def sigmoid(values: Values) -> Values:
    """The probability of each logit."""
    return np.asarray(1 / (1 + np.exp(-values)))


def fitted(scores: Values, labels: NDArray[np.bool_], prevalence: float) -> tuple[float, float]:
    """(scale, offset) by Platt's method on logits, moved to a prevalence."""
    regression = LogisticRegression(C=1e4).fit(scores[:, None], labels)
    share = float(labels.mean())
    moved = math.log(prevalence / (1 - prevalence)) - math.log(share / (1 - share))
    return float(regression.coef_[0, 0]), float(regression.intercept_[0]) + moved


def threshold_of(probabilities: Values, labels: NDArray[np.bool_], sensitivity: float) -> float:
    """The highest threshold with at least this sensitivity."""
    positives = np.sort(probabilities[labels])[::-1]
    needed = math.ceil(sensitivity * len(positives))
    return float(positives[needed - 1])


def reliability(probabilities: Values, labels: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Ten bins with equal numbers of images: mean probability and share of positives."""
    order = np.argsort(probabilities)
    return [
        {
            "images": len(rows),
            "probability": float(probabilities[rows].mean()),
            "positive": float(labels[rows].mean()),
        }
        for rows in np.array_split(order, _BINS)
    ]


def expected_error(bins: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error: the mean difference of both, weighted by images."""
    count = sum(one["images"] for one in bins)
    off = (one["images"] * abs(one["probability"] - one["positive"]) for one in bins)
    return sum(off) / count


def alarms(sensitivity: float, specificity: float) -> list[dict[str, float]]:
    """Of 100 images at each prevalence: alarms, those that are right, and positives missed."""
    rows = []

    for prevalence in _PREVALENCES:
        right = 100 * prevalence * sensitivity
        wrong = 100 * (1 - prevalence) * (1 - specificity)

        rows.append(
            {
                "prevalence": prevalence,
                "alarms": right + wrong,
                "right": right,
                "missed": 100 * prevalence - right,
                "ppv": right / (right + wrong) if right + wrong else 0.0,
            }
        )

    return rows


def crossed(
    scores: Values, labels: NDArray[np.bool_], folds: NDArray[np.int_]
) -> tuple[Values, NDArray[np.bool_]]:
    """(probabilities, calls) of each image, with the parameters fitted on the other folds.

    The probabilities refer to the prevalence among these images.
    """
    probabilities = np.zeros(len(scores))
    calls = np.zeros(len(scores), dtype=bool)

    for fold in np.unique(folds):
        inside, others = folds == fold, folds != fold
        share = float(labels[others].mean())
        scale, offset = fitted(scores[others], labels[others], share)
        limit = threshold_of(scores[others], labels[others], SENSITIVITY)

        probabilities[inside] = sigmoid(scale * scores[inside] + offset)
        calls[inside] = scores[inside] >= limit

    return probabilities, calls


def bottom_of(by_bottom: Mapping[float, Sequence[Answer]]) -> float:
    """The highest bottom whose mean Dice of the positives is nearly the best.

    Negatives do not count: if the classifier calls a negative positive, any region is wrong; if it
    does not, no region is drawn.
    """
    dice = {
        bottom: float(np.mean([one.dice() for one in answers if one.positive]))
        for bottom, answers in by_bottom.items()
    }
    best = max(dice.values())
    return max(bottom for bottom, value in dice.items() if value >= best - _AS_GOOD)


def by_other_folds(
    by_bottom: Mapping[float, Sequence[Answer]],
) -> tuple[list[Answer], dict[int | None, float]]:
    """(each fold's answers at the bottom that was chosen on the other folds, those bottoms)."""
    some = next(iter(by_bottom.values()))
    bottoms = {}

    for fold in dict.fromkeys(one.fold for one in some):
        others = {
            bottom: [one for one in answers if one.fold != fold]
            for bottom, answers in by_bottom.items()
        }
        bottoms[fold] = bottom_of(others)

    answers = [by_bottom[bottoms[one.fold]][number] for number, one in enumerate(some)]
    return answers, bottoms


def require_untaught(recipe: Recipe, run: Path) -> None:
    """Check that no classifier of the run trained on the images that measure it.

    Raises:
        ValueError: a classifier did.
    """
    taught = [one for one in recipe.of("classifier") if recipe.layout_of(one) == recipe.layout]
    if taught:
        raise ValueError(
            f"{run / 'recipe.json'}: {len(taught)} classifiers train on {recipe.layout}, whose "
            "images would measure and calibrate them; classifiers of another layout wanted"
        )


def in_folds(run: Path, cases: Sequence[SomeCase]) -> list[SomeCase]:
    """The images of the run's split.csv, with the folds that its decoders left out.

    Raises:
        ValueError: a split.csv that is not of these images.
    """
    folds = splits.read(run / "split.csv", cases).folds
    return [replace(case, fold=folds[case.image_id]) for case in cases if case.image_id in folds]


def answered(run: Path, cases: Sequence[Case]) -> dict[float, list[Answer]]:
    """Bottom -> each image's uncalibrated score and the mask of the decoder trained without it.

    The images, of `in_folds`, are in the same order for every bottom.
    """
    loaded = package.load(run / "package")
    stated = loaded.manifest.classifier.model_copy(update={"calibration": None})
    manifest = loaded.manifest.model_copy(update={"classifier": stated})

    answers: dict[float, list[Answer]] = {bottom: [] for bottom in BOTTOMS}
    for fold in sorted({case.fold for case in cases if case.fold is not None}):
        of_others = without(replace(loaded, manifest=manifest), run, fold)
        engine = Engine(of_others, choose_device("auto"))

        some = [case for case in cases if case.fold == fold and case.mask_known]
        for start in range(0, len(some), _BATCH):
            for bottom, found in _asked(engine, some[start : start + _BATCH]):
                answers[bottom].append(found)

    return answers


def without(loaded: package.Package, run: Path, fold: int) -> package.Package:
    """The package as it would be without a fold.

    Its segmenters, and those whose maps vote in its classifier, are the networks that were trained
    without that fold.

    Raises:
        ValueError: the weights are not those of the package's segmenters, which saw the images of
            this fold.
    """
    paths = sorted((run / "weights").glob(f"*-without-{fold}.safetensors"), key=_place)
    weights = [load_file(path) for path in paths]
    votes = any(_parts_with(loaded.classifier, one) for one in weights)
    asked = [loaded.segmenter, *([loaded.classifier] if votes else [])]
    if not weights or not all(_fit(network, weights) for network in asked):
        raise ValueError(
            f"{run / 'weights'}: without fold {fold}: "
            f"{', '.join(path.name for path in paths) or 'no weights'} found; those of each "
            f"segmenter of the package, {loaded.manifest.segmenter.architecture}, and no other "
            "wanted: weights of the run that made the package"
        )

    return replace(
        loaded,
        classifier=_with_segmenters(loaded.classifier, weights) if votes else loaded.classifier,
        segmenter=_with_segmenters(loaded.segmenter, weights),
    )


def _place(path: Path) -> tuple[int, str]:
    """The network's place in the recipe, with which its file's name begins."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0, path.name


def _fit(network: nn.Module, several: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether each part has its weights: as many parts of these names as there are weights."""
    return all(
        len(_parts_with(network, weights))
        == sum(other.keys() == weights.keys() for other in several)
        for weights in several
    )


def _with_segmenters(network: nn.Module, several: Sequence[Mapping[str, Tensor]]) -> nn.Module:
    """A copy in which the parts that have weights of these names have these, in their order."""
    other = copy.deepcopy(network)
    for number, weights in enumerate(several):
        earlier = sum(before.keys() == weights.keys() for before in several[:number])
        _parts_with(other, weights)[earlier].load_state_dict(weights)
    return other


def _parts_with(network: nn.Module, weights: Mapping[str, Tensor]) -> list[nn.Module]:
    return [part for part in network.modules() if part.state_dict().keys() == weights.keys()]


def _asked(engine: Engine, cases: Sequence[Case]) -> Iterator[tuple[float, Answer]]:
    """(bottom, answer) of each image and each bottom."""
    pictures = [case.picture() for case in cases]
    seen = [picture.pixels for picture in pictures]
    scores = engine.classify(seen)
    maps = [
        picture.in_file(drawn)
        for picture, drawn in zip(pictures, engine.segment(seen), strict=True)
    ]
    stated = engine.manifest.segmenter

    for (case, score, drawn), bottom in itertools.product(
        zip(cases, scores, maps, strict=True), BOTTOMS
    ):
        true = case.stored_mask()
        assert true is not None

        rule = stated.model_copy(update=drawn_from(stated, bottom)).rule
        found = postprocess.segment(drawn, *rule)
        yield (
            bottom,
            Answer(
                image_id=case.image_id,
                patient=case.patient,
                label=case.label,
                fold=case.fold,
                as_published=case.as_published,
                view=case.view,
                sex=case.sex,
                age_years=case.age_years,
                probability=score,
                pixels=found.size,
                true=int(true.sum()),
                found=int(found.sum()),
                common=int((true & found).sum()),
            ),
        )


def drawn_from(stated: Segmenter, bottom: float) -> dict[str, float]:
    """Fields of a segmenter that draws from `bottom` on."""
    top = bottom if stated.top == stated.bottom else max(stated.top, bottom)
    return {"bottom": bottom, "top": top}


def figures(answers: Sequence[Answer]) -> tuple[dict[str, Any], list[Answer], tuple[float, float]]:
    """(figures, the answers with calibrated probabilities, scale and offset to ship).

    Calibration and threshold are fitted, and measured by folds, on the images as published; on all
    images where none is.
    """
    scores = logits([one.probability for one in answers])
    labels = np.array([one.positive for one in answers])
    folds = np.array([-1 if one.fold is None else one.fold for one in answers])

    # Copies are nearly all positive, and easy to find: a threshold that counts them finds fewer of
    # the images that a modality sends.
    counts = np.array([one.as_published for one in answers])
    counts |= not counts.any()

    scale, offset = fitted(scores[counts], labels[counts], PREVALENCE)
    probabilities = sigmoid(scale * scores + offset)
    chosen = threshold_of(probabilities[counts], labels[counts], SENSITIVITY)
    threshold = float(thresholds.rounded_down(np.array([chosen]))[0])
    calibrated = [
        replace(one, probability=float(probability))
        for one, probability in zip(answers, probabilities, strict=True)
    ]

    held_out, calls = crossed(scores[counts], labels[counts], folds[counts])
    bins = reliability(held_out, labels[counts])
    published = [one for one in calibrated if one.as_published]
    found: dict[str, Any] = {
        "threshold": threshold,
        "all": _shown(calibrated, threshold, _SHOWN),
        "jpeg_baseline": _shown(published, threshold, _SHOWN) if published else {},
        "by_fold": {
            str(fold): _shown([one for one in calibrated if one.fold == fold], threshold, _FEW)
            for fold in sorted(set(folds.tolist()))
        },
        "threshold_from_other_folds": _decisions(calls, labels[counts]),
        "expected_calibration_error": expected_error(bins),
        "expected_calibration_error_uncalibrated": expected_error(
            reliability(sigmoid(scores[counts]), labels[counts])
        ),
        "reliability": bins,
        "subgroups": _subgroups(calibrated, threshold),
    }
    decided = found["threshold_from_other_folds"]
    found["alarms_per_100"] = alarms(decided["sensitivity"], decided["specificity"])
    return found, calibrated, (scale, offset)


def _decisions(calls: NDArray[np.bool_], labels: NDArray[np.bool_]) -> dict[str, Any]:
    right, negatives = int((calls & labels).sum()), int((~labels).sum())
    passed = int((~calls & ~labels).sum())
    return {
        "sensitivity": right / int(labels.sum()),
        "sensitivity_wilson_95": list(metrics.wilson(right, int(labels.sum()))),
        "specificity": passed / negatives,
        "specificity_wilson_95": list(metrics.wilson(passed, negatives)),
    }


def _subgroups(answers: Sequence[Answer], threshold: float) -> dict[str, Any]:
    """AUC, sensitivity, specificity and Dice of parts of the images."""
    sizes = sorted(one.true_share or 0.0 for one in answers if one.positive)
    small, large = sizes[len(sizes) // 3], sizes[2 * len(sizes) // 3]

    groups = {
        "view PA": [one for one in answers if one.view == "PA"],
        "view AP": [one for one in answers if one.view == "AP"],
        "view unknown": [one for one in answers if not one.view],
        "female": [one for one in answers if one.sex == "F"],
        "male": [one for one in answers if one.sex == "M"],
        "under 18": [one for one in answers if one.age_years is not None and one.age_years < 18],
        "18 to 49": [one for one in answers if 18 <= (one.age_years or 0) < 50],
        "50 and over": [one for one in answers if (one.age_years or 0) >= 50],
        "smallest third": [one for one in answers if 0 < (one.true_share or 0) < small],
        "middle third": [one for one in answers if small <= (one.true_share or 0) < large],
        "largest third": [one for one in answers if (one.true_share or 0) >= large],
        "re-wrapped copies": [one for one in answers if not one.as_published],
    }

    return {
        name: {"images": len(some), "positive": sum(one.positive for one in some)}
        | _shown(some, threshold, _FEW)
        for name, some in groups.items()
        if some
    }


def _shown(answers: Sequence[Answer], threshold: float, names: Sequence[str]) -> dict[str, Any]:
    """These figures of the answers, as far as there are such."""
    found = measured(answers, threshold)
    return {name: found[name] for name in names if name in found}


def ship(run: Path, found: Mapping[str, Any], scale: float, offset: float, images: int) -> None:
    """Write calibration, threshold, bottom and figures into the package of the run.

    `images` is how many calibration and threshold were fitted on.
    """
    folder = run / "package"
    manifest = package.read_manifest(folder)
    stated = manifest.classifier.model_dump(mode="json")
    segmenter = manifest.segmenter.model_dump(mode="json")
    segmenter |= drawn_from(manifest.segmenter, found["bottom"])

    stated["threshold"] = found["threshold"]
    stated["operating_point"] = (
        f"finds {SENSITIVITY:.0%} of the positives of {images} labelled images"
    )
    stated["calibration"] = {
        "scale": round(scale, 6),
        "offset": round(offset, 6),
        "prevalence": PREVALENCE,
        "method": f"Platt scaling on the labels of {images} images, each scored by networks that "
        "had not learned from it",
    }

    metrics_of = {"cross_fitted": dict(found)}
    changes = {"classifier": stated, "segmenter": segmenter, "metrics": metrics_of}
    package.amend(folder, changes)


def plot(bins: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the reliability of ten bins as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, label="calibrated")
    expected = [one["probability"] for one in bins]
    positive = [one["positive"] for one in bins]
    axes.plot(expected, positive, marker="o", color="tab:blue", label="measured")
    axes.set(
        xlabel="stated probability (mean of a tenth of the images)",
        ylabel="share with a pneumothorax",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Measure the run in a folder, and ship what was found in its package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run of `pleura train`")
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled images")
    parser.add_argument("--plot", type=Path, help="PNG of the reliability to be written")
    given = parser.parse_args()

    recipe = Recipe.model_validate_json((given.run / "recipe.json").read_bytes())
    require_untaught(recipe, given.run)
    cases = in_folds(given.run, labelled.read(recipe.layout, given.data))
    by_bottom = answered(given.run, cases)
    answers, bottoms = by_other_folds(by_bottom)
    found, calibrated, (scale, offset) = figures(answers)
    found["bottom"] = bottom_of(by_bottom)
    found["bottom_from_other_folds"] = {str(fold): bottom for fold, bottom in bottoms.items()}
    write_rows(given.run / "cross-fitted.csv", [vars(one) for one in calibrated])
    text = json.dumps(found, indent=2)
    (given.run / "cross-fitted.json").write_text(text, encoding="utf-8")
    images = found["jpeg_baseline"].get("auc", found["all"]["auc"])["images"]
    ship(given.run, found, scale, offset, images)
    plausibility.carry(given.run / "package")
    if given.plot is not None:
        plot(found["reliability"], given.plot)
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
