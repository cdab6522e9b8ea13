"""A package's answers for images without labels: how many are positive, and the probabilities.

There are no labels to compare with, so nothing here says how often an answer is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inference import package, postprocess
from inference.engine import Engine, choose_device
from training.data import pictures

# Stands in for the name of a layout of labelled images
LAYOUT = "images"
_SUFFIXES = (".dcm", *pictures.PLAIN_SUFFIXES)
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def run(
    model: Path, folder: Path, done: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Counts and quantiles of the answers for every image below `folder`, as plain values.

    `done` is told how many images are finished, and of how many. Admission is ignored, as in every
    measurement. Images that cannot be read are listed.

    Raises:
        ValueError: there is no image.
        PackageError: the package does not load.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES]
    if not paths:
        raise ValueError(f"{folder}: layout images: no {', '.join(_SUFFIXES)} found")

    engine = Engine(package.load(model, any_task=True), choose_device("auto"))
    threshold = engine.manifest.classifier.threshold
    probabilities: list[float] = []
    shares: list[float] = []
    unreadable: list[str] = []

    for number, path in enumerate(paths, 1):
        try:
            picture = pictures.read(path)
        except ValueError as error:
            unreadable.append(str(error))
            continue

        (probability,) = engine.classify([picture.pixels])
        probabilities.append(probability)
        if probability >= threshold:
            (drawn,) = engine.segment([picture.pixels])
            mask = postprocess.segment(picture.in_file(drawn), *engine.manifest.segmenter.rule)
            shares.append(float(mask.mean()))
        if done is not None:
            done(number, len(paths))

    return {
        "model": engine.identity.id,
        "version": engine.identity.version,
        "threshold": threshold,
        "images": len(probabilities),
        "positive": len(shares),
        "positive_with_empty_mask": sum(share == 0 for share in shares),
        "probability": _quantiles(probabilities),
        "mask_share_of_image": _quantiles([share for share in shares if share]),
        "unreadable": unreadable,
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    """Per cent -> quantile; empty if there are no values."""
    if not values:
        return {}
    found = np.percentile(values, _QUANTILES)
    return {f"{percent} %": float(value) for percent, value in zip(_QUANTILES, found, strict=True)}


def table(found: Mapping[str, Any]) -> str:
    """What `run` found, as text."""
    count, positive = found["images"], found["positive"]
    lines = [
        f"model {found['model']} {found['version']}, threshold {found['threshold']}",
        "no labels: counts of answers only, not whether they are right",
        f"{count} images, {positive} positive ({positive / max(1, count):.1%}), "
        f"{found['positive_with_empty_mask']} of these with an empty mask",
    ]

    for name in ("probability", "mask_share_of_image"):
        quantiles = "  ".join(f"{place} {value:.3f}" for place, value in found[name].items())
        lines.append(f"{name:20} {quantiles or 'none'}")

    lines += [f"unreadable: {reason}" for reason in found["unreadable"]]
    return "\n".join(lines)
