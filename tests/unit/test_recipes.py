"""Each recipe of the case studies runs from files to a package, and the node's engine answers with
it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from daemon import cli
from inference import package
from inference.networks import build, encoders
from tests import recipes
from training import commands, loop, preflight, recipe
from training.data import rle
from training.fitting import installed
from training.fitting.weights import WeightsError
from training.measures import outcome
from training.measures.evaluate import read_answers

pytestmark = pytest.mark.xdist_group("recipes")

ROWS = {
    "S1",
    "T1",
    "T2",
    "T3",
    "T4",
    "T5",
    "T6",
    "M1",
    "M2",
    "M3",
    "M4",
    "F1",
    "C1",
    "C2",
    "C3",
    "K1",
    "B1",
    "B3",
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipes.made(tmp_path_factory.mktemp("made"), images=8)


@pytest.fixture
def small_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace resnet34 by a small network that trains in seconds."""
    monkeypatch.setitem(encoders.ENCODERS, "resnet34", recipes.small_resnet)


@pytest.mark.usefixtures("small_resnet")
@pytest.mark.parametrize("name", [name for name in recipes.NAMES if name != "k1-winner"])
def test_a_recipe_runs_from_files_to_answers(name: str, made: Path, tmp_path: Path) -> None:
    wanted = recipes.short(name, side=64)
    # All recipes share this cache of decoded images.
    folder = loop.train(
        wanted,
        made,
        tmp_path / "run",
        ["pleura", "train"],
        recipes.at_random(wanted),
        made / "decoded",
    )
    assert folder is not None
    assert not (tmp_path / "run" / "cache").exists()

    manifest = package.read_manifest(folder)
    assert (manifest.id, manifest.task, manifest.training.recipe) == (
        wanted.id,
        wanted.task,
        wanted.id,
    )

    assert recipes.answers(folder, manifest.task) == 1


@pytest.mark.usefixtures("small_resnet")
def test_a_run_of_a_lone_segmenter_ends_with_the_winners_rule_figures_and_a_report(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    knobs = [f"--set={key}={value}" for key, value in recipes.changes("k1-winner", side=64).items()]
    where = ["--data", str(made), "--out", str(tmp_path)]
    assert cli.main(["train", "--recipe", "k1-winner", "--start=0=random", *where, *knobs]) == 0
    message = capsys.readouterr().out
    assert f"report:  {tmp_path / 'report.html'}" in message
    assert f"`model: {tmp_path / 'package'}` in pleura.yaml" in message
    assert "competition_score" in message
    manifest = package.read_manifest(tmp_path / "package")
    assert manifest.metrics == json.loads((tmp_path / "figures.json").read_text())
    assert manifest.classifier.architecture == "largest-of-map"

    assert manifest.classifier.threshold == pytest.approx(manifest.segmenter.top, abs=0.001)
    assert len(rle.read(tmp_path / "masks.csv")) == len(read_answers(tmp_path / "answers.csv")) == 8
    share = manifest.segmenter.min_sure_area_at_1024_px / 1024**2
    assert manifest.classifier.arguments["pixels"] == max(1, round(share * 64**2))
    assert {path.name for path in tmp_path.iterdir()} >= {
        "answers.csv",
        "split.csv",
        "search.csv",
        "recipe.json",
    }

    card = (tmp_path / "package" / "README.md").read_text()
    assert "2 validate" in card
    assert "Research use only" in card

    # The report shows the published competition score beside ours.
    assert "0.868" in (tmp_path / "report.html").read_text()
    capsys.readouterr()
    measured = ["evaluate", "--model", str(tmp_path / "package"), "--data", str(made)]
    assert cli.main([*measured, "--split", str(tmp_path / "split.csv")]) == 0
    assert "0.868" in capsys.readouterr().out
    assert cli.main(["explore", "--data", str(made), "--out", str(tmp_path / "data.html")]) == 0
    explored = capsys.readouterr().out
    assert "8 images" in explored
    assert f"page: {tmp_path / 'data.html'}" in explored


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--recipe", "nosuch"],
            "--recipe nosuch: no such recipe; a .yaml file wanted, or one of b1-unet-plus-plus, ",
        ),
        (
            ["--recipe", "t5-plain-unet", "--start", "x=y"],
            "--start x=y: N=FILE, N a network's number, wanted",
        ),
        (
            ["--recipe", "t5-plain-unet", "--start", "file"],
            "--start file: N=FILE, N a network's number, wanted",
        ),
        (
            ["--recipe", "lgg-outcome", "--start", "0=y"],
            "--start and --cache are for recipes that do",
        ),
        (
            ["--recipe", "lgg-outcome", "--cache", "y"],
            "--start and --cache are for recipes that do",
        ),
    ],
)
def test_a_wrong_option_is_refused(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert cli.main(["train", *given, *where]) == cli.EXIT_CANNOT_START
    assert message in capsys.readouterr().err


def test_the_outcome_model_is_trained(made: Path, tmp_path: Path) -> None:
    settings = outcome.load(recipes.FOLDER / f"{recipes.OUTCOME}.yaml").model_copy(
        update={"trees": 10, "repeats": 2, "folds": 2}
    )
    commands.train_outcome(settings, made, tmp_path)
    assert "training data" in (tmp_path / "outcome.md").read_text()


def test_every_row_of_the_case_studies_has_a_recipe() -> None:
    documents = {
        name: recipe.read(recipes.FOLDER / f"{name}.yaml")
        for name in [*recipes.NAMES, recipes.OUTCOME]
    }
    assert {document.get("case_study") for document in documents.values()} == ROWS | {None}
    for name, document in documents.items():
        assert document["id"] == ("pleura-default" if name == "default" else name)
        assert document["about"]


def voting(segmenter: recipe.Stage, share: float | None) -> dict[str, Any]:
    """The ensemble member through which the segmenter's map votes in the classifier."""
    assert share is not None
    of = segmenter.model_dump(include={"architecture", "arguments"})
    pixels = round(share * segmenter.side**2)
    return {
        "architecture": "largest-of-map",
        "arguments": {"of": of, "pixels": pixels},
        "side": segmenter.side,
    }


def test_the_shipped_recipe_matches_the_shipped_model() -> None:
    shipped = recipe.load(recipes.FOLDER / "default.yaml")
    manifest = package.read_manifest(package.default_folder())

    for role in {stage.role for stage in shipped.networks}:
        stages = [stage for stage in shipped.networks if stage.role == role]
        network = manifest.networks[role]
        members = [
            stage.model_dump(include={"architecture", "arguments", "side"}) for stage in stages
        ]
        if role == "classifier":
            members += [voting(stage, shipped.map_vote) for stage in shipped.of("segmenter")]
        assert network.architecture == "ensemble"
        assert network.arguments == {"members": members, "flip": role in shipped.flip}
        assert network.side == max(stage.side for stage in stages)
        assert {network.normalisation} == {stage.normalisation for stage in stages}

    assert (manifest.id, manifest.version) == (shipped.id, shipped.version)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks.0.sides": "64"}, "networks.0.sides"),
        ({"networks.9.side": "64"}, "no such place"),
        ({"networks.0.best_by": "beauty"}, "beauty"),
        # A figure of labels, which a segmenter does not have.
        ({"networks.0.best_by": "mcc"}, "mcc"),
        ({"networks.0.loss": "{dice: 0}"}, "every weight is 0"),
        ({"networks.0.average": "{ema: 0.9, swa_last_epochs: 2}"}, "not both"),
        (
            {"networks.0.average": "{swa_last_epochs: 2, swa_each: cycle}"},
            "wants schedule: cyclic",
        ),
        (
            {
                "networks.0.average": "{swa_last_epochs: 2, swa_each: cycle}",
                "networks.0.schedule": "{name: cyclic, cycle: 3}",
            },
            "at least a cycle, 3, wanted",
        ),
        ({"published": "{nonsense: 0.5}"}, "published: nonsense found; .* allowed: auc, "),
        ({"operating_point": "{best: f1}"}, "operating_point"),
        ({"split.validate": "[]"}, "split.validate"),
        ({"version": "'1'"}, "version: .* pattern"),
        ({"rule": "{bottom: 0.5, top: 0.2}"}, "bottom 0.5 is above top 0.2"),
        ({"networks.0.loss.balance": "true"}, "loss.balance"),
        (
            {"networks.0.augmentation": "{halves: 0.5}", "networks.0.learns": "labels"},
            "halves: 0.5 found; a network that learns masks",
        ),
        (
            {
                "networks.0.layout": "table",
                "networks.0.cross_fit": "true",
                "networks.0.best_by": "null",
                "networks.0.early_stop": "0",
                "networks.0.schedule": "{name: constant}",
            },
            "layout table; the recipe's own, siim, wanted",
        ),
    ],
)
def test_a_wrong_recipe_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(recipe.RecipeError, match=message):
        recipe.load(recipes.FOLDER / "t5-plain-unet.yaml", change)


@pytest.mark.parametrize(
    "name", ["m1-unet-resnet34", "m1-linknet-resnet34", "t5-plain-unet", "c2-fpn"]
)
def test_an_impossible_side_is_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    wanted = recipes.short(name, side=100)
    with pytest.raises(
        ValueError,
        match=rf"^networks\.0\.side: 100 found; {wanted.networks[0].architecture} cannot",
    ):
        loop.train(wanted, tmp_path / "absent", tmp_path / "run", ["pleura", "train"])


def test_the_largest_recipes_have_possible_sides() -> None:
    for name in ("m4-sixth-place", "c3-two-stage"):
        for number, stage in enumerate(recipe.load(recipes.FOLDER / f"{name}.yaml").networks):
            preflight.check_side(number, stage)


def test_missing_published_weights_stop_a_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mere warning, this once cost hours of training from random weights."""
    monkeypatch.setattr(installed.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"extra train .*--start 0=random"):
        loop.train(recipes.short("default", side=64), tmp_path, tmp_path / "run", ["pleura"])
    with pytest.raises(ValueError, match=r"such weights for resnet34 .*--start 0=FILE, or say "):
        loop.train(recipes.short("m1-unet-resnet34"), tmp_path, tmp_path / "run", ["pleura"])
    with pytest.raises(ValueError, match="--start 9=random: networks 0 to 0 wanted"):
        loop.train(recipes.short("t5-plain-unet", 64), tmp_path, tmp_path / "run", [], {9: None})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ("networks.0.sied", "networks.0.sied: unknown key; did you mean side?"),
        ("networks.0.loss.crossentropy", "did you mean cross_entropy?"),
        ("networks.0.schedule.warmup", "did you mean warm_up?"),
        ("split.valdate", "did you mean validate?"),
        ("nonsense", "nonsense: unknown key; allowed: id, version"),
    ],
)
def test_an_unknown_option_gets_a_suggestion(knob: str, message: str) -> None:
    with pytest.raises(recipe.RecipeError) as error:
        recipe.load(recipes.FOLDER / "t5-plain-unet.yaml", {knob: "8"})
    assert message in str(error.value)


def test_a_folder_without_the_layout_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("it began"))
    wanted = recipe.load(recipes.FOLDER / "t5-plain-unet.yaml")
    (tmp_path / "stage_2_train.csv").write_text("ImageId,EncodedPixels\n")
    for folder, message in ((tmp_path / "no", "no such folder"), (tmp_path, r"no \*\.dcm found")):
        with pytest.raises(ValueError, match=message):
            commands.train_package(wanted, folder, tmp_path / "out", [], {})


@pytest.mark.usefixtures("small_resnet")
def test_a_wrong_start_of_a_later_network_is_refused_before_anything_is_written(
    made: Path, tmp_path: Path
) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "vgg19.safetensors")
    wanted = recipes.short("t4-pipeline", side=64)
    starts = {1: tmp_path / "vgg19.safetensors"}
    with pytest.raises(
        WeightsError, match=r"vgg19\.safetensors: not weights for the encoder of double-unet"
    ):
        loop.train(wanted, made, tmp_path / "run", ["pleura", "train"], starts)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("small_resnet")
def test_a_pipeline_uses_packaged_networks_unchanged(made: Path, tmp_path: Path) -> None:
    trained = {}
    for number, name in enumerate(("t1-densenet121", "t3-double-unet")):
        wanted = recipes.short(name, side=64)
        run = tmp_path / name
        starts = recipes.at_random(wanted)
        folder = loop.train(wanted, made, run, ["pleura", "train"], starts, made / "decoded")
        assert folder is not None
        trained[number] = folder

    pipeline = recipes.short("t4-pipeline", side=64)
    out = tmp_path / "t4"
    folder = loop.train(pipeline, made, out, ["pleura", "train"], trained, made / "decoded")
    assert folder is not None
    assert not (out / "weights").exists()

    for role, source in (("classifier", trained[0]), ("segmenter", trained[1])):
        ours = package.load(folder).networks[role].state_dict()
        theirs = package.load(source).networks[role].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    message = package.read_manifest(folder).training.data
    assert "network 1 is from package t3-double-unet 1.0.0, not trained further" in message

    with pytest.raises(WeightsError, match=r"classifier\.architecture: largest-of-map found, "):
        loop.train(pipeline, made, tmp_path / "no", ["pleura", "train"], {0: trained[1]})


@pytest.mark.usefixtures("small_resnet")
def test_an_encoder_is_frozen_if_pretrained_and_not_if_random(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"encoder": "resnet34", "stem": "imagenet"}
    knobs = {"networks.0.arguments": json.dumps(arguments)}
    wanted = recipe.load(
        recipes.FOLDER / "f1-fcn-resnet50.yaml", recipes.changes("f1-fcn-resnet50", side=64) | knobs
    )
    torch.manual_seed(wanted.seed)

    encoder = build("fcn-transposed", **arguments).get_submodule("encoder")
    drawn = {f"encoder.{name}": one for name, one in encoder.state_dict().items()}
    save_file(drawn, tmp_path / "resnet34.safetensors")

    for starts, rests in (({0: tmp_path / "resnet34.safetensors"}, True), ({0: None}, False)):
        out = tmp_path / f"run-{rests}"
        folder = loop.train(
            wanted, made, out, ["pleura", "train"], starts, decoded=made / "decoded"
        )
        assert folder is not None
        trained = load_file(next((out / "weights").iterdir()))
        assert all(torch.equal(trained[name], one) for name, one in drawn.items()) == rests
        assert ("nothing of it frozen" in capsys.readouterr().out) != rests
        assert (
            "nothing of it was frozen" in package.read_manifest(folder).training.data[-1]
        ) != rests


def test_with_fold_validates_on_it_and_reports_on_the_next() -> None:
    wanted = recipe.load(recipes.FOLDER / "t5-plain-unet.yaml")
    assert (wanted.with_fold(9).split.validate_, wanted.with_fold(9).split.report) == ([9], [0])
    with pytest.raises(recipe.RecipeError, match="0 to 9"):
        wanted.with_fold(10)


def test_with_fold_is_refused_if_the_split_names_its_training_folds() -> None:
    split = "{folds: 5, train: [1, 2, 3, 4], validate: [0]}"
    wanted = recipe.load(recipes.FOLDER / "t5-plain-unet.yaml", {"split": split})
    with pytest.raises(recipe.RecipeError, match=r"split\.train: \[1, 2, 3, 4\] found beside"):
        wanted.with_fold(1)
