"""A calibrated package answers with probabilities, and every finding states whether it is
calibrated.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import package
from inference.container import PackageError
from inference.engine import Engine
from inference.pipeline import _in_percents
from tests import models

CPU = torch.device("cpu")
CALIBRATION = {"scale": 0.5, "offset": -1.0, "prevalence": 0.22, "method": "made for a test"}
IMAGES = [np.random.default_rng(seed).random((48, 48), dtype=np.float32) for seed in range(3)]


def calibrated(folder: Path, **changes: object) -> Path:
    models.write(folder, models.tiny_networks())
    classifier = package.read_manifest(folder).classifier.model_dump(mode="json")
    classifier["calibration"] = CALIBRATION | changes
    package.amend(folder, {"classifier": classifier})
    return folder


def test_the_score_becomes_the_probability_that_the_package_states(tmp_path: Path) -> None:
    plain = Engine(package.load(models.write(tmp_path / "a", models.tiny_networks())), CPU)
    stated = Engine(package.load(calibrated(tmp_path / "b")), CPU)

    pairs = zip(plain.classify(IMAGES), stated.classify(IMAGES), strict=True)
    for score, probability in pairs:
        logit = math.log(score / (1 - score))
        assert probability == pytest.approx(1 / (1 + math.exp(1.0 - 0.5 * logit)), abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"scale": 0.0}, {"scale": -1.0}, {"offset": math.nan}, {"prevalence": 1.0}, {"code": "x"}],
)
def test_an_invalid_calibration_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(PackageError, match="calibration"):
        calibrated(tmp_path, **changes)


@pytest.mark.parametrize(
    ("probability", "threshold", "stated"),
    [
        (0.852182, 0.1176, 0.85),
        (0.0001, 0.1176, 0.01),
        (0.99999, 0.1176, 0.99),
        (0.1157, 0.1176, 0.116),
        (0.1176, 0.1176, 0.12),
        (0.11758, 0.1176, 0.11758),
    ],
)
def test_a_finding_states_whole_percents_on_the_right_side_of_the_threshold(
    probability: float, threshold: float, stated: float
) -> None:
    assert _in_percents(probability, threshold) == pytest.approx(stated)
    assert (stated >= threshold) == (probability >= threshold)


def test_no_probability_of_a_map_lies_outside_the_body(tmp_path: Path) -> None:
    engine = Engine(package.load(models.write(tmp_path, models.tiny_networks())), CPU)
    picture = np.full((64, 64), 0.6, dtype=np.float32)
    picture[:, :20] = 0.0

    (found,) = engine.segment([picture])

    assert not found[:, :18].any()
    assert found[:, 24:].all()
