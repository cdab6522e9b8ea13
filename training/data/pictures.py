"""An image file as networks see it: grey, 0 black to 1 white, upright; DICOM, PNG, JPEG or TIFF."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from inference import plain_pictures, radiograph
from inference.preprocess import as_seen, in_source, upright
from inference.silence import silenced_warnings
from inference.spacing import is_square, pixel_aspect

PLAIN_SUFFIXES = plain_pictures.SUFFIXES
_EQUAL_QUALITY = 85
_HALF = 0.5
_GEOMETRY = [
    "PatientOrientation", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing",
    "PixelAspectRatio",
]  # fmt: skip
# Bytes read from each end of a file: all of most JPEGs, and fast for thousands of files.
_SAMPLED = 64 * 1024


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as a node's networks see it, and the way back to the matrix of its file."""

    # (rows, columns), 0 black to 1 white, square pixels, upright
    pixels: NDArray[np.float32]
    # (rows, columns) of the file
    shape: tuple[int, ...]
    # PatientOrientation (0020,0020)
    orientation: Sequence[str] | None = None
    # (rows, columns) of the file, True inside the display shutter
    opening: NDArray[np.bool_] | None = None

    def in_file(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:
        """A map of `pixels` in the matrix of the file, as a node brings it there."""
        return in_source(seen, self.shape, self.orientation, self.opening)


def grey(path: Path) -> NDArray[np.float32]:
    """The pixels of `read`.

    Raises:
        ValueError: the file cannot be read; with its path.
    """
    return read(path).pixels


def read(path: Path) -> Picture:
    """The picture of a file: DICOM through its own display attributes, others stretched to 0..1.

    Raises:
        ValueError: the file cannot be read; with its path.
    """
    if path.suffix.lower() in PLAIN_SUFFIXES:
        pixels = radiograph.stretch(plain(path))
        return Picture(pixels, pixels.shape)

    try:
        shown = radiograph.decode(radiograph.parse(path.read_bytes())[0])
    except (OSError, radiograph.Unsuitable) as error:
        raise ValueError(f"{path}: cannot be read as DICOM ({_said(error)})") from error

    orientation = shown.header.get("PatientOrientation")
    seen = as_seen(shown.pixels, shown.aspect, orientation)
    return Picture(seen, shown.pixels.shape, orientation, shown.opening)


def plain(path: Path) -> NDArray[np.float32]:
    """(rows, columns) grey values of a PNG, JPEG or TIFF as they are stored.

    Raises:
        ValueError: the file cannot be read; with its path.
    """
    try:
        return plain_pictures.grey(path.read_bytes())
    except (OSError, plain_pictures.PictureError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def as_shown(mask: NDArray[np.bool_], path: Path) -> NDArray[np.bool_]:
    """A mask of the stored matrix of the image at `path`, as `read` shows the image.

    Raises:
        ValueError: the file cannot be read; with its path.
    """
    if path.suffix.lower() in PLAIN_SUFFIXES:
        return mask

    aspect, orientation = _geometry(path)
    if is_square(aspect):
        return upright(mask, orientation)
    return as_seen(mask.astype(np.float32), aspect, orientation) >= _HALF


def _geometry(path: Path) -> tuple[float, Sequence[str] | None]:
    """(a pixel's height divided by its width, PatientOrientation) of a DICOM file."""
    try:
        with silenced_warnings():
            header = dcmread(path, stop_before_pixels=True, specific_tags=_GEOMETRY, force=True)
            return pixel_aspect(header), header.get("PatientOrientation")
    except Exception as error:
        # On arbitrary bytes the parser may raise anything.
        raise ValueError(f"{path}: cannot be read as DICOM ({error})") from error


def inside(folder: Path, name: str) -> Path:
    """The path that a table names, inside `folder`.

    Raises:
        ValueError: it lies elsewhere.
    """
    if not name or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} found, a path inside {folder} wanted")
    return folder / name


def stamp(*paths: Path | None) -> str:
    """A stamp that changes when one of the files is replaced, but not when they are copied.

    A missing file has a stamp too. It covers a file's name, its length and its first and last 64
    KiB; for DICOM with pixels that are not square also their aspect.
    """
    said = []
    for path in paths:
        try:
            status = path.stat() if path is not None else None
            said.append(
                f"{path.name} {_sample(path, status.st_size, status.st_mtime_ns)}"
                if path and status
                else "-"
            )
        except OSError:
            said.append("-")

    return " ".join(said)


@cache
def _sample(path: Path, size: int, _changed: int) -> str:
    with path.open("rb") as file:
        ends = hashlib.blake2b(file.read(_SAMPLED), digest_size=16)
        file.seek(max(_SAMPLED, size - _SAMPLED))
        ends.update(file.read())
    return f"{size} {ends.hexdigest()}{_stretched(path)}"


def _stretched(path: Path) -> str:
    """How a picture is resized to true proportions; empty if its pixels are square."""
    if path.suffix.lower() in PLAIN_SUFFIXES:
        return ""
    try:
        aspect, _ = _geometry(path)
    except ValueError:
        # Reading the pixels will report the fault.
        return ""
    return "" if is_square(aspect) else f" aspect {aspect:.6g}"


def equalised(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, columns) 0..1 after one JPEG compression.

    Otherwise a network could learn a copy's codec instead of the label.
    """
    buffer = io.BytesIO()
    Image.fromarray(as_bytes(pixels)).save(buffer, "JPEG", quality=_EQUAL_QUALITY)
    with Image.open(buffer) as image:
        return np.asarray(image, dtype=np.float32) / np.float32(255)


def as_bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0..1 as 0..255."""
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _said(error: Exception) -> str:
    return (
        f"{error.reason}: {error.detail}"
        if isinstance(error, radiograph.Unsuitable)
        else str(error)
    )
