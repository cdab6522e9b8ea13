"""Before hours of training: show the images that a network would see, and suggest a rate."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daemon import cli
from inference.networks import build
from tests import models
from training.fitting import find_rate
from training.fitting.batches import Batches, Samples
from training.recipe import Stage

_TINY = {
    "role": "classifier",
    "architecture": "residual-classifier",
    "arguments": models.TINY,
    "side": 32,
    "loss": {"cross_entropy": 1},
    "epochs": 1,
    "batch": 4,
    "optimiser": {"learning_rate": 0.1},
}


def test_rates_are_tried_on_a_copy_and_one_is_suggested(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(16, dtype=np.float32) % 2
    images = (labels[:, None, None] * 120 + rng.integers(0, 100, (16, 32, 32))).astype(np.uint8)
    batches = Batches(
        [Samples(images=images, targets=labels)],
        Stage.model_validate(_TINY),
        1,
        torch.device("cpu"),
    )
    torch.manual_seed(0)
    network = build("residual-classifier", **models.TINY)
    before = copy.deepcopy(network.state_dict())

    # With 25 steps, rounding of the processor decides whether the last rate is suggested.
    found = find_rate.find(network, batches, steps=100)

    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in before.items())
    assert 1e-7 < found.suggested < 1
    assert list(found.rates) == sorted(found.rates)
    find_rate.write(found, tmp_path / "range")
    assert (tmp_path / "range.csv").read_text().startswith("learning_rate,smoothed_loss")
    assert (tmp_path / "range.png").exists()


def test_batches_are_drawn_and_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    rows = ["image,label,mask"]
    for number in range(16):
        pixels = rng.integers(0, 255, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        Image.fromarray((pixels > 99).astype(np.uint8)).save(tmp_path / f"{number}-mask.png")
        rows.append(f"{number}.png,1,{number}-mask.png" if number % 2 else f"{number}.png,0,")
    (tmp_path / "labels.csv").write_text("\n".join(rows))

    knobs = {
        "layout": "table",
        "split": "{folds: 4, validate: [0]}",
        "networks.0.side": "32",
        "networks.0.batch": "4",
    }
    arguments = ["train", "--recipe", "t5-plain-unet", "--data", str(tmp_path), "--show-batches"]
    arguments += [f"--set={key}={value}" for key, value in knobs.items()]

    assert cli.main([*arguments, "--out", str(tmp_path / "run")]) == 0

    printed = capsys.readouterr().out
    (first, second) = sorted((tmp_path / "run" / "batches").glob("*.png"))
    assert str(first) in printed
    with Image.open(second) as page:
        assert page.size == (2 * 34, 2 * 34)
        assert len(set(page.getdata())) > 10
    assert not (tmp_path / "run" / "weights").exists()
