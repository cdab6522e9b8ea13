"""Comparison of finished runs, and joining them into one package as an ensemble."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from daemon import cli
from inference import package
from tests import models, recipes
from training import ensemble, recipe
from training.measures import compare, metrics
from training.measures.answers import Answer, write_rows

pytestmark = pytest.mark.xdist_group("compare")

IMAGES = 60
Make = Callable[[str, float], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(name, noise) -> the folder of a finished run; more noise gives worse answers."""
    home = tmp_path_factory.mktemp("runs")
    trained = recipe.load(recipes.FOLDER / "t1-densenet121.yaml")

    def made(name: str, noise: float) -> Path:
        folder = home / name
        if folder.exists():
            return folder
        networks = models.tiny_networks()
        with torch.no_grad():
            for network in networks.values():
                for weight in network.parameters():
                    weight.add_(noise / 100)
        models.write(folder / "package", networks)

        rng = np.random.default_rng(3)
        rows = []
        for number in range(IMAGES):
            label = float(number % 3 == 0)
            score = np.clip(0.3 + 0.4 * label + noise * rng.normal(), 0.01, 0.99)
            part = "validate" if number % 2 else "report"
            answer = Answer(
                image_id=f"i{number}",
                patient=f"p{number // 4}",
                label=label,
                part=part,
                probability=float(score),
                pixels=100,
            )
            rows.append(asdict(answer))

        write_rows(folder / "answers.csv", rows)
        (folder / "recipe.json").write_text(trained.model_dump_json(by_alias=True))
        return folder

    return made


def test_runs_are_compared_on_the_images_that_all_of_them_report(make: Make) -> None:
    sharp, blunt = make("sharp", 0.1), make("blunt", 0.6)
    found = compare.compare([sharp, blunt])

    assert found["images"] == IMAGES // 2
    by_hand = []
    for folder in (sharp, blunt):
        answers = [
            each for each in compare.read_answers(folder / "answers.csv") if each.of("report")
        ]
        scores = np.array([each.probability for each in answers])
        labels = np.array([each.positive for each in answers])
        by_hand.append(metrics.label_figures(scores, labels, 0.5)["auc"])
    assert [run["figures"]["auc"]["value"] for run in found["runs"]] == pytest.approx(by_hand)
    (difference,) = (row for row in found["differences"] if row["figure"] == "auc")
    assert difference["value"] == pytest.approx(by_hand[1] - by_hand[0])
    assert difference["interval_95"][1] < 0

    first = found["runs"][0]
    networks = models.tiny_networks()
    assert first["parameters"]["classifier"] == sum(
        weight.numel() for weight in networks["classifier"].parameters()
    )
    assert first["forward_ms"]["segmenter"] > 0
    text = compare.table(found)
    assert "published 0.908" in text
    assert "blunt less sharp" in text


def test_identical_answers_have_no_difference_in_any_resample(make: Make) -> None:
    sharp = compare.read(make("sharp", 0.1))
    rows = compare._differences([sharp, replace(sharp, name="again")], compare._common([sharp]))
    assert rows
    assert {(row["value"], *row["interval_95"]) for row in rows} == {(0.0, 0.0, 0.0)}


def test_patients_stay_paired_when_a_run_numbers_them_differently(make: Make) -> None:
    """As when the rows of the table were sorted again between the runs."""
    sharp = compare.read(make("sharp", 0.1))
    answers = [
        replace(answer, patient=f"p{99 - int(answer.patient[1:])}") for answer in sharp.answers
    ]
    again = replace(sharp, name="again", answers=answers)
    rows = compare._differences([sharp, again], compare._common([sharp, again]))
    assert rows
    assert {(row["value"], *row["interval_95"]) for row in rows} == {(0.0, 0.0, 0.0)}


def test_compare_and_ensemble_are_commands(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(make("sharp", 0.1)), str(make("blunt", 0.6))]
    assert cli.main(["compare", *runs, "--plot", str(tmp_path / "plot.png")]) == 0
    assert "differences, paired bootstrap" in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["compare", runs[0], str(tmp_path)]) == 1
    assert "no recipe.json found" in capsys.readouterr().err

    assert cli.main(["ensemble", *runs, "--out", str(tmp_path / "both")]) == 0
    assert "ensemble" in capsys.readouterr().out
    assert cli.main(["ensemble", *runs, "--out", str(tmp_path / "both")]) == 1
    assert "overwrites nothing" in capsys.readouterr().err


def test_an_ensemble_answers_with_the_mean_and_a_threshold_from_the_validation_answers(
    make: Make, tmp_path: Path
) -> None:
    folders = [make("sharp", 0.1), make("blunt", 0.6)]
    manifest = ensemble.join(folders, tmp_path / "both")
    joined = package.load(tmp_path / "both")
    alone = [package.load(folder / "package") for folder in folders]

    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        for role, network in joined.networks.items():
            answers = [torch.sigmoid(each.networks[role](image)) for each in alone]
            assert torch.allclose(
                torch.sigmoid(network(image)), torch.stack(answers).mean(0), atol=1e-5
            )

    same = ensemble.join(folders[:1] * 2, tmp_path / "same")
    assert same.segmenter.architecture == "residual-unet"
    assert manifest.segmenter.architecture == "ensemble"
    assert manifest.id == "tiny-ensemble"
    assert f"{IMAGES} validation images" in manifest.classifier.operating_point
    assert manifest.training.data[0].startswith("ensemble of 2 runs: tiny ")


def with_answers(run: Path, out: Path, part: str, split: str) -> Path:
    """A copy of a run whose package states its split, with its answers assigned to other parts."""
    shutil.copytree(run, out)
    training = package.read_manifest(out / "package").training.model_dump() | {"splits": [split]}
    package.amend(out / "package", {"training": training})
    answers = compare.read_answers(out / "answers.csv")
    write_rows(out / "answers.csv", [asdict(each) | {"part": part} for each in answers])
    return out


def test_an_ensemble_takes_no_threshold_from_training_images_and_names_every_split(
    make: Make, tmp_path: Path
) -> None:
    folders = [
        with_answers(make("sharp", 0.1), tmp_path / name, "train+validate", name * 64)
        for name in "ab"
    ]
    manifest = ensemble.join(folders, tmp_path / "both")
    assert manifest.classifier.operating_point == "mean of 2 runs' thresholds"
    assert manifest.training.splits == ["a" * 64, "b" * 64]


def test_an_ensemble_names_the_data_of_every_run(make: Make, tmp_path: Path) -> None:
    folders = []
    for name, data in (("a", ["silver"]), ("b", ["silver", "siim"])):
        folder = with_answers(make("sharp", 0.1), tmp_path / name, "validate", name * 64)
        training = package.read_manifest(folder / "package").training.model_dump()
        package.amend(folder / "package", {"training": training | {"data": data}})
        folders.append(folder)

    manifest = ensemble.join(folders, tmp_path / "both")
    assert manifest.training.data[1:] == ["silver", "siim"]
