"""Checks of labelled images for faults, before they train anything."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.preprocess import fit
from training.data import pool
from training.data.cases import Case
from training.data.findings import Cases, Finding

# split imports torch, which the processes that read images do not need.
if TYPE_CHECKING:
    from training.data.split import Parts

MAP_SIDE = 64
OLDEST_YEARS = 120


@dataclass(frozen=True, eq=False)
class Seen:
    """What the checks need of one image's pixels and mask."""

    # Why the image cannot be used; then the other fields are empty
    fault: str = ""
    # Digest of the pixels: equal for identical images
    digest: str = ""
    # Share of the image's area that the mask covers; None without a mask
    share: float | None = None
    # Number of connected regions, diagonals too
    regions: int = 0
    # The mask, letterboxed to (MAP_SIDE, MAP_SIDE)
    map: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Report:
    """All findings. Its text has a line for each kind."""

    findings: tuple[Finding, ...]
    images: int
    decoded: bool

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that stop a training run."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that do not stop a training run."""
        return tuple(finding for finding in self.findings if finding.level == "warning")

    def raise_errors(self) -> None:
        """Raise if there is an error.

        Raises:
            ValueError: every error.
        """
        if self.errors:
            raise ValueError("\n".join(map(str, self.errors)))

    def __str__(self) -> str:
        how = "every file was read" if self.decoded else "pixels and masks were not read"
        said = (
            f"{self.images} images checked ({how}): errors {len(self.errors)}, "
            f"warnings {len(self.warnings)}"
        )
        return "\n".join([said, *map(str, self.errors), *map(str, self.warnings)])


def check(
    cases: Sequence[Case],
    parts: Parts | None = None,
    seen: Sequence[Seen] | None = None,
    beside: Parts | None = None,
) -> Report:
    """Check the labels of `cases`, their split and, with `seen` (of `examine`), every image and
    mask.

    `beside`: the split of another layout, in whose run these images train too.
    """
    found = [*(cases.findings if isinstance(cases, Cases) else ()), *_of_labels(cases)]

    if parts is not None:
        found += _of_parts(parts)
    if beside is not None:
        found += _across(cases, beside)
    if seen is not None:
        found += _of_pixels(cases, seen)

    return Report(
        tuple(finding for finding in found if finding.where), len(cases), seen is not None
    )


def examine(cases: Sequence[Case], done: Callable[[int, int], None] | None = None) -> list[Seen]:
    """Read every image and mask once, in several processes where there are many.

    `done` is called with (images so far, images in all).
    """
    return pool.each(_seen, cases, done)


def _seen(case: Case) -> Seen:
    try:
        pixels, mask = case.pixels(), case.mask()
    except ValueError as error:
        return Seen(str(error))

    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).hexdigest()
    if mask is None:
        return Seen(digest=digest)
    if mask.shape != pixels.shape:
        return Seen(f"the mask has {mask.shape} rows and columns, the image {pixels.shape}")
    if not mask.any():
        return Seen(digest=digest, share=0.0)

    regions = int(ndimage.label(mask, np.ones((3, 3)))[1])
    return Seen(
        "", digest, float(mask.mean()), regions, fit(mask.astype(np.float32), MAP_SIDE).pixels
    )


def _of_labels(cases: Sequence[Case]) -> Iterable[Finding]:
    times = Counter(case.image_id for case in cases)
    # An image of each kind
    folds: dict[str, dict[int | None, str]] = defaultdict(dict)
    for case in cases:
        folds[case.patient].setdefault(case.fold, case.image_id)

    yield Finding(
        "error",
        "repeated id",
        tuple(f"{name} {count} times" for name, count in times.items() if count > 1),
    )
    yield Finding(
        "error",
        "label outside 0 to 1",
        tuple(f"{case.image_id}: {case.label:g}" for case in cases if not 0 <= case.label <= 1),
    )

    yield Finding(
        "error",
        "patient in several published folds",
        tuple(
            f"{patient}: "
            + ", ".join(f"{image_id} in {fold}" for fold, image_id in several.items())
            for patient, several in folds.items()
            if len(several) > 1
        ),
    )

    yield Finding(
        "warning",
        f"age outside 0 to {OLDEST_YEARS} years",
        tuple(
            f"{case.image_id}: {case.age_years:g}"
            for case in cases
            if not plausible(case.age_years)
        ),
    )
    labels = {case.positive for case in cases}
    yield Finding(
        "warning",
        "every image has the same label",
        (str(labels.pop()),) if len(labels) == 1 else (),
    )

    yield _provenance(cases)


def plausible(age_years: float | None) -> bool:
    """Whether an age is plausible or unknown."""
    return age_years is None or (math.isfinite(age_years) and 0 <= age_years <= OLDEST_YEARS)


def _provenance(cases: Sequence[Case]) -> Finding:
    """If copies have mostly one label, a network can learn their codec instead of the finding."""
    shares = {}
    for published in (True, False):
        some = [case.positive for case in cases if case.as_published is published]
        shares[published] = (
            f"{sum(some)} of {len(some)} positive",
            sum(some) / len(some) if some else math.nan,
        )
    apart = abs(shares[True][1] - shares[False][1]) > 0.1
    said = f"as published {shares[True][0]}, copies {shares[False][0]}"
    return Finding("warning", "provenance tells the label", (said,) if apart else ())


def _of_parts(parts: Parts) -> Iterable[Finding]:
    train, validate, report = (
        {case.image_id: case.patient for case in side}
        for side in (parts.train, parts.validate, parts.report)
    )
    # Training and validation may share images if a recipe says so, but not further patients.
    for name, some, others in (
        ("report and in training or validation", report, train | validate),
        ("training and in validation", _without(train, validate), _without(validate, train)),
    ):
        torn = set(some.values()) & set(others.values())
        yield Finding("error", f"patient in {name}", tuple(sorted(torn)))


def _across(cases: Sequence[Case], parts: Parts) -> Iterable[Finding]:
    """Images and patients of another layout that measure or choose in the recipe's own."""
    for name, side in (("report", parts.report), ("validate", parts.validate)):
        images = {_name(case) for case in side}
        persons = {case.person for case in side} - {""}
        torn = [case.image_id for case in cases if _name(case) in images or case.person in persons]
        yield Finding(
            "error", f"images or patients that {name} in the recipe's own layout", tuple(torn)
        )


def _name(case: Case) -> str:
    """The image's name in every layout: some name it with its folder."""
    return PurePosixPath(case.image_id).name


def _without(some: dict[str, str], others: dict[str, str]) -> dict[str, str]:
    return {image_id: patient for image_id, patient in some.items() if image_id not in others}


def _of_pixels(cases: Sequence[Case], seen: Sequence[Seen]) -> Iterable[Finding]:
    pairs = list(zip(cases, seen, strict=True))
    same = defaultdict(list)
    for case, image in pairs:
        if image.digest:
            same[image.digest].append(case.image_id)

    masked = any(image.share is not None for image in seen)

    def named(wanted: Callable[[Case, Seen], bool]) -> tuple[str, ...]:
        return tuple(
            case.image_id for case, image in pairs if not image.fault and wanted(case, image)
        )

    yield Finding(
        "error",
        "unusable",
        tuple(f"{case.image_id}: {image.fault}" for case, image in pairs if image.fault),
    )
    yield Finding(
        "error",
        "negative with a mask",
        named(lambda case, image: not case.positive and bool(image.share)),
    )

    yield Finding(
        "warning",
        "positive with an empty mask",
        named(lambda case, image: case.positive and image.share == 0),
    )
    yield Finding(
        "warning",
        "positive without a mask where others have one",
        named(lambda case, image: masked and case.positive and image.share is None),
    )

    yield Finding(
        "warning",
        "mask over more than half of the image",
        named(lambda _, image: (image.share or 0) > 0.5),
    )
    yield Finding(
        "warning",
        "identical pixels",
        tuple(" = ".join(several) for several in same.values() if len(several) > 1),
    )
