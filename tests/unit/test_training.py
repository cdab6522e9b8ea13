"""What the first model's training is made of: run lengths, figures, phantoms, and a loop that learns."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from inference import package
from training import augment, losses, metrics, phantom, recipe, rle

REPOSITORY = Path(__file__).resolve().parents[2]


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_run_lengths_there_and_back(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(rle.decode(rle.encode(mask), *mask.shape), mask)


def test_run_lengths_go_down_the_columns_and_are_relative() -> None:
    mask = rle.decode("1 2 3 1", 4, 3)
    assert [tuple(map(int, place)) for place in np.argwhere(mask)] == [(1, 0), (2, 0), (2, 1)]


def test_every_published_mask_comes_back_to_the_same_string(data: Path) -> None:
    lines = gzip.decompress((data / "siim" / "all-train-rle.csv.gz").read_bytes()).decode().splitlines()[1::40]
    for line in lines:
        text = line.split(",")[1].strip()
        mask = rle.decode(text)
        assert np.array_equal(rle.decode(rle.encode(mask)), mask)
    assert len(lines) > 250


@pytest.mark.parametrize("row", ["a,1", "a,1 2 3", "a,1 x", "a,-5 2", "a,99999999 1", "a", "a,1 2,3"])
def test_a_malformed_row_is_said_with_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "train-rle.csv"
    path.write_text(f"ImageId, EncodedPixels\nb,-1\n{row}\n")
    with pytest.raises(ValueError, match="line 3"):
        rle.read_masks(path)


def test_several_rows_of_one_image_are_united(tmp_path: Path) -> None:
    path = tmp_path / "train-rle.csv"
    path.write_text("ImageId, EncodedPixels\na,0 2\na,4 1\nb,-1\n")
    masks = rle.read_masks(path, 4, 4)
    assert int(masks["a"].sum()) == 3
    assert not masks["b"].any()


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 8, 200) / 8, rng.random(200) < 0.3
    pairs = scores[labels][:, None] - scores[~labels][None]
    assert metrics.auc(scores, labels) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_wilsons_interval() -> None:
    assert metrics.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998
    assert metrics.wilson(0, 10)[0] == 0
    assert math.isnan(metrics.wilson(0, 0)[0])


def test_dice_of_nothing_and_nothing_is_one() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert [metrics.dice(empty, empty), metrics.dice(full, empty), metrics.dice(full, full)] == [1, 0, 1]


def test_the_threshold_keeps_its_sensitivity() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.random(100), rng.random(100) < 0.5
    threshold = metrics.threshold_for_sensitivity(scores, labels, 0.9)
    assert (scores[labels] >= threshold).mean() >= 0.9
    assert (scores[labels] > threshold).mean() < 0.9


def test_patients_are_resampled_not_images() -> None:
    patients = np.array(["a"] * 50 + ["b"] * 50)
    values = np.array([0.0] * 50 + [1.0] * 50)
    assert metrics.bootstrap(lambda chosen: float(values[chosen].mean()), patients) == (0.0, 1.0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_a_phantoms_mask_is_where_its_pneumothorax_is(seed: int) -> None:
    with_one = phantom.draw(seed, True, 128)
    assert with_one.mask.any()
    assert not phantom.draw(seed, False, 128).mask.any()
    assert np.array_equal(with_one.pixels, phantom.draw(seed, True, 128).pixels)
    columns = np.argwhere(with_one.mask)[:, 1]
    assert (columns < 64).all() or (columns >= 64).all()  # one side


def test_a_phantom_says_that_it_is_synthetic(tmp_path: Path) -> None:
    from pydicom import dcmread

    drawn = phantom.draw(1, False, 256)
    dataset = dcmread(phantom.write(drawn, tmp_path / "one.dcm"))
    assert "SYNTHETIC" in dataset.StudyDescription
    assert "Synthetic" in str(dataset.PatientName)
    assert dataset.BurnedInAnnotation == "YES"
    assert (drawn.pixels[-20:, :80] == 1).sum() > 60  # the word's dots


def test_image_and_mask_are_moved_alike() -> None:
    images = torch.zeros(8, 1, 64, 64)
    images[:, :, 20:30, 10:25] = 1
    how = augment.Augmentation(gamma=0, contrast=0, brightness=0, noise=0, blur=0)
    moved, masks = augment.augment(images, images.clone(), how, torch.Generator().manual_seed(0))
    assert masks is not None
    assert torch.allclose(moved, masks)
    assert not torch.allclose(moved, images)


def test_losses_fall_where_the_answer_gets_better() -> None:
    target = torch.zeros(2, 1, 8, 8)
    target[0, :, :4] = 1
    logits = [scale * (target * 2 - 1) for scale in (-2.0, 0.0, 2.0, 8.0)]
    found = [float(losses.cross_entropy_and_dice(one, target)) for one in logits]
    assert found == sorted(found, reverse=True)
    soft = torch.tensor([[0.3]])
    best = torch.logit(soft)
    for other in (-3.0, 0.0, 3.0):
        assert losses.soft_cross_entropy(best, soft) < losses.soft_cross_entropy(torch.tensor([[other]]), soft)


def test_the_shipped_recipe_is_the_shipped_model() -> None:
    shipped = recipe.load(REPOSITORY / "config" / "recipes" / "default.yaml")
    manifest = package.read_manifest(package.default_folder())
    for stage in ("classifier", "segmenter"):
        for knob in ("architecture", "arguments", "side", "normalisation"):
            assert getattr(getattr(shipped, stage), knob) == getattr(getattr(manifest, stage), knob)
    assert (manifest.id, manifest.version) == (shipped.id, shipped.version)


def test_a_wrong_recipe_is_said(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("id: x\nclasifier: {}\n")
    with pytest.raises(recipe.RecipeError, match="clasifier"):
        recipe.load(path)
