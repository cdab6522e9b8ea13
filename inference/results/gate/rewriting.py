"""Every element of an object is decoded, and written again from its value.

Consecutive objects hold the same codes, names and constants. What an element decodes to, and is
written as, depends only on its tag, VR and bytes, so it is computed once and cached.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import BaseTag

from inference.as_sent import tag_number

# Our own text is ASCII, so that every character set writes it alike.
_CHARACTER_SET = "iso8859"
# Longer values are pixels and contours, which do not recur.
_KEPT_BYTES = 192
_KEPT_ELEMENTS = 2048
# The numbers of these VRs are the same bytes whether they were decoded or not.
NUMBER_BYTES = {"FD": 8, "FL": 4, "SL": 4, "SS": 2, "UL": 4, "US": 2}
# VR and two reserved bytes (PS3.5 7.1.2).
_SEQUENCE = b"SQ\0\0"
# (FFFE,E000)
_ITEM_TAG = b"\xfe\xff\x00\xe0"


def written_again(dataset: Dataset, without: Collection[BaseTag] = ()) -> bytes:
    """What pydicom writes, in Explicit VR Little Endian, from the values of the data set, which has
    just been read; sequences and items with a defined length.

    Decodes the data set in place, but for long lists of binary numbers. The decoded elements are
    shared with other data sets and must not be changed.

    Args:
        without: tags of the data set's own elements that are left out.

    Raises:
        Exception: whatever pydicom raises for a value that it cannot decode or write.
    """
    elements = sorted(dataset.values(), key=tag_number)
    return b"".join(_element(dataset, each) for each in elements if each.tag not in without)


def _element(dataset: Dataset, raw: DataElement | RawDataElement) -> bytes:
    if isinstance(raw, RawDataElement) and _is_kept(raw):
        element, written = _known(int(raw.tag), str(raw.VR), raw.value or b"")
        dataset[raw.tag] = element
        return written
    if isinstance(raw, RawDataElement) and _is_many_numbers(raw):
        return _encoded(raw)

    return _decoded(dataset[raw.tag])


def _decoded(element: DataElement) -> bytes:
    """The element as it is written, item by item where it is a sequence."""
    if element.VR != "SQ":
        return _encoded(element)
    items = [written_again(item) for item in element.value]
    content = b"".join(_ITEM_TAG + len(item).to_bytes(4, "little") + item for item in items)
    tag = element.tag
    words = (tag.group.to_bytes(2, "little"), tag.element.to_bytes(2, "little"), _SEQUENCE)
    return b"".join((*words, len(content).to_bytes(4, "little"), content))


def _is_kept(raw: RawDataElement) -> bool:
    """True if the element depends only on its bytes.

    It is short, has a stated VR, and no letters or escapes of another character set. A sequence is
    kept whole.
    """
    value = raw.value or b""
    if len(value) > _KEPT_BYTES or raw.VR in (None, "UN"):
        return False
    if raw.is_implicit_VR or not raw.is_little_endian:
        return False

    letters = value.replace(_ITEM_TAG, b"") if raw.VR == "SQ" else value
    return letters.isascii() and b"\x1b" not in letters


def _is_many_numbers(raw: RawDataElement) -> bool:
    size = NUMBER_BYTES.get(str(raw.VR))
    return size is not None and raw.is_little_endian and len(raw.value or b"") % size == 0


@lru_cache(_KEPT_ELEMENTS)
def _known(tag: int, vr: str, value: bytes) -> tuple[DataElement, bytes]:
    """The element of these bytes, decoded, and as it is written from its value."""
    raw = RawDataElement(BaseTag(tag), vr, len(value), value, 0, False, True)
    element = convert_raw_data_element(raw, encoding=[_CHARACTER_SET])
    return element, _decoded(element)


def _encoded(element: DataElement | RawDataElement) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = False
    write_data_element(buffer, element, [_CHARACTER_SET])
    return buffer.getvalue()
