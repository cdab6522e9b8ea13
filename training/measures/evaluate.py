"""Measure a model package on labelled images, through the code that serves.

Admission is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import package, postprocess
from inference.engine import Engine, choose_device
from training import data as labelled
from training.data import rle
from training.data import split as splits
from training.data.cases import Case
from training.data.pictures import Picture
from training.measures import features
from training.measures.answers import Answer, write_rows
from training.measures.answers import read as read_answers
from training.measures.figures import figures_of, table
from training.recipe import Layout, Recipe

__all__ = ["Answer", "Evaluation", "Look", "read_answers", "run", "table"]

_BATCH = 8
_SEEN = (
    "the segmenter has learned from every image with a mask that its recipe names: figures of "
    "masks on those, and of scores in which its map has a vote, are too kind. Under cross_fitted "
    "are those of networks that had not seen them"
)
_BORROWED = "the segmenter is the default model's, which has learned from siim: no figures of masks"

# Why figures on these labels have limits
WARNINGS: Mapping[str, str] = {
    "silver": "SILVER labels, the output of a competition entrant's ensemble, not a reading: "
    "figures say how far the "
    "model agrees with that ensemble, not how often it is right",
    "phantom": "SYNTHETIC images: figures say that a model learns, nothing of patients",
}


@dataclass(frozen=True, eq=False)
class Look:
    """One image to be looked at: all (rows, columns) of its file; `pixels` 0 black to 1 white."""

    pixels: NDArray[np.float32]
    true: NDArray[np.bool_] | None
    found: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Every image's answer, the figures of all images, and a way to look at an image again."""

    # JSON-able; each with its 95 % bootstrap interval and the number of images it is from
    figures: dict[str, Any]
    answers: list[Answer]
    look: Callable[[Answer], Look]
    # Features of each answer's mask
    found: list[dict[str, float]] = field(default_factory=list)
    # Run lengths (training/data/rle.py) of what both stages find
    runs: list[str] = field(default_factory=list)

    def write(self, out: Path) -> None:
        """figures.json, answers.csv, masks.csv (SIIM-ACR); features.csv and patients.csv
        (measures/features.py).
        """
        out.mkdir(parents=True, exist_ok=True)
        write_rows(out / "answers.csv", [asdict(answer) for answer in self.answers])
        pairs = zip(self.answers, self.runs, strict=True)
        write_rows(
            out / "masks.csv",
            [{"ImageId": answer.image_id, "EncodedPixels": runs} for answer, runs in pairs],
        )

        rows, of_patient = [], dict[str, list[dict[str, float]]]()
        for answer, mask in zip(self.answers, self.found, strict=True):
            rows.append({"image_id": answer.image_id, "patient": answer.patient} | mask)
            of_patient.setdefault(answer.patient, []).append(mask)

        write_rows(out / "features.csv", rows)
        patients = [
            {"patient": patient} | features.of_patient(masks)
            for patient, masks in of_patient.items()
        ]
        write_rows(out / "patients.csv", patients)

        (out / "figures.json").write_text(
            json.dumps(self.figures, indent=2, allow_nan=False), encoding="utf-8"
        )


def run(
    model: Path,
    data: Path,
    layout: Layout = "siim",
    recipe: Recipe | None = None,
    split: Path | None = None,
    done: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a package on the images of `data`, one small batch in memory at a time.

    `recipe` is what trained the package, where known; `split` is the split.csv of its training run:
    it tells which images trained, chose and report. Without it, only a recipe that splits by the
    folds of the data tells which images report. Of a recipe without a segmenter no mask is
    measured: the package's is another model's. `done` is called with (images so far, in all).

    Raises:
        PackageError, ValueError: a package, labels or images that cannot be used.
    """
    engine = Engine(package.load(model, any_task=True), choose_device("auto"))
    cases = labelled.read(layout, data)
    if not cases:
        raise ValueError(f"{data}: no labelled image found in layout {layout}")

    own = recipe is None or bool(recipe.of("segmenter"))
    by_folds = recipe is not None and recipe.layout == layout and recipe.split.folds == "published"
    parts = _parts(split, cases, recipe.split.report if recipe is not None and by_folds else ())
    answers, found, runs = [], [], []
    for answer, seen in _answered(engine, cases, parts):
        answers.append(answer if own else replace(answer, true=None, common=0))
        positive = answer.probability >= engine.manifest.classifier.threshold
        mask = seen.found if positive else np.zeros_like(seen.found)
        found.append(features.of_mask(mask))
        runs.append(rle.encode(mask) if positive else rle.NONE)
        if done is not None:
            done(len(answers), len(cases))

    figures: dict[str, Any] = {
        "model": engine.identity.id,
        "version": engine.identity.version,
        "threshold": engine.manifest.classifier.threshold,
        "layout": layout,
        "labels": labelled.LAYOUTS[layout].about,
        "warning": WARNINGS.get(layout),
    }

    figures |= figures_of(answers, engine.manifest.classifier.threshold, split is not None)
    figures["notes"] += [] if own else [_BORROWED]
    if "cross_fitted" in engine.manifest.metrics:
        figures["cross_fitted"] = engine.manifest.metrics["cross_fitted"]
        figures["notes"].append(_SEEN)
    by_id = {case.image_id: case for case in cases}

    def look(answer: Answer) -> Look:
        case = by_id[answer.image_id]
        return next(_looks(engine, [case], [case.picture()]))

    return Evaluation(figures, answers, look, found, runs)


def _answered(
    engine: Engine, cases: Sequence[Case], parts: Mapping[str, tuple[str, int | None]]
) -> Iterator[tuple[Answer, Look]]:
    for start in range(0, len(cases), _BATCH):
        chosen = cases[start : start + _BATCH]
        pictures = [case.picture() for case in chosen]
        probabilities = engine.classify([picture.pixels for picture in pictures])
        looks = _looks(engine, chosen, pictures)

        for case, probability, look in zip(chosen, probabilities, looks, strict=True):
            part, fold = parts.get(case.image_id, ("", case.fold))
            yield (
                Answer(
                    image_id=case.image_id,
                    patient=case.patient,
                    label=case.label,
                    part=part,
                    fold=fold,
                    as_published=case.as_published,
                    view=case.view,
                    sex=case.sex,
                    age_years=case.age_years,
                    probability=probability,
                    pixels=look.found.size,
                    true=None if look.true is None else int(look.true.sum()),
                    found=int(look.found.sum()),
                    common=0 if look.true is None else int((look.true & look.found).sum()),
                ),
                look,
            )


def _looks(engine: Engine, cases: Sequence[Case], pictures: Sequence[Picture]) -> Iterator[Look]:
    maps = engine.segment([picture.pixels for picture in pictures])
    for case, picture, drawn in zip(cases, pictures, maps, strict=True):
        found = postprocess.segment(picture.in_file(drawn), *engine.manifest.segmenter.rule)
        yield Look(picture.in_file(picture.pixels), case.stored_mask(), found)


def _parts(
    path: Path | None, cases: Sequence[Case], report: Sequence[int]
) -> dict[str, tuple[str, int | None]]:
    """image_id -> part (several joined by "+") and fold.

    Without `path`, these folds of the data report.
    """
    if path is None:
        return {
            case.image_id: ("report" if case.fold in report else "", case.fold) for case in cases
        }

    parts = splits.read(path, cases)
    part_of: dict[str, list[str]] = {}
    for name in ("train", "validate", "report"):
        for case in getattr(parts, name):
            part_of.setdefault(case.image_id, []).append(name)

    return {image_id: ("+".join(part), parts.folds[image_id]) for image_id, part in part_of.items()}
