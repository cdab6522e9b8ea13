"""An image file as networks see it: grey, 0 black to 1 white, upright; DICOM, PNG, JPEG or TIFF."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from inference import plain_pictures, radiograph
from inference.preprocess import upright
from inference.silence import silenced_warnings

PLAIN_SUFFIXES = plain_pictures.SUFFIXES
_EQUAL_QUALITY = 85
# Bytes read from each end of a file: all of most JPEGs, and fast for thousands of files.
_SAMPLED = 64 * 1024


def grey(path: Path) -> NDArray[np.float32]:
    """(rows, columns) of a file: DICOM through its own display attributes, others stretched to
    0..1.

    Raises:
        ValueError: the file cannot be read; with its path.
    """
    if path.suffix.lower() in PLAIN_SUFFIXES:
        return radiograph.stretch(plain(path))
    try:
        shown = radiograph.decode(radiograph.parse(path.read_bytes())[0])
    except (OSError, radiograph.Unsuitable) as error:
        raise ValueError(f"{path}: cannot be read as DICOM ({_said(error)})") from error
    return upright(shown.pixels, shown.header.get("PatientOrientation"))


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
    """A mask of the stored matrix of the image at `path`, turned as `grey` turns the image."""
    if path.suffix.lower() in PLAIN_SUFFIXES:
        return mask
    try:
        with silenced_warnings():
            header = dcmread(
                path, stop_before_pixels=True, specific_tags=["PatientOrientation"], force=True
            )
            return upright(mask, header.get("PatientOrientation"))
    except Exception as error:
        # The parser meets arbitrary bytes and may raise anything.
        raise ValueError(f"{path}: cannot be read as DICOM ({error})") from error


def inside(folder: Path, name: str) -> Path:
    """The file of that name, taken from a table, in `folder` or below.

    Raises:
        ValueError: it lies elsewhere.
    """
    if not name or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} found, a path inside {folder} wanted")
    return folder / name


def stamp(*paths: Path | None) -> str:
    """A stamp that changes when one of the files is exchanged, not when they are copied. A missing
    one has a stamp too.

    Of a file its name, its length and its first and last 64 KiB count.
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
    return f"{size} {ends.hexdigest()}"


def equalised(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, columns) 0..1 after one JPEG compression.

    A network must not learn a copy's codec for the label.
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
