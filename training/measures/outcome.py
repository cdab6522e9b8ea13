"""Does the shape of a tumour tell who dies?

Mask features and clinical table, joined per patient, cross-validated.

The case study claims 100 %, on the data the model was trained on. That proves nothing: a forest of
fully grown trees reproduces every training label, even random ones. So each figure here stands
beside three others: the same model on its own training data, the same model trained on shuffled
labels, and always predicting the commoner outcome.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import KNNImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from inference import package, postprocess
from inference.engine import Engine, choose_device
from training import data as labelled
from training.data import lgg
from training.measures import features
from training.measures.answers import Answer
from training.measures.figures import measured
from training.recipe import RecipeError

NOTE = (
    "Why 100 % on training data means nothing: it says how much a model can store, not what it "
    "has learned. The forest reaches the same with the patients' outcomes shuffled, where there "
    "is nothing to learn. Only the cross-validated figures are of patients that the model had "
    "not seen when it answered; and even these come from one small collection. Research use "
    "only, not for prognosis."
)
_OUTCOME = "death01"
_POSITIVE_FROM = 0.5
_SHOWN = ("auc", "accuracy", "sensitivity", "specificity")


class Settings(BaseModel):
    """config/recipes/lgg-outcome.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Literal["lgg-outcome"]
    version: str
    case_study: str | None = None
    about: str = ""
    published: dict[str, float] = {}
    folds: Annotated[int, Field(ge=2)] = 5
    # The folds are drawn again in each repeat; a patient's answers are averaged.
    repeats: Annotated[int, Field(ge=1)] = 10
    # A missing value is the mean of the most similar patients'
    neighbours: Annotated[int, Field(ge=1)] = 4
    trees: Annotated[int, Field(ge=1)] = 200
    # Of the logistic regression: less is more regular
    strength: Annotated[float, Field(gt=0)] = 0.1
    seed: int = 1


@dataclass(frozen=True, eq=False)
class Table:
    """One row per patient whose outcome is known.

    `values` is (patients, features), NaN where missing.
    """

    patients: list[str]
    names: list[str]
    values: NDArray[np.float64]
    died: NDArray[np.bool_]
    without_outcome: int


def load(path: Path) -> Settings:
    """Read and check the recipe.

    Raises:
        RecipeError: unreadable or wrong keys, all of them.
    """
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML ({error})") from error
    except ValidationError as error:
        faults = [
            f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors()
        ]

        raise RecipeError("\n".join(faults)) from error


def train(settings: Settings, data: Path, out: Path, model: Path | None = None) -> dict[str, Any]:
    """Cross-validated figures of the outcome models; writes outcome.json and outcome.md into `out`.

    `data` is the brain MRI folder with its clinical table (training/data/lgg.py). The features are
    those of the annotated masks or, with a `model` package, of the masks it finds.

    Raises:
        PackageError, ValueError: a package, images or a table that cannot be used.
    """
    table = join(patients_of(data, model), lgg.read_clinical(data))
    figures = {
        "recipe": settings.id,
        "masks": "annotated" if model is None else f"found by {model.name}",
    }
    figures |= compare(table, settings)

    out.mkdir(parents=True, exist_ok=True)
    (out / "outcome.json").write_text(
        json.dumps(figures, indent=2, allow_nan=False), encoding="utf-8"
    )
    (out / "outcome.md").write_text(described(figures, settings), encoding="utf-8")

    return figures


def patients_of(data: Path, model: Path | None) -> dict[str, dict[str, float]]:
    """Mask features of each patient of a brain MRI folder (features.of_patient)."""
    engine = (
        None if model is None else Engine(package.load(model, any_task=True), choose_device("auto"))
    )
    slices: dict[str, list[dict[str, float]]] = defaultdict(list)
    for case in labelled.read("lgg", data):
        if engine is None:
            mask = case.mask()
        else:
            (found,) = engine.segment([case.pixels()])
            mask = postprocess.segment(found, *engine.manifest.segmenter.rule)
        if mask is not None:
            slices[case.patient].append(features.of_mask(mask))

    return {patient: features.of_patient(masks) for patient, masks in slices.items()}


def join(
    masks: Mapping[str, Mapping[str, float]], clinical: Mapping[str, Mapping[str, float | None]]
) -> Table:
    """Both tables as one, of the patients that are in both and whose outcome is known; constant
    columns are left out.

    Raises:
        ValueError: fewer than two patients with each outcome.
    """
    both = sorted(masks.keys() & clinical.keys())
    known = [patient for patient in both if clinical[patient].get(_OUTCOME) is not None]
    died = np.array([clinical[patient][_OUTCOME] == 1 for patient in known], dtype=bool)
    if died.sum() < 2 or (~died).sum() < 2:
        raise ValueError(
            f"outcome: {len(masks)} patients with masks, {len(clinical)} in the clinical table, "
            f"{len(both)} in both, {died.sum()} died and {(~died).sum()} lived; at least two of "
            "each wanted"
        )

    mask_names = list(masks[known[0]])
    others = sorted({name for patient in known for name in clinical[patient]} - {_OUTCOME})
    rows = [
        [masks[patient][name] for name in mask_names]
        + [_number(clinical[patient].get(name)) for name in others]
        for patient in known
    ]
    values, names = np.array(rows, dtype=np.float64), mask_names + others
    varied = [
        i for i in range(len(names)) if len(np.unique(values[~np.isnan(values[:, i]), i])) > 1
    ]

    return Table(known, [names[i] for i in varied], values[:, varied], died, len(both) - len(known))


def compare(table: Table, settings: Settings) -> dict[str, Any]:
    """Figures of every model, with intervals: on its training data and cross-validated, also of
    shuffled labels.
    """
    shuffled = np.random.default_rng(settings.seed).permutation(table.died)
    models = {
        name: {
            "true_labels": _figures_with(model, table, table.died, settings),
            "shuffled_labels": _figures_with(model, table, shuffled, settings),
        }
        for name, model in _models(settings).items()
    }

    logistic = _models(settings)["logistic"].fit(table.values, table.died)[-1]
    return {
        "patients": len(table.patients),
        "died": int(table.died.sum()),
        "without_outcome": table.without_outcome,
        "missing_share": float(np.isnan(table.values).mean()),
        "always_the_commoner_accuracy": float(max(table.died.mean(), 1 - table.died.mean())),
        "models": models,
        # Log odds per standard deviation of the feature, of a fit on all patients
        "logistic_coefficients": {
            name: round(float(value), 4)
            for name, value in zip(table.names, logistic.coef_[0], strict=True)
        },
        "published": settings.published,
        "note": NOTE,
    }


def _figures_with(
    model: Pipeline, table: Table, died: NDArray[np.bool_], settings: Settings
) -> dict[str, Any]:
    """Figures of a model trained on these labels: on its training data, and cross-validated."""
    return {
        "training": _figures(table, died, _fitted(model, table.values, died)),
        "cross_validated": _figures(table, died, _held_out(model, table.values, died, settings)),
    }


def _models(settings: Settings) -> dict[str, Pipeline]:
    # Scaling, then imputation (neighbours by distance want one scale), both inside: fitted on the
    # training folds alone.
    def after_imputation(last: Any) -> Pipeline:
        imputer = KNNImputer(n_neighbors=settings.neighbours, keep_empty_features=True)
        return make_pipeline(StandardScaler(), imputer, last)

    return {
        "forest": after_imputation(
            RandomForestClassifier(settings.trees, random_state=settings.seed)
        ),
        "logistic": after_imputation(LogisticRegression(C=settings.strength, max_iter=1000)),
    }


def _fitted(
    model: Pipeline, values: NDArray[np.float64], died: NDArray[np.bool_]
) -> NDArray[np.float64]:
    return np.asarray(model.fit(values, died).predict_proba(values)[:, 1])


def _held_out(
    model: Pipeline, values: NDArray[np.float64], died: NDArray[np.bool_], settings: Settings
) -> NDArray[np.float64]:
    """Probability of each patient, the mean of `repeats` models that had not seen the patient."""
    folds = min(settings.folds, int(died.sum()), int((~died).sum()))
    answers = [
        cross_val_predict(
            model, values, died, method="predict_proba",
            cv=StratifiedKFold(folds, shuffle=True, random_state=settings.seed + repeat),
        )[:, 1]
        for repeat in range(settings.repeats)
    ]  # fmt: skip
    return np.asarray(np.mean(answers, axis=0))


def _figures(
    table: Table, died: NDArray[np.bool_], probability: NDArray[np.float64]
) -> dict[str, Any]:
    answers = [
        Answer(image_id=name, patient=name, label=float(label), probability=float(said), pixels=1)
        for name, label, said in zip(table.patients, died, probability, strict=True)
    ]

    found = measured(answers, _POSITIVE_FROM)
    return {
        name: {
            "value": figure["value"],
            "interval_95": figure["interval_95"],
            "patients": len(answers),
        }
        for name, figure in found.items()
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def described(figures: Mapping[str, Any], settings: Settings) -> str:
    """outcome.md."""
    lines = [
        f"# {settings.id}: outcome from mask features and clinical table",
        "",
        f"{figures['patients']} patients, {figures['died']} died ({figures['without_outcome']} "
        f"more without a known outcome are left out); masks: {figures['masks']}; "
        f"{figures['missing_share']:.1%} of the values missing, imputed from the "
        f"{settings.neighbours} most similar patients inside each fold; {settings.repeats} x "
        f"{settings.folds}-fold stratified cross-validation. Always naming the commoner outcome "
        f"is right for {figures['always_the_commoner_accuracy']:.1%}.",
        "",
        "| model | labels | figure | on its training data | cross-validated |",
        "|---|---|---|---|---|",
    ]

    for name, model in figures["models"].items():
        for labels, group in model.items():
            for figure in _SHOWN:
                cells = " | ".join(
                    _cell(group[kind][figure]) for kind in ("training", "cross_validated")
                )
                lines.append(f"| {name} | {labels.replace('_', ' ')} | {figure} | {cells} |")

    if settings.published:
        published = ", ".join(f"{name} {value:g}" for name, value in settings.published.items())
        lines += ["", f"Published ({settings.case_study}): {published}, on training data."]

    return "\n".join([*lines, "", NOTE, ""])


def _cell(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval_95"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f})"
