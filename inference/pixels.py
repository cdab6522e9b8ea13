"""Pixel Data -> stored values, the same whatever the transfer syntax.

The cost of hostile bytes is bounded before a decoder sees them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import (
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
)
from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from inference import streams
from inference.luts import has_grey_palette
from inference.silence import silenced_warnings

for _decoder in (JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
    _decoder.add_plugin("pleura", ("inference.gdcm_jpeg", "decode_frame"))

# One decoder for each syntax, so that an image is the same wherever it is decoded, and each decoder
# survives broken streams. GDCM as pydicom calls it crashes the process on some (JPEG Lossless,
# JPEG-LS); Pillow refuses truncated streams.
DECODERS = {
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "pleura",
    JPEGLossless: "pleura",
    JPEGLosslessSV1: "pleura",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    RLELossless: "pydicom",
}
NATIVE_SYNTAXES = (
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)  # fmt: skip
# A header may state 65535 x 65535; the largest detectors have some 20 million pixels.
MAX_PIXELS = 100_000_000
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
_GREY = ("MONOCHROME1", "MONOCHROME2")
# The group of the attributes that describe pixels.
_DESCRIPTION_GROUP = 0x0028
_PIXEL_DATA = 0x7FE00010
# A lossy codec overshoots sharp edges by less than this, and at fewer pixels.
_OVERSHOOT = 1 / 8
_OVERSHOT_PART = 0.001


class Unsuitable(Exception):  # noqa: N818 - an outcome, not an error
    """No Radiograph can be made of the file.

    `reason` is a code of admission.REASONS; `detail` holds no patient value. `content_digest` is
    set if the pixels were decoded.
    """

    def __init__(self, reason: str, detail: str, content_digest: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.content_digest = content_digest


@dataclass(frozen=True)
class Layout:
    """The Image Pixel Module of one grey frame (PS3.3 C.7.6.3), checked to be decodable."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    # What was absent or impossible in the description, but had only one possible meaning.
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, dataset: FileDataset) -> Layout:
        """Read and check the header.

        Raises:
            Unsuitable: "foreign_result" (colour), "multi_frame", or "undecodable".
        """
        notes = []

        rows = _number(dataset, "Rows")
        columns = _number(dataset, "Columns")
        frames = _number(dataset, "NumberOfFrames", absent=1) or 1
        allocated = _number(dataset, "BitsAllocated")
        stored = _number(dataset, "BitsStored")
        high = _number(dataset, "HighBit", absent=stored - 1)
        representation = dataset.get("PixelRepresentation")

        photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
        if not photometric:
            detail = "PhotometricInterpretation (0028,0004) is absent or empty: white may be black"
            raise Unsuitable("undecodable", detail)

        samples = _number(dataset, "SamplesPerPixel", absent=1)
        if not _is_stated(dataset, "SamplesPerPixel") and photometric in _GREY:
            notes.append("SamplesPerPixel absent, one taken")
        if samples == 1 and photometric == "PALETTE COLOR" and has_grey_palette(dataset):
            detail = "PALETTE COLOR with a grey palette; MONOCHROME1 or MONOCHROME2 wanted"
            raise Unsuitable("undecodable", detail)
        if samples != 1 or photometric not in _GREY:
            detail = "colour, not MONOCHROME1 or MONOCHROME2 with one sample per pixel"
            raise Unsuitable("foreign_result", detail)
        if frames != 1:
            raise Unsuitable("multi_frame", f"{frames} frames found, one wanted")
        if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
            detail = f"{rows} x {columns} pixels found, 1 to {MAX_PIXELS} wanted"
            raise Unsuitable("undecodable", detail)

        if representation is None or representation == "":
            notes.append("PixelRepresentation absent, unsigned taken")
            representation = 0
        if 0 < stored <= allocated and not stored <= high + 1 <= allocated:
            # An impossible High Bit; PS3.5 8.1.1 leaves only BitsStored - 1.
            notes.append("HighBit is impossible, BitsStored - 1 taken")
            high = stored - 1

        is_possible = allocated in (8, 16) and 0 < stored <= high + 1 <= allocated
        if not is_possible or representation not in (0, 1):
            detail = f"{stored} of {allocated} bits to bit {high}, 1 to 16 of 8 or 16 wanted"
            raise Unsuitable("undecodable", detail)
        return cls(rows, columns, allocated, stored, high, representation == 1, tuple(notes))

    @property
    def span(self) -> tuple[int, int]:
        """The least and the largest value that Bits Stored can hold."""
        if self.signed:
            half = 1 << self.bits_stored - 1
            return -half, half - 1
        return 0, (1 << self.bits_stored) - 1


def _is_stated(dataset: FileDataset, keyword: str) -> bool:
    return dataset.get(keyword) not in (None, "")


def _number(dataset: FileDataset, keyword: str, absent: int | None = None) -> int:
    """A whole number of the description; `absent` in its place if it is not stated.

    Raises:
        Unsuitable: "undecodable", naming the attribute.
    """
    tag = Tag(keyword)
    named = f"{keyword} ({tag.group:04X},{tag.element:04X})"
    if not _is_stated(dataset, keyword):
        if absent is None:
            raise Unsuitable("undecodable", f"{named} is absent")
        return absent

    try:
        return int(dataset[keyword].value)
    except (TypeError, ValueError, OverflowError) as error:
        raise Unsuitable("undecodable", f"{named} is not one whole number") from error


@dataclass(frozen=True, eq=False)
class Stored:
    """Decoded pixels. `values` is (rows, columns), uint8, int8, uint16 or int16."""

    values: NDArray[np.integer]
    layout: Layout
    # The stream's bits if the pixels use more than Bits Stored, else Bits Stored.
    bits: int
    notes: tuple[str, ...]
    # The stream's own, if it contradicts the header.
    syntax: UID


def stored_values(dataset: FileDataset) -> NDArray[np.integer]:
    """Stored pixel values, (rows, columns), uint8, int8, uint16 or int16 by Bits Allocated.

    Raises:
        Unsuitable: as `read_pixels`.
    """
    return read_pixels(dataset).values


def read_pixels(dataset: FileDataset) -> Stored:
    """Decode the one frame of an image.

    Bits above Bits Stored hold no pixel (PS3.5 8.1.1; overlays in old files): they are removed. If
    a stream announces more bits than Bits Stored, and its pixels use them, they are kept.

    Raises:
        Unsuitable: see Layout.of, and "undecodable": no decoder, truncated, or the stream holds
            another image.
    """
    if "PixelData" not in dataset:
        raise Unsuitable("undecodable", "no Pixel Data (7FE0,0010)")
    layout = Layout.of(dataset)

    # Do not log a peer's string.
    syntax = dataset.file_meta.TransferSyntaxUID
    named = str(syntax) if syntax in AllTransferSyntaxes else "unknown"
    if syntax not in DECODERS and syntax not in NATIVE_SYNTAXES:
        detail = f"transfer syntax {named}: there is no decoder for it"
        raise Unsuitable("undecodable", detail)

    with silenced_warnings():
        try:
            decode = _decoded_stream if syntax in DECODERS else _native
            decoded = decode(dataset, layout, syntax)
        except Unsuitable:
            raise
        except Exception as error:
            # On arbitrary bytes a codec may raise anything.
            detail = f"transfer syntax {named}: {type(error).__name__} in the decoder"
            raise Unsuitable("undecodable", detail) from error

    layout = decoded.layout
    shape = decoded.values.shape
    if shape != (layout.rows, layout.columns):
        detail = f"{shape} pixels, ({layout.rows}, {layout.columns}) wanted"
        raise Unsuitable("undecodable", detail)

    dtype = np.dtype(f"<{'i' if layout.signed else 'u'}{layout.bits_allocated // 8}")
    values = np.ascontiguousarray(decoded.values, dtype=dtype)
    is_lossy = decoded.syntax in _LOSSY
    kept, used_bits = _within_bits_stored(values, layout, decoded.bits, is_lossy)

    notes = (*layout.notes, *decoded.notes)
    if used_bits != layout.bits_stored:
        bits_note = f"the stream has {used_bits} bits, BitsStored says {layout.bits_stored}"
        notes = (*notes, bits_note)
    return Stored(kept, layout, used_bits, notes, decoded.syntax)


def _native(dataset: FileDataset, layout: Layout, syntax: UID) -> Stored:
    """The values of uncompressed Pixel Data."""
    _check_length(dataset, layout)
    values = _decode(_described(dataset, layout), "")
    return Stored(values, layout, layout.bits_stored, (), syntax)


def _decoded_stream(dataset: FileDataset, layout: Layout, syntax: UID) -> Stored:
    """The values of encapsulated Pixel Data from its codec, with the bits that the stream
    announces.
    """
    # No codec inflates an image much.
    expected = layout.rows * layout.columns * layout.bits_allocated // 8
    found = len(dataset.PixelData)
    if found > 2 * expected + 1_000_000:
        detail = f"{found} bytes of Pixel Data for {expected} bytes of pixels"
        raise Unsuitable("undecodable", detail)

    frame = streams.frame_of(dataset.PixelData, syntax)
    notes = frame.notes
    bits = layout.bits_stored
    own = syntax
    # The segments of RLE announce no size.
    if syntax != RLELossless:
        announced = _checked_stream(frame.stream, layout)
        bits = min(announced.bits, layout.bits_allocated)
        layout = _right_aligned(layout, announced)
        own = streams.syntax_of(announced, syntax)
    if own != syntax:
        notes = (*notes, f"the stream is {own.name}, not what the transfer syntax names")

    described = _described(dataset, layout)
    described.file_meta = copy.copy(dataset.file_meta)
    described.file_meta.TransferSyntaxUID = own
    described.PixelData = encapsulate([frame.stream])
    described["PixelData"].is_undefined_length = True
    plugin = DECODERS[own]

    try:
        return Stored(_decode(described, plugin), layout, bits, notes, own)
    except Exception:
        padded = streams.without_zero_before_end(frame.stream)
        if padded is None or own not in (JPEGLSLossless, JPEGLSNearLossless):
            raise
        described.PixelData = encapsulate([padded])
        described["PixelData"].is_undefined_length = True
        note = "a zero byte stands before the end of the JPEG-LS stream"
        return Stored(_decode(described, plugin), layout, bits, (*notes, note), own)


def _right_aligned(layout: Layout, announced: streams.Announced) -> Layout:
    """The layout of a codec's samples: High Bit describes only native cells (PS3.5 8.1.1).

    A stream that announces more bits than Bits Stored may hold the cells with all their bits.
    """
    lowest_high_bit = layout.bits_stored - 1
    if announced.bits > layout.bits_stored or layout.high_bit == lowest_high_bit:
        return layout
    note = "HighBit contradicts the stream's bits, BitsStored - 1 taken"
    return replace(layout, high_bit=lowest_high_bit, notes=(*layout.notes, note))


def _decode(described: FileDataset, plugin: str) -> NDArray[np.integer]:
    decoded: NDArray[np.integer] = pixel_array(
        described,
        raw=True,
        decoding_plugin=plugin,
        correct_unused_bits=False,
        allow_excess_frames=False,
    )
    return decoded


def _described(dataset: FileDataset, layout: Layout) -> FileDataset:
    """The checked description, with the Pixel Data.

    Without the Extended Offset Table (7FE0,0001), because a rewrapped frame lies elsewhere.
    """
    elements = {
        tag: element
        for tag, element in dataset.items()
        if tag.group == _DESCRIPTION_GROUP or tag == _PIXEL_DATA
    }
    described = FileDataset(None, elements, file_meta=dataset.file_meta)  # type: ignore[arg-type]
    implicit, little_endian = dataset.original_encoding
    described.set_original_encoding(implicit, little_endian, dataset.original_character_set)

    described.SamplesPerPixel = 1
    described.HighBit = layout.high_bit
    described.PixelRepresentation = int(layout.signed)
    described.NumberOfFrames = 1
    return described


def _within_bits_stored(
    values: NDArray[np.integer], layout: Layout, stream_bits: int, lossy: bool
) -> tuple[NDArray[np.integer], int]:
    """(values, bits that they use): bits above Bits Stored are examined and removed."""
    above = layout.bits_allocated - 1 - layout.high_bit
    unused = layout.bits_allocated - layout.bits_stored
    low, high = layout.span
    is_low = layout.high_bit == layout.bits_stored - 1
    if not unused or (is_low and low <= values.min() and values.max() <= high):
        return values, layout.bits_stored

    has_more_bits = stream_bits > layout.bits_stored and is_low
    if lossy and not layout.signed:
        if has_more_bits and _exceeds(values, high):
            return values, stream_bits
        # A codec's overshoot: white must not wrap around to black.
        return np.asarray(np.clip(values, low, high)), layout.bits_stored

    if is_low and _torn(values, layout.bits_stored):
        if has_more_bits:
            return values, stream_bits
        detail = f"the pixels use more than the {layout.bits_stored} bits of Bits Stored"
        raise Unsuitable("undecodable", detail)

    # The right shift extends the sign of signed values.
    return np.asarray((values << above) >> unused), layout.bits_stored


def _exceeds(values: NDArray[np.integer], high: int) -> bool:
    """Whether pixels exceed the largest value by more than a codec's overshoot."""
    beyond = np.count_nonzero(values > high + high * _OVERSHOOT)
    return bool(beyond > _OVERSHOT_PART * values.size)


def _torn(values: NDArray[np.integer], bits_stored: int) -> bool:
    """Whether the bits above Bits Stored belong to the pixels.

    Without them a smooth area would jump from white to black. Other content there, such as an
    overlay, jumps itself, and the pixels under it do not.
    """
    span = 1 << bits_stored
    whole = values[:: max(1, values.shape[0] // 512)].astype(np.int32)

    with_them = np.abs(np.diff(whole, axis=1)) >= span // 2
    without = np.abs(np.diff(whole % span, axis=1)) >= span // 2
    torn = np.count_nonzero(without & ~with_them)
    joined = np.count_nonzero(with_them & ~without)
    return bool(torn > joined)


def _check_length(dataset: FileDataset, layout: Layout) -> None:
    """Refuse uncompressed pixels that are not what the header describes: cut off, colour, words,
    frames.
    """
    if dataset["PixelData"].is_undefined_length:
        detail = "compressed Pixel Data (PS3.5 A.4) in an uncompressed transfer syntax"
        raise Unsuitable("undecodable", detail)

    # A smaller excess may be padding.
    expected = layout.rows * layout.columns * layout.bits_allocated // 8
    found = len(dataset.PixelData)
    if found < expected or 2 * found > 3 * expected + 2:
        detail = f"{found} bytes of Pixel Data for {expected} bytes of pixels"
        raise Unsuitable("undecodable", detail)


def _checked_stream(stream: bytes, layout: Layout) -> streams.Announced:
    """The image that the stream announces.

    Raises:
        Unsuitable: its size is not the header's. A decoder would allocate the size that the stream
            states.
    """
    found = streams.announced(stream)
    wanted = (layout.rows, layout.columns, 1)
    size = None if found is None else (found.rows, found.columns, found.components)
    if found is None or size != wanted:
        detail = f"the stream holds {size}, {wanted} rows, columns and samples wanted"
        raise Unsuitable("undecodable", detail)
    return found
