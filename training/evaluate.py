"""A model package against labelled images, through the very code that serves; admission is ignored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference import package, postprocess
from inference.engine import Engine
from training import metrics, siim

_BATCH = 8


@dataclass(frozen=True, eq=False)
class _Answer:
    """What the package says of one case."""

    case: siim.Case
    probability: float
    dice_alone: float  # of the segmenter, whatever the classifier says
    dice: float  # of both stages: an image below the threshold has an empty mask


def evaluate(model: Path, data: Path, report_fold: int = 3) -> dict[str, Any]:
    """Figures on `data`/siim, JSON-able, each with the number of images it is from.

    Raises:
        PackageError, ValueError: a package or labels that cannot be used.
    """
    engine = Engine(package.load(model), torch.device("cpu"))
    cases = siim.read_cases(data / "siim")
    answers = [answer for i in range(0, len(cases), _BATCH) for answer in _answer(engine, cases[i : i + _BATCH])]
    threshold = engine.manifest.classifier.threshold
    as_published = {case.image_id for case in cases if case.jpeg_baseline}
    figures: dict[str, Any] = {"model": engine.identity.id, "version": engine.identity.version, "threshold": threshold}
    for name, chosen in (
        ("all", answers),
        ("jpeg_baseline", [answer for answer in answers if answer.case.image_id in as_published]),
    ):
        reported = [answer for answer in chosen if answer.case.fold == report_fold]
        figures[name] = {
            "auc": _auc(chosen),
            f"auc_fold_{report_fold}": _auc(reported),
            f"fold_{report_fold}": _operating(reported, threshold) | _overlap(reported),
        }
    return figures


def _answer(engine: Engine, cases: Sequence[siim.Case]) -> list[_Answer]:
    pictures = [case.read().pixels for case in cases]
    answers = []
    for case, probability, found in zip(cases, engine.classify(pictures), engine.segment(pictures), strict=True):
        mask = postprocess.segment(found, *engine.manifest.segmenter.rule)
        alone = metrics.dice(mask, case.mask)
        both = alone if probability >= engine.manifest.classifier.threshold else metrics.dice(mask & False, case.mask)
        answers.append(_Answer(case, probability, alone, both))
    return answers


def _auc(answers: Sequence[_Answer]) -> dict[str, Any]:
    scores = np.array([answer.probability for answer in answers])
    labels = np.array([answer.case.positive for answer in answers])
    interval = _bootstrap(answers, lambda chosen: metrics.auc(scores[chosen], labels[chosen]))
    return {"value": metrics.auc(scores, labels), "interval_95": list(interval)} | _count(answers)


def _operating(answers: Sequence[_Answer], threshold: float) -> dict[str, Any]:
    said = np.array([answer.probability >= threshold for answer in answers])
    true = np.array([answer.case.positive for answer in answers])
    figures = {}
    for name, right, among in (("sensitivity", said, true), ("specificity", ~said, ~true)):
        hits, of = int((right & among).sum()), int(among.sum())
        figures[name] = {"value": hits / of, "interval_95": list(metrics.wilson(hits, of)), "right": hits, "of": of}
    return figures


def _overlap(answers: Sequence[_Answer]) -> dict[str, Any]:
    positives = [answer for answer in answers if answer.case.positive]
    return {
        "dice_positives_segmenter_alone": _mean(positives, [answer.dice_alone for answer in positives]),
        "dice_positives": _mean(positives, [answer.dice for answer in positives]),
        "dice_all_images": _mean(answers, [answer.dice for answer in answers]),  # empty and rightly empty counts 1
    }


def _mean(answers: Sequence[_Answer], values: list[float]) -> dict[str, Any]:
    array = np.array(values)
    interval = _bootstrap(answers, lambda chosen: float(array[chosen].mean()))
    return {"value": float(array.mean()), "interval_95": list(interval)} | _count(answers)


def _count(answers: Sequence[_Answer]) -> dict[str, int]:
    return {"images": len(answers), "positive": sum(answer.case.positive for answer in answers)}


def _bootstrap(answers: Sequence[_Answer], figure: Callable[[NDArray[np.intp]], float]) -> tuple[float, float]:
    return metrics.bootstrap(figure, np.array([answer.case.patient for answer in answers]))


def table(figures: dict[str, Any]) -> str:
    """The figures as lines of text, one each with its interval and its number of images."""
    lines = [f"model {figures['model']} {figures['version']}, threshold {figures['threshold']}"]

    def walk(path: str, node: Any) -> None:
        if isinstance(node, dict) and "value" in node:
            low, high = node["interval_95"]
            of = node.get("of", node.get("images"))
            lines.append(f"{path:60} {node['value']:.3f}  (95 % {low:.3f} to {high:.3f}; {of} images)")
        elif isinstance(node, dict):
            for key, value in node.items():
                walk(f"{path} {key}".strip(), value)

    walk("", {key: value for key, value in figures.items() if isinstance(value, dict)})
    return "\n".join(lines)
