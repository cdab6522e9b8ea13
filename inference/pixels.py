"""Pixel Data -> stored values, the same whatever the transfer syntax.

What hostile bytes may cost is bounded first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset
from pydicom.encaps import generate_fragments
from pydicom.pixels.decoders.base import (
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
)
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
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

from inference.silence import silenced_warnings

for _decoder in (JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
    _decoder.add_plugin("pleura", ("inference.gdcm_jpeg", "decode_frame"))

# One decoder for each syntax: an image is the same wherever it is decoded, and broken streams meet
# those that survive them. GDCM as pydicom calls it ends the process on some (JPEG Lossless,
# JPEG-LS); Pillow refuses truncated ones.
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
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian,
)  # fmt: skip
# a header may ask for 65535 x 65535; the largest detectors have some 20 million
MAX_PIXELS = 100_000_000
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
_GREY = ("MONOCHROME1", "MONOCHROME2")


class Unsuitable(Exception):  # noqa: N818 - an outcome, not an error
    """No Radiograph can be made. `reason` is a code of admission.REASONS; `detail` holds no patient
    value.

    `content_digest` is that of the pixels where they were decoded all the same, else None.
    """

    def __init__(self, reason: str, detail: str, content_digest: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.content_digest = content_digest


@dataclass(frozen=True)
class Layout:
    """The Image Pixel Module of one grey frame (PS3.3 C.7.6.3).

    Constructed means decodable in principle.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool

    @classmethod
    def of(cls, dataset: FileDataset) -> Layout:
        """Read and check the header.

        Raises:
            Unsuitable: "foreign_result" (colour), "multi_frame", or "undecodable".
        """
        try:
            samples, rows, columns = (
                int(dataset.SamplesPerPixel),
                int(dataset.Rows),
                int(dataset.Columns),
            )
            frames = int(dataset.get("NumberOfFrames") or 1)
            allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
            high, representation = (
                int(dataset.get("HighBit", stored - 1)),
                int(dataset.PixelRepresentation),
            )
            photometric = str(dataset.PhotometricInterpretation or "").strip().upper()
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            kind = type(error).__name__
            raise Unsuitable(
                "undecodable", f"the image description is incomplete ({kind})"
            ) from error

        if not photometric:
            raise Unsuitable(
                "undecodable", "PhotometricInterpretation (0028,0004) is empty: white may be black"
            )

        if samples != 1 or photometric not in _GREY:
            raise Unsuitable(
                "foreign_result", "colour, not MONOCHROME1 or MONOCHROME2 with one sample per pixel"
            )

        if frames != 1:
            raise Unsuitable("multi_frame", f"{frames} frames found, one wanted")

        if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
            raise Unsuitable(
                "undecodable", f"{rows} x {columns} pixels found, 1 to {MAX_PIXELS} wanted"
            )

        if (
            allocated not in (8, 16)
            or not 0 < stored <= high + 1 <= allocated
            or representation not in (0, 1)
        ):
            raise Unsuitable(
                "undecodable",
                f"{stored} of {allocated} bits to bit {high}, 1 to 16 of 8 or 16 wanted",
            )

        return cls(rows, columns, allocated, stored, high, representation == 1)


def stored_values(dataset: FileDataset) -> NDArray[np.integer]:
    """Stored pixel values, (rows, columns), uint8, int8, uint16 or int16 by the header's Bits
    Allocated.

    Bits above Bits Stored hold no pixel (PS3.5 8.1.1; overlays in old files): they are removed.

    Raises:
        Unsuitable: see Layout.of, and "undecodable": no decoder, truncated, or the stream holds
            another image.
    """
    if "PixelData" not in dataset:
        raise Unsuitable("undecodable", "no Pixel Data (7FE0,0010)")

    layout = Layout.of(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    # a peer's string is not logged
    named = str(syntax) if syntax in AllTransferSyntaxes else "unknown"

    if syntax not in DECODERS and syntax not in NATIVE_SYNTAXES:
        raise Unsuitable("undecodable", f"transfer syntax {named}: there is no decoder for it")

    with silenced_warnings():
        try:
            (_check_stream if syntax in DECODERS else _check_length)(dataset, layout)
            decoded = pixel_array(
                dataset,
                raw=True,
                decoding_plugin=DECODERS.get(syntax, ""),
                correct_unused_bits=False,
                allow_excess_frames=False,
            )
        except Unsuitable:
            raise
        except Exception as error:
            # codecs meet arbitrary bytes and raise what they like
            kind = type(error).__name__
            raise Unsuitable(
                "undecodable", f"transfer syntax {named}: {kind} in the decoder"
            ) from error

    if decoded.shape != (layout.rows, layout.columns):
        raise Unsuitable(
            "undecodable", f"{decoded.shape} pixels, ({layout.rows}, {layout.columns}) wanted"
        )

    dtype = np.dtype(f"<{'i' if layout.signed else 'u'}{layout.bits_allocated // 8}")

    return _within_bits_stored(
        np.ascontiguousarray(decoded, dtype=dtype), layout, lossy=syntax in _LOSSY
    )


def _within_bits_stored(
    values: NDArray[np.integer], layout: Layout, lossy: bool
) -> NDArray[np.integer]:
    above = layout.bits_allocated - 1 - layout.high_bit
    unused = layout.bits_allocated - layout.bits_stored
    low, high = (-1 << layout.bits_stored - 1, (1 << layout.bits_stored - 1) - 1) if layout.signed else (
        0, (1 << layout.bits_stored) - 1,
    )  # fmt: skip
    if not unused or (
        layout.high_bit == layout.bits_stored - 1 and low <= values.min() and values.max() <= high
    ):
        return values

    # a codec's overshoot: white must not come round to black
    if lossy and not layout.signed:
        return np.asarray(np.clip(values, low, high))

    if layout.high_bit == layout.bits_stored - 1 and _torn(values, layout.bits_stored):
        raise Unsuitable(
            "undecodable", f"the pixels use more than the {layout.bits_stored} bits of Bits Stored"
        )

    # by the sign, where it is signed
    return np.asarray((values << above) >> unused)


def _torn(values: NDArray[np.integer], bits_stored: int) -> bool:
    """Whether the bits above Bits Stored belong to the pixels: a smooth place would jump from white
    to black without.

    What else lies there, an overlay, jumps itself, and the pixels below do not.
    """
    whole, span = values[:: max(1, values.shape[0] // 512)].astype(np.int32), 1 << bits_stored
    with_them, without = (
        np.abs(np.diff(seen, axis=1)) >= span // 2 for seen in (whole, whole % span)
    )
    return bool(np.count_nonzero(without & ~with_them) > np.count_nonzero(with_them & ~without))


def _check_length(dataset: FileDataset, layout: Layout) -> None:
    """Are uncompressed pixels what the header describes? Colour, words or frames it does not tell
    of are not.
    """
    expected, found = (
        layout.rows * layout.columns * layout.bits_allocated // 8,
        len(dataset.PixelData),
    )

    if dataset["PixelData"].is_undefined_length:
        raise Unsuitable(
            "undecodable", "compressed Pixel Data (PS3.5 A.4) in an uncompressed transfer syntax"
        )

    # less may be padding
    if 2 * found > 3 * expected + 2:
        raise Unsuitable(
            "undecodable", f"{found} bytes of Pixel Data for {expected} bytes of pixels"
        )


def _check_stream(dataset: FileDataset, layout: Layout) -> None:
    """Before a decoder allocates what a stream asks for.

    Is it the size of the image that the header describes?
    """
    expected = layout.rows * layout.columns * layout.bits_allocated // 8
    # no codec makes an image much larger than it was
    if len(dataset.PixelData) > 2 * expected + 1_000_000:
        raise Unsuitable(
            "undecodable",
            f"{len(dataset.PixelData)} bytes of Pixel Data for {expected} bytes of pixels",
        )

    fragments = generate_fragments(dataset.PixelData)
    # the Basic Offset Table
    next(fragments)

    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        # its segments announce no size
        return

    announced = _announced(next(fragments))
    if announced != (layout.rows, layout.columns, 1):
        raise Unsuitable(
            "undecodable", f"the stream holds {announced}, ({layout.rows}, {layout.columns}, 1) "
            "rows, columns and "
            "samples wanted",
        )  # fmt: skip


def _announced(stream: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) that a JPEG, JPEG-LS or JPEG 2000 stream announces.

    None where it cannot be told.
    """
    # SOC, SIZ (ISO 15444-1 A.5.1), also within a JP2's boxes
    size = stream.find(b"\xff\x4f\xff\x51", 0, 4096)
    if size >= 0 and len(stream) >= size + 42:
        columns, rows, left, top = (
            int.from_bytes(stream[size + 8 + 4 * n : size + 12 + 4 * n], "big") for n in range(4)
        )
        return rows - top, columns - left, int.from_bytes(stream[size + 40 : size + 42], "big")

    position = 2
    while stream[:2] == b"\xff\xd8" and position + 10 <= len(stream) and stream[position] == 0xFF:
        marker, length = (
            stream[position + 1],
            int.from_bytes(stream[position + 2 : position + 4], "big"),
        )
        # a fill byte (ISO 10918-1 B.1.1.2)
        if marker == 0xFF:
            position += 1
        # a frame header
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = (
                int.from_bytes(stream[position + n : position + n + 2], "big") for n in (5, 7)
            )
            return rows, columns, stream[position + 9]
        else:
            position += 2 + length

    return None
