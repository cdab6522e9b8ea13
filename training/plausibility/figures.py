"""The published figures of the plausibility network, each share with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference import plausibility, radiograph
from training import phantom
from training.measures import metrics
from training.plausibility import non_chests
from training.plausibility.chests import (
    PHANTOM_SEED,
    PHANTOMS,
    REPORT_FOLD,
    TURNED_OR_INVERTED,
    Chests,
    real,
    small,
)
from training.plausibility.train import Scores, network_input, scores

# (rows, columns), 0 black to 1 white
Pixels = NDArray[np.float32]
Ask = Callable[[Sequence[Pixels]], list[float]]
_UNSEEN_PHANTOMS = 40
_UNSEEN_PER_KIND = 40
_TURNED_BY_US = 30


def figures(
    network: nn.Module,
    threshold: float,
    chests: Chests,
    crossed: list[tuple[Scores, dict[str, Scores]]],
    data: Path,
) -> dict[str, Any]:
    """Every figure, JSON-able: each share with its 95 % interval and its number of images.

    `crossed` is `train.cross_validated` of every fold.
    """
    limit = math.log(threshold / (1 - threshold))

    def ask(images: Sequence[Pixels]) -> list[float]:
        with torch.inference_mode():
            logits = [network(torch.from_numpy(network_input(image)[None])) for image in images]
        return [float(torch.sigmoid(logit)[0, 0]) for logit in logits]

    def pose(image: Pixels) -> dict[str, Any]:
        found = plausibility.judge(ask, [image], threshold)[0].pose
        shown = None if found is None else found.note or "as shown"
        return {"plausibility": round(ask([image])[0], 4), "pose": shown}

    chests_left_out = np.concatenate([held_out for held_out, _ in crossed])
    kinds_left_out = {kind: logits for _, kinds in crossed for kind, logits in kinds.items()}
    kinds_trained = [
        scores(network, non_chests.draw(kind, _UNSEEN_PER_KIND, chests.reported, 99))
        for kind in non_chests.KINDS
    ]

    return {
        "threshold_logit": limit,
        "real_chests_cross_validated": _passed(chests_left_out, limit),
        f"real_chests_fold_{REPORT_FOLD}": _passed(scores(network, chests.reported), limit),
        "phantoms_unseen_synthetic": _passed(scores(network, _unseen_phantoms()), limit),
        "kinds_trained_on_synthetic": _refused(np.concatenate(kinds_trained), limit),
        "kinds_left_out_synthetic": {
            kind: _refused(logits, limit) for kind, logits in kinds_left_out.items()
        },
        "all_kinds_left_out_synthetic": _refused(
            np.concatenate(list(kinds_left_out.values())), limit
        ),
        "node_files": {name: pose(pixels) for name, pixels in node_pictures(data / "node").items()},
        "turned_or_inverted_in_the_data": {
            name: pose(real(data, name)) for name in sorted(TURNED_OR_INVERTED)
        },
        "turned_or_inverted_by_us": _turned_by_us(ask, threshold, chests),
    }


def node_pictures(folder: Path) -> dict[str, Pixels]:
    """Every image of `folder` that decodes, by file name: none of them trained anything."""
    decoded = {}
    for path in sorted(folder.glob("*.dcm")):
        with suppress(radiograph.Unsuitable):
            decoded[path.name] = radiograph.decode(radiograph.parse(path.read_bytes())[0]).pixels
    return decoded


def _passed(logits: Scores, limit: float) -> dict[str, Any]:
    return _share(logits >= limit, nearest=logits.min())


def _refused(logits: Scores, limit: float) -> dict[str, Any]:
    return _share(logits < limit, nearest=logits.max())


def _share(right: NDArray[np.bool_], nearest: float) -> dict[str, Any]:
    """How many are right; `nearest` is the logit that came closest to being wrong."""
    hits, count = int(right.sum()), len(right)
    return {
        "value": hits / count,
        "interval_95": list(metrics.wilson(hits, count)),
        "right": hits,
        "of": count,
        "nearest_logit": round(float(nearest), 2),
    }


def _unseen_phantoms() -> NDArray[np.uint8]:
    first = PHANTOM_SEED + PHANTOMS
    seeds = range(first, first + _UNSEEN_PHANTOMS)
    drawn = [phantom.draw(seed, (seed - first) % 2 == 0, size=256).pixels for seed in seeds]
    return np.stack([small(pixels) for pixels in drawn])


def _turned_by_us(ask: Ask, threshold: float, chests: Chests) -> dict[str, Any]:
    """Of chests that we turned or inverted: how many were recognised as what we did to them."""
    upright = chests.reported[:_TURNED_BY_US].astype(np.float32) / 255
    recognised = {}
    for wanted in plausibility.OTHERS:
        given = [wanted.as_given(1 - pixels if wanted.inverted else pixels) for pixels in upright]
        found = [plausibility.judge(ask, [pixels], threshold)[0].pose for pixels in given]
        recognised[str(wanted)] = {
            "right": sum(pose == wanted for pose in found),
            "of": len(found),
        }
    return recognised
