"""Map voting: a segmenter's map contributes a score to the ensemble of classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from inference import package
from inference.engine import Engine, choose_device
from inference.finding import ModelIdentity
from inference.networks import build
from tests import recipes
from training import data
from training.data.cases import Case
from training.export import Export, Trained
from training.measures import crossfitted
from training.recipe import Loss, OperatingPoint, Optimiser, Recipe, Split, Stage

SIDE = 64
SHARE = 0.01
FOLDS = 2
UNET = {"encoder": "efficientnet-lite0", "stem": "imagenet", "up_widths": [8, 8, 8]}
SPLIT = Split.model_validate({"folds": FOLDS, "train": [0, 1], "validate": [0, 1]})


def stage(role: str, architecture: str, **arguments: object) -> Stage:
    return Stage.model_validate(
        {
            "role": role,
            "architecture": architecture,
            "arguments": arguments,
            "side": SIDE,
            "loss": Loss(cross_entropy=1),
            "epochs": 1,
            "batch": 1,
            "optimiser": Optimiser(learning_rate=1),
        }
    )


STAGES = [stage("classifier", "plain-classifier"), stage("segmenter", "unet", **UNET)]


def recipe(**changes: object) -> Recipe:
    stated = {
        "id": "x",
        "version": "1.0.0",
        "about": "x",
        "split": SPLIT,
        "networks": STAGES,
        "operating_point": OperatingPoint(sensitivity=0.9),
        "map_vote": SHARE,
    }
    return Recipe.model_validate(stated | changes)


def network(of: Stage, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(of.architecture, **of.arguments).eval()


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    return list(data.read("siim", recipes.made(tmp_path / "made", images=4)))


@pytest.fixture
def run(tmp_path: Path, cases: list[Case]) -> Path:
    """The folder of a run whose package uses its segmenter's map as a vote."""
    trained = [Trained(one, network(one, seed)) for seed, one in enumerate(STAGES)]
    Export(
        recipe(),
        tmp_path / "run" / "package",
        {"data": ["x"], "date": "2026-01-01", "command": "x"},
    ).write(trained, cases, cases)
    return tmp_path / "run"


def scores(loaded: package.Package, cases: list[Case]) -> list[float]:
    return list(Engine(loaded, choose_device("cpu")).classify([case.pixels() for case in cases]))


def test_the_score_is_the_mean_of_classifier_and_map_score(run: Path) -> None:
    loaded = package.load(run / "package")
    alone, voting = loaded.classifier.get_submodule("members").children()
    shown = torch.from_numpy(loaded.golden["classifier.input"].numpy())
    with torch.inference_mode():
        (answer,) = torch.sigmoid(alone(shown)).flatten()
        (vote,) = torch.sigmoid(voting(shown)).flatten()
        both = torch.sigmoid(loaded.classifier(shown)).item()
        drawn = torch.sigmoid(loaded.segmenter(shown)).numpy()
    assert both == pytest.approx((answer.item() + vote.item()) / 2, abs=1e-5)
    assert np.mean(drawn >= vote.item() - 1e-6) == pytest.approx(SHARE, abs=0.001)


def test_a_fold_is_scored_by_a_map_not_trained_on_it(run: Path, cases: list[Case]) -> None:
    loaded = package.load(run / "package")
    (run / "weights").mkdir()
    path = run / "weights" / "1-segmenter-unet-without-0.safetensors"

    save_file(dict(loaded.segmenter.state_dict()), path)
    as_shipped = scores(crossfitted.without(loaded, run, 0), cases)
    assert as_shipped == pytest.approx(scores(loaded, cases), abs=1e-6)

    save_file(dict(network(STAGES[1], 7).state_dict()), path)
    without = crossfitted.without(loaded, run, 0)
    assert scores(without, cases) != pytest.approx(as_shipped, abs=1e-6)
    # The package itself is unchanged.
    assert scores(loaded, cases) == pytest.approx(as_shipped, abs=1e-6)


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [("unet", UNET), ("plain-unet", {"widths": [8, 8], "up_widths": [8]})],
)
def test_a_segmenter_of_any_architecture_can_leave_a_fold_out(
    architecture: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    of = stage("segmenter", architecture, **arguments)
    voting = build(
        "largest-of-map", of={"architecture": architecture, "arguments": arguments}, pixels=1
    )
    manifest = package.read_manifest(package.default_folder())
    identity = ModelIdentity("x", "1.0.0", "digest", "2.25.1")
    shipped = package.Package(manifest, identity, voting, network(of, 1))

    other = network(of, 2).state_dict()
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "1-segmenter-without-0.safetensors"
    save_file(dict(other), path)
    without = crossfitted.without(shipped, tmp_path, 0)
    in_classifier = without.classifier.get_submodule("segmenter")
    for part in (without.segmenter, in_classifier):
        assert all(torch.equal(value, other[name]) for name, value in part.state_dict().items())

    save_file(dict(network(STAGES[0], 3).state_dict()), path)
    with pytest.raises(ValueError, match=r"1-segmenter-without-0.* and no other wanted"):
        crossfitted.without(shipped, tmp_path, 0)


def test_each_of_several_segmenters_is_replaced_by_its_own_without_the_fold(
    tmp_path: Path, cases: list[Case]
) -> None:
    # The numbers follow the recipe's order: sorted as text, 10 would come before 2.
    places = (2, 10)
    stages = [STAGES[0], STAGES[1], STAGES[1]]
    trained = [Trained(one, network(one, seed)) for seed, one in enumerate(stages)]
    training = {"data": ["x"], "date": "2026-01-01", "command": "x"}
    Export(recipe(networks=stages), tmp_path / "package", training).write(trained, cases, cases)
    loaded = package.load(tmp_path / "package")

    (tmp_path / "weights").mkdir()
    others = [network(STAGES[1], seed).state_dict() for seed in (7, 8)]
    for place, other in zip(places, others, strict=True):
        save_file(
            dict(other), tmp_path / "weights" / f"{place}-segmenter-unet-without-0.safetensors"
        )
    without = crossfitted.without(loaded, tmp_path, 0)

    drawn = list(without.segmenter.get_submodule("members").children())
    votes = list(without.classifier.get_submodule("members").children())[1:]
    for number, other in enumerate(others):
        for part in (drawn[number], votes[number].get_submodule("segmenter")):
            assert all(torch.equal(value, other[name]) for name, value in part.state_dict().items())

    # With a file missing, a segmenter that was trained on the fold would remain.
    (tmp_path / "weights" / "2-segmenter-unet-without-0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"without fold 0: 10-segmenter-unet-without-0"):
        crossfitted.without(loaded, tmp_path, 0)


def test_a_vote_requires_the_same_normalisation_in_all_networks() -> None:
    other = STAGES[1].model_copy(update={"normalisation": "imagenet"})
    with pytest.raises(ValidationError, match=r"unit \(classifier\), imagenet \(segmenter\)"):
        recipe(networks=[STAGES[0], other])
    assert recipe(networks=[STAGES[0], other], map_vote=None)


def test_a_vote_requires_a_segmenter_and_a_classifier() -> None:
    with pytest.raises(ValidationError, match="a classifier and a segmenter wanted"):
        recipe(networks=STAGES[:1])
