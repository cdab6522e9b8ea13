"""Bytes -> header -> Radiograph.

One grey image in display polarity, or Unsuitable with the reason.
"""

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

from inference.display import displayed, lut_words
from inference.display import stretch as stretch
from inference.pixels import MAX_PIXELS, stored_values
from inference.pixels import Unsuitable as Unsuitable
from inference.silence import silenced_warnings
from inference.spacing import Spacing as Spacing
from inference.spacing import spacing_of as spacing_of

# Patient and study attributes that results copy from their source; part of the content digest
# (design, "Identity").
COPIED_KEYWORDS = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID",
    "PatientBirthDate", "PatientSex",
    "PatientAge", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "StudyDescription",
    "ReferringPhysicianName",
)  # fmt: skip

# Attributes that change the picture or what is measured on it: another value is another content.
_SHOWN_KEYWORDS = (
    "PatientOrientation", "PixelSpacing", "ImagerPixelSpacing", "PhotometricInterpretation",
    "PresentationLUTShape",
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "PixelPaddingValue",
)  # fmt: skip
# Rarer ones count only where they are present, so that the digests of all other images stayed when
# they were added.
_RARELY_SHOWN_KEYWORDS = (
    "PixelPaddingRangeLimit", "PixelSpacingCalibrationType", "NominalScannedPixelSpacing",
    "EstimatedRadiographicMagnificationFactor",
)  # fmt: skip
_ALWAYS_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit)
_LUT_KEYWORDS = ("ModalityLUTSequence", "VOILUTSequence")
# deflate makes a thousandfold of nothing
_INFLATED_LIMIT_BYTES = 2 * MAX_PIXELS + (16 << 20)


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A projection as a viewer would show it.

    `pixels` is (rows, columns), float32, 0 black to 1 white, in display polarity: MONOCHROME1 is
    already inverted, so air is dark in every Radiograph. `header` is the source without its Pixel
    Data.
    """

    header: Dataset
    pixels: NDArray[np.float32]
    spacing: Spacing | None
    content_digest: str
    # what of the header's display attributes was not usable; no patient value
    notes: tuple[str, ...] = ()


def parse(data: bytes) -> tuple[FileDataset, tuple[str, ...]]:
    """A DICOM file's data set, pixels still encoded, and notes on what of it cannot be read.

    A file without preamble or file meta is taken too. An element that cannot be read is left out
    and noted by its tag: one broken attribute must not cost an image. A file cut off in its pixels
    keeps its header.

    Raises:
        Unsuitable: "not_dicom" where no data set with a SOP Class and SOP Instance UID can be read.
    """
    deflated = _is_deflated(data)
    if deflated:
        data = _inflated(data)

    with silenced_warnings():
        dataset, notes = _read(data, stop_before_pixels=False), []
        # perhaps cut off in its pixels
        if dataset is None:
            dataset, notes = _read(data, stop_before_pixels=True), ["file cut off"]

        if dataset is None:
            raise Unsuitable(
                "not_dicom",
                "no SOP Class UID and SOP Instance UID found; a DICOM object was wanted",
            )

        for tag in list(dataset.keys()):
            # every element is converted now: what is broken shows here, not at some later reader
            try:
                element = dataset[tag]
                for item in element.value if element.VR == "SQ" else ():
                    for _ in item.iterall():
                        pass
            except Exception:
                del dataset[tag]
                notes.append(f"{tag} unreadable")

    if not getattr(dataset.file_meta, "TransferSyntaxUID", None):
        # PS3.10 7.1 wants file meta information; without it pydicom has found out the encoding by
        # itself.
        implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        )

    if deflated:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    return dataset, tuple(notes)


def _read(data: bytes, stop_before_pixels: bool) -> FileDataset | None:
    try:
        dataset = dcmread(io.BytesIO(data), force=True, stop_before_pixels=stop_before_pixels)
        identified = bool(dataset.get("SOPClassUID")) and "SOPInstanceUID" in dataset
    except Exception:
        # the parser meets arbitrary bytes and raises what it likes
        return None
    return dataset if identified else None


def _is_deflated(data: bytes) -> bool:
    # (0002,0010) is the transfer syntax; with its VR, as PS3.10 7.1 wants it, or without.
    element = rb"\x02\x00\x10\x00(UI\x16\x00|\x16\x00\x00\x00)" + re.escape(
        DeflatedExplicitVRLittleEndian.encode()
    )
    return re.search(element, data[: _meta_end(data)]) is not None


def _inflated(data: bytes) -> bytes:
    """The same file with its data set as it was before it was deflated (PS3.5 A.5), as far as it is
    there.

    Raises:
        Unsuitable: "not_dicom" where it is no deflated stream, or one that never ends.
    """
    start = _meta_end(data)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)

    try:
        dataset = stream.decompress(memoryview(data)[start:], _INFLATED_LIMIT_BYTES)
    except zlib.error as error:
        raise Unsuitable("not_dicom", "the deflated data set cannot be inflated") from error

    if len(dataset) == _INFLATED_LIMIT_BYTES:
        raise Unsuitable(
            "not_dicom", f"the deflated data set is larger than {_INFLATED_LIMIT_BYTES} bytes"
        )

    deflated = DeflatedExplicitVRLittleEndian.encode()

    return (
        data[:start].replace(deflated, ExplicitVRLittleEndian.encode().ljust(len(deflated), b"\0"))
        + dataset
    )


def _meta_end(data: bytes) -> int:
    """Where the data set begins; 0 where there is no file meta information.

    After the last element of group 2: its group length, which PS3.10 7.1 wants first, may be absent
    or wrong.
    """
    position = 132 if data[128:132] == b"DICM" else 0
    while data[position : position + 2] == b"\x02\x00" and position + 8 <= len(data):
        vr = data[position + 4 : position + 6]
        if vr in (b"OB", b"UN"):
            position += 12 + int.from_bytes(data[position + 8 : position + 12], "little")
        elif vr.isalpha():
            position += 8 + int.from_bytes(data[position + 6 : position + 8], "little")
        else:
            # no VR: implicit
            position += 8 + int.from_bytes(data[position + 4 : position + 8], "little")

    return min(position, len(data))


def undecoded_digest(data: bytes) -> str:
    """The content digest of an image whose pixels were not decoded.

    Over its data set, without the file meta.
    """
    return hashlib.sha256(memoryview(data)[_meta_end(data) :]).hexdigest()


def decode(dataset: FileDataset) -> Radiograph:
    """The grey image a viewer would show: modality LUT, VOI LUT or window, polarity, scaled to
    0..1.

    Raises:
        Unsuitable: "foreign_result" (colour), "multi_frame", "undecodable" (no decoder, truncated,
            ...) or "blank".
    """
    header = without_pixels(dataset)
    stored = stored_values(dataset)
    digest = hashlib.sha256(stored.data)
    digest.update(repr((stored.shape, str(stored.dtype))).encode())

    for keyword in (*COPIED_KEYWORDS, *_SHOWN_KEYWORDS):
        digest.update(f"\0{keyword}={dataset.get(keyword, '')}".encode("utf-8", "surrogateescape"))

    for keyword in _RARELY_SHOWN_KEYWORDS:
        if keyword in dataset:
            digest.update(f"\0{keyword}={dataset.get(keyword)}".encode("utf-8", "surrogateescape"))

    for keyword in _LUT_KEYWORDS:
        for item in dataset.get(keyword) or ():
            digest.update(f"\0{keyword}={item.get('LUTDescriptor')}=".encode())
            table = item.get("LUTData")
            digest.update(
                lut_words(table, dataset) or repr(table).encode("utf-8", "surrogateescape")
            )

    try:
        pixels, notes = displayed(header, stored)
    except (
        Unsuitable
        # decoded all the same: one blank image is one, whatever its transfer syntax
    ) as unsuitable:
        raise Unsuitable(unsuitable.reason, unsuitable.detail, digest.hexdigest()) from unsuitable

    return Radiograph(header, pixels, spacing_of(header), digest.hexdigest(), notes)


def without_pixels(dataset: Dataset) -> Dataset:
    """The header: a copy that shares every element but Pixel Data.

    Pixels that came in a process that is always lossy are lossy, whether or not the sender says so:
    results carry that on (PS3.3 C.7.6.1.1.5).
    """
    header = Dataset({tag: element for tag, element in dataset.items() if tag != 0x7FE00010})
    implicit, little_endian = dataset.original_encoding
    header.set_original_encoding(implicit, little_endian, dataset.original_character_set)

    if getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None) in _ALWAYS_LOSSY:
        # a new element: the others are shared
        header.add_new("LossyImageCompression", "CS", "01")

    return header
