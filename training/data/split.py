"""Patient-grouped, stratified folds: which images train, choose and report; and split.csv."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import recipe
from training.data.cases import Case

_COLUMNS = ["image_id", "patient", "fold", "part", "label"]
_PARTS = ("train", "validate", "report")
_AND = "+"


@dataclass(frozen=True, eq=False)
class Parts:
    """The three parts, and the fold of every image.

    Training and validation may share images, reporting none.
    """

    train: list[Case]
    validate: list[Case]
    report: list[Case]
    # image_id -> fold
    folds: Mapping[str, int]


def split(cases: Sequence[Case], wanted: recipe.Split) -> Parts:
    """Divide the images by fold as the recipe says; the same cases and seed give the same parts.

    An explicit `wanted.train` trains exactly its folds, which may be those that validate too.

    Raises:
        ValueError: a fold that is not there, an image without a published fold, a patient on both
            sides, a part that stays empty, or a fold that both reports and trains or validates.
    """
    folds = (
        _published(cases)
        if wanted.folds == "published"
        else grouped(cases, wanted.folds, wanted.seed)
    )
    count = max(folds) + 1 if wanted.folds == "published" else wanted.folds

    validate, report = set(wanted.validate_), set(wanted.report)
    train = set(range(count)) - validate - report if wanted.train is None else set(wanted.train)
    named = train | validate | report
    if named - set(range(count)):
        raise ValueError(
            f"split: folds {sorted(named - set(range(count)))} named, there are 0 to {count - 1}"
        )
    if report & (train | validate):
        raise ValueError(
            f"split: folds {sorted(report & (train | validate))} report, and train or validate as "
            "well"
        )

    sides = [
        [case for case, fold in zip(cases, folds, strict=True) if fold in some]
        for some in (train, validate, report)
    ]
    for name, some, chosen in zip(_PARTS, sides, (train, validate, report), strict=True):
        if not some and (chosen or name != "report"):
            raise ValueError(
                f"split: no image for {name}, folds {sorted(chosen)}; other folds, or more "
                "images, wanted"
            )

    return Parts(
        sides[0],
        sides[1],
        sides[2],
        {case.image_id: fold for case, fold in zip(cases, folds, strict=True)},
    )


def grouped(cases: Sequence[Case], count: int, seed: int) -> list[int]:
    """A fold, 0 to count - 1, for each image: a patient's images share a fold, and each class is
    spread evenly.

    The patients with most images come first, equals in random order; each goes where its classes
    are rarest. Where each patient has one image, the folds differ by at most one image of each
    class.

    Raises:
        ValueError: fewer patients than folds.
    """
    classes: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for case in cases:
        classes[case.patient][int(case.positive)] += 1

    if len(classes) < count:
        raise ValueError(
            f"split: {len(classes)} patients found, at least {count} wanted for {count} folds"
        )

    patients = sorted(classes)
    np.random.default_rng(seed).shuffle(patients)
    patients.sort(key=lambda patient: -classes[patient].sum())

    # Images of a class weigh inverse to their number.
    weight = 1 / np.maximum(sum(classes.values()), 1)
    filled = np.zeros((count, 2))
    fold_of = {}
    for patient in patients:
        # Growth of the sum of squares: least in the fold with the fewest images of these classes.
        growth = ((2 * filled + classes[patient]) * classes[patient] * weight).sum(1)
        fold_of[patient] = int(np.lexsort((filled.sum(1), np.round(growth, 12)))[0])
        filled[fold_of[patient]] += classes[patient]

    return [fold_of[case.patient] for case in cases]


def held_out(cases: Sequence[Case], count: int, seed: int) -> tuple[list[Case], list[Case]]:
    """(training images, validation images) of a layout without folds.

    In random order, whole patients are taken for validation until there are `count` images.
    """
    of_patient: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        of_patient[case.patient].append(case)

    patients = list(of_patient.values())
    train: list[Case] = []
    watched: list[Case] = []
    for number in np.random.default_rng(seed).permutation(len(patients)):
        (watched if len(watched) < count else train).extend(patients[number])

    return train, watched


def write(parts: Parts, path: Path) -> None:
    """One row per image: image_id, patient, fold, part, label.

    A patient that trains and validates has the part train+validate.
    """
    sides = (parts.train, parts.validate, parts.report)
    cases = {case.image_id: case for side in sides for case in side}
    part_of: dict[str, list[str]] = defaultdict(list)
    for name, side in zip(_PARTS, sides, strict=True):
        for case in side:
            part_of[case.image_id].append(name)

    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        for image_id, case in cases.items():
            table.writerow(
                [
                    image_id,
                    case.patient,
                    parts.folds[image_id],
                    _AND.join(part_of[image_id]),
                    case.label,
                ]
            )


def digest(path: Path) -> str:
    """The sha256 of a split.csv, by which a package knows the split that trained it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path, cases: Sequence[Case]) -> Parts:
    """The parts that `write` wrote, of these cases.

    Raises:
        ValueError: not such a table, or one of its images is not among `cases`.
    """
    by_id = {case.image_id: case for case in cases}
    sides: dict[str, list[Case]] = {name: [] for name in _PARTS}
    folds = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                folds[row["image_id"]] = int(row["fold"])
                for name in row["part"].split(_AND):
                    sides[name].append(by_id[row["image_id"]])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}: line {reader.line_num}: {error!r}; {','.join(_COLUMNS)} of images "
                    "of this data set wanted"
                ) from error

    return Parts(sides["train"], sides["validate"], sides["report"], folds)


def _published(cases: Sequence[Case]) -> list[int]:
    folds = [case.fold for case in cases if case.fold is not None]
    if len(folds) < len(cases):
        without = next(case.image_id for case in cases if case.fold is None)
        raise ValueError(
            f"split: folds: published, but {len(cases) - len(folds)} images have none ({without}, "
            "...)"
        )

    # An image of each fold
    of_patient: dict[str, dict[int | None, str]] = defaultdict(dict)
    for case in cases:
        of_patient[case.patient].setdefault(case.fold, case.image_id)
    torn = [" and ".join(several.values()) for several in of_patient.values() if len(several) > 1]
    if torn:
        raise ValueError(
            f"split: {len(torn)} patients lie in several of the published folds (images "
            f"{'; '.join(torn[:5])}, ...)"
        )

    return folds
