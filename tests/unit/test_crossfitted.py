"""Calibration, threshold and figures of a package whose segmenter has seen every image."""

from __future__ import annotations

import numpy as np
import pytest

from training.measures import crossfitted
from training.measures.answers import Answer

GENERATOR = np.random.default_rng(3)
LABELS = np.arange(400) % 4 == 0
# Scores twice as sure as they should be.
TRUE_LOGITS = np.where(LABELS, 1.0, -1.5) + GENERATOR.normal(0, 1.2, len(LABELS))
SCORES = 2 * TRUE_LOGITS


def answer(number: int) -> Answer:
    positive = bool(LABELS[number])
    return Answer(
        image_id=f"image-{number}",
        patient=f"patient-{number}",
        label=float(positive),
        fold=number % 4 if number < 200 else (number + 1) % 4,
        probability=float(crossfitted.sigmoid(SCORES)[number]),
        pixels=100,
        true=10 * positive,
        found=10 * positive,
        common=5 * positive,
        as_published=number % 2 == 0,
        view="PA" if number % 3 else "AP",
    )


ANSWERS = [answer(number) for number in range(len(LABELS))]


def test_calibration_moves_scores_nearer_to_how_often_they_are_right() -> None:
    scale, offset = crossfitted.fitted(SCORES, LABELS, float(LABELS.mean()))
    after = crossfitted.reliability(crossfitted.sigmoid(scale * SCORES + offset), LABELS)
    before = crossfitted.reliability(crossfitted.sigmoid(SCORES), LABELS)
    assert crossfitted.expected_error(after) < crossfitted.expected_error(before)
    assert crossfitted.expected_error(after) < 0.08


def test_a_lower_prevalence_lowers_every_probability_and_keeps_their_order() -> None:
    here = crossfitted.fitted(SCORES, LABELS, 0.25)
    rare = crossfitted.fitted(SCORES, LABELS, 0.01)
    assert rare[0] == here[0]
    assert rare[1] - here[1] == pytest.approx(np.log(0.01 / 0.99) - np.log(0.25 / 0.75))


@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.0])
def test_the_threshold_is_the_highest_that_finds_enough(wanted: float) -> None:
    threshold = crossfitted.threshold_of(SCORES, LABELS, wanted)
    assert np.mean(SCORES[LABELS] >= threshold) >= wanted
    assert np.mean(SCORES[LABELS] > threshold) < wanted


def test_what_is_fitted_on_a_fold_does_not_decide_about_it() -> None:
    folds = np.arange(len(LABELS)) // 100
    before, calls = crossfitted.crossed(SCORES, LABELS, folds)

    others = LABELS.copy()
    others[folds == 0] = ~others[folds == 0]
    after, other_calls = crossfitted.crossed(SCORES, others, folds)

    assert np.array_equal(before[folds == 0], after[folds == 0])
    assert np.array_equal(calls[folds == 0], other_calls[folds == 0])
    assert not np.array_equal(before[folds == 1], after[folds == 1])


def test_alarms_of_a_hundred_images() -> None:
    rare, _, common = crossfitted.alarms(0.9, 0.8)
    assert rare["alarms"] == pytest.approx(0.9 + 99 * 0.2)
    assert rare["missed"] == pytest.approx(0.1)
    assert common["ppv"] == pytest.approx(22 * 0.9 / (22 * 0.9 + 78 * 0.2))


def test_the_shipped_threshold_finds_what_it_says_in_the_calibrated_answers() -> None:
    found, calibrated, (scale, offset) = crossfitted.figures(ANSWERS)
    assert found["all"]["sensitivity"]["value"] >= crossfitted.SENSITIVITY
    assert found["all"]["dice_positives_segmenter_alone"]["value"] == pytest.approx(0.5)
    first = crossfitted.sigmoid(scale * SCORES[:1] + offset)[0]
    assert calibrated[0].probability == pytest.approx(first)
