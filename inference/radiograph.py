"""Bytes -> header -> Radiograph: one grey image in display polarity, or Unsuitable with the reason."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import AllTransferSyntaxes, ExplicitVRLittleEndian, ImplicitVRLittleEndian

# Patient and study attributes that results copy from their source; part of the content digest (design, "Identity").
COPIED_KEYWORDS = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription",
    "ReferringPhysicianName",
)  # fmt: skip

# Attributes that change the picture or what is measured on it: another value is another content.
_SHOWN_KEYWORDS = (
    "PatientOrientation", "PixelSpacing", "ImagerPixelSpacing", "PhotometricInterpretation", "PresentationLUTShape",
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction", "PixelPaddingValue",
)  # fmt: skip
_BLANK_LEVELS = 8  # an image whose central 99 % of pixels span fewer stored grey levels shows nothing
_MAX_PIXELS = 100_000_000  # a header may ask for 65535 x 65535; the largest detectors have some 20 million


class Unsuitable(Exception):  # noqa: N818 - an outcome, not an error
    """No Radiograph can be made. `reason` is a code of admission.REASONS; `detail` holds no patient value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Spacing:
    """Millimetres per pixel, and which attribute says so.

    `detector` is True where only ImagerPixelSpacing is known: the size at the detector's front plane, magnified
    against the patient (PS3.3 10.7.1.3).
    """

    row_mm: float
    column_mm: float
    detector: bool


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A projection as a viewer would show it.

    `pixels` is (rows, columns), float32, 0 black to 1 white, in display polarity: MONOCHROME1 is already inverted,
    so air is dark in every Radiograph. `header` is the source without its Pixel Data.
    """

    header: Dataset
    pixels: NDArray[np.float32]
    spacing: Spacing | None
    content_digest: str


def parse(data: bytes) -> tuple[FileDataset, tuple[str, ...]]:
    """A DICOM file's data set, pixels still encoded, and notes on what of it cannot be read.

    A file without preamble or file meta is taken too. An element that cannot be read is left out and noted by its
    tag: one broken attribute must not cost an image. A file cut off in its pixels keeps its header.

    Raises:
        Unsuitable: "not_dicom" where no data set with a SOP Class and SOP Instance UID can be read.
    """
    with _quiet():
        dataset, notes = _read(data, stop_before_pixels=False), []
        if dataset is None:  # perhaps cut off in its pixels
            dataset, notes = _read(data, stop_before_pixels=True), ["file cut off"]
        if dataset is None:
            raise Unsuitable("not_dicom", "no SOP Class UID and SOP Instance UID found; a DICOM object was wanted")
        for tag in list(dataset.keys()):
            try:  # every element is converted now: what is broken shows here, not at some later reader
                element = dataset[tag]
                for item in element.value if element.VR == "SQ" else ():
                    for _ in item.iterall():
                        pass
            except Exception:
                del dataset[tag]
                notes.append(f"{tag} unreadable")
    if not getattr(dataset.file_meta, "TransferSyntaxUID", None):
        # PS3.10 7.1 wants file meta information; without it pydicom has found out the encoding by itself.
        implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset, tuple(notes)


def _read(data: bytes, stop_before_pixels: bool) -> FileDataset | None:
    try:
        dataset = dcmread(io.BytesIO(data), force=True, stop_before_pixels=stop_before_pixels)
        identified = bool(dataset.get("SOPClassUID")) and "SOPInstanceUID" in dataset
    except Exception:  # the parser meets arbitrary bytes and raises what it likes
        return None
    return dataset if identified else None


def undecoded_digest(data: bytes) -> str:
    """The content digest of an image whose pixels were not decoded: over its data set, without the file meta."""
    start = 0
    if data[128:136] == b"DICM\x02\x00\x00\x00":  # PS3.10 7.1: the group length comes first, UL, little endian
        start = 144 + int.from_bytes(data[140:144], "little")
    return hashlib.sha256(data[start:]).hexdigest()


def decode(dataset: FileDataset) -> Radiograph:
    """The grey image a viewer would show: modality LUT, VOI LUT or window, polarity, scaled to 0..1.

    Raises:
        Unsuitable: "undecodable" (no decoder, truncated, not one grey frame) or "blank" (one value everywhere).
    """
    header = without_pixels(dataset)
    stored = _stored_values(dataset)
    digest = hashlib.sha256(np.ascontiguousarray(stored).tobytes())
    digest.update(repr((stored.shape, str(stored.dtype))).encode())
    for keyword in (*COPIED_KEYWORDS, *_SHOWN_KEYWORDS):
        digest.update(f"\0{keyword}={dataset.get(keyword, '')}".encode("utf-8", "surrogateescape"))
    return Radiograph(header, _displayed(dataset, stored), spacing_of(dataset), digest.hexdigest())


def without_pixels(dataset: Dataset) -> Dataset:
    """The header: a copy that shares every element but Pixel Data."""
    header = Dataset({tag: element for tag, element in dataset.items() if tag != 0x7FE00010})
    implicit, little_endian = dataset.original_encoding
    header.set_original_encoding(implicit, little_endian, dataset.original_character_set)
    return header


def spacing_of(header: Dataset) -> Spacing | None:
    """PixelSpacing, else ImagerPixelSpacing, else None; zero and negative values are no spacing.

    PixelSpacing that equals ImagerPixelSpacing was not calibrated to the patient (PS3.3 10.7.1.3).
    """
    calibrated, detector = (_pair_mm(header, keyword) for keyword in ("PixelSpacing", "ImagerPixelSpacing"))
    if calibrated is not None:
        return Spacing(*calibrated, detector=calibrated == detector and not header.get("PixelSpacingCalibrationType"))
    return Spacing(*detector, detector=True) if detector is not None else None


def _pair_mm(header: Dataset, keyword: str) -> tuple[float, float] | None:
    try:
        row_mm, column_mm = (float(value) for value in header.get(keyword))
    except (TypeError, ValueError):
        return None
    return (row_mm, column_mm) if 0 < row_mm < 100 and 0 < column_mm < 100 else None


def _stored_values(dataset: FileDataset) -> NDArray[np.integer]:
    """Decoded stored pixel values, (rows, columns)."""
    if "PixelData" not in dataset:
        raise Unsuitable("undecodable", "no Pixel Data (7FE0,0010)")
    try:
        samples, rows, columns = int(dataset.SamplesPerPixel), int(dataset.Rows), int(dataset.Columns)
        frames = int(dataset.get("NumberOfFrames") or 1)
    except (AttributeError, TypeError, ValueError) as error:
        raise Unsuitable("undecodable", f"the image description is incomplete ({type(error).__name__})") from error
    if samples != 1 or frames != 1:
        raise Unsuitable("undecodable", f"{frames} frames of {samples} samples found, one grey frame wanted")
    if not 0 < rows * columns <= _MAX_PIXELS:
        raise Unsuitable("undecodable", f"{rows} x {columns} pixels found, 1 to {_MAX_PIXELS} wanted")
    with _quiet():
        try:
            stored = pixel_array(dataset, raw=True)
        except Exception as error:  # codecs meet arbitrary bytes and raise what they like
            syntax = dataset.file_meta.TransferSyntaxUID
            named = syntax if syntax in AllTransferSyntaxes else "unknown"  # a peer's string is not logged
            raise Unsuitable(
                "undecodable", f"transfer syntax {named}: {type(error).__name__} in the decoder"
            ) from error
    if stored.shape != (rows, columns):
        raise Unsuitable("undecodable", f"{stored.shape} pixels decoded, ({rows}, {columns}) wanted")
    return stored


def _displayed(dataset: FileDataset, stored: NDArray[np.integer]) -> NDArray[np.float32]:
    padding = _padding(dataset, stored)
    span = np.ptp(np.percentile(stored[:: max(1, stored.shape[0] // 1024)], (0.5, 99.5)))
    if span < _BLANK_LEVELS:
        raise Unsuitable("blank", f"99 % of the pixels lie within {span:.0f} stored grey levels")
    with _quiet():
        try:
            values = apply_modality_lut(stored, dataset)
            windowed = "VOILUTSequence" in dataset or ("WindowCenter" in dataset and "WindowWidth" in dataset)
            shown = apply_voi_lut(values, dataset, index=0) if windowed else values
        except Exception as error:
            raise Unsuitable(
                "undecodable", f"modality or VOI LUT cannot be applied ({type(error).__name__})"
            ) from error
    image = np.asarray(shown, dtype=np.float32)
    picture = image[~padding] if padding is not None and not padding.all() else image
    if windowed:
        low, high = float(picture.min()), float(picture.max())
    else:
        low, high = _central_range(picture)
    if not np.isfinite((low, high)).all() or high <= low:
        raise Unsuitable("blank", "nothing is left after the window is applied")
    image = np.clip((image - low) / (high - low), 0.0, 1.0)
    if _inverse(dataset):
        image = 1.0 - image
    if padding is not None:
        image[padding] = 0.0  # PS3.3 C.7.5.1.1.2: padding is no image; it is shown black
    return np.asarray(image, dtype=np.float32)


def stretch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale any grey image to 0..1 as an X-ray without a window is; for pictures that are no DICOM files."""
    low, high = _central_range(values)
    return np.asarray(np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0), dtype=np.float32)


def _central_range(values: NDArray[np.float32]) -> tuple[float, float]:
    # What lies in the outermost 0.5 % is collimator, marker or burnt-out air.
    low, high = (float(v) for v in np.percentile(values[:: max(1, values.shape[0] // 1024)], (0.5, 99.5)))
    return (low, high) if high > low else (float(values.min()), float(values.max()))


def _padding(dataset: FileDataset, stored: NDArray[np.integer]) -> NDArray[np.bool_] | None:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit", value)
    try:
        low, high = sorted((int(value), int(limit)))
    except (TypeError, ValueError):
        return None
    return np.asarray((stored >= low) & (stored <= high))


def _inverse(dataset: Dataset) -> bool:
    shape = dataset.get("PresentationLUTShape")  # PS3.3 C.11.6: it decides where it is present
    if shape in ("INVERSE", "IDENTITY"):
        return bool(shape == "INVERSE")
    return bool(dataset.get("PhotometricInterpretation") == "MONOCHROME1")


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom's warnings quote header values, which may be a patient's: they are never passed on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
