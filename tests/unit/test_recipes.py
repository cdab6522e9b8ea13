"""Each recipe of the case studies runs: files in, package out, and the node's engine answers with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon import cli
from inference import package
from tests import recipes
from training import commands, loop, recipe
from training.measures import outcome

ROWS = {"T1", "T2", "T3", "T4", "T5", "T6", "M1", "M2", "M3", "M4", "F1", "C1", "C2", "C3", "K1", "B1", "B3"}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipes.made(tmp_path_factory.mktemp("made"), images=8)


@pytest.mark.parametrize("name", [name for name in recipes.NAMES if name != "k1-winner"])
def test_from_files_to_answers(name: str, made: Path, tmp_path: Path) -> None:
    wanted = recipes.short(name, side=64)
    folder = loop.train(wanted, made, tmp_path / "run", ["pleura", "train"], decoded=made / "decoded")  # they share it
    assert folder is not None
    assert not (tmp_path / "run" / "cache").exists()
    manifest = package.read_manifest(folder)
    assert (manifest.id, manifest.task, manifest.training.recipe) == (wanted.id, wanted.task, wanted.id)
    assert recipes.answers(folder, manifest.task) == 1


def test_a_run_of_a_lone_segmenter_ends_with_the_winners_rule_figures_and_a_report(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    knobs = [f"--set={key}={value}" for key, value in recipes.changes("k1-winner", side=64).items()]
    where = ["--data", str(made), "--out", str(tmp_path)]
    assert cli.main(["train", "--recipe", "k1-winner", *where, *knobs]) == 0
    manifest = package.read_manifest(tmp_path / "package")
    assert manifest.metrics == json.loads((tmp_path / "figures.json").read_text())
    assert manifest.classifier.architecture == "largest-of-map"
    assert manifest.classifier.threshold == pytest.approx(manifest.segmenter.top, abs=0.001)
    share = manifest.segmenter.min_sure_area_at_1024_px / 1024**2
    assert manifest.classifier.arguments["pixels"] == max(1, round(share * 64**2))
    assert {path.name for path in tmp_path.iterdir()} >= {"answers.csv", "split.csv", "search.csv", "recipe.json"}
    card = (tmp_path / "package" / "README.md").read_text()
    assert "2 validate" in card
    assert "Research use only" in card
    assert "0.868" in (tmp_path / "report.html").read_text()  # the published competition score, beside ours
    capsys.readouterr()
    measured = ["evaluate", "--model", str(tmp_path / "package"), "--data", str(made)]
    assert cli.main([*measured, "--split", str(tmp_path / "split.csv")]) == 0
    assert "0.868" in capsys.readouterr().out
    assert cli.main(["explore", "--data", str(made), "--out", str(tmp_path / "data.html")]) == 0


def test_the_outcome_model(made: Path, tmp_path: Path) -> None:
    settings = outcome.load(recipes.FOLDER / f"{recipes.OUTCOME}.yaml").model_copy(
        update={"trees": 10, "repeats": 2, "folds": 2}
    )
    commands.train_outcome(settings, made, tmp_path)
    assert "training data" in (tmp_path / "outcome.md").read_text()


def test_every_row_of_the_case_studies_has_a_recipe() -> None:
    documents = {name: recipe.read(recipes.FOLDER / f"{name}.yaml") for name in [*recipes.NAMES, recipes.OUTCOME]}
    assert {document.get("case_study") for document in documents.values()} == ROWS | {None}
    for name, document in documents.items():
        assert document["id"] == ("pleura-default" if name == "default" else name)
        assert document["about"]


def test_the_shipped_recipe_is_the_shipped_model() -> None:
    shipped = recipe.load(recipes.FOLDER / "default.yaml")
    manifest = package.read_manifest(package.default_folder())
    for stage in shipped.networks:
        network = manifest.networks[stage.role]
        for knob in ("architecture", "arguments", "side", "normalisation"):
            assert getattr(stage, knob) == getattr(network, knob)
    assert (manifest.id, manifest.version) == (shipped.id, shipped.version)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"networks.0.sides": "64"}, "networks.0.sides"),
        ({"networks.9.side": "64"}, "no such place"),
        ({"networks.0.best_by": "beauty"}, "beauty"),
        ({"networks.0.best_by": "mcc"}, "mcc"),  # a figure of labels
        ({"networks.0.loss": "{dice: 0}"}, "every weight is 0"),
        ({"networks.0.average": "{ema: 0.9, swa_last_epochs: 2}"}, "not both"),
        ({"operating_point": "{best: f1}"}, "operating_point"),
        ({"split.validate": "[]"}, "split.validate"),
    ],
)
def test_a_wrong_recipe_is_said(change: dict[str, str], said: str) -> None:
    with pytest.raises(recipe.RecipeError, match=said):
        recipe.load(recipes.FOLDER / "t5-plain-unet.yaml", change)


def test_a_fold_validates_and_the_next_reports() -> None:
    wanted = recipe.load(recipes.FOLDER / "t5-plain-unet.yaml")
    assert (wanted.with_fold(9).split.validate_, wanted.with_fold(9).split.report) == ([9], [0])
    with pytest.raises(recipe.RecipeError, match="0 to 9"):
        wanted.with_fold(10)
