"""Threshold search: the score that it promises is what the serving code reaches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from inference.postprocess import segment
from training.measures import metrics, thresholds
from training.recipe import OperatingPoint

GRID = thresholds.Grid(
    # 0.7 is a different number in 32 bits.
    bottom=(0.3, 0.7),
    top=(None, 0.5, 0.7, 0.9),
    # These are 0, 1, 3 and 20 pixels of 32 x 32.
    min_area_at_1024_px=(0, 1024, 3072, 20480),
    min_sure_area_at_1024_px=(0, 1500, 6000),
)


def maps(seed: int, count: int = 4) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Smooth blobs with shifted masks. Some masks are empty, some maps are zero, and some values
    equal a threshold exactly.
    """
    rng = np.random.default_rng(seed)
    made = []
    for kind in rng.integers(0, 4, count):
        shape = rng.choice([32, 45], 2)
        blobs = ndimage.gaussian_filter(rng.random(shape), 2)
        blobs = (blobs - blobs.min()) / (blobs.max() - blobs.min())
        true = (blobs > 0.8) & (kind != 1)
        found = np.roll(blobs, 1, axis=0).round(1).astype(np.float32) * (kind != 2)
        made.append((found, true))
    return made


def served_score(images: list[thresholds.Map], rule: dict[str, float]) -> float:
    masks = [segment(one, **rule) for one, _ in images]
    return metrics.mask_figures(masks, [true for _, true in images])["competition_score"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_score_of_every_rule_equals_that_of_the_serving_code(seed: int) -> None:
    images = maps(seed)
    found = thresholds.search(iter(images), GRID)
    tried = list(found.rows())
    # A top of 0.5 is not combined with a bottom of 0.7.
    assert len(tried) == (4 + 3) * 4 * 3
    for row in tried:
        score = row.pop("competition_score")
        assert score == pytest.approx(served_score(images, row))
        assert score <= found.score + 1e-9
    assert served_score(images, found.best) == pytest.approx(found.score)


def disc(radius: float) -> NDArray[np.float64]:
    y, x = np.mgrid[:64, :64] - 32
    return np.asarray(x**2 + y**2 <= radius**2, float)


def test_a_false_speck_leads_to_a_smallest_area_after_a_classifier() -> None:
    speck = disc(1.5) * 0.9
    lesion = disc(9)
    images = [
        ((lesion * 0.9).astype(np.float32), lesion > 0),
        (speck.astype(np.float32), lesion > 2),
    ]
    rule = thresholds.search(images, thresholds.TWO_STAGE).best
    assert rule["bottom"] == rule["top"]
    assert rule["min_area_at_1024_px"] > speck.astype(bool).sum() * 256
    assert rule["min_sure_area_at_1024_px"] == 0


def test_without_a_classifier_sure_pixels_decide_and_the_lower_threshold_draws() -> None:
    lesion = disc(9)
    shown = lesion * 0.45 + disc(5) * 0.5
    doubtful = disc(9) * 0.6
    images = [(shown.astype(np.float32), lesion > 0), (doubtful.astype(np.float32), lesion > 2)]
    rule = thresholds.search(images, thresholds.TRIPLET).best
    assert rule["bottom"] <= 0.4
    assert rule["top"] > 0.6 or rule["min_sure_area_at_1024_px"] > 0
    assert thresholds.search(images, thresholds.TRIPLET).score == 1


def test_a_search_without_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="no validation image"):
        thresholds.search([], thresholds.TWO_STAGE)
    with pytest.raises(ValueError, match="shape"):
        thresholds.search(
            [(np.zeros((4, 4), np.float32), np.zeros((4, 5), bool))], thresholds.TWO_STAGE
        )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1))
def test_an_operating_point_keeps_its_sensitivity_and_is_the_highest_that_does(
    seed: int, wanted: float
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random(40)
    labels = rng.random(40) < 0.4
    labels[0] = True
    threshold, words = thresholds.operating_point(
        scores, labels, OperatingPoint(sensitivity=wanted)
    )
    assert (scores[labels] >= threshold).mean() >= wanted
    assert (scores[labels] >= threshold + 0.001).mean() < wanted or threshold == 0.999
    assert f"{wanted:.2f} or more" in words
    assert threshold == round(threshold, 3) or threshold < 0.001


@pytest.mark.parametrize("best", ["mcc", "f1", "accuracy"])
def test_an_operating_point_may_maximise_a_figure(best: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(60) < 0.3
    scores = np.clip(labels * 0.3 + rng.random(60) * 0.6, 0, 1)
    point = OperatingPoint.model_validate({"best": best})
    threshold, words = thresholds.operating_point(scores, labels, point)
    reached = metrics.label_figures(scores, labels, threshold)[best]
    tried = [
        metrics.label_figures(scores, labels, other)[best] for other in np.arange(0.001, 1, 0.01)
    ]
    assert reached >= np.nanmax(tried)
    assert f"highest {best} ({reached:.3f})" in words


def test_an_operating_point_requires_both_classes() -> None:
    with pytest.raises(ValueError, match="0 of the 3"):
        thresholds.operating_point(np.ones(3), np.zeros(3, bool), OperatingPoint(sensitivity=0.9))
    with pytest.raises(ValueError, match="3 of the 3"):
        thresholds.operating_point(np.ones(3), np.ones(3, bool), OperatingPoint(best="mcc"))


def test_an_operating_point_below_a_thousandth_has_its_stated_sensitivity() -> None:
    found = np.linspace(0.3, 0.99, 90)
    missed = np.full(10, 1.2345e-4)
    scores = np.concatenate([found, missed, np.linspace(1e-5, 9e-4, 100)])
    labels = np.arange(200) < 100
    threshold, words = thresholds.operating_point(scores, labels, OperatingPoint(sensitivity=0.95))
    assert threshold == pytest.approx(1.234e-4)
    assert (scores[labels] >= threshold).mean() == 1
    assert "(1.000)" in words
    # At this sensitivity, the threshold is the lowest score among the positives found, unchanged by
    # rounding.
    threshold, words = thresholds.operating_point(scores, labels, OperatingPoint(sensitivity=0.9))
    assert (threshold, "(0.900)" in words) == (0.3, True)


def test_positives_that_score_0_are_found_by_no_threshold() -> None:
    scores = np.array([0.0, 0.0, 0.8, 0.1])
    labels = np.array([True, False, True, False])
    with pytest.raises(ValueError, match="1 of 2 positive validation images score 0"):
        thresholds.operating_point(scores, labels, OperatingPoint(sensitivity=0.9))
    assert thresholds.operating_point(scores, labels, OperatingPoint(best="f1"))[0] == 0.8
