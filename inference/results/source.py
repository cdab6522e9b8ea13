"""Attributes that results take over from their source's header: only values that the VR allows, and
as they stand there.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from datetime import timedelta, timezone

from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.valuerep import validate_value

from inference.as_sent import AsSent, sent_bytes
from inference.orientation import directions

PATIENT_SEXES = ("M", "F", "O")  # PS3.3 C.7.1.1, enumerated
# What these VRs allow is checkable without knowing the value's language; a value outside is not
# carried on.
FORMAL_VRS = ("AS", "CS", "DA", "DS", "IS", "TM", "UI")
# Carried on even where the VR does not allow the value: the character set says how the archive
# reads the names beside it, and the study is where the result belongs.
ALWAYS_COPIED = ("SpecificCharacterSet", "StudyInstanceUID")
# The offsets from UTC that there are, -1200 to +1400 (PS3.3 C.12.1.1.8).
EARLIEST_OFFSET_MIN = -12 * 60
LATEST_OFFSET_MIN = 14 * 60


def copied(header: Dataset, keyword: str) -> DataElement | None:
    """The source's element, or None if it is absent or its VR does not allow the value; it is never
    repaired. An element that keeps its bytes (as_sent.py) keeps them in the copy.
    """
    tag = tag_for_keyword(keyword)
    assert tag is not None
    if tag not in header or header[tag].is_empty:
        return None

    vr = dictionary_VR(tag)
    element = header[tag]
    values = element.value if element.VM > 1 else [element.value]
    if vr != element.VR and not all(isinstance(value, str) for value in values):
        return None
    if vr in FORMAL_VRS and keyword not in ALWAYS_COPIED and not _is_formal(keyword, vr, values):
        return None

    # A copy of the element, not of its value: a PersonName keeps the very bytes it came in.
    if vr == element.VR:
        return copy.copy(element)
    return AsSent(DataElement(tag, vr, element.value), sent_bytes(element))


def _is_formal(keyword: str, vr: str, values: Sequence[object]) -> bool:
    """True if the VR allows these values of an attribute."""
    try:
        for value in values:
            validate_value(vr, str(value), config.RAISE)
    except ValueError:
        return False

    # A range is for queries only (PS3.4 C.2.2.2.5).
    if vr in ("DA", "TM") and any("-" in str(value) for value in values):
        return False
    return keyword != "PatientSex" or (len(values) == 1 and values[0] in PATIENT_SEXES)


def orientation(header: Dataset) -> list[str] | None:
    """The source's PatientOrientation, of the row and of the column; None where it states none."""
    stated = directions(header.get("PatientOrientation"))
    return None if stated is None else list(stated)


def lossy_history(header: Dataset) -> list[tuple[str, str]]:
    """The (ratio, method) of each lossy step the source went through, oldest first, "" where it
    does not say.

    PS3.3 C.7.6.1.1.5: whatever is derived from lossy pixels carries their history on; ratios and
    methods correspond by position, so a gap in one list holds its place.
    """
    if header.get("LossyImageCompression") != "01":
        return []

    ratios = _values(copied(header, "LossyImageCompressionRatio"))
    methods = _values(copied(header, "LossyImageCompressionMethod"))
    return list(itertools.zip_longest(ratios, methods, fillvalue="")) or [("", "")]


def _values(element: DataElement | None) -> list[str]:
    """The values of an element as texts; none where it is absent or empty."""
    if not element:
        return []
    values = element.value if element.VM > 1 else [element.value]
    return [str(value) for value in values]


def utc_offset(header: Dataset) -> timezone | None:
    """The source's TimezoneOffsetFromUTC (0008,0201): all its dates and times are in it, so ours
    must be as well.
    """
    text = str(header.get("TimezoneOffsetFromUTC") or "").strip()
    match = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", text)
    if match is None:
        return None

    sign = -1 if match[1] == "-" else 1
    minutes = sign * (int(match[2]) * 60 + int(match[3]))
    if not EARLIEST_OFFSET_MIN <= minutes <= LATEST_OFFSET_MIN:
        return None
    return timezone(timedelta(minutes=minutes))
