"""The source's header as the gate reads it, independently of the encoders."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.valuerep import validate_value

# VRs whose allowed values can be checked without knowing the value's language (PS3.5 6.2).
FORMAL_VRS = ("AS", "CS", "DA", "DS", "IS", "TM", "UI")
# Numbers and bytes as they are in memory.
BINARY_VRS = ("AT", "FD", "FL", "OB", "OW", "SL", "SS", "UL", "US")
# The letters of PatientOrientation as the axes that they lie on; no other letter is allowed.
AXES = str.maketrans("LRAPHFXYZ", "XXYYZZ---")
# Of the copied attributes these tell whose image it is: they must be as in the source, even
# malformed.
IDENTIFYING_KEYWORDS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyInstanceUID",
)


def values_of(element: DataElement | None) -> list[object]:
    """The values of an element; none where it is absent or empty."""
    if element is None or element.is_empty:
        return []
    return list(element.value) if element.VM > 1 else [element.value]


def element_of(dataset: Dataset, keyword: str) -> DataElement | None:
    """The element of that name, or None."""
    return dataset[keyword] if keyword in dataset else None  # noqa: SIM401 - get() gives the value


def everything(
    dataset: Dataset,
) -> tuple[tuple[DataElement | RawDataElement, ...], tuple[Dataset, ...]]:
    """The elements of a data set and of its items, at any depth, and the data set with its items.

    What is not decoded stays so. An element that many items share (rewriting.py) comes once.
    """
    elements: dict[int, DataElement | RawDataElement] = {}
    items = [dataset]

    # Grows as items are found.
    for item in items:
        # Iterating over a data set itself decodes it.
        for element in item.values():
            elements[id(element)] = element
            if element.VR == "SQ" and not isinstance(element, RawDataElement):
                items.extend(element.value)

    return tuple(elements.values()), tuple(items)


def singles(dataset: Dataset, keyword: str) -> NDArray[np.float32]:
    """The values of an element of VR FL, (n,); none where it is absent."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    if tag not in dataset:
        return np.empty(0, dtype=np.float32)

    element = dataset.get_item(tag)
    # A contour has thousands of values, which pydicom decodes one by one.
    if isinstance(element, RawDataElement) and element.is_little_endian and element.VR == "FL":
        return np.frombuffer(element.value or b"", dtype="<f4")
    return np.asarray(values_of(dataset[tag]), dtype=np.float32)


def has_value(dataset: Dataset, keyword: str) -> bool:
    """True if the element is there and not empty."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    if tag not in dataset:
        return False

    element = dataset.get_item(tag)
    return bool(element.value) if isinstance(element, RawDataElement) else not element.is_empty


def has_usable(header: Dataset, keyword: str) -> bool:
    """True if the source has a value there that its VR allows, so that a result must carry it."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    values = values_of(element_of(header, keyword))
    vr = dictionary_VR(tag)
    if not values:
        return False
    # It says how to read the names beside it, so even an invalid term is copied.
    if keyword == "SpecificCharacterSet":
        return all(isinstance(value, str) for value in values)
    if vr != header[tag].VR and not all(isinstance(value, str) for value in values):
        return False
    if vr not in FORMAL_VRS:
        return True

    # A range of dates is for queries (PS3.4 C.2.2.2.5).
    if vr in ("DA", "TM") and any("-" in str(value) for value in values):
        return False
    if keyword == "PatientSex" and values not in (["M"], ["F"], ["O"]):
        return False
    return all(_is_valid(vr, str(value)) for value in values)


def is_allowed(vr: str, value: object) -> bool:
    """True if the VR allows the value."""
    return _is_allowed_text(vr, value) if isinstance(value, str) else _is_valid(vr, value)


# Our own texts are the same in every object; a patient's are not kept here.
@lru_cache(4096)
def _is_allowed_text(vr: str, text: str) -> bool:
    return _is_valid(vr, text)


def _is_valid(vr: str, value: object) -> bool:
    try:
        validate_value(vr, value, config.RAISE)
    except ValueError:
        return False
    return True


def directions_of(header: Dataset) -> list[str] | None:
    """PatientOrientation, of the row and of the column; None where it is not two directions.

    A direction has no letter beside its opposite or itself, and the two are perpendicular (PS3.3
    C.7.6.1.1.1).
    """
    elements = values_of(element_of(header, "PatientOrientation"))
    values = [str(value).strip(" ") for value in elements]
    axes = [value.translate(AXES) for value in values]
    allowed = all(re.fullmatch(r"(?:([XYZ])(?!.*\1)){1,3}", axis) for axis in axes)
    if len(values) != 2 or not allowed or axes[0][0] == axes[1][0]:
        return None
    return values


def lossy_steps(header: Dataset) -> list[tuple[str, str]]:
    """(ratio, method) of each lossy compression of the source, "" where it does not say."""
    if header.get("LossyImageCompression") != "01":
        return []

    columns = []
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        values = values_of(element_of(header, keyword)) if has_usable(header, keyword) else []
        columns.append([str(value) for value in values])
    ratios, methods = columns

    count = max(1, len(ratios), len(methods))
    ratios += [""] * (count - len(ratios))
    methods += [""] * (count - len(methods))
    return list(zip(ratios, methods, strict=True))
