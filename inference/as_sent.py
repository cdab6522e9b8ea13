"""Attributes that are copied as the bytes in which they arrived.

Consoles write names in character sets that their header does not state, or that do not exist.
Decoding and re-encoding would change or lose such text. So a result carries the source's own bytes
for patient and study, with the source's SpecificCharacterSet, and an archive reads the same in
both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any, Literal

from pydicom import DataElement, Dataset, FileDataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import VR

# PS3.5 6.1.2.1: without a Specific Character Set, text is ASCII.
_DEFAULT_CHARACTER_SET = "ISO_IR 6"
# Tag and length of an element in Implicit VR (PS3.5 7.1.3).
_IMPLICIT_HEADER_BYTES = 8
# VRs with a length field of four bytes, and the longest values of both kinds (PS3.5 7.1.2).
_LONG_VRS = frozenset((
    "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV",
))  # fmt: skip
_LONGEST = (0xFFFE, 0xFFFFFFFE)
# Padding of a text to even length (PS3.5 6.2).
_PADDING = dict.fromkeys(("CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UT"), b" ")
_PADDING["UI"] = b"\0"
# Numbers as `struct` packs them (PS3.5 6.2).
_BINARY = {"FD": "d", "FL": "f", "SL": "l", "SS": "h", "UL": "L", "US": "H"}
# (FFFE,E000)
_ITEM_TAG = b"\xfe\xff\x00\xe0"


class AsSent(DataElement):
    """An element that also holds the bytes of its value.

    `sent` is None once the value has been changed.
    """

    def __init__(self, element: DataElement, sent: bytes | None) -> None:
        """`sent` is the value as it was read, its padding included."""
        super().__init__(element.tag, element.VR, element.value, already_converted=True)
        self.sent = sent

    @property
    def value(self) -> Any:
        """The decoded value."""
        return super().value

    @value.setter
    def value(self, value: Any) -> None:
        DataElement.value.fset(self, value)  # type: ignore[attr-defined]
        self.sent = None


def keep_bytes(dataset: FileDataset, keywords: Iterable[str], data: bytes) -> None:
    """Let the top-level elements with these keywords keep their bytes.

    An element that cannot be decoded is left for its reader to find.

    Args:
        dataset: just read, from nothing but `data`.
        data: the whole file.
    """
    for keyword in keywords:
        tag = tag_of(keyword)
        if tag not in dataset:
            continue

        element = dataset.get_item(tag)
        if isinstance(element, RawDataElement):
            sent = element.value
        else:
            # The character set, for example, is decoded while the file is read.
            is_little_endian = dataset.original_encoding[1]
            sent = _value_at(data, element.file_tell, element.VR, is_little_endian)
        # On arbitrary bytes the parser may raise anything.
        with suppress(Exception):
            dataset[tag] = AsSent(dataset[tag], sent)


def _value_at(data: bytes, start: int | None, vr: str, little_endian: bool | None) -> bytes | None:
    """The value that starts there, if its length precedes it (PS3.5 7.1.2, 7.1.3).

    The bytes themselves say whether their VR precedes the length: pydicom reads a data set in the
    other encoding than its transfer syntax as well.
    """
    if not start:
        return None
    length_bytes = 2 if data[start - 4 : start - 2] == vr.encode() else 4
    order: Literal["little", "big"] = "little" if little_endian else "big"
    length = int.from_bytes(data[start - length_bytes : start], order)
    return data[start : start + length]


def bytes_of(dataset: Dataset, keyword: str) -> bytes:
    """The value of a top-level element: the bytes received, else re-encoded; b"" if absent."""
    tag = tag_of(keyword)
    if tag not in dataset:
        return b""

    element = dataset[tag]
    sent = sent_bytes(element)
    if sent is not None:
        return sent

    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = True
    write_data_element(buffer, element, _character_set(dataset))
    return buffer.getvalue()[_IMPLICIT_HEADER_BYTES:]


def sent_bytes(element: DataElement) -> bytes | None:
    """The bytes in which an element's value arrived; None if they are not known."""
    return element.sent if isinstance(element, AsSent) else None


def even(value: bytes) -> bytes:
    """The value of a text element, padded to an even length (PS3.5 6.2)."""
    return value + b" " * (len(value) % 2)


def encoded(dataset: Dataset) -> bytes:
    """The data set in Explicit VR Little Endian; elements that kept their bytes are copied.

    Every sequence and item has a defined length.

    Raises:
        ValueError: an element's VR is one of several ("US or SS").
    """
    return _encoded(dataset, _character_set(dataset))


def _encoded(dataset: Dataset, character_set: str | list[str]) -> bytes:
    parts: list[bytes] = []

    for element in sorted(dataset.values(), key=tag_number):
        if isinstance(element, RawDataElement) and not _is_explicit_little_endian(element):
            element = dataset[element.tag]

        value = _value(element, character_set)
        if value is not None and len(value) <= _LONGEST[element.VR in _LONG_VRS]:
            parts += (_header(element.tag, str(element.VR), len(value)), value)
        else:
            parts.append(_written(element, character_set))

    return b"".join(parts)


def tag_number(element: DataElement | RawDataElement) -> int:
    """The tag as a plain number, because pydicom compares tags in Python code."""
    return int(element.tag)


def _written(element: DataElement | RawDataElement, character_set: str | list[str]) -> bytes:
    """The whole element as pydicom's own writer writes it."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = False
    write_data_element(buffer, element, character_set)
    return buffer.getvalue()


def _value(element: DataElement | RawDataElement, character_set: str | list[str]) -> bytes | None:
    """The encoded value, if pydicom is not needed to encode it; None otherwise."""
    if len(element.VR or "") != 2:
        return None
    if isinstance(element, RawDataElement):
        value = element.value or b""
        return value if element.length == len(value) else None

    sent = sent_bytes(element)
    if sent is not None:
        return even(sent)
    # pydicom's own writer searches a whole sequence for ambiguous VRs at each of its levels, which
    # takes as long as everything else.
    if element.VR == VR.SQ:
        return b"".join(as_item(_encoded(item, character_set)) for item in element.value)
    if element.is_empty:
        return b""
    if element.VR in ("OB", "OW") and isinstance(element.value, bytes):
        padded = element.value + b"\0" * (len(element.value) % 2)
        return None if element.is_undefined_length else padded
    return _plain_value(element.VR, element.value)


def _plain_value(vr: str, value: Any) -> bytes | None:
    """The encoded numbers, or texts in ASCII, of an element; None for any others."""
    values = value if isinstance(value, (list, MultiValue)) else [value]

    if vr in _BINARY and all(isinstance(one, (int, float)) for one in values):
        return struct.pack(f"<{len(values)}{_BINARY[vr]}", *values)

    # Our own texts, hundreds in each object, are ASCII in any character set.
    if vr in _PADDING and all(isinstance(one, str) for one in values):
        text, padding = "\\".join(values), _PADDING[vr]
    elif vr in ("DS", "IS"):
        # A number that was given as text is written as this text.
        text = "\\".join(getattr(one, "original_string", None) or str(one) for one in values)
        padding = b" "
    else:
        return None
    if not text.isascii() or "\x1b" in text:
        return None
    return text.encode() + padding * (len(text) % 2)


def _header(tag: BaseTag, vr: str, length: int) -> bytes:
    """Tag, VR and length of an element (PS3.5 7.1.2)."""
    group, number = tag >> 16, tag & 0xFFFF
    if vr in _LONG_VRS:
        return struct.pack("<HH2s2xL", group, number, vr.encode(), length)
    return struct.pack("<HH2sH", group, number, vr.encode(), length)


def _is_explicit_little_endian(raw: RawDataElement) -> bool:
    """True if an element that has not been decoded can be written as it is."""
    has_length = raw.VR != VR.SQ or raw.length == len(raw.value or b"")
    return bool(raw.VR and has_length and raw.is_little_endian and not raw.is_implicit_VR)


def as_bytes(keyword: str, value: bytes) -> RawDataElement:
    """An element in Explicit VR Little Endian, from an encoded value.

    pydicom decodes it when it is read. It cannot be changed, so several data sets may share it.

    Args:
        keyword: of the standard's dictionary.
        value: of even length (PS3.5 7.1.1).
    """
    tag = tag_of(keyword)
    return RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def as_item(content: bytes) -> bytes:
    """An item of a sequence (PS3.5 7.5)."""
    return _ITEM_TAG + len(content).to_bytes(4, "little") + content


@cache
def tag_of(keyword: str) -> BaseTag:
    """The tag of a keyword of the standard's dictionary."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return Tag(tag)


def _character_set(dataset: Dataset) -> str | list[str]:
    """The character set of texts that did not keep their bytes."""
    stated: str | list[str] = dataset.get("SpecificCharacterSet") or _DEFAULT_CHARACTER_SET
    return stated
