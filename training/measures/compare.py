"""Several training runs beside each other: figures, differences, speed, size, published values.

Figures are of the images that every run reports. Their differences from the first run are paired:
each resample of the patients is the same for both.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from inference import package
from training.measures import figures
from training.measures.answers import Answer
from training.measures.answers import read as read_answers
from training.recipe import Recipe

# What is compared, in this order, as far as the answers allow
COMPARED = (
    "auc", "average_precision", "sensitivity", "specificity", "f1", "mcc", "accuracy",
    "dice", "dice_positives", "iou", "competition_score",
)  # fmt: skip
_TIMED = 5
_PANELS_A_ROW = 3
_POINT, _PUBLISHED = "#0072B2", "#D55E00"


@dataclass(frozen=True, eq=False)
class Compared:
    """A finished run: its answers, and the cost of its package."""

    name: str
    recipe: Recipe
    threshold: float
    answers: Sequence[Answer]
    # Parameters and milliseconds of a forward pass of one image on this machine, by role
    parameters: Mapping[str, int]
    forward_ms: Mapping[str, float]
    # Median of the epochs, while training; None where no network was trained
    trained_images_per_s: float | None


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """The runs in `folders` beside each other, as plain values.

    Raises:
        ValueError: fewer than two runs, or a folder without a finished run.
        PackageError: a run's package does not load.
    """
    if len(folders) < 2:
        raise ValueError("compare: the folders of two runs or more wanted")

    runs = [read(folder) for folder in folders]
    common = _common(runs)
    found = [_described(run, common) for run in runs]
    return {
        "images": len(common),
        "note": _note(runs, common),
        "runs": found,
        "differences": _differences(runs, common) if common else [],
    }


def read(folder: Path) -> Compared:
    """A finished run's answers and package.

    Raises:
        ValueError: no finished run.
        PackageError: its package does not load.
    """
    require_finished(folder)
    loaded = package.load(folder / "package", any_task=True)

    return Compared(
        name=folder.resolve().name,
        recipe=Recipe.model_validate_json((folder / "recipe.json").read_bytes()),
        threshold=loaded.manifest.classifier.threshold,
        answers=read_answers(folder / "answers.csv"),
        parameters=_parameters(loaded),
        forward_ms=_forward_ms(loaded),
        trained_images_per_s=_trained_images_per_s(folder),
    )


def require_finished(folder: Path) -> None:
    """Raise ValueError unless `folder` holds a run that `pleura train` has finished."""
    for name in ("recipe.json", "answers.csv", "package"):
        if not (folder / name).exists():
            raise ValueError(
                f"{folder}: no {name} found; the folder of a run that `pleura train` has finished "
                "wanted"
            )


def _parameters(loaded: package.Package) -> dict[str, int]:
    return {
        role: sum(weight.numel() for weight in network.parameters())
        for role, network in loaded.networks.items()
    }


def _forward_ms(loaded: package.Package) -> dict[str, float]:
    """Milliseconds of one image, median, plain torch on the CPU; the first pass is not counted."""
    found: dict[str, float] = {}
    for role, network in loaded.networks.items():
        image = loaded.golden[f"{role}.input"][:1]
        times = []
        for _ in range(1 + _TIMED):
            started = time.perf_counter()
            with torch.inference_mode():
                network(image)
            times.append(time.perf_counter() - started)
        found[role] = statistics.median(times[1:]) * 1000

    return found


def _trained_images_per_s(folder: Path) -> float | None:
    speeds = []
    for path in sorted((folder / "curves").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        speeds += [float(row["images_per_s"]) for row in rows if row.get("images_per_s")]
    return statistics.median(speeds) if speeds else None


def _reported(run: Compared) -> dict[str, Answer]:
    """The reported images; the validation images, if none is reported."""
    for part in ("report", "validate"):
        if found := {each.image_id: each for each in run.answers if each.of(part)}:
            return found
    return {}


def _common(runs: Sequence[Compared]) -> list[str]:
    """The images that all runs report."""
    shared = set.intersection(*(set(_reported(run)) for run in runs))
    return sorted(shared)


def _note(runs: Sequence[Compared], common: Sequence[str]) -> str:
    if not common:
        return (
            "no image is reported by all of these runs: each run's figures are of its own images, "
            "and differences say nothing"
        )
    if all(any(answer.of("report") for answer in run.answers) for run in runs):
        return f"figures of the {len(common)} images that every run reports"
    return (
        f"figures of {len(common)} images; in a run without a report part they chose weights and "
        "thresholds, so its figures are too good"
    )


def _shown(run: Compared, common: Sequence[str]) -> list[Answer]:
    reported = _reported(run)
    return [reported[image_id] for image_id in common or sorted(reported)]


def _described(run: Compared, common: Sequence[str]) -> dict[str, Any]:
    answers = _shown(run, common)
    measured = figures.measured(answers, run.threshold) if answers else {}
    return {
        "name": run.name,
        "recipe": run.recipe.id,
        "threshold": run.threshold,
        "parameters": dict(run.parameters),
        "forward_ms": {role: round(ms, 1) for role, ms in run.forward_ms.items()},
        "trained_images_per_s": run.trained_images_per_s,
        "figures": {name: measured[name] for name in COMPARED if name in measured},
        "published": run.recipe.published,
    }


def _differences(runs: Sequence[Compared], common: Sequence[str]) -> list[dict[str, Any]]:
    """The difference of each run from the first, on the same resamples of the same patients."""
    # A run numbers patients by its own order of the images: the first run's numbers hold for all.
    patients = [answer.patient for answer in _shown(runs[0], common)]
    drawn = [
        figures.resampled(
            [
                replace(answer, patient=patient)
                for answer, patient in zip(_shown(run, common), patients, strict=True)
            ],
            run.threshold,
        )
        for run in runs
    ]
    first, *others = drawn
    return [
        {"run": run.name, "less": runs[0].name} | row
        for run, own in zip(runs[1:], others, strict=True)
        for row in _differences_from(first, own)
    ]


def _differences_from(
    first: Mapping[str, figures.Values], own: Mapping[str, figures.Values]
) -> Iterator[dict[str, Any]]:
    """The difference of each figure that both runs have: its value, then its resamples."""
    for name in COMPARED:
        if name not in first or name not in own:
            continue
        difference = own[name] - first[name]
        if np.isnan(difference[0]):
            continue

        low, high = np.nanpercentile(difference[1:], (2.5, 97.5))
        yield {
            "figure": name,
            "value": float(difference[0]),
            "interval_95": [float(low), float(high)],
        }


def table(compared: Mapping[str, Any]) -> str:
    """The comparison as text."""
    runs = compared["runs"]
    lines = [compared["note"], ""]
    for run in runs:
        cost = ", ".join(
            f"{role} {count:,} parameters, {run['forward_ms'][role]:g} ms"
            for role, count in run["parameters"].items()
        )
        speed = run["trained_images_per_s"]
        trained = f"; trained at {speed:.0f} images/s" if speed else ""
        lines.append(f"{run['name']} ({run['recipe']}): {cost}{trained}")

    lines.append("")
    for name in COMPARED:
        for run in runs:
            if name in run["figures"]:
                said = run["published"].get(name)
                beside = f"   published {said:.3f}" if said is not None else ""
                lines.append(
                    f"{name:20} {run['name']:24} {figures.text(run['figures'][name])}{beside}"
                )

    if compared["differences"]:
        lines += ["", "differences, paired bootstrap over patients; * the interval excludes 0"]
    for row in compared["differences"]:
        low, high = row["interval_95"]
        mark = " *" if low > 0 or high < 0 else ""
        lines.append(
            f"{row['figure']:20} {row['run']} less {row['less']}: {row['value']:+.3f}  "
            f"(95 % {low:+.3f} to {high:+.3f}){mark}"
        )

    return "\n".join(lines)


def plot(compared: Mapping[str, Any], out: Path) -> None:
    """Draw every figure with its interval, a panel each, into a PNG, SVG or PDF file.

    A diamond is the published value.
    """
    runs = compared["runs"]
    names = [name for name in COMPARED if any(name in run["figures"] for run in runs)]
    rows = max(1, -(-len(names) // _PANELS_A_ROW))
    figure = Figure(
        figsize=(4 * _PANELS_A_ROW, (0.9 + 0.35 * len(runs)) * rows), layout="constrained"
    )

    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, _PANELS_A_ROW, place)
        for line, run in enumerate(reversed(runs)):
            if name not in run["figures"]:
                continue
            value = run["figures"][name]["value"]
            low, high = run["figures"][name]["interval_95"]
            axes.plot([low, high], [line, line], color=_POINT)
            axes.plot([value], [line], "o", color=_POINT)
            if (said := run["published"].get(name)) is not None:
                axes.plot([said], [line], "D", color=_PUBLISHED, fillstyle="none")

        axes.set_yticks(range(len(runs)), [run["name"] for run in reversed(runs)])
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.margins(y=0.2)

    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
