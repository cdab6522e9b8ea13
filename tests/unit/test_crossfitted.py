"""Calibration, threshold and figures of a package whose segmenter has been trained on every image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training import recipe
from training.data import PhantomCase, split
from training.measures import crossfitted
from training.measures.answers import Answer
from training.recipe import Split

GENERATOR = np.random.default_rng(3)
LABELS = np.arange(400) % 4 == 0
# The scores are twice as confident as they should be.
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
def test_the_threshold_is_the_highest_with_the_wanted_sensitivity(wanted: float) -> None:
    threshold = crossfitted.threshold_of(SCORES, LABELS, wanted)
    assert np.mean(SCORES[LABELS] >= threshold) >= wanted
    assert np.mean(SCORES[LABELS] > threshold) < wanted


def test_a_fold_is_judged_by_what_the_other_folds_fitted() -> None:
    folds = np.arange(len(LABELS)) // 100
    before, calls = crossfitted.crossed(SCORES, LABELS, folds)

    others = LABELS.copy()
    others[folds == 0] = ~others[folds == 0]
    after, other_calls = crossfitted.crossed(SCORES, others, folds)

    assert np.array_equal(before[folds == 0], after[folds == 0])
    assert np.array_equal(calls[folds == 0], other_calls[folds == 0])
    assert not np.array_equal(before[folds == 1], after[folds == 1])


def test_alarms_are_counted_per_hundred_images() -> None:
    rare, _, common = crossfitted.alarms(0.9, 0.8)
    assert rare["alarms"] == pytest.approx(0.9 + 99 * 0.2)
    assert rare["missed"] == pytest.approx(0.1)
    assert common["ppv"] == pytest.approx(22 * 0.9 / (22 * 0.9 + 78 * 0.2))


def test_the_shipped_threshold_reaches_its_sensitivity_on_the_calibrated_answers() -> None:
    found, calibrated, (scale, offset) = crossfitted.figures(ANSWERS)
    assert found["jpeg_baseline"]["sensitivity"]["value"] >= crossfitted.SENSITIVITY
    assert found["all"]["dice_positives_segmenter_alone"]["value"] == pytest.approx(0.5)
    first = crossfitted.sigmoid(scale * SCORES[:1] + offset)[0]
    assert calibrated[0].probability == pytest.approx(first)


def test_copies_whose_codec_reveals_the_label_change_neither_threshold_nor_calibration() -> None:
    found, _, shipped = crossfitted.figures(ANSWERS)
    published = [one for one in ANSWERS if one.as_published]
    found_alone, _, shipped_alone = crossfitted.figures(published)
    assert (found["threshold"], shipped) == (found_alone["threshold"], shipped_alone)

    copies = [replace(one, as_published=False) for one in ANSWERS]
    assert crossfitted.figures(copies)[2] != shipped


def at_bottoms(*common: tuple[int, int, int]) -> dict[float, list[Answer]]:
    """For each bottom, answers of folds 0, 1 and 2 that share `common` of 10 pixels with the mask."""
    first = replace(ANSWERS[0], label=1.0, true=10, found=10)
    return {
        bottom: [replace(first, fold=fold, common=pixels) for fold, pixels in enumerate(of_folds)]
        for bottom, of_folds in zip(crossfitted.BOTTOMS, common, strict=False)
    }


def test_the_highest_of_equally_good_bottoms_is_taken() -> None:
    assert crossfitted.bottom_of(at_bottoms((6, 6, 6), (6, 6, 6), (5, 5, 5))) == 0.2


def test_a_negative_does_not_affect_the_bottom() -> None:
    answers = at_bottoms((6, 6, 6), (5, 5, 5))
    negative = replace(ANSWERS[1], label=0.0, true=0, common=0)
    for bottom, found in ((0.1, 10), (0.2, 0)):
        answers[bottom].append(replace(negative, fold=0, found=found))
    assert crossfitted.bottom_of(answers) == 0.1


def test_a_fold_is_outlined_at_the_bottom_that_the_other_folds_choose() -> None:
    answers, bottoms = crossfitted.by_other_folds(at_bottoms((2, 5, 5), (9, 3, 3)))
    assert bottoms == {0: 0.1, 1: 0.2, 2: 0.2}
    assert [one.common for one in answers] == [2, 3, 3]


def test_each_image_is_answered_by_the_decoder_that_left_its_fold_out(tmp_path: Path) -> None:
    """Folds of the run's split, which may differ from those published with the data."""
    cases = [
        PhantomCase(
            image_id=f"i{number}", patient=f"p{number}", label=number % 2, fold=number % 4,
            seed=number, size=8,
        )
        for number in range(24)
    ]  # fmt: skip
    wanted = Split.model_validate({"folds": 3, "train": [0, 1, 2], "validate": [0, 1, 2]})
    parts = split.split(cases, wanted)
    split.write(parts, tmp_path / "split.csv")
    found = crossfitted.in_folds(tmp_path, cases)
    assert {case.image_id: case.fold for case in found} == dict(parts.folds)
    assert any(case.fold != one.fold for case, one in zip(cases, found, strict=True))


def test_a_classifier_trained_on_the_images_is_not_calibrated(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "config" / "recipes"
    crossfitted.require_untaught(recipe.load(folder / "default.yaml"), tmp_path)
    taught = recipe.load(folder / "default.yaml", {"networks.2.layout": "siim"})
    with pytest.raises(ValueError, match=r"recipe\.json: 1 classifiers train on siim"):
        crossfitted.require_untaught(taught, tmp_path)
