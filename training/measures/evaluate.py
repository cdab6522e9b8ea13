"""A model package against labelled images, through the very code that serves; admission is ignored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import package, postprocess
from inference.engine import Engine, choose_device
from training import data as labelled
from training.data import split as splits
from training.data.cases import Case
from training.measures import features
from training.measures.answers import Answer, write_rows
from training.measures.answers import read as read_answers
from training.measures.figures import figures_of, table
from training.recipe import Layout

__all__ = ["Answer", "Evaluation", "Look", "evaluate", "read_answers", "run", "table"]

_BATCH = 8
_PUBLISHED_REPORT_FOLD = 3  # of siim/folds.csv, where there is no split of a run

# What figures on these labels cannot tell.
WARNINGS: Mapping[str, str] = {
    "silver": "SILVER labels, the output of a competition entrant's ensemble, not a reading: figures say how far the "
    "model agrees with that ensemble, not how often it is right",
    "phantom": "SYNTHETIC images: figures say that a model learns, nothing of patients",
}


@dataclass(frozen=True, eq=False)
class Look:
    """One image to be looked at: all (rows, columns); `pixels` 0 black to 1 white."""

    pixels: NDArray[np.float32]
    true: NDArray[np.bool_] | None
    found: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Every image's answer, the figures of them all, and a way to look at an image again."""

    figures: dict[str, Any]
    answers: list[Answer]
    look: Callable[[Answer], Look]


def run(
    model: Path, data: Path, layout: Layout = "siim", split: Path | None = None, out: Path | None = None
) -> Evaluation:
    """Measure a package on the images of `data`, one small batch in memory at a time.

    `split` is the split.csv of a training run: it tells which images trained, chose and report. `out`, if given,
    receives answers.csv, features.csv, patients.csv (training/measures/features.py) and figures.json.

    Raises:
        PackageError, ValueError: a package, labels or images that cannot be used.
    """
    engine = Engine(package.load(model, any_task=True), choose_device("auto"))
    cases = labelled.read(layout, data)
    if not cases:
        raise ValueError(f"{data}: no labelled image found in layout {layout}")
    parts = _parts(split, layout, cases)
    answers, found = [], []
    for answer, seen in _answered(engine, cases, parts):
        answers.append(answer)
        if out is not None:
            found.append(features.of_mask(seen.found))
    figures: dict[str, Any] = {
        "model": engine.identity.id,
        "version": engine.identity.version,
        "threshold": engine.manifest.classifier.threshold,
        "layout": layout,
        "labels": labelled.LAYOUTS[layout].about,
        "warning": WARNINGS.get(layout),
    }
    figures |= figures_of(answers, engine.manifest.classifier.threshold, split is not None)
    if out is not None:
        _write(out, answers, found, figures)
    by_id = {case.image_id: case for case in cases}

    def look(answer: Answer) -> Look:
        case = by_id[answer.image_id]
        return next(_looks(engine, [case], [case.pixels()]))

    return Evaluation(figures, answers, look)


def evaluate(
    model: Path, data: Path, layout: Layout = "siim", split: Path | None = None, out: Path | None = None
) -> dict[str, Any]:
    """The figures of `run`, JSON-able: each with its 95 % bootstrap interval and the number of images it is from."""
    return run(model, data, layout, split, out).figures


def _answered(
    engine: Engine, cases: Sequence[Case], parts: Mapping[str, tuple[str, int | None]]
) -> Iterator[tuple[Answer, Look]]:
    for start in range(0, len(cases), _BATCH):
        chosen = cases[start : start + _BATCH]
        pictures = [case.pixels() for case in chosen]
        probabilities, looks = engine.classify(pictures), _looks(engine, chosen, pictures)
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


def _looks(engine: Engine, cases: Sequence[Case], pictures: Sequence[NDArray[np.float32]]) -> Iterator[Look]:
    for case, picture, drawn in zip(cases, pictures, engine.segment(pictures), strict=True):
        yield Look(picture, case.mask(), postprocess.segment(drawn, *engine.manifest.segmenter.rule))


def _parts(path: Path | None, layout: Layout, cases: Sequence[Case]) -> dict[str, tuple[str, int | None]]:
    """image_id -> part (several joined by "+") and fold."""
    if path is None:
        reports = layout == "siim"
        return {
            case.image_id: ("report" if reports and case.fold == _PUBLISHED_REPORT_FOLD else "", case.fold)
            for case in cases
        }
    parts = splits.read(path, cases)
    part_of: dict[str, list[str]] = {}
    for name in ("train", "validate", "report"):
        for case in getattr(parts, name):
            part_of.setdefault(case.image_id, []).append(name)
    return {image_id: ("+".join(part), parts.folds[image_id]) for image_id, part in part_of.items()}


def _write(out: Path, answers: Sequence[Answer], found: Sequence[dict[str, float]], figures: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "answers.csv", [asdict(answer) for answer in answers])
    masks = zip(answers, found, strict=True)
    write_rows(out / "features.csv", [{"image_id": one.image_id, "patient": one.patient} | mask for one, mask in masks])
    of_patient: dict[str, list[dict[str, float]]] = {}
    for answer, mask in zip(answers, found, strict=True):
        of_patient.setdefault(answer.patient, []).append(mask)
    write_rows(
        out / "patients.csv",
        [{"patient": patient} | features.of_patient(masks) for patient, masks in of_patient.items()],
    )
    (out / "figures.json").write_text(json.dumps(figures, indent=2, allow_nan=False), encoding="utf-8")
