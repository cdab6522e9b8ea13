"""The gate's rules for text and codes, in objects of any kind: no patient's value hides in either."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import DataElement, Dataset

from inference.radiograph import COPIED_KEYWORDS
from inference.results import content, pr, sr
from inference.results.identity import DISCLAIMER, MANUFACTURER, PLEURA_VERSION, Case
from inference.results.source import orientation

DESCRIPTIONS = {"SEG": "region", "SC": "overlay", "SR": "report", "PR": "contours"}
TEXT_VRS = ("LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
CODE_KEYWORDS = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
CODES = {code for code in vars(content).values() if isinstance(code, tuple) and len(code) == 3} | {
    *content.SIDES.values(), *content.MODALITIES.values(), ("109102", "DCM", "Processing Equipment"),
    ("113076", "DCM", "Segmentation"), ("113085", "DCM", "Spatial resampling"), ("113040", "DCM", "Lossy Compression"),
    ("121322", "DCM", "Source image for image processing operation"),
}  # fmt: skip


def _words(dataset: Dataset, case: Case) -> Iterator[str]:
    """Text is one of our own words where it stands, and every code is one of ours: no value hides in either."""
    allowed = _own_words(case)
    for element in dataset.iterall():
        if element.VR not in TEXT_VRS or element.is_empty:
            continue
        if element.keyword in COPIED_KEYWORDS:
            if not same(element, case.header):
                yield f"{element.keyword} is not the source's"
        elif element.keyword in CODE_KEYWORDS:
            continue  # as a whole, below
        elif element.keyword not in allowed:
            yield f"{element.tag} {element.keyword} holds text where none belongs"
        elif (
            not {*(element.value if element.VM > 1 else [element.value])}
            <= allowed[element.keyword]
        ):
            yield f"{element.keyword} does not hold our words"
    for item in (dataset, *items(dataset)):
        code = tuple(item.get(keyword) for keyword in CODE_KEYWORDS)
        if any(code) and code not in CODES:
            yield "a code that is none of ours, or means something else"


def _own_words(case: Case) -> dict[str, set[str]]:
    """What each attribute with text may say: a constant, or the model's and Pleura's own names.

    What an SR may say where is for its own rules; here a sentence is one of its sentences.
    """
    software = {f"Pleura {PLEURA_VERSION}", f"model {case.model.version}"}
    derived = [
        f"Banner added below the radiograph{resampled}{drawn}; JPEG quality {case.appearance.jpeg_quality}"
        for resampled in ("", "; radiograph resampled")
        for drawn in ("", "; contour of the segmented region drawn")
    ]
    names = {lesion.tracking_id for lesion in case.lesions}
    sentences = {
        *sr.statements(case),
        MANUFACTURER,
        case.model.id,
        case.model.version,
        case.model.digest[:16],
    }
    if case.finding is not None:
        sentences.add(f"positive from {sr.percent(case.finding.threshold)} %")
    return {
        "Manufacturer": {MANUFACTURER},
        "ManufacturerModelName": {case.model.id},
        "DeviceSerialNumber": {case.model.digest[:16]},
        "SoftwareVersions": software,
        "SeriesDescription": {
            f"Pneumothorax {what}. {DISCLAIMER}" for what in DESCRIPTIONS.values()
        },
        "ContributionDescription": {"Pneumothorax detection and segmentation"},
        "TimezoneOffsetFromUTC": {str(case.header.get("TimezoneOffsetFromUTC")).strip()},
        "ContentDescription": {f"Pneumothorax, automatic. {DISCLAIMER}"},
        "SegmentLabel": names,
        "TrackingID": names,
        "SegmentAlgorithmName": {case.model.id},
        "AlgorithmName": {case.model.id},
        "AlgorithmVersion": {case.model.version},
        "DimensionDescriptionLabel": {"Referenced Segment Number", "Image Position Patient"},
        "DerivationDescription": {*derived},
        "SecondaryCaptureDeviceManufacturer": {MANUFACTURER},
        "SecondaryCaptureDeviceManufacturerModelName": {case.model.id},
        "SecondaryCaptureDeviceSoftwareVersions": software,
        "GraphicLayerDescription": {"Pneumothorax, automatic"},
        "RescaleType": {*pr.RESCALE_TYPES},
        "ModalityLUTType": {"US"},
        "TextValue": sentences | names | {*(orientation(case.header) or ())},
        "UnformattedTextValue": {pr.text(case)} if case.lesions else set(),
    }


def items(dataset: Dataset) -> Iterator[Dataset]:
    """Every item of every sequence, at any depth."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from items(item)


def same(element: DataElement, header: Dataset) -> bool:
    return element.tag in header and str(header[element.tag].value) == str(element.value)


RULES = (_words,)
