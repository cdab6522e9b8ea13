"""The gate's rules for text and codes: no patient's value hides in either.

Also the sentences that a case's objects must contain, with figures that the gate computes itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement

from inference.as_sent import sent_bytes, tag_of
from inference.finding import State
from inference.radiograph import COPIED_KEYWORDS
from inference.results import codes, wording
from inference.results.case import Case
from inference.results.gate.expected import Expected, Rule
from inference.results.gate.header import directions_of, values_of
from inference.results.gate.regions import Measured
from inference.results.kinds import KINDS
from inference.results.limits import RESCALE_TYPES
from inference.results.uids import PLEURA_VERSION
from inference.results.wording import DISCLAIMER, MANUFACTURER

TEXT_VRS = ("LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
CODE_KEYWORDS = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
CODE_TAGS = frozenset(tag_of(keyword) for keyword in CODE_KEYWORDS)
CODES = codes.every()


# ---- the sentences


def sentences(expected: Expected) -> list[str]:
    """The sentences of a report about this case, in order."""
    case = expected.case
    said = [_answer(case)]
    if case.finding is not None:
        score, threshold = percent(case.finding.probability), percent(case.finding.threshold)
        words = wording.PROBABILITY if case.finding.calibrated else wording.SCORE
        said.append(words.format(score=score, threshold=threshold))
        if expected.measured is not None and case.finding.measurement is not None:
            said.append(_figures(expected.measured))

    said += [wording.NOTE.format(note=note) for note in case.notes]
    return [*said, f"{DISCLAIMER}."]


def _answer(case: Case) -> str:
    if case.no_finding is not None:
        what = wording.NOT_ANALYSED
        if case.no_finding.state is State.FAILED:
            what = wording.FAILED
        reason = case.no_finding.sentence.rstrip(".")
        return wording.WITHOUT_FINDING.format(what=what, sentence=reason)

    assert case.finding is not None  # Case holds one of the two
    if not case.finding.positive:
        return wording.NOT_DETECTED
    return wording.SUSPECTED if case.segmented is not None else wording.SUSPECTED_WITHOUT_REGION


def _figures(measured: Measured) -> str:
    plural = "" if measured.regions == 1 else "s"
    regions = wording.REGIONS.format(
        regions=measured.regions, plural=plural, area_px=measured.area_px
    )

    column, row = measured.centroid_px
    centroid = wording.CENTROID.format(column=column, row=row)

    top, left, bottom, right = measured.extent_px
    extent = wording.EXTENT.format(left=left, right=right, top=top, bottom=bottom)

    rows, columns = measured.spread_px
    spread = wording.SPREAD.format(columns=columns, rows=rows)
    return f"{regions}; {centroid}; {extent}; {spread}. {wording.COUNTED_FROM}"


def percent(part: float) -> str:
    """A fraction as per cent, with at most four decimals and no trailing zeros."""
    return f"{round(part * 100, 4):.4f}".rstrip("0").rstrip(".")


def graphic_text(case: Case) -> str:
    """The text beside the contours of a presentation state."""
    return wording.GRAPHIC_TEXT.format(model=case.model.id, version=case.model.version)


# ---- the rules


@dataclass(frozen=True)
class _Vocabulary:
    """The text that each attribute may hold: a constant, or the model's and Pleura's names."""

    allowed: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, expected: Expected) -> _Vocabulary:
        case = expected.case
        software = {f"Pleura {PLEURA_VERSION}", f"model {case.model.version}"}
        descriptions = {f"{kind.series_description}. {DISCLAIMER}" for kind in KINDS.values()}
        names = {region.tracking_id for region in expected.regions}
        model = {case.model.id, case.model.version, case.model.digest[:16]}
        report = {*sentences(expected), MANUFACTURER, *(directions_of(case.header) or ())}
        if case.finding is not None:
            threshold = percent(case.finding.threshold)
            report.add(wording.OPERATING_POINT.format(threshold=threshold))

        return cls({
            "Manufacturer": {MANUFACTURER},
            "ManufacturerModelName": {case.model.id},
            "DeviceSerialNumber": {case.model.digest[:16]},
            "SoftwareVersions": software,
            "SeriesDescription": descriptions,
            "ContributionDescription": {wording.CONTRIBUTION},
            "TimezoneOffsetFromUTC": {str(case.header.get("TimezoneOffsetFromUTC")).strip()},
            "ContentDescription": {wording.CONTENT_DESCRIPTION},
            "SegmentLabel": names,
            "TrackingID": names,
            "SegmentAlgorithmName": {case.model.id},
            "AlgorithmName": {case.model.id},
            "AlgorithmVersion": {case.model.version},
            "DimensionDescriptionLabel": {"Referenced Segment Number", "Image Position Patient"},
            "DerivationDescription": _derivations(case),
            "SecondaryCaptureDeviceManufacturer": {MANUFACTURER},
            "SecondaryCaptureDeviceManufacturerModelName": {case.model.id},
            "SecondaryCaptureDeviceSoftwareVersions": software,
            "GraphicLayerDescription": {wording.LAYER_DESCRIPTION},
            "RescaleType": {*RESCALE_TYPES},
            "ModalityLUTType": {"US"},
            "TextValue": report | names | model,
            "UnformattedTextValue": {graphic_text(case)} if expected.regions else set(),
        })  # fmt: skip


def _derivations(case: Case) -> set[str]:
    """Every description of how an overlay of the case may have been derived."""
    quality = wording.QUALITY.format(quality=case.appearance.jpeg_quality)
    return {
        "; ".join([wording.BANNER_ADDED, *resampled, *drawn, quality])
        for resampled in ((), (wording.RESAMPLED,))
        for drawn in ((), (wording.CONTOUR_DRAWN,))
    }


def _words(_: Dataset, expected: Expected) -> Iterator[str]:
    """Text is one of our own phrases where it stands, and every code is one of ours."""
    allowed = _Vocabulary.of(expected).allowed
    for element in expected.elements:
        if element.VR not in TEXT_VRS or isinstance(element, RawDataElement):
            continue
        # Codes are checked as a whole, below; the source's own bytes in common.py.
        if element.tag in CODE_TAGS or sent_bytes(element) is not None:
            continue
        values = values_of(element)
        if not values:
            continue

        keyword = element.keyword
        if keyword in COPIED_KEYWORDS:
            if not same(element, expected.case.header):
                yield f"{keyword} is not the source's"
        elif keyword not in allowed:
            yield f"{element.tag} {keyword} holds text where none belongs"
        elif not {*values} <= allowed[keyword]:
            yield f"{keyword} does not hold our words"
        elif not all(str(value).isascii() for value in values):
            yield f"{keyword} does not fit every character set; ASCII does"

    # Many items are one and the same (rewriting.py), and most have no code: asking for each keyword
    # costs more than all the rest.
    for item in {id(item): item for item in expected.items}.values():
        if CODE_TAGS.isdisjoint(item.keys()):
            continue
        code = tuple(item.get(keyword) for keyword in CODE_KEYWORDS)
        if any(code) and code not in CODES:
            yield "a code that is not ours, or means something else"


def same(element: DataElement, header: Dataset) -> bool:
    """True if the source has this very value."""
    return element.tag in header and str(header[element.tag].value) == str(element.value)


RULES: tuple[Rule, ...] = (_words,)
