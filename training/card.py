"""The model card of a trained package: training data, operating point and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference import package
from training.measures.figures import CAVEAT, beside, text
from training.recipe import Recipe

_SHOWN = (
    "auc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "mcc", "accuracy",
    "dice", "dice_positives", "iou_positives", "competition_score",
)  # fmt: skip


def write(folder: Path, recipe: Recipe, figures: Mapping[str, Any]) -> Path:
    """Write README.md into the package's folder; returns its path.

    `figures` are those of `measures.evaluate.run`.
    """
    manifest = package.read_manifest(folder)
    segmenter = manifest.segmenter
    part = figures["all"][key] if (key := figures["report"]["key"]) else figures["all"]
    lines = [
        f"# {manifest.id} {manifest.version}",
        "",
        f"{recipe.about}. {manifest.intended_use}",
        "",
        "## Training",
        *(f"- {line}" for line in manifest.training.data),
        f"- {manifest.training.date}: `{manifest.training.command}`",
        "",
        "## Operating point",
        f"- positive at a score of {manifest.classifier.threshold} or more: "
        f"{manifest.classifier.operating_point}",
        f"- a pixel belongs to the mask at {segmenter.bottom} or more, and is sure at "
        f"{segmenter.top} or more; in pixels of a 1024 x 1024 image, the smallest region has "
        f"{segmenter.min_area_at_1024_px:g}, and the sure pixels of a mask are at least "
        f"{segmenter.min_sure_area_at_1024_px:g}",
        "",
        "## Figures",
        f"{figures['labels']}. {figures['report']['note']}",
        "",
        "| figure | value (95 % interval) | images |",
        "|---|---|---|",
        *(_row(name, part[name]) for name in _SHOWN if name in part),
        "",
        *_published(figures, recipe),
        *figures.get("notes", []),
        "",
        "The model has not been measured on other hospitals, machines, ages or kinds of "
        "pneumothorax than those of these images.",
        "",
    ]

    path = folder / "README.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _published(figures: Mapping[str, Any], recipe: Recipe) -> list[str]:
    rows = beside(figures, recipe.published)
    if not rows:
        return []
    lines = ["| figure | published | ours |", "|---|---|---|"]
    for name, theirs, ours in rows:
        lines.append(
            f"| {name} | {theirs} | "
            f"{'; '.join(f'{group}: {text(figure)}' for group, figure in ours.items())} |"
        )
    return [*lines, "", CAVEAT, ""]


def _row(name: str, figure: Mapping[str, Any]) -> str:
    low, high = figure["interval_95"]
    return (
        f"| {name} | {figure['value']:.3f} ({low:.3f} to {high:.3f}) | "
        f"{figure.get('of', figure.get('images'))} |"
    )
