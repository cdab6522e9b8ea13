"""Bytes -> header -> Radiograph: a grey image in display polarity, or Unsuitable with a reason."""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

from inference import shutter
from inference.as_sent import keep_bytes, sent_bytes
from inference.display import lut_words, show
from inference.display import stretch as stretch
from inference.pixels import MAX_PIXELS, read_pixels
from inference.pixels import Unsuitable as Unsuitable
from inference.repair import repaired
from inference.silence import silenced_warnings
from inference.spacing import Spacing as Spacing
from inference.spacing import spacing_and_notes
from inference.spacing import spacing_of as spacing_of

# Patient and study attributes that results copy from their source, byte for byte; part of the
# content digest (docs/rules.md, "Identity").
COPIED_KEYWORDS = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate",
    "PatientSex", "PatientAge", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "StudyDescription", "ReferringPhysicianName",
)  # fmt: skip

# Attributes that change the picture or its measurements, and so the content digest.
_SHOWN_KEYWORDS = (
    "PatientOrientation", "PixelSpacing", "ImagerPixelSpacing", "PhotometricInterpretation",
    "PresentationLUTShape", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "PixelPaddingValue",
)  # fmt: skip
# Rare attributes enter the digest only where they are present. So the digests of all other images
# did not change when this list was added.
_RARELY_SHOWN_KEYWORDS = (
    "PixelPaddingRangeLimit", "PixelSpacingCalibrationType", "NominalScannedPixelSpacing",
    "EstimatedRadiographicMagnificationFactor", "PixelAspectRatio", *shutter.KEYWORDS,
)  # fmt: skip
_ALWAYS_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit)
_LUT_KEYWORDS = ("ModalityLUTSequence", "VOILUTSequence")
# A deflated stream can inflate to a thousand times its size.
_INFLATED_LIMIT_BYTES = 2 * MAX_PIXELS + (16 << 20)
_PIXEL_DATA = 0x7FE00010
# Stands in decoded text for bytes that do not fit the character set.
_REPLACEMENT_CHARACTER = "\ufffd"


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A projection as a viewer would show it.

    `pixels` is (rows, columns), float32, 0 black to 1 white, in display polarity: MONOCHROME1 is
    already inverted, so air is dark in every Radiograph. `header` is the source without its Pixel
    Data, with the display attributes that were applied. `aspect` is a pixel's height divided by its
    width. `opening` is (rows, columns), True inside the display shutter; None without a shutter.
    """

    header: Dataset
    pixels: NDArray[np.float32]
    spacing: Spacing | None
    content_digest: str
    # Display attributes that could not be used, without patients' values.
    notes: tuple[str, ...] = ()
    aspect: float = 1.0
    opening: NDArray[np.bool_] | None = None


def parse(data: bytes) -> tuple[FileDataset, tuple[str, ...]]:
    """A DICOM file's data set, pixels still encoded, and notes on its unreadable elements.

    A file without preamble or file meta is accepted. An unreadable element is left out and noted by
    its tag, so that one broken attribute does not cost the image. A file that is cut off in its
    pixels keeps its header.

    Raises:
        Unsuitable: "not_dicom", no data set with a SOP Class and SOP Instance UID can be read.
    """
    deflated = _is_deflated(data)
    if deflated:
        data = _inflated(data)

    with silenced_warnings():
        dataset, notes = _read_leniently(data)
        if dataset is None:
            detail = "no SOP Class UID and SOP Instance UID found; a DICOM object was wanted"
            raise Unsuitable("not_dicom", detail)
        notes += _drop_unreadable(dataset)

    if not getattr(dataset.file_meta, "TransferSyntaxUID", None):
        # PS3.10 7.1 requires file meta information; without it pydicom has guessed the encoding.
        implicit, _ = dataset.original_encoding
        guessed = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = guessed
    if deflated:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    return dataset, tuple(notes)


def _read_leniently(data: bytes) -> tuple[FileDataset | None, list[str]]:
    """The data set as it is; if that fails, repaired; if that fails, up to its pixels."""
    dataset = _read(data, stop_before_pixels=False)
    if dataset is not None and _PIXEL_DATA in dataset:
        return dataset, []

    mended, notes = repaired(data, _meta_end(data))
    if notes:
        from_mended = _read(mended, stop_before_pixels=False)
        if from_mended is not None:
            return from_mended, list(notes)

    if dataset is not None:
        return dataset, []
    return _read(data, stop_before_pixels=True), ["file cut off"]


def _drop_unreadable(dataset: FileDataset) -> list[str]:
    """Convert every element now, and remove those that cannot be converted.

    Returns a note on each standard element that was removed.
    """
    notes = []
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            for item in element.value if element.VR == "SQ" else ():
                for _ in item.iterall():
                    pass
        except Exception:
            del dataset[tag]
            # No private attribute is read, so a reader of the results need not know of it.
            if not tag.is_private:
                notes.append(f"{tag} unreadable")
    return notes


def _read(data: bytes, stop_before_pixels: bool) -> FileDataset | None:
    try:
        dataset = dcmread(io.BytesIO(data), force=True, stop_before_pixels=stop_before_pixels)
        keep_bytes(dataset, COPIED_KEYWORDS, data)
        identified = bool(dataset.get("SOPClassUID")) and "SOPInstanceUID" in dataset
    except Exception:
        # On arbitrary bytes the parser may raise any exception.
        return None
    return dataset if identified else None


def _is_deflated(data: bytes) -> bool:
    # (0002,0010) Transfer Syntax UID, in explicit VR as PS3.10 7.1 requires, or in implicit VR.
    element = rb"\x02\x00\x10\x00(UI\x16\x00|\x16\x00\x00\x00)" + re.escape(
        DeflatedExplicitVRLittleEndian.encode()
    )
    return re.search(element, data[: _meta_end(data)]) is not None


def _inflated(data: bytes) -> bytes:
    """The file with its data set inflated (PS3.5 A.5); a cut-off stream as far as it goes.

    Raises:
        Unsuitable: "not_dicom", the stream is not deflated or inflates beyond the limit.
    """
    start = _meta_end(data)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)

    try:
        dataset = stream.decompress(memoryview(data)[start:], _INFLATED_LIMIT_BYTES)
    except zlib.error as error:
        raise Unsuitable("not_dicom", "the deflated data set cannot be inflated") from error

    if len(dataset) == _INFLATED_LIMIT_BYTES:
        detail = f"the deflated data set is larger than {_INFLATED_LIMIT_BYTES} bytes"
        raise Unsuitable("not_dicom", detail)

    deflated = DeflatedExplicitVRLittleEndian.encode()
    inflated = ExplicitVRLittleEndian.encode().ljust(len(deflated), b"\0")
    return data[:start].replace(deflated, inflated) + dataset


def _meta_end(data: bytes) -> int:
    """The position where the data set begins; 0 if there is no file meta information.

    Found by walking the elements of group 2, because the group length may be absent or wrong.
    """
    position = 132 if data[128:132] == b"DICM" else 0
    while data[position : position + 2] == b"\x02\x00" and position + 8 <= len(data):
        vr = data[position + 4 : position + 6]
        if vr in (b"OB", b"UN"):
            position += 12 + int.from_bytes(data[position + 8 : position + 12], "little")
        elif vr.isalpha():
            position += 8 + int.from_bytes(data[position + 6 : position + 8], "little")
        else:
            # Implicit VR.
            position += 8 + int.from_bytes(data[position + 4 : position + 8], "little")

    return min(position, len(data))


def undecoded_digest(data: bytes) -> str:
    """The content digest of an undecoded image: over its data set, without the file meta."""
    return hashlib.sha256(memoryview(data)[_meta_end(data) :]).hexdigest()


def decode(dataset: FileDataset) -> Radiograph:
    """The grey image that a viewer would show (display.py), scaled to 0..1.

    Raises:
        Unsuitable: "foreign_result" (colour), "multi_frame", "undecodable" (no decoder, truncated,
            ...) or "blank".
    """
    header = without_pixels(dataset)
    stored = read_pixels(dataset)
    digest = _content_digest(dataset, stored.values)

    # The pixel stream may be lossy although the transfer syntax that it came with is not.
    if stored.syntax in _ALWAYS_LOSSY:
        header.add_new("LossyImageCompression", "CS", "01")

    try:
        shown = show(header, stored.values, stored.bits)
    except Unsuitable as unsuitable:
        # The pixels were decoded: a blank image has one digest in every transfer syntax.
        raise Unsuitable(unsuitable.reason, unsuitable.detail, digest) from unsuitable

    spacing, spacing_notes = spacing_and_notes(header)
    return Radiograph(
        shown.header,
        shown.pixels,
        spacing,
        digest,
        (*stored.notes, *shown.notes, *spacing_notes),
        shown.aspect,
        shown.opening,
    )


def _content_digest(dataset: FileDataset, values: NDArray[np.integer]) -> str:
    """SHA-256 of the stored values and of the digested attributes (docs/rules.md, "Identity")."""
    digest = hashlib.sha256(values.data)
    digest.update(repr((values.shape, str(values.dtype))).encode())

    rare = (keyword for keyword in _RARELY_SHOWN_KEYWORDS if keyword in dataset)
    for keyword in (*COPIED_KEYWORDS, *_SHOWN_KEYWORDS, *rare):
        value = f"{dataset.get(keyword, '')}"
        digest.update(f"\0{keyword}={value}".encode("utf-8", "surrogateescape"))
        if _REPLACEMENT_CHARACTER in value:
            # Two different values may decode to this text: their bytes tell them apart.
            digest.update(sent_bytes(dataset[keyword]) or b"")

    for keyword in _LUT_KEYWORDS:
        for item in dataset.get(keyword) or ():
            digest.update(f"\0{keyword}={item.get('LUTDescriptor')}=".encode())
            table = item.get("LUTData")
            words = lut_words(table, dataset)
            digest.update(words or repr(table).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def without_pixels(dataset: Dataset) -> Dataset:
    """The header: a copy that shares every element but Pixel Data.

    JPEG Baseline and Extended are always lossy, so the header says it even if the sender did not,
    and results copy it (PS3.3 C.7.6.1.1.5).
    """
    header = Dataset({tag: element for tag, element in dataset.items() if tag != _PIXEL_DATA})
    implicit, little_endian = dataset.original_encoding
    header.set_original_encoding(implicit, little_endian, dataset.original_character_set)

    # Add a new element: the existing ones are shared with the data set.
    if getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None) in _ALWAYS_LOSSY:
        header.add_new("LossyImageCompression", "CS", "01")
    return header
