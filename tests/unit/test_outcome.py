"""Features of a mask, and an outcome model that is judged on held-out patients, not on its training
data.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.impute import KNNImputer

from training.measures import features, figures, outcome
from training.recipe import RecipeError

SETTINGS = outcome.Settings(id="lgg-outcome", version="1.0.0", folds=4, repeats=1, trees=20)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DRAWS", 50)


def disc(radius: float, side: int = 64, row: float = 40, column: float = 20) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:side, :side]
    return np.hypot(rows - row, columns - column) <= radius


def table(count: int = 100, missing: float = 0.1) -> outcome.Table:
    """Random features with random deaths."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(count, 15))
    values[rng.random(values.shape) < missing] = math.nan
    died = rng.random(count) < 0.4
    return outcome.Table(
        [f"p{n}" for n in range(count)], [f"f{n}" for n in range(15)], values, died, 0
    )


def test_a_disc_is_round_and_a_line_is_not() -> None:
    round_ = features.of_mask(disc(15))
    line = features.of_mask(np.eye(64, dtype=bool))
    assert round_["area_px"] == pytest.approx(math.pi * 15**2, rel=0.02)
    assert round_["circularity"] == pytest.approx(1, abs=0.06)
    assert round_["perimeter_px"] == pytest.approx(2 * math.pi * 15, rel=0.05)
    assert round_["eccentricity"] < 0.1
    assert line["eccentricity"] > 0.99
    assert line["circularity"] < 0.3
    assert (round_["centroid_row"], round_["centroid_column"]) == pytest.approx((40 / 64, 20 / 64))
    # The spread of a disc is half its radius.
    assert round_["spread_row"] == pytest.approx(15 / 2 / 64, rel=0.05)
    assert round_["filling"] == pytest.approx(math.pi / 4, rel=0.08)


def test_a_patients_features_combine_all_slices() -> None:
    slices = [
        features.of_mask(mask) for mask in (disc(5), disc(10, column=40), np.zeros((64, 64), bool))
    ]
    patient = features.of_patient(slices)
    small, large, _ = slices
    assert (patient["slices"], patient["slices_with"]) == (3, 2)
    assert patient["area_px"] == small["area_px"] + large["area_px"]
    assert patient["largest_area_px"] == large["area_px"]
    # The centroid is nearer to the larger mask.
    assert patient["centroid_column"] > 0.5
    nothing = features.of_patient(slices[2:])
    assert nothing["area_px"] == 0
    assert math.isnan(nothing["eccentricity"])


def test_noise_is_fitted_in_training_and_predicts_nothing() -> None:
    found = outcome.compare(table(), SETTINGS)
    forest = found["models"]["forest"]
    for labels in ("true_labels", "shuffled_labels"):
        assert forest[labels]["training"]["accuracy"]["value"] >= 0.99
        assert forest[labels]["cross_validated"]["auc"]["value"] == pytest.approx(0.5, abs=0.15)
    low, high = forest["true_labels"]["cross_validated"]["auc"]["interval_95"]
    assert low < 0.5 < high
    assert "means nothing" in found["note"]
    assert found["missing_share"] == pytest.approx(0.1, abs=0.02)


def test_a_real_relation_is_learned() -> None:
    noise = table()
    values = noise.values.copy()
    values[:, 3] = noise.died + np.random.default_rng(0).normal(size=len(noise.died)) / 4
    found = outcome.compare(
        outcome.Table(noise.patients, noise.names, values, noise.died, 0), SETTINGS
    )
    assert found["models"]["logistic"]["true_labels"]["cross_validated"]["auc"]["value"] > 0.9
    assert (
        max(found["logistic_coefficients"], key=lambda name: found["logistic_coefficients"][name])
        == "f3"
    )


def test_imputation_never_sees_held_out_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = table()
    seen = []
    fit = KNNImputer.fit

    def noted(self: KNNImputer, values: Any, *rest: Any) -> KNNImputer:
        seen.append((len(values), self.n_neighbors))
        return fit(self, values, *rest)

    monkeypatch.setattr(KNNImputer, "fit", noted)
    model = outcome._models(SETTINGS)["logistic"]
    outcome._held_out(model, noise.values, noise.died, SETTINGS)
    assert seen == [(75, 4)] * 4


def test_patients_are_joined_to_the_clinical_table_by_name() -> None:
    masks = {f"p{n}": {"area_px": float(n), "constant": 1.0} for n in range(6)}
    clinical = {
        f"p{n}": {"death01": float(n % 2), "age": 50.0 + n if n != 2 else None} for n in range(1, 8)
    }
    clinical["p5"]["death01"] = None
    joined = outcome.join(masks, clinical)
    assert joined.patients == ["p1", "p2", "p3", "p4"]
    assert joined.names == ["area_px", "age"]
    assert joined.died.tolist() == [True, False, True, False]
    assert math.isnan(joined.values[1, 1])
    assert joined.without_outcome == 1
    with pytest.raises(ValueError, match="0 in both"):
        outcome.join(masks, {"other": {"death01": 1.0}})


@pytest.mark.parametrize("found", [False, True])
def test_a_folder_of_slices_gives_a_report(tmp_path: Path, tiny_package: Path, found: bool) -> None:
    home = tmp_path / "kaggle_3m"
    home.mkdir()
    with (home / "data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Patient", "gender", "age", "death01"])
        for n in range(8):
            name = f"TCGA_CS_{n}"
            rows.writerow([name, n % 2 + 1, "" if n == 3 else 30 + n, n // 4])
            (home / f"{name}_19990101").mkdir()
            for number in (1, 2):
                stem = home / f"{name}_19990101" / f"{name}_19990101_{number}"
                Image.fromarray(np.full((32, 32, 3), 9 * n, np.uint8)).save(f"{stem}.tif")
                mask = disc(3 + n, 32, 16, 16).astype(np.uint8) * 255 * (number == 1)
                Image.fromarray(mask).save(f"{stem}_mask.tif")

    settings = SETTINGS.model_copy(
        update={"published": {"accuracy": 1.0}, "case_study": "B3", "folds": 2, "trees": 3}
    )
    figures_found = outcome.train(
        settings, tmp_path, tmp_path / "out", tiny_package if found else None
    )
    assert json.loads((tmp_path / "out" / "outcome.json").read_text()) == figures_found

    assert (figures_found["patients"], figures_found["died"]) == (8, 4)
    assert ("tiny" in figures_found["masks"]) == found
    text = (tmp_path / "out" / "outcome.md").read_text()
    assert "accuracy 1, on training data" in text
    assert "Why 100 % on training data means nothing" in text


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lgg-outcome.yaml"
    path.write_text("id: lgg-outcome\nversion: 1.0.0\nneighbors: 4\n")
    with pytest.raises(RecipeError, match="neighbors"):
        outcome.load(path)
    path.write_text("id: lgg-outcome\nversion: 1.0.0\nneighbours: 4\n")
    assert outcome.load(path).neighbours == 4
