"""The words of the banner below the radiograph. No patient's identity is drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.finding import Finding, Measurement, State
from inference.results import wording
from inference.results.case import Case
from inference.results.layout import ORANGE, PALE, SKY_BLUE, Colour
from inference.results.source import copied
from inference.results.typesetting import Fact, Message
from inference.results.uids import PLEURA_VERSION

Answer = tuple[Colour, str, str, str]  # colour, shape, headline, second line


def message(case: Case) -> Message:
    """The words of the case's banner, for typesetting.typeset."""
    colour, shape, headline, second = _answer(case)

    left: list[Fact] = []
    if case.finding is not None:
        left.append(("Score", _score(case.finding)))
        if case.segmented is not None and case.finding.measurement is not None:
            left.append(("Area", _area(case.finding.measurement)))
    left.append(_date(case.header))

    right = (
        ("Model", case.model.id),
        ("Version", case.model.version),
        ("Software", f"Pleura {PLEURA_VERSION}"),
        ("Processed", _processed(case)),
    )
    return Message(colour, shape, headline, second, tuple(left), right, "; ".join(case.notes))


def _processed(case: Case) -> str:
    """The result's time, with its offset from UTC where the image states one: then the clock may
    not be that of the reader.
    """
    form = "%Y-%m-%d %H:%M %z" if case.states_offset else "%Y-%m-%d %H:%M"
    return case.local_time.strftime(form)


def _answer(case: Case) -> Answer:
    """Colour, shape, headline and the line below it."""
    finding = case.finding
    if finding is None:
        assert case.no_finding is not None  # Case holds one of the two
        reason = case.no_finding.sentence.rstrip(".")
        sentence = f"{reason[0].upper()}{reason[1:]}"
        second = wording.BANNER_NO_STATEMENT.format(sentence=sentence)
        if case.no_finding.state is State.FAILED:
            return PALE, "cross", wording.FAILED, second
        return PALE, "bar", wording.NOT_ANALYSED, second

    if not finding.positive:
        return SKY_BLUE, "ring", wording.BANNER_NOT_DETECTED, wording.BANNER_NO_EXCLUSION

    measured = finding.measurement
    if case.segmented is None or measured is None:
        return ORANGE, "triangle", wording.BANNER_SUSPECTED, wording.BANNER_NO_REGION

    regions = f"{_grouped(measured.regions)} regions" if measured.regions > 1 else "1 region"
    side = _side(measured, case.segmented)
    second = wording.BANNER_REGIONS.format(side=side, regions=regions)
    return ORANGE, "triangle", wording.BANNER_SUSPECTED, second


def _side(measured: Measurement, mask: NDArray[np.bool_]) -> str:
    """The patient's side, else that of the (rows, columns) picture."""
    if measured.laterality is not None:
        return wording.SIDES[measured.laterality]

    column_counts = mask.sum(axis=0)
    right = column_counts[(len(column_counts) + 1) // 2 :].sum() / column_counts.sum()
    left = column_counts[: len(column_counts) // 2].sum() / column_counts.sum()
    place = wording.PICTURE_BOTH
    if right >= wording.PICTURE_SIDE_PART:
        place = wording.PICTURE_RIGHT
    elif left >= wording.PICTURE_SIDE_PART:
        place = wording.PICTURE_LEFT
    return wording.BANNER_UNSIDED.format(place=place)


def _score(finding: Finding) -> str:
    """Score and operating point, with enough digits to tell them apart."""
    digits = 2 if finding.probability == finding.threshold else 6
    for fewer in (2, 3, 4):
        if round(finding.probability, fewer) != round(finding.threshold, fewer):
            digits = fewer
            break

    return wording.BANNER_SCORE.format(
        score=f"{finding.probability:.{digits}f}", threshold=f"{finding.threshold:.{digits}f}"
    )


def _area(measured: Measurement) -> str:
    area_px = _grouped(measured.area_px)
    if measured.area_mm2 is None:
        return wording.BANNER_NO_SPACING.format(area_px=area_px)

    estimated = measured.area_estimated
    phrase = wording.BANNER_ESTIMATED_AREA if estimated else wording.BANNER_AREA
    return phrase.format(area_px=area_px, area_mm2=_grouped(measured.area_mm2))


def _date(header: Dataset) -> Fact:
    """When the image was acquired, else when the study began."""
    for prefix, label in (("Acquisition", "Acquired"), ("Study", "Study date")):
        date, time = copied(header, f"{prefix}Date"), copied(header, f"{prefix}Time")
        if date is None or len(str(date.value)) != 8:
            continue

        day = str(date.value)
        said = f"{day[:4]}-{day[4:6]}-{day[6:]}"
        if time is not None and len(str(time.value)) >= 4:
            said += f" {str(time.value)[:2]}:{str(time.value)[2:4]}"
        return label, said

    return "Acquired", wording.BANNER_NO_DATE


def _grouped(number: float) -> str:
    """A whole number in groups of three digits.

    ISO 80000-1: by a space, which no language reads as a decimal sign.
    """
    return f"{number:,.0f}".replace(",", " ")
