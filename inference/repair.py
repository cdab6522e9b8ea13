"""Repair files that the parser rejects: one malformed element must not cost the image.

The parser stops at a sequence whose delimiters do not match, at an element whose length is wrong,
and at Pixel Data without a sequence delimiter. In each of these cases the picture is intact.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.datadict import dictionary_has_tag
from pydicom.valuerep import VR

_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA_TAG = struct.pack("<HH", 0x7FE0, 0x0010)
_DELIMITER = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
_VRS = {vr.value.encode() for vr in VR if len(vr.value) == 2}
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT",
             b"UV"}  # fmt: skip
_MAX_DEPTH = 16
# The search for the next element ends here; a radiograph's header is a few kilobytes.
_SEARCHED_BYTES = 1 << 20
_MAX_READS = 400_000


class _MalformedError(Exception):
    """No element can be read here."""


@dataclass(frozen=True)
class _Element:
    """The place of one top-level element in the file."""

    tag: int
    start: int
    value: int
    end: int
    # Encapsulated Pixel Data that ends without its sequence delimiter.
    is_open: bool = False


def repaired(data: bytes, start: int) -> tuple[bytes, tuple[str, ...]]:
    """The file without its malformed elements, and with its Pixel Data closed; notes by tag.

    Little endian files only; others, and files without a known fault, are returned unchanged and
    without notes.

    Args:
        data: the file.
        start: where its data set begins.
    """
    reader = _Reader(data, explicit=data[start + 4 : start + 6] in _VRS)
    kept: list[tuple[int, int]] = [(0, start)]
    notes = []
    before: _Element | None = None
    position = start

    while position < len(data):
        try:
            element = reader.element(position, after=before.tag if before else 0)
        except _MalformedError:
            tag = reader.tag(position)
            # The file is cut off in its pixels.
            if tag == _PIXEL_DATA:
                break
            named = tag is not None and (before is None or tag > before.tag) and reader.names(tag)
            resumed = reader.resume(before.value if before else start, before.tag if before else 0)
            if resumed is None:
                break

            # Either this element is at fault, or the length of the previous one.
            if before is not None and (resumed <= position or not named):
                kept.pop()
                notes.append(f"{_shown(before.tag)} malformed, left out")
            else:
                notes.append(f"{_shown(tag or 0)} malformed, left out")
            before = None
            position = resumed
            continue

        kept.append((element.start, element.end))
        before = element
        position = element.end
        if element.tag == _PIXEL_DATA:
            break

    if before is None or before.tag != _PIXEL_DATA:
        return data, ()
    if before.is_open:
        notes.append("Pixel Data lacks its sequence delimiter")
    if not notes:
        return data, ()

    whole = b"".join(data[first:last] for first, last in kept)
    return whole + (_DELIMITER if before.is_open else b""), tuple(notes)


def _shown(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


class _Reader:
    """Finds where elements begin and end; reads no values."""

    def __init__(self, data: bytes, explicit: bool) -> None:
        self._data = data
        self._explicit = explicit
        # How many elements may still be read, so that a hostile file cannot make the search
        # endless.
        self._budget = _MAX_READS

    def tag(self, position: int) -> int | None:
        """The tag at this position; None at the end of the file."""
        if position + 8 > len(self._data):
            return None
        group, element = struct.unpack_from("<HH", self._data, position)
        return int(group << 16 | element)

    def names(self, tag: int) -> bool:
        """Whether the tag is in the data dictionary, or private."""
        return bool(tag >> 16 & 1) or dictionary_has_tag(tag)

    def element(self, position: int, after: int, depth: int = 0) -> _Element:
        """The element at this position, whose tag must follow `after`.

        Raises:
            _MalformedError: there is no such element, or its end cannot be found.
        """
        self._budget -= 1
        tag = self.tag(position)
        if self._budget < 0 or tag is None or tag <= after or tag >= _ITEM:
            raise _MalformedError
        value, length, vr = self._header(position, tag)

        if length != _UNDEFINED:
            end = value + length
            if end > len(self._data):
                raise _MalformedError
            return _Element(tag, position, value, end)

        if tag == _PIXEL_DATA:
            end, is_open = self._fragments_end(value)
            return _Element(tag, position, value, end, is_open)
        if vr not in (b"SQ", b"UN", None):
            raise _MalformedError
        return _Element(tag, position, value, self._sequence_end(value, depth))

    def _header(self, position: int, tag: int) -> tuple[int, int, bytes | None]:
        """(start of the value, length, VR); the VR is None in an implicit file."""
        data = self._data
        if not self._explicit:
            if not self.names(tag):
                raise _MalformedError
            (length,) = struct.unpack_from("<L", data, position + 4)
            return position + 8, length, None

        vr = data[position + 4 : position + 6]
        if vr not in _VRS:
            raise _MalformedError
        if vr not in _LONG_VRS:
            (length,) = struct.unpack_from("<H", data, position + 6)
            return position + 8, length, vr
        if position + 12 > len(data):
            raise _MalformedError
        (length,) = struct.unpack_from("<L", data, position + 8)
        return position + 12, length, vr

    def _sequence_end(self, position: int, depth: int) -> int:
        if depth > _MAX_DEPTH:
            raise _MalformedError

        while True:
            tag = self.tag(position)
            if tag == _SEQUENCE_END:
                return position + 8
            if tag != _ITEM:
                raise _MalformedError
            (length,) = struct.unpack_from("<L", self._data, position + 4)
            position += 8
            position = (
                self._item_end(position, depth) if length == _UNDEFINED else position + length
            )

    def _item_end(self, position: int, depth: int) -> int:
        last = 0
        while self.tag(position) != _ITEM_END:
            element = self.element(position, last, depth + 1)
            last = element.tag
            position = element.end
        return position + 8

    def _fragments_end(self, position: int) -> tuple[int, bool]:
        """(the end of the fragments, whether their sequence delimiter is missing)."""
        while self.tag(position) == _ITEM:
            (length,) = struct.unpack_from("<L", self._data, position + 4)
            position += 8 + length

        if self.tag(position) == _SEQUENCE_END:
            return position + 8, False
        if position > len(self._data):
            raise _MalformedError
        return position, True

    def resume(self, position: int, after: int) -> int | None:
        """The first position from which well-formed elements lead to Pixel Data."""
        # Without Pixel Data ahead the search cannot succeed.
        last = self._data.rfind(_PIXEL_DATA_TAG, position, position + _SEARCHED_BYTES)
        for candidate in range(position, last + 1, 2):
            if self._budget < 0:
                return None
            if self._leads_to_pixels(candidate, after):
                return candidate
        return None

    def _leads_to_pixels(self, position: int, after: int) -> bool:
        last = after
        try:
            while last != _PIXEL_DATA:
                element = self.element(position, last)
                last = element.tag
                position = element.end
        except _MalformedError:
            return False
        return True
