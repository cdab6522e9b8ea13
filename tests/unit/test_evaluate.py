"""Evaluation of a package: figures are correct, have intervals over patients, keep their published
keys, and are computed without holding the images.
"""

from __future__ import annotations

import csv
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from sklearn.metrics import average_precision_score, f1_score, fbeta_score, roc_auc_score

from daemon import cli
from inference import package
from inference.engine import Engine, choose_device
from inference.pipeline import AnalysisSettings, Pipeline
from training import commands, phantom, recipe
from training import data as labelled
from training.data import rle, split
from training.data.cases import Case
from training.measures import evaluate, figures, metrics, report
from training.measures.answers import Answer
from training.measures.evaluate import read_answers, run, table

THRESHOLD = 0.5
RECIPES = Path(__file__).resolve().parents[2] / "config" / "recipes"
# A split by the published folds, of which fold 3 only reports.
REPORTS_FOLD_3 = "{folds: published, train: [0, 1, 2], validate: [0, 1, 2], report: [3]}"
HEAD = dict.fromkeys(("model", "version", "threshold", "labels", "warning"), "x")


def drawn(
    count: int = 60, seed: int = 0
) -> tuple[list[Answer], NDArray[np.bool_], NDArray[np.bool_]]:
    """Answers, and the true and found masks (count, 8, 8) whose pixels they count."""
    rng = np.random.default_rng(seed)
    positive = rng.random(count) < 0.4
    true = (rng.random((count, 8, 8)) < 0.3) & positive[:, None, None]
    found = (rng.random((count, 8, 8)) < 0.3) & (rng.random(count) < 0.7)[:, None, None]
    answers = [
        Answer(
            image_id=f"i{n}", patient=f"p{n // 2}", label=float(positive[n]), fold=n % 4,
            part="report" * (n % 4 == 3),
            as_published=n % 5 > 0, probability=float(rng.integers(0, 9)) / 8, pixels=64,
            true=int(true[n].sum()),
            found=int(found[n].sum()), common=int((true[n] & found[n]).sum()),
        )
        for n in range(count)
    ]  # fmt: skip

    return answers, true, found


def dice_of(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The Dice coefficient of each image."""
    return np.array(
        [
            metrics.mask_figures([one], [other])["dice"]
            for one, other in zip(found, true, strict=True)
        ]
    )


def test_figures_equal_those_of_scikit_learn_and_of_the_masks() -> None:
    answers, true, found = drawn()
    measured = {
        name: one["value"] for name, one in figures.measured(answers, THRESHOLD, draws=10).items()
    }
    scores = np.array([answer.probability for answer in answers])
    labels = np.array([answer.positive for answer in answers])
    expected = metrics.label_figures(scores, labels, THRESHOLD)
    assert {name: measured[name] for name in expected} == pytest.approx(expected)

    assert measured["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert measured["average_precision"] == pytest.approx(average_precision_score(labels, scores))
    both = found & (scores >= THRESHOLD)[:, None, None]
    for suffix, masks in (("", both), (figures.ALONE, found)):
        dice = dice_of(masks, true)
        assert measured[f"competition_score{suffix}"] == pytest.approx(dice.mean())
        assert measured[f"dice_positives{suffix}"] == pytest.approx(dice[labels].mean())
        assert measured[f"pixel_f1{suffix}"] == pytest.approx(f1_score(true.ravel(), masks.ravel()))
        assert measured[f"pixel_f2{suffix}"] == pytest.approx(
            fbeta_score(true.ravel(), masks.ravel(), beta=2)
        )
        assert measured[f"pixel_accuracy{suffix}"] == pytest.approx((true == masks).mean())
        iou = dice / (2 - dice)
        background = dice_of(~masks, ~true)
        assert measured[f"iou{suffix}"] == pytest.approx(iou.mean())
        other_iou = background / (2 - background)
        assert measured[f"mean_iou{suffix}"] == pytest.approx(((iou + other_iou) / 2).mean())

    nothing = metrics.mask_figures(np.zeros_like(true), true)
    trivial = {name: value for name, value in measured.items() if name.endswith(figures.NOTHING)}
    assert trivial == pytest.approx(
        {name + figures.NOTHING: value for name, value in nothing.items() if value}
    )


def test_a_mask_figure_uses_only_images_with_a_known_mask() -> None:
    answers, _, _ = drawn()
    known = [answer if n >= 20 else replace(answer, true=None) for n, answer in enumerate(answers)]
    found = figures.measured(known, THRESHOLD, draws=5)
    positive = sum(bool(answer.true) for answer in known)
    assert {
        found[name]["images"] for name in ("dice", "mean_iou", "pixel_f1", f"iou{figures.NOTHING}")
    } == {40}
    assert {
        found[name]["images"] for name in ("dice_positives", f"iou_positives{figures.ALONE}")
    } == {positive}
    assert (found["auc"]["images"], found["dice"]["positive"]) == (60, positive)


def bootstrap(
    figure: Callable[[NDArray[np.intp]], float], patients: NDArray[np.str_], draws: int
) -> tuple[float, float]:
    """The bootstrap interval of `figure(indices)`, computed one resample at a time."""
    rng = np.random.default_rng(0)
    names = np.unique(patients)
    images_of = [np.flatnonzero(patients == name) for name in names]
    found = []
    for _ in range(draws):
        drawn = rng.integers(len(names), size=len(names))
        found.append(figure(np.concatenate([images_of[i] for i in drawn])))
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return float(low), float(high)


def test_the_bootstrap_resamples_patients_not_images() -> None:
    answers = [
        Answer(
            image_id=str(n), patient="ab"[n // 50], label=1.0, probability=float(n // 50), pixels=64
        )
        for n in range(100)
    ]
    assert figures.measured(answers, THRESHOLD)["sensitivity"]["interval_95"] == [0.0, 1.0]


def test_intervals_are_over_patients() -> None:
    answers, _, _ = drawn()
    scores = np.array([answer.probability for answer in answers])
    labels = np.array([answer.positive for answer in answers])
    patients = np.array([answer.patient for answer in answers])
    found = figures.measured(answers, THRESHOLD, draws=300)
    for name, figure in {
        "auc": lambda chosen: metrics.auc(scores[chosen], labels[chosen]),
        "accuracy": lambda chosen: float(((scores >= THRESHOLD) == labels)[chosen].mean()),
    }.items():
        assert found[name]["interval_95"] == pytest.approx(bootstrap(figure, patients, 300))
    one_patient = [replace(answer, patient="p") for answer in answers]
    low, high = figures.measured(one_patient, THRESHOLD, draws=20)["auc"]["interval_95"]
    assert low == high == pytest.approx(found["auc"]["value"])


def test_the_figures_have_every_key_of_the_shipped_package() -> None:
    answers, _, _ = drawn()
    found = figures.figures_of(answers, THRESHOLD, from_run=False)
    carried: Any = package.read_manifest(package.default_folder()).metrics["cross_fitted"]

    def lacking(wanted: Any, given: Any) -> list[str]:
        if not isinstance(wanted, dict):
            return []
        return [key for key in wanted if key not in given or lacking(wanted[key], given[key])]

    for group in ("all", "jpeg_baseline"):
        assert lacking(carried[group], found[group]) == []
    assert found["all"]["auc"]["images"] == 60
    assert found["jpeg_baseline"]["auc"]["images"] == 48
    assert found["all"]["fold_3"]["auc"] == found["all"]["auc_fold_3"]
    assert found["all"]["fold_3"]["auc"]["images"] == 15


def test_figures_that_cannot_be_computed_are_left_out() -> None:
    answers, _, _ = drawn()
    without_masks = [replace(answer, true=None, label=0.2) for answer in answers]
    found = figures.figures_of(without_masks, THRESHOLD, from_run=False)["all"]
    assert "specificity" in found
    assert not {"auc", "sensitivity", "average_precision", "dice", "pixel_f1"} & set(found)
    json.dumps(found, allow_nan=False)


def test_the_note_names_images_used_to_train_or_to_choose() -> None:
    answers, _, _ = drawn()
    of_run = [
        replace(answer, part=("train", "train+validate")[answer.fold == 0]) for answer in answers
    ]
    found = figures.figures_of(of_run, THRESHOLD, from_run=True)
    assert found["trained_on"] == 60
    assert found["report"]["key"] == "fold_0"
    assert "too good" in found["report"]["note"]
    text = table(
        found | {"model": "m", "version": "1", "threshold": 0.5, "labels": "l", "warning": "SILVER"}
    )
    assert "60 of the 60 images trained this model" in text
    assert "SILVER" in text


def test_published_figures_are_shown_beside_ours_with_a_caveat() -> None:
    answers, _, _ = drawn()
    found = figures.figures_of(answers, THRESHOLD, from_run=False)
    text = table(found | HEAD, {"mcc": 0.77, "dice": 0.21})
    line, masks = (line for line in text.splitlines() if line.startswith(("mcc", "dice")))
    assert "published 0.770   ours" in line
    assert f"all fold_3: {found['all']['fold_3']['mcc']['value']:.3f}" in line
    assert f"jpeg_baseline fold_3: {found['jpeg_baseline']['fold_3']['mcc']['value']:.3f}" in line
    assert "a difference says nothing by itself" in text
    assert "published 0.210, by their definition   ours" in masks
    nothing = found["all"]["fold_3"][f"dice{figures.NOTHING}"]["value"]
    assert f"all fold_3 finding nothing: {nothing:.3f}" in masks


def test_the_table_has_only_the_main_figures_of_the_reporting_part() -> None:
    found = figures.figures_of(drawn()[0], THRESHOLD, from_run=False)
    lines = [line.split("  ")[0] for line in table(found | HEAD).splitlines()]
    assert "all fold_3 auc" in lines
    assert "jpeg_baseline fold_3 dice" in lines
    assert not [line for line in lines if line.startswith("all auc") or "segmenter_alone" in line]


def test_without_a_reporting_part_no_published_figure_is_shown() -> None:
    answers = [replace(answer, part="", patient=answer.image_id) for answer in drawn()[0]]
    text = table(figures.figures_of(answers, THRESHOLD, from_run=False) | HEAD, {"mcc": 0.77})
    assert "published 0.770" not in text
    assert "give the run's split.csv with --split" in text
    assert "the data name no patients" in text


class Watched(Case):
    """Counts how many of its pictures are in memory."""

    alive: ClassVar[list[weakref.ref[NDArray[np.float32]]]] = []
    most = 0

    def pixels(self) -> NDArray[np.float32]:
        picture = np.random.default_rng(1).random((48, 40), dtype=np.float32)
        Watched.alive.append(weakref.ref(picture))
        Watched.most = max(Watched.most, sum(one() is not None for one in Watched.alive))
        return picture

    def mask(self) -> NDArray[np.bool_]:
        return np.eye(48, 40, dtype=bool)

    def identity(self) -> str:
        return self.image_id


class WithoutMask(Watched):
    """Only negatives have a known mask."""

    def mask(self) -> NDArray[np.bool_] | None:
        return None if self.positive else np.zeros((48, 40), dtype=bool)


def test_a_package_is_measured_without_holding_the_images(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DRAWS", 20)
    Watched.alive = []
    Watched.most = 0
    cases = [
        Watched(image_id=str(n), patient=str(n // 2), label=n % 2, fold=n % 4) for n in range(40)
    ]
    monkeypatch.setattr(labelled, "read", lambda layout, folder: cases)

    reports = recipe.load(RECIPES / "default.yaml", {"split": REPORTS_FOLD_3})
    found = run(tiny_package, tmp_path, "siim", reports)
    found.write(tmp_path / "out")
    assert Watched.most <= 2 * evaluate._BATCH
    assert read_answers(tmp_path / "out" / "answers.csv") == found.answers
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == found.figures
    assert len((tmp_path / "out" / "features.csv").read_text().splitlines()) == 41

    assert len((tmp_path / "out" / "patients.csv").read_text().splitlines()) == 21
    answer = found.answers[7]
    seen = found.look(answer)
    assert seen.true is not None
    assert (seen.found.sum(), (seen.true & seen.found).sum()) == (answer.found, answer.common)
    assert found.figures["all"]["fold_3"]["accuracy"]["of"] == 10

    assert found.figures["notes"] == []


def test_areas_are_those_of_the_masks_in_the_answers(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DRAWS", 20)
    manifest = package.read_manifest(tiny_package)
    segmenter = manifest.segmenter.model_dump(mode="json") | {"bottom": 0.001, "top": 0.001}
    segmenter |= {"min_area_at_1024_px": 0, "min_sure_area_at_1024_px": 0}
    cases = [Watched(image_id=str(n), patient=str(n), label=n % 2, fold=n % 4) for n in range(8)]
    monkeypatch.setattr(labelled, "read", lambda layout, folder: cases)

    for threshold, positive in ((0.999, False), (0.001, True)):
        classifier = manifest.classifier.model_dump(mode="json") | {"threshold": threshold}
        package.amend(tiny_package, {"classifier": classifier, "segmenter": segmenter})
        found = run(tiny_package, tmp_path, "siim")
        found.write(tmp_path)
        assert all(answer.found for answer in found.answers)
        areas = [float(row["area_px"]) for row in rows_of(tmp_path / "features.csv")]
        masks = [row["EncodedPixels"] for row in rows_of(tmp_path / "masks.csv")]
        assert {runs != rle.NONE for runs in masks} == {positive}
        assert areas == [answer.found if positive else 0 for answer in found.answers]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_recipe_defines_which_images_report_and_which_masks_count(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DRAWS", 5)
    monkeypatch.setattr(report, "_BREAKDOWN_DRAWS", 5)
    monkeypatch.setattr(report, "_SHOWN", 1)
    cases = [
        WithoutMask(image_id=str(n), patient=str(n), label=n % 2, fold=n % 4) for n in range(8)
    ]
    monkeypatch.setattr(labelled, "look", lambda layout, folder: folder)
    monkeypatch.setattr(labelled, "read", lambda layout, folder: cases)

    trained_by: dict[str, Any] = {"recipe": "c1-xception"}

    def manifest(folder: Path) -> package.Manifest:
        return shipped.model_copy(
            update={"training": shipped.training.model_copy(update=trained_by)}
        )

    shipped = package.read_manifest(tiny_package)
    monkeypatch.setattr(package, "read_manifest", manifest)
    found, published = commands.measure(
        tiny_package, tmp_path, "siim", None, tmp_path / "a.html", RECIPES
    )

    # Recipe C1 has folds of its own.
    assert found["report"]["key"] is None
    assert not [name for name in found["all"] if "dice" in name or "pixel" in name]
    assert "auc" in found["all"]
    assert any("segmenter is the default model's" in note for note in found["notes"])
    page = (tmp_path / "a.html").read_text()
    assert published["mcc"] == 0.7702

    assert "0.770" not in page.split("<h2>Recipe")[0]
    assert "knobs may differ" in page

    trained_by["recipe"] = "pleura-default"
    others = tmp_path / "recipes"
    others.mkdir()
    document = recipe.read(RECIPES / "default.yaml")
    document["split"] = yaml.safe_load(REPORTS_FOLD_3)
    (others / "default.yaml").write_text(yaml.safe_dump(document))
    found, _ = commands.measure(tiny_package, tmp_path, "siim", None, None, others)
    assert found["report"]["key"] == "fold_3"
    assert "dice" in found["all"]

    trained_by["recipe"] = "t2-unet-plus-plus"
    of_run = recipe.load(
        RECIPES / "t2-unet-plus-plus.yaml", {"networks.0.epochs": "77", "published.dice": "0.5"}
    )
    (tmp_path / "recipe.json").write_text(of_run.model_dump_json(by_alias=True))
    (tmp_path / "split.csv").write_text(
        "image_id,patient,fold,part,label\n0,0,0,report,0\n1,1,0,report,1\n"
    )

    with_split = (
        tiny_package,
        tmp_path,
        "siim",
        tmp_path / "split.csv",
        tmp_path / "b.html",
        RECIPES,
    )
    with pytest.raises(ValueError, match="does not say which split trained it"):
        commands.measure(*with_split)
    trained_by["splits"] = ["0" * 64]
    with pytest.raises(ValueError, match=r"trained by another split; the split\.csv of its own"):
        commands.measure(*with_split)
    # An ensemble trained on several folds.
    trained_by["splits"] = [split.digest(tmp_path / "split.csv"), "0" * 64]
    with pytest.raises(ValueError, match="trained by 2 splits: measure it without --split"):
        commands.measure(*with_split)

    trained_by["splits"] = [split.digest(tmp_path / "split.csv")]
    assert commands.measure(*with_split)[1] == {"dice": 0.5}

    page = (tmp_path / "b.html").read_text()
    assert "&quot;epochs&quot;: 77" in page
    assert "every knob" in page
    assert "0.500, by their definition" in page
    assert "all images, fold 0 finding nothing" in page
    (tmp_path / "recipe.json").write_text("{}")

    with pytest.raises(ValueError, match=r"recipe\.json"):
        commands.measure(*with_split)


def test_a_split_of_other_images_is_refused(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled, "read", lambda layout, folder: labelled.phantoms(4, size=64))
    (tmp_path / "split.csv").write_text("image_id,patient,fold,part,label\nnobody,p,0,train,1\n")
    with pytest.raises(ValueError, match=r"split\.csv: line 2"):
        run(tiny_package, tmp_path, "phantom", split=tmp_path / "split.csv")
    monkeypatch.setattr(labelled, "read", lambda layout, folder: [])
    with pytest.raises(ValueError, match="no labelled image"):
        run(tiny_package, tmp_path, "phantom")
    (tmp_path / "answers.csv").write_text("image_id,label\na,x\n")
    with pytest.raises(ValueError, match="line 2"):
        read_answers(tmp_path / "answers.csv")


def test_images_without_labels_are_counted(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        picture = rng.integers(0, 255, (40, 40), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")

    arguments = ["evaluate", "--model", str(tiny_package), "--layout", "images", "--json"]
    assert cli.main([*arguments, "--data", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 3
    assert 0 <= found["positive"] <= 3
    assert 0 < found["probability"]["50 %"] < 1
    assert "broken.png: cannot be read" in found["unreadable"][0]
    assert cli.main([*arguments, "--data", str(tmp_path / "none")]) == 1


def node(folder: Path) -> Pipeline:
    return Pipeline(Engine(package.load(folder), choose_device("cpu")), AnalysisSettings())


def test_an_evaluation_gives_the_same_answer_as_a_node(tiny_package: Path, tmp_path: Path) -> None:
    """For an image with pixels twice as high as wide, stored upside down and mirrored, with a
    shutter.
    """
    path = phantom.write(phantom.draw(3, True, 64), tmp_path / "a.dcm")
    dataset = dcmread(path)
    dataset.PixelSpacing = [0.4, 0.2]
    dataset.PatientOrientation = ["R", "H"]
    dataset.ShutterShape = "RECTANGULAR"
    dataset.ShutterLeftVerticalEdge = 1
    dataset.ShutterRightVerticalEdge = 40
    dataset.ShutterUpperHorizontalEdge = 1
    dataset.ShutterLowerHorizontalEdge = 50
    dataset.save_as(path)
    (tmp_path / "labels.csv").write_text("image,label\na.dcm,0\n")

    # Set the thresholds so that the mask holds half of the untrained map's pixels.
    manifest = package.read_manifest(tiny_package).model_dump(mode="json")
    classifier = manifest["classifier"] | {"threshold": 0.001}
    package.amend(tiny_package, {"classifier": classifier})
    asked = node(tiny_package)
    (answer,) = asked.answer([asked.read(path.read_bytes())])
    assert answer is not None
    assert answer.probability_map is not None
    half = float(np.median(answer.probability_map[answer.probability_map > 0]))
    rule = {"bottom": half, "top": half, "min_area_at_1024_px": 0}
    package.amend(tiny_package, {"segmenter": manifest["segmenter"] | rule})

    outcome = node(tiny_package).analyse([path.read_bytes()], datetime(2026, 1, 1))[0]
    finding = outcome.finding
    assert finding is not None
    assert finding.mask is not None
    assert 0 < finding.mask.mean() < 1

    measured = run(tiny_package, tmp_path, "table")
    assert measured.answers[0].probability == pytest.approx(finding.probability)
    look = measured.look(measured.answers[0])
    assert np.array_equal(look.found, finding.mask)
    assert look.true is not None
    assert look.pixels.shape == look.true.shape == (64, 64)
    # The runs are in the orientation of the stored image, like the labels.
    assert measured.runs == [rle.encode(finding.mask)]


def test_the_note_counts_the_images_that_were_also_trained_on() -> None:
    answers = [replace(one, part="train+validate") for one in drawn(8)[0]]
    note = figures.figures_of(answers, THRESHOLD, from_run=True)["report"]["note"]
    assert note.endswith("so their figures are too good; 8 of these 8 images also trained")
