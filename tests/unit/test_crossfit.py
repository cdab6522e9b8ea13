"""Cross-fitting: a decoder for each left-out fold, the images it learns from, and the images it
answers.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from inference.networks import build
from tests import recipes
from training import loop
from training.fitting.batches import Batches, with_folds
from training.fitting.crossfit import NO_FOLD, CrossFitted
from training.fitting.run import Run
from training.recipe import Freeze, Loss, Optimiser, Recipe, Split, Stage

SIDE = 32
FOLDS = 2
OF_ALL = FOLDS
REST = Freeze(epochs=0, share=1.0)


def stage(freeze: Freeze | None = REST) -> Stage:
    return Stage(
        role="segmenter",
        architecture="unet",
        arguments={"encoder": "efficientnet-lite0", "stem": "imagenet", "up_widths": [8, 8, 8]},
        side=SIDE,
        loss=Loss(cross_entropy=1),
        epochs=1,
        batch=4,
        optimiser=Optimiser(learning_rate=1),
        freeze=freeze,
        cross_fit=True,
    )


@pytest.fixture
def network() -> CrossFitted:
    torch.manual_seed(1)
    return CrossFitted(build("unet", **stage().arguments), stage(), FOLDS)


def inputs(*folds: float) -> Tensor:
    images = torch.rand(len(folds), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return with_folds(images, torch.tensor(folds).numpy())


def learns(network: CrossFitted, *folds: float) -> list[bool]:
    """For each decoder, whether images of these folds give any of its weights a gradient."""
    outputs = network.train()(inputs(*folds))
    torch.stack([one.square().sum() for one in outputs]).sum().backward()
    parts = zip(network.decoders, network.heads, strict=True)
    return [
        any(weight.grad is not None for part in both for weight in part.parameters())
        for both in parts
    ]


@pytest.mark.parametrize(
    ("folds", "taught"),
    [
        ((0.0, 0.0), [False, True, True]),
        ((1.0, 1.0), [True, False, True]),
        ((NO_FOLD, NO_FOLD), [True, True, True]),
    ],
)
def test_a_decoder_learns_nothing_from_the_fold_it_leaves_out(
    network: CrossFitted, folds: tuple[float, ...], taught: list[bool]
) -> None:
    assert learns(network, *folds) == taught


def test_batch_statistics_of_a_decoder_exclude_the_fold_it_leaves_out(network: CrossFitted) -> None:
    before = {name: one.clone() for name, one in network.decoders[0].state_dict().items()}
    network.train()(inputs(0.0, 0.0))
    after = network.decoders[0].state_dict()
    assert all(torch.equal(after[name], one) for name, one in before.items())


def test_each_image_is_answered_by_the_decoder_that_left_its_fold_out(network: CrossFitted) -> None:
    shown = inputs(1.0, 0.0, NO_FOLD)
    with torch.inference_mode():
        found = network.eval()(shown)
        for row, fold in enumerate((1, 0, None)):
            apart = network.network_of(stage(), fold)(shown[row : row + 1, :1])
            torch.testing.assert_close(found[row : row + 1], apart, rtol=1e-4, atol=1e-5)


def test_choosing_weights_by_the_measured_images_is_refused() -> None:
    with pytest.raises(ValidationError, match="best_by would choose weights"):
        Stage.model_validate(stage().model_dump() | {"best_by": "dice"})


def test_an_encoder_is_not_shared_if_an_earlier_phase_saw_every_fold() -> None:
    before = {"side": SIDE, "epochs": 1, "batch": 4, "learning_rate": 1}
    assert stage().shares_encoder
    assert not Stage.model_validate(stage().model_dump() | {"first": [before]}).shares_encoder


def test_a_trained_encoder_gets_one_network_per_left_out_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: dict[str, set[str]] = {}

    def noted(network: nn.Module, batches: Batches, watch: Any, run: Run, name: str) -> nn.Module:
        ids = (batches.ids(0, index) for index in range(len(batches)))
        taught[name] = set(itertools.chain(*ids))
        # fit() leaves the network in this memory format.
        return network.to(memory_format=torch.channels_last)

    monkeypatch.setattr(loop, "fit", noted)
    monkeypatch.setattr(loop, "Export", lambda *_: SimpleNamespace(write=lambda *_: None))
    alone = stage(freeze=None).model_copy(update={"batch": 1})
    parts = {"folds": FOLDS, "train": [0, 1], "validate": [0, 1]}
    wanted = Recipe(
        id="x", version="1.0.0", about="x", split=Split.model_validate(parts), networks=[alone]
    )
    loop.train(wanted, recipes.made(tmp_path / "made", images=4), tmp_path / "run", [])

    folds = [taught[f"0-segmenter-unet-fold-{fold}"] for fold in range(FOLDS)]
    assert [len(ids) for ids in folds] == [2, 2]
    assert taught["0-segmenter-unet"] == folds[0] | folds[1]
    assert len(list((tmp_path / "run" / "weights").glob("*-without-*"))) == FOLDS
