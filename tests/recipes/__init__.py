"""Trains every recipe of config/recipes on made-up data, to a package that the node's engine loads.

`python -m tests.recipes` (`make recipes`) trains each recipe at its real size.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference import package
from inference.engine import Engine, choose_device
from inference.networks.encoders import Encoder
from inference.networks.encoders.resnet import BasicBlock, ResNet
from inference.networks.plain_unet import PLAIN_UNET_UP_WIDTHS, PLAIN_UNET_WIDTHS
from inference.pipeline import AnalysisSettings, Pipeline
from training import phantom, recipe
from training.data import rle
from training.fitting import installed
from training.recipe import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "config" / "recipes"
# This recipe trains no network.
OUTCOME = "lgg-outcome"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != OUTCOME)
_SLICES = 3
# When the side is changed, small encoders replace the larger ones, which
# tests/unit/test_encoders.py tests. resnet34 is then a small ResNet (`small_resnet`).
_LIGHTER = {
    "efficientnet-b3": "efficientnet-lite0",
    "efficientnet-b4": "efficientnet-lite0",
    "densenet121": "resnet34",
    "inception-resnet-v2": "efficientnet-lite0",
    "inception-v3": "efficientnet-lite0",
    "resnet50": "resnet34",
    "vgg16": "alexnet",
    "vgg19": "resnet34",
    "senet154": "resnet34",
    "se-resnext101": "resnet34",
    "se-resnext50": "resnet34",
    "xception": "efficientnet-lite0",
}
# The widths of networks without an encoder are then an eighth, so they have a 64th of the weights.
_LEAST_WIDTH = 8
_WIDTHS = {"widths", "up_widths", "features"}
# The default widths of networks that a recipe names without widths.
_OWN_WIDTHS = {
    "plain-unet": {"widths": PLAIN_UNET_WIDTHS, "up_widths": PLAIN_UNET_UP_WIDTHS},
}
# A decoder then has this many hidden maps, not the 4,096 of fully connected layers.
_MOST_HIDDEN = 512


def made(folder: Path, images: int) -> Path:
    """Write made-up data in three layouts: SIIM-ACR as published, stage2/ with silver labels, and
    brain MRI. Returns `folder`.
    """
    _siim(folder / "siim", images)
    _silver(folder / "stage2", images, 256)
    _lgg(folder / "kaggle_3m", images, 64)
    return folder


def short(name: str, side: int | None = None) -> Recipe:
    """The recipe, shortened by `changes`."""
    return recipe.load(FOLDER / f"{name}.yaml", changes(name, side))


def small_resnet(channels: int) -> Encoder:
    """A ResNet with one block a layer in place of resnet34: 0.3 million weights instead of 21."""
    return ResNet(channels, BasicBlock, (16, 32, 64, 128), (1, 1, 1, 1))


def at_random(wanted: Recipe) -> dict[int, Path | None]:
    """`starts` for loop.train: random weights for the networks whose published weights are in no
    installed package.
    """
    stages = enumerate(wanted.networks)
    return {number: None for number, stage in stages if installed.of_stage(stage) is None}


def changes(name: str, side: int | None = None) -> dict[str, str]:
    """Changes that make a recipe train in seconds: one epoch, few images.

    `side` replaces the recipe's, and makes the networks smaller.
    """
    document = recipe.read(FOLDER / f"{name}.yaml")
    changed = {"split": "{folds: 4, validate: [0]}"}
    for number in range(len(document["networks"])):
        stage = document["networks"][number]
        changed |= {
            f"networks.{number}.epochs": "1",
            f"networks.{number}.batch": str(min(2, stage["batch"])),
        }
        for knob in {"phantoms", "held_out"} & stage.keys():
            changed[f"networks.{number}.{knob}"] = "4"

        if "finish" in stage:
            changed[f"networks.{number}.finish"] = (
                "{epochs: 1, phantoms: 4, learning_rate: 0.001, share: 0.7}"
            )
        if "pseudo_masks" in stage:
            changed[f"networks.{number}.pseudo_masks"] = (
                "{epochs: 1, phantoms: 4, learning_rate: 0.001, share: 1, label: 0.5, bottom: 0.01}"
            )
        for place in range(len(stage.get("first", []))):
            changed[f"networks.{number}.first.{place}"] = (
                "{side: 64, epochs: 1, batch: 2, learning_rate: 0.001}"
            )
        if side:
            changed[f"networks.{number}.side"] = str(side)
            for place, encoder in _encoders(stage, f"networks.{number}"):
                changed |= {place: _LIGHTER[encoder]} if encoder in _LIGHTER else {}
            own = _OWN_WIDTHS.get(stage["architecture"], {})
            if own and "arguments" not in stage:
                narrow = {key: _narrowed(widths) for key, widths in own.items()}
                changed[f"networks.{number}.arguments"] = str(narrow)
            for place, widths in _widths(stage, f"networks.{number}"):
                changed[place] = str(_narrowed(widths))
            if stage.get("arguments", {}).get("hidden", 0) > _MOST_HIDDEN:
                changed[f"networks.{number}.arguments.hidden"] = str(_MOST_HIDDEN)

    return changed


def _narrowed(widths: Sequence[int]) -> list[int]:
    return [max(_LEAST_WIDTH, width // 8) for width in widths]


def _encoders(document: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    """(dotted key, name) of every encoder of a network, also of those inside it."""
    for key, value in document.items():
        if key == "encoder":
            yield f"{place}.encoder", value
        elif isinstance(value, dict):
            yield from _encoders(value, f"{place}.{key}")


def _widths(document: dict[str, Any], place: str) -> Iterator[tuple[str, list[int]]]:
    """(dotted key, widths) of a network without an encoder."""
    if "encoder" in document:
        return
    for key, value in document.items():
        if key in _WIDTHS:
            yield f"{place}.{key}", value
        elif isinstance(value, dict):
            yield from _widths(value, f"{place}.{key}")


def answers(folder: Path, task: str) -> int:
    """Load a run's package in the node's engine and analyse one image. Returns the number of
    answers.
    """
    drawn = phantom.draw(3, pneumothorax=True, size=256)
    if task != package.SERVED_TASK:
        engine = Engine(package.load(folder, any_task=True), choose_device("cpu"))
        return len(engine.classify([drawn.pixels])) * len(engine.segment([drawn.pixels]))
    pipeline = Pipeline(Engine(package.load(folder), choose_device("cpu")), AnalysisSettings())
    file = phantom.write(drawn, folder.parent / "asked.dcm").read_bytes()
    outcomes = pipeline.analyse([file], datetime(2026, 1, 1, tzinfo=UTC))
    return sum(outcome.finding is not None and bool(outcome.results) for outcome in outcomes)


def _siim(folder: Path, images: int) -> None:
    rows = []
    for number in range(images):
        # Drawing 1024 px would take a second for each.
        small = phantom.draw(number, pneumothorax=number % 2 == 0, size=256)
        drawn = replace(small, pixels=_enlarged(small.pixels), mask=_enlarged(small.mask))
        path = (
            folder / "dicom-images-train" / f"1.2.{number}" / f"1.3.{number}" / f"1.4.{number}.dcm"
        )
        path.parent.mkdir(parents=True)
        phantom.write(drawn, path)
        rows.append((path.stem, rle.encode(drawn.mask)))
    _write(folder / "train-rle.csv", [("ImageId", " EncodedPixels"), *rows])


def _enlarged(pixels: NDArray[Any]) -> NDArray[Any]:
    # To 1024 x 1024, the matrix of SIIM-ACR's run lengths
    return pixels.repeat(4, axis=0).repeat(4, axis=1)


def _silver(folder: Path, images: int, size: int) -> None:
    (folder / "jpeg512").mkdir(parents=True)
    rows = []
    for number in range(images):
        drawn = phantom.draw(1000 + number, pneumothorax=number % 2 == 0, size=size)
        Image.fromarray((drawn.pixels * 255).astype(np.uint8)).save(
            folder / "jpeg512" / f"made{number}.jpg"
        )
        rows.append((f"made{number}", 0.9 if number % 2 == 0 else 0.1))
    _write(folder / "silver-labels.csv", [("ImageId", "probability"), *rows])


def _lgg(folder: Path, patients: int, size: int) -> None:
    rng = np.random.default_rng(0)
    clinical = []
    for patient in range(patients):
        name = f"TCGA_XX_{patient:04d}"
        (folder / f"{name}_20000101").mkdir(parents=True)
        clinical.append((name, rng.normal(), "" if patient % 3 == 0 else rng.normal(), patient % 2))

        for number in range(_SLICES):
            y, x = np.mgrid[0:size, 0:size] / size
            inside = (x - 0.4) ** 2 + (y - 0.5) ** 2 < (0.05 * number) ** 2
            picture = np.repeat(
                (rng.random((size, size, 1)) * 60 + 120 * inside[..., None]), 3, axis=2
            )
            stem = folder / f"{name}_20000101" / f"{name}_20000101_{number + 1}"
            Image.fromarray(picture.astype(np.uint8)).save(f"{stem}.tif")
            Image.fromarray(inside.astype(np.uint8) * 255).save(f"{stem}_mask.tif")

    _write(folder / "data.csv", [("Patient", "age", "grade", "death01"), *clinical])


def _write(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
