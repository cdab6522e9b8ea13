"""Metrics: equal to scikit-learn's and MONAI's on random data, and defined for degenerate input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.measures import metrics

Drawn = tuple[NDArray[np.float64], NDArray[np.bool_]]


@st.composite
def scores_and_labels(draw: st.DrawFn) -> Drawn:
    """Scores and labels of both classes, with ties among the scores."""
    levels = draw(st.integers(2, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    labels = rng.random(draw(st.integers(2, 60))) < draw(st.floats(0.05, 0.95))
    labels[:2] = True, False
    return rng.integers(0, levels + 1, len(labels)) / levels, labels


@settings(max_examples=40, deadline=None)
@given(scores_and_labels(), st.floats(0, 1))
def test_label_figures_equal_scikit_learns(drawn: Drawn, threshold: float) -> None:
    from sklearn import metrics as theirs

    scores, labels = drawn
    called = scores >= threshold
    found = metrics.label_figures(scores, labels, threshold)

    with warnings.catch_warnings():
        # scikit-learn warns about undefined figures.
        warnings.simplefilter("ignore")
        wanted = {
            "auc": theirs.roc_auc_score(labels, scores),
            "average_precision": theirs.average_precision_score(labels, scores),
            "sensitivity": theirs.recall_score(labels, called),
            "specificity": theirs.recall_score(~labels, ~called),
            "ppv": theirs.precision_score(labels, called, zero_division=np.nan),
            "npv": theirs.precision_score(~labels, ~called, zero_division=np.nan),
            "f1": theirs.f1_score(labels, called),
            "f2": theirs.fbeta_score(labels, called, beta=2),
            "mcc": theirs.matthews_corrcoef(labels, called),
            "accuracy": theirs.accuracy_score(labels, called),
            "brier": theirs.brier_score_loss(labels, scores),
        }

    assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(scores_and_labels())
def test_curves_equal_scikit_learns(drawn: Drawn) -> None:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import precision_recall_curve, roc_curve

    scores, labels = drawn
    for found, wanted in zip(
        metrics.roc(*drawn), roc_curve(labels, scores, drop_intermediate=False), strict=True
    ):
        assert found == pytest.approx(wanted)

    sensitivity, precision, thresholds = metrics.precision_recall(*drawn)
    their_precision, their_sensitivity, their_thresholds = precision_recall_curve(labels, scores)
    assert sensitivity[::-1] == pytest.approx(their_sensitivity)
    assert precision[::-1] == pytest.approx(their_precision)
    assert thresholds[:0:-1] == pytest.approx(their_thresholds)

    # Keep scores off the bin borders: scikit-learn puts a border score into either bin, depending
    # on how 0.1 * n is rounded.
    scores = np.clip(scores * 0.9 + 0.013, 0, 1)
    mean, share, count = metrics.calibration(scores, labels)
    their_share, their_mean = calibration_curve(labels, scores, n_bins=10)
    assert mean == pytest.approx(their_mean)
    assert share == pytest.approx(their_share)
    assert count.sum() == len(scores)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_mask_figures_equal_monais(seed: int, images: int) -> None:
    from monai.metrics import DiceMetric, MeanIoU

    rng = np.random.default_rng(seed)
    found, true = (
        rng.random((images, 9, 7)) < rng.choice([0, 0.02, 0.5], (images, 1, 1)) for _ in range(2)
    )
    figures = metrics.mask_figures(found, true)

    def theirs(
        metric: DiceMetric | MeanIoU, found: NDArray[np.bool_], true: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        values = metric(
            *(torch.from_numpy(one.astype(np.float32))[:, None] for one in (found, true))
        )
        # MONAI gives NaN for an empty true mask, whatever was found.
        filled = np.where(found.any((1, 2)) | true.any((1, 2)), 0.0, 1.0)
        return np.where(np.isnan(values.numpy()[:, 0]), filled, values.numpy()[:, 0])

    dices = theirs(DiceMetric(), found, true)
    ious = theirs(MeanIoU(), found, true)
    background = theirs(MeanIoU(), ~found, ~true)
    some = true.any((1, 2))
    assert figures["dice"] == figures["competition_score"] == pytest.approx(dices.mean(), abs=1e-6)
    assert figures["iou"] == pytest.approx(ious.mean(), abs=1e-6)
    assert figures["mean_iou"] == pytest.approx((ious + background).mean() / 2, abs=1e-6)

    if some.any():
        assert figures["dice_positives"] == pytest.approx(dices[some].mean(), abs=1e-6)
        assert figures["iou_positives"] == pytest.approx(ious[some].mean(), abs=1e-6)
    else:
        assert math.isnan(figures["dice_positives"])

    pixels = metrics.label_figures(found.ravel().astype(float), true.ravel(), 0.5)
    for name in ("accuracy", "f1", "f2"):
        assert figures[f"pixel_{name}"] == pytest.approx(pixels[name], nan_ok=True)


def test_masks_may_be_given_one_by_one_in_any_size() -> None:
    found = [np.ones((4, 4), bool), np.zeros((8, 2), bool), np.ones((2, 2), bool)]
    true = [np.ones((4, 4), bool), np.zeros((8, 2), bool), np.zeros((2, 2), bool)]
    figures = metrics.mask_figures(iter(found), iter(true))
    assert figures["dice"] == pytest.approx(2 / 3)
    assert figures["dice_positives"] == 1
    assert figures["pixel_accuracy"] == pytest.approx(32 / 36)
    with pytest.raises(ValueError, match="shape"):
        metrics.mask_figures(found, true[::-1])


def test_figures_that_need_both_classes_are_nan_without_them() -> None:
    figures = metrics.label_figures(np.array([0.2, 0.4]), np.array([False, False]), 0.5)
    undefined = {name for name, value in figures.items() if math.isnan(value)}
    assert undefined == {"auc", "average_precision", "sensitivity", "ppv", "f1", "f2"}
    assert figures["specificity"] == figures["npv"] == figures["accuracy"] == 1
    assert figures["mcc"] == 0


def test_wilsons_interval_matches_the_published_example() -> None:
    # Newcombe 1998.
    assert metrics.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert metrics.wilson(0, 10)[0] == 0
    assert math.isnan(metrics.wilson(0, 0)[0])


def test_dice_of_two_empty_masks_is_one() -> None:
    empty = np.zeros((4, 4), bool)
    full = np.ones((4, 4), bool)
    pairs = ((empty, empty), (full, empty), (full, full))
    assert [metrics.mask_figures([found], [true])["dice"] for found, true in pairs] == [1, 0, 1]
