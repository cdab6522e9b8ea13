"""JPEG Lossless, and JPEG Extended of 8 and 12 bits: a pydicom decoder plugin over GDCM.

pydicom's own GDCM plugin refuses 12 bits, although GDCM decodes them once it is told the precision
(pixel for pixel like DCMTK and libjpeg-turbo). It also passes streams to GDCM unchecked: a warning
while GDCM reads a header, for example about an odd JFIF version, is a C++ exception that nothing
catches and that ends the process. Here a stream is parsed first, and only what the standard
requires is passed on. No other decoder with a suitable licence supports these processes.
"""

from __future__ import annotations

from typing import Any

import gdcm  # type: ignore[import-untyped]
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import UID, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

DECODER_DEPENDENCIES = dict.fromkeys(
    (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1), ("gdcm>=3.0.10",)
)

# ISO 10918-1 Table B.1: the start of frame of each syntax; baseline is a subset of extended.
_FRAMES = {JPEGExtended12Bit: (0xC0, 0xC1), JPEGLossless: (0xC3,), JPEGLosslessSV1: (0xC3,)}
# Huffman tables, quantisation tables, restart interval.
_TABLES = (0xC4, 0xDB, 0xDD)
# Application data and comments.
_IGNORED = (*range(0xE0, 0xF0), 0xFE)
_SCAN = 0xDA


def is_available(uid: str) -> bool:
    """Whether this plugin decodes the transfer syntax."""
    return uid in _FRAMES


def decode_frame(stream: bytes, runner: DecodeRunner) -> bytes:
    """One grey frame's stored values, little endian, 8 or 16 bits each.

    Raises:
        ValueError: it is not a complete stream of the transfer syntax's process, or GDCM cannot
            decode it.
    """
    precision, clean = _taken_apart(stream, runner.transfer_syntax)
    # GDCM has a codec for each of these three.
    bits = next((bits for bits in (8, 12) if precision <= bits), 16)
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(clean)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    # Polarity is applied later (display.py); GDCM must not invert.
    monochrome = gdcm.PhotometricInterpretation.MONOCHROME2
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(monochrome))
    image.SetTransferSyntax(
        gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(runner.transfer_syntax)))
    )
    image.SetPixelFormat(gdcm.PixelFormat(1, bits, bits, bits - 1, 0))
    # SWIG returns bytes as text with surrogates, or None.
    decoded: Any = image.GetBuffer()
    values = b"" if decoded is None else bytes(decoded.encode("utf-8", "surrogateescape"))
    sample_bytes = 1 if bits == 8 else 2
    if len(values) != sample_bytes * runner.rows * runner.columns:
        raise ValueError("GDCM cannot decode the frame")

    runner.set_option("bits_allocated", 8 * sample_bytes)

    return values


def _taken_apart(stream: bytes, syntax: UID) -> tuple[int, bytes]:
    """(bits per sample, the stream with only tables, frame and scan in its header)."""
    end = stream.rfind(b"\xff\xd9")
    if stream[:2] != b"\xff\xd8" or end < len(stream) - 16:
        raise ValueError("no JPEG stream from its start to its end")

    precision, kept, position = 0, [b"\xff\xd8"], 2
    while position + 4 <= end and stream[position] == 0xFF:
        marker, length = (
            stream[position + 1],
            int.from_bytes(stream[position + 2 : position + 4], "big"),
        )
        segment = stream[position : position + 2 + length]

        if marker == _SCAN and precision:
            return precision, b"".join((*kept, stream[position : end + 2]))

        if marker in _FRAMES[syntax] and not precision and length == 11:
            precision = segment[4]
        elif marker not in (*_TABLES, *_IGNORED, 0xFF):
            break

        # A fill byte, B.1.1.2.
        if marker == 0xFF:
            position += 1
            continue

        if marker not in _IGNORED:
            kept.append(segment)

        position += 2 + length

    raise ValueError(f"no stream of the process that {syntax.name} names")
