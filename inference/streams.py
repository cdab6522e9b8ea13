"""Encapsulated Pixel Data (PS3.5 A.4): one frame's stream, and what the stream states about its
image.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

_ITEM = b"\xfe\xff\x00\xe0"
_EOI = b"\xff\xd9"  # JPEG's and JPEG-LS' end of image, JPEG 2000's end of codestream
_SOI = b"\xff\xd8"
_SIZ = b"\xff\x4f\xff\x51"  # SOC and SIZ, ISO 15444-1 A.5.1
_JPEG_2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
_SIZ_WITHIN_BYTES = 4096

# The start of frame of each process (ISO 10918-1 Table B.1, ISO 14495-1), and a transfer syntax for
# it. A JPEG 2000 stream has the second byte of SOC.
_JPEG_2000_PROCESS = 0x4F
_SYNTAX_OF_PROCESS = {
    0xC0: JPEGBaseline8Bit,
    0xC1: JPEGExtended12Bit,
    0xC3: JPEGLossless,
    0xF7: JPEGLSLossless,
    _JPEG_2000_PROCESS: JPEG2000,
}
# Baseline is a subset of extended.
_PROCESSES_OF_SYNTAX: dict[str, tuple[int, ...]] = {
    JPEGBaseline8Bit: (0xC0,),
    JPEGExtended12Bit: (0xC0, 0xC1),
    JPEGLossless: (0xC3,),
    JPEGLosslessSV1: (0xC3,),
    JPEGLSLossless: (0xF7,),
    JPEGLSNearLossless: (0xF7,),
    **dict.fromkeys(_JPEG_2000, (_JPEG_2000_PROCESS,)),
}


@dataclass(frozen=True)
class Frame:
    """The stream of an image's single frame, and notes on how it was wrapped unusually."""

    stream: bytes
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Announced:
    """The image that a stream announces in its frame header."""

    rows: int
    columns: int
    components: int
    bits: int
    # The start of frame marker's second byte.
    process: int


def frame_of(pixel_data: bytes, syntax: UID) -> Frame:
    """Join the fragments of an image with one frame.

    With one frame, all fragments belong to it, so the Basic Offset Table is not needed: wrong
    offsets, an offset for each fragment, and a frame header beyond the first fragment do no harm.

    Raises:
        ValueError: no fragment is found.
    """
    items = _items(pixel_data)
    if len(items) < 2:
        raise ValueError("no fragment in Pixel Data")

    notes = []
    table, *fragments = items
    if len(table) > 4:
        notes.append("the Basic Offset Table has more offsets than the image has frames")

    stream = b"".join(fragments)
    begins_whole = announced(fragments[0]) is not None
    if len(fragments) > 1 and not begins_whole and announced(stream) is not None:
        notes.append("the frame header is not in the first fragment")

    if syntax in _JPEG_2000:
        stream = _with_end_of_codestream(stream, notes)
    elif stream[:2] == _SOI:
        stream = _without_padding(stream, notes)
    return Frame(stream, tuple(notes))


def _items(pixel_data: bytes) -> list[bytes]:
    """The values of the items, the Basic Offset Table first, until something is not an item."""
    items = []
    position = 0
    while pixel_data[position : position + 4] == _ITEM:
        (length,) = struct.unpack_from("<L", pixel_data, position + 4)
        items.append(pixel_data[position + 8 : position + 8 + length])
        position += 8 + length
    return items


def _without_padding(stream: bytes, notes: list[str]) -> bytes:
    """A JPEG stream up to its end of image; zeros behind it are padding."""
    whole = stream.rstrip(b"\0")
    if not whole.endswith(_EOI):
        return stream
    # PS3.5 A.4: a fragment of odd length is padded by one byte.
    if len(stream) - len(whole) > 1:
        notes.append("zeros follow the end of the JPEG stream")
    return whole


def _with_end_of_codestream(stream: bytes, notes: list[str]) -> bytes:
    """A JPEG 2000 stream, completed if only its end marker is missing.

    The last tile-part must end where the stream ends (Psot, ISO 15444-1 A.4.2): a stream that was
    cut off stays as it is.
    """
    whole = stream[:-1] if stream.endswith(_EOI + b"\0") else stream
    if whole.endswith(_EOI):
        return stream

    position = _first_tile_part(stream)
    while position is not None and stream[position : position + 2] == b"\xff\x90":
        if position + 12 > len(stream):
            return stream
        (length,) = struct.unpack_from(">L", stream, position + 6)
        if length < 14:
            return stream
        position += length

    if position is None or position not in (len(stream), len(stream) - 1):
        return stream
    notes.append("the JPEG 2000 stream lacks its end marker")
    return stream[:position] + _EOI


def _first_tile_part(stream: bytes) -> int | None:
    """The position of the first SOT marker, found by walking the main header's segments."""
    start = stream.find(_SIZ, 0, _SIZ_WITHIN_BYTES)
    if start < 0:
        return None

    position = start + 2
    while position + 4 <= len(stream) and stream[position] == 0xFF:
        if stream[position + 1] == 0x90:
            return position
        position += 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    return None


def announced(stream: bytes) -> Announced | None:
    """The size that a JPEG, JPEG-LS or JPEG 2000 stream announces; None if it cannot be found."""
    # The codestream may be inside JP2 boxes.
    size = stream.find(_SIZ, 0, _SIZ_WITHIN_BYTES)
    if size >= 0 and len(stream) >= size + 43:
        columns, rows, left, top = struct.unpack_from(">4L", stream, size + 8)
        (components,) = struct.unpack_from(">H", stream, size + 40)
        bits = (stream[size + 42] & 0x7F) + 1
        return Announced(rows - top, columns - left, components, bits, _JPEG_2000_PROCESS)

    position = 2
    while stream[:2] == _SOI and position + 10 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:
            # A fill byte, ISO 10918-1 B.1.1.2.
            position += 1
        elif _is_frame_header(marker):
            bits, rows, columns, components = struct.unpack_from(">BHHB", stream, position + 4)
            return Announced(rows, columns, components, bits, marker)
        else:
            position += 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    return None


def syntax_of(found: Announced, stated: UID) -> UID:
    """The transfer syntax of a stream: as stated, or by its own process if that differs."""
    if found.process in _PROCESSES_OF_SYNTAX.get(stated, (found.process,)):
        return stated
    return _SYNTAX_OF_PROCESS.get(found.process, stated)


def _is_frame_header(marker: int) -> bool:
    """SOF of ISO 10918-1 Table B.1, or of JPEG-LS (ISO 14495-1 C.1.1)."""
    return marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))


def without_zero_before_end(stream: bytes) -> bytes | None:
    """A JPEG-LS stream without a zero byte before its end marker; None if the marker is absent.

    Some encoders pad the coded data to an even length there, which CharLS refuses.
    """
    if not stream.endswith(b"\0" + _EOI):
        return None
    return stream[:-3] + _EOI
