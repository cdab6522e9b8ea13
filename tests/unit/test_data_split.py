"""Patient-grouped, stratified splits: their properties, and the file that records each image's
part.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import data as labelled
from training import recipe
from training.data import PhantomCase, split
from training.data.cases import Case


def case(number: int, patient: object, label: float, fold: int | None = None) -> Case:
    return PhantomCase(
        image_id=f"i{number}", patient=f"p{patient}", label=label, fold=fold, seed=number, size=8
    )


def wanted(**keys: Any) -> recipe.Split:
    return recipe.Split.model_validate({"folds": 4, "validate": [0]} | keys)


@st.composite
def data_sets(draw: st.DrawFn) -> list[Case]:
    labels = draw(st.lists(st.tuples(st.integers(0, 14), st.booleans()), min_size=30, max_size=120))
    return [case(number, patient, float(label)) for number, (patient, label) in enumerate(labels)]


@settings(deadline=None, max_examples=60)
@given(data_sets(), st.integers(2, 5), st.integers(0, 9))
def test_each_image_has_one_fold_and_no_patient_has_two(
    cases: list[Case], count: int, seed: int
) -> None:
    if len({one.patient for one in cases}) < count:
        return
    parts = split.split(
        cases, wanted(folds=count, validate=[0], report=[1] if count > 2 else [], seed=seed)
    )
    sides = [parts.train, parts.validate, parts.report]
    assert Counter(one.image_id for side in sides for one in side) == Counter(
        one.image_id for one in cases
    )
    patients = [{one.patient for one in side} for side in sides]
    assert sum(map(len, patients)) == len(set.union(*patients))

    assert split.grouped(cases, count, seed) == split.grouped(list(cases), count, seed)


@settings(deadline=None, max_examples=60)
@given(st.integers(10, 200), st.floats(0.1, 0.9), st.integers(2, 8), st.integers(0, 9))
def test_folds_are_balanced_if_each_patient_has_one_image(
    n: int, share: float, count: int, seed: int
) -> None:
    cases = [case(number, number, float(number < n * share)) for number in range(n)]
    folds = split.grouped(cases, count, seed)
    for some in (
        cases,
        [one for one in cases if one.positive],
        [one for one in cases if not one.positive],
    ):
        names = {one.image_id for one in some}
        sizes = Counter(
            fold for one, fold in zip(cases, folds, strict=True) if one.image_id in names
        )
        assert max(sizes.values()) - min(sizes[fold] for fold in range(count)) <= (
            1 if some is not cases else 2
        )


def test_the_real_folds_are_nearly_balanced(data: Path) -> None:
    # One patient has 13 of the 248 images.
    cases = labelled.read("siim", data)
    folds = np.array(split.grouped(cases, 5, 0))
    positive = np.array([one.positive for one in cases])
    shares = [positive[folds == fold].mean() for fold in range(5)]
    assert max(shares) - min(shares) < 0.04
    assert set(np.bincount(folds)) <= {48, 49, 50, 51}
    published = split.split(
        cases, wanted(folds="published", train=[0, 1, 2], validate=[0, 1, 2], report=[3])
    )
    assert [len(published.train), len(published.validate), len(published.report)] == [186, 186, 62]


def test_another_seed_gives_another_split() -> None:
    cases = [case(number, number, float(number % 3 == 0)) for number in range(60)]
    assert split.grouped(cases, 4, 0) == split.grouped(cases, 4, 0) != split.grouped(cases, 4, 1)


def test_each_fold_validates_once() -> None:
    cases = [case(number, number // 2, float(number % 3 == 0)) for number in range(40)]
    wanted = [recipe.Split.model_validate({"folds": 4, "validate": [fold]}) for fold in range(4)]
    validated = [
        one.image_id for one_fold in wanted for one in split.split(cases, one_fold).validate
    ]
    assert sorted(validated) == sorted(one.image_id for one in cases)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"validate": [4]}, r"folds \[4\] named, there are 0 to 3"),
        ({"validate": [0], "report": [0]}, r"folds \[0\] report, and"),
        ({"folds": 40}, "20 patients found, at least 40 wanted"),
        ({"folds": "published"}, "20 images have none"),
        ({"validate": [0, 1, 2, 3]}, "no image for train"),
    ],
)
def test_an_impossible_split_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split.split([case(number, number, number % 2) for number in range(20)], wanted(**keys))


def test_published_folds_must_not_divide_a_patient() -> None:
    cases = [case(number, number // 2, number % 2, fold=number % 3) for number in range(12)]
    with pytest.raises(ValueError, match="6 patients lie in several of the published folds"):
        split.split(cases, wanted(folds="published"))


@pytest.mark.parametrize(
    "keys", [{"report": [1]}, {"train": [0, 2], "validate": [0], "report": [3]}]
)
def test_the_split_file_restores_the_parts(tmp_path: Path, keys: dict[str, Any]) -> None:
    cases = [case(number, number, number % 2) for number in range(20)]
    parts = split.split(cases, wanted(**keys))
    split.write(parts, tmp_path / "split.csv")
    back = split.read(tmp_path / "split.csv", cases)
    for part in ("train", "validate", "report"):
        some, others = ({one.image_id for one in getattr(each, part)} for each in (parts, back))
        assert some == others
    assert all(back.folds[name] == parts.folds[name] for name in back.folds)
    with pytest.raises(ValueError, match=r"line 3.*of this data set wanted"):
        split.read(
            tmp_path / "split.csv",
            [one for one in cases if one.image_id != parts.train[1].image_id],
        )


def test_images_without_folds_are_held_out_by_patient() -> None:
    cases = [case(number, number // 5, number % 2) for number in range(60)]
    train, watched = split.held_out(cases, 12, 1)
    assert (len(train), len(watched)) == (45, 15)
    assert not {one.patient for one in train} & {one.patient for one in watched}


def test_images_without_patient_names_are_held_out_singly() -> None:
    """The shipped model's recipe held out its 240 silver images this way, and must stay
    reproducible.
    """
    cases = [case(number, number, number % 2) for number in range(60)]
    order = np.random.default_rng(7).permutation(60)
    train, watched = split.held_out(cases, 12, 7)
    assert watched == [cases[number] for number in order[:12]]
    assert train == [cases[number] for number in order[12:]]
