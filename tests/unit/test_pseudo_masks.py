"""Pseudo masks: outlines that a network draws for its own training."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from tests import recipes
from training import data, loop
from training.fitting import pseudo_masks
from training.fitting.batches import Batches
from training.fitting.run import Run
from training.recipe import Loss, Optimiser, PseudoMasks, Recipe, Split, Stage

SIDE = 64
FOLDS = 2
LABEL = 0.5


class LeftHalf(nn.Module):
    """A network that finds bright pixels only in the left half of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        left = torch.arange(x.shape[-1]) < x.shape[-1] // 2
        return self.scale * (x * left - 0.5)


def images(*bright: slice) -> NDArray[np.uint8]:
    """One image for each range of bright columns."""
    made = np.zeros((len(bright), SIDE, SIDE), dtype=np.uint8)
    for image, columns in zip(made, bright, strict=True):
        image[:, columns] = 255
    return made


def whole(count: int) -> NDArray[np.int32]:
    return np.tile(np.array([0, 0, SIDE, SIDE], dtype=np.int32), (count, 1))


def test_a_mask_joins_the_answers_for_image_and_mirror_image() -> None:
    shown = images(slice(0, 8), slice(SIDE - 8, SIDE), slice(0, 0))
    # Each half is found in the image or in its mirror image, so the mean is 0.5.
    drawn = pseudo_masks.drawn(LeftHalf(), shown, whole(3), "unit", bottom=0.4)
    assert (drawn == shown).all()

    assert not pseudo_masks.drawn(LeftHalf(), shown, whole(3), "unit", bottom=0.6).any()


def stage(**changes: Any) -> Stage:
    return Stage(
        role="segmenter",
        architecture="unet",
        arguments={"encoder": "efficientnet-lite0", "stem": "imagenet", "up_widths": [8, 8, 8]},
        side=SIDE,
        loss=Loss(cross_entropy=1),
        epochs=1,
        batch=1,
        optimiser=Optimiser(learning_rate=1),
        cross_fit=True,
        pseudo_masks=PseudoMasks(
            epochs=1, phantoms=1, learning_rate=0.1, share=1, label=LABEL, bottom=0.3
        ),
    ).model_copy(update=changes)


def test_each_fold_has_pseudo_masks_from_a_network_not_trained_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: dict[str, set[str]] = {}
    last = {"name": ""}
    teachers = []

    def noted(network: nn.Module, batches: Batches, watch: Any, run: Run, name: str) -> nn.Module:
        ids = (batches.ids(0, index) for index in range(len(batches)))
        taught[name] = set(itertools.chain(*ids))
        last["name"] = name
        return network

    def drawn(
        network: nn.Module, shown: NDArray[np.uint8], *_: Any, **__: Any
    ) -> NDArray[np.uint8]:
        teachers.append(last["name"])
        masks = np.zeros_like(shown)
        # Leave the first mask empty.
        masks[1:] = 255
        return masks

    monkeypatch.setattr(loop, "fit", noted)
    monkeypatch.setattr(loop.pseudo_masks, "drawn", drawn)
    monkeypatch.setattr(loop, "Export", lambda *_: SimpleNamespace(write=lambda *_: None))
    parts = {"folds": FOLDS, "train": [0, 1], "validate": [0, 1]}
    wanted = Recipe(
        id="x", version="1.0.0", about="x", split=Split.model_validate(parts), networks=[stage()]
    )
    folder = recipes.made(tmp_path / "made", images=6)
    loop.train(wanted, folder, tmp_path / "run", [])

    names = ["0-segmenter-unet-fold-0", "0-segmenter-unet-fold-1", "0-segmenter-unet"]
    assert teachers == names

    labelled = [case for case in data.read("silver", folder) if case.label >= LABEL]
    outlined = {case.image_id for case in labelled[1:]}
    assert outlined
    for name in names:
        # Phantoms are recognised by their names.
        phantoms = {one for one in taught[f"{name}-pseudo-masks"] if one.startswith("phantom")}
        assert len(phantoms) == 1
        assert taught[f"{name}-pseudo-masks"] - phantoms == taught[name] | outlined


def test_a_network_that_learns_labels_has_no_pseudo_masks() -> None:
    with pytest.raises(ValidationError, match="a network that learns masks"):
        Stage.model_validate(stage().model_dump() | {"role": "classifier", "cross_fit": False})
