"""The words that an overlay's banner must have, derived by the gate."""

from __future__ import annotations

import numpy as np
from pydicom import Dataset

from inference.finding import Finding, State
from inference.results import layout, wording
from inference.results.gate.expected import Expected
from inference.results.gate.header import has_usable
from inference.results.gate.regions import Measured
from inference.results.typesetting import Fact, Message
from inference.results.uids import PLEURA_VERSION

# Colour, shape and headline of each answer.
SUSPECTED = (layout.ORANGE, "triangle", wording.BANNER_SUSPECTED)
NOT_DETECTED = (layout.SKY_BLUE, "ring", wording.BANNER_NOT_DETECTED)
NOT_ANALYSED = (layout.PALE, "bar", wording.NOT_ANALYSED)
FAILED = (layout.PALE, "cross", wording.FAILED)


def expected_message(expected: Expected) -> Message:
    """The message that must stand below the radiograph."""
    case = expected.case
    colour, shape, headline = _look(expected)
    facts = [_date(case.header)]

    if case.finding is not None:
        if expected.measured is not None and case.finding.measurement is not None:
            facts.insert(0, ("Area", _area(expected.measured)))
        facts.insert(0, ("Score", _score(case.finding)))

    zone = " %z" if case.states_offset else ""
    right = (
        ("Model", case.model.id),
        ("Version", case.model.version),
        ("Software", f"Pleura {PLEURA_VERSION}"),
        ("Processed", case.local_time.strftime(f"%Y-%m-%d %H:%M{zone}")),
    )
    notes = "; ".join(case.notes)
    return Message(colour, shape, headline, _second(expected), tuple(facts), right, notes)


def _look(expected: Expected) -> tuple[layout.Colour, str, str]:
    case = expected.case
    if case.no_finding is not None:
        return FAILED if case.no_finding.state is State.FAILED else NOT_ANALYSED

    assert case.finding is not None  # Case holds one of the two
    return SUSPECTED if case.finding.positive else NOT_DETECTED


def _second(expected: Expected) -> str:
    """The line below the headline."""
    case, measured = expected.case, expected.measured
    if case.no_finding is not None:
        reason = case.no_finding.sentence.rstrip(".")
        return wording.BANNER_NO_STATEMENT.format(sentence=reason[0].upper() + reason[1:])

    assert case.finding is not None  # Case holds one of the two
    if not case.finding.positive:
        return wording.BANNER_NO_EXCLUSION
    if measured is None or case.finding.measurement is None:
        return wording.BANNER_NO_REGION

    regions = "1 region" if measured.regions == 1 else f"{_spaced(measured.regions)} regions"
    return wording.BANNER_REGIONS.format(side=_side(expected, measured), regions=regions)


def _side(expected: Expected, measured: Measured) -> str:
    if measured.laterality is not None:
        return wording.SIDES[measured.laterality]

    mask = expected.case.segmented
    assert mask is not None  # it was measured
    columns = np.nonzero(mask)[1]
    middle = (mask.shape[1] - 1) / 2
    places = {
        wording.PICTURE_LEFT: np.count_nonzero(columns < middle),
        wording.PICTURE_RIGHT: np.count_nonzero(columns > middle),
    }
    for place, pixels in places.items():
        if pixels >= wording.PICTURE_SIDE_PART * columns.size:
            return wording.BANNER_UNSIDED.format(place=place)
    return wording.BANNER_UNSIDED.format(place=wording.PICTURE_BOTH)


def _score(finding: Finding) -> str:
    """Both numbers with enough digits to tell them apart, at least two."""
    score, threshold = finding.probability, finding.threshold
    differing = [digits for digits in (2, 3, 4) if round(score, digits) != round(threshold, digits)]
    digits = differing[0] if differing else 6
    if score == threshold:
        digits = 2
    return wording.BANNER_SCORE.format(
        score=format(score, f".{digits}f"), threshold=format(threshold, f".{digits}f")
    )


def _area(measured: Measured) -> str:
    area_px = _spaced(measured.area_px)
    if measured.area_mm2 is None:
        return wording.BANNER_NO_SPACING.format(area_px=area_px)

    phrase = wording.BANNER_AREA
    if measured.area_estimated:
        phrase = wording.BANNER_ESTIMATED_AREA
    return phrase.format(area_px=area_px, area_mm2=_spaced(measured.area_mm2))


def _date(header: Dataset) -> Fact:
    for label, prefix in (("Acquired", "Acquisition"), ("Study date", "Study")):
        date = str(header.get(f"{prefix}Date") or "")
        if not has_usable(header, f"{prefix}Date") or len(date) != 8:
            continue

        time = str(header.get(f"{prefix}Time") or "")
        if not has_usable(header, f"{prefix}Time") or len(time) < 4:
            return label, f"{date[:4]}-{date[4:6]}-{date[6:]}"
        return label, f"{date[:4]}-{date[4:6]}-{date[6:]} {time[:2]}:{time[2:4]}"

    return "Acquired", wording.BANNER_NO_DATE


def _spaced(number: float) -> str:
    """A whole number with a space between groups of three digits."""
    return format(number, ",.0f").replace(",", " ")
