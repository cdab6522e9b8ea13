"""Pictures that are not DICOM: the grey values of a PNG, JPEG or TIFF.

Such a picture has no header: nothing says whose it is, how it is oriented, or how large a pixel is.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, UnidentifiedImageError

from inference.pixels import MAX_PIXELS

# The file name suffixes by which such pictures are found in a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "TIFF")
_FIRST_BYTES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
# Pillow's modes that hold grey values of more than one bit.
_GREY_MODES = ("L", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# TIFF 6.0, section 8: white is zero; a page that is a smaller copy of another.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_SUBFILE_TYPE, _REDUCED = 254, 1


def without_ending(path: Path) -> Path:
    """An image's path without its suffix; the last number of a UID is not a suffix."""
    return path if path.suffix[1:].isdigit() else path.with_suffix("")


class PictureError(ValueError):
    """The bytes are not a readable picture; the message says why."""


def is_picture(data: bytes) -> bool:
    """Whether the bytes begin as a PNG, JPEG or TIFF.

    A DICOM file's preamble may hold a TIFF's first bytes (PS3.10 7.1): its prefix decides.
    """
    return data[128:132] != b"DICM" and data.startswith(_FIRST_BYTES)


def grey(data: bytes) -> NDArray[np.float32]:
    """(rows, columns) float32 grey values as they are stored, in the file's own range.

    Raises:
        PictureError: not such a picture, broken, with several pages, with values that are not
            numbers, or with more pixels than an X-ray has.
    """
    image = _decoded(data)
    if image.mode not in _GREY_MODES:
        try:
            image = image.convert("L")
        except ValueError as error:
            raise PictureError(f"colours found that are not read ({error})") from error

    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise PictureError("values found that are no numbers")
    # Pillow inverts only 8-bit values.
    if image.mode != "L" and _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = values.max() + values.min() - values
    return values


def flair(data: bytes) -> NDArray[np.float32]:
    """(rows, columns) float32, 0 to 1: the FLAIR slice of a TCGA-LGG picture, sharpened.

    FLAIR is the green channel (training/data/lgg.py).

    Raises:
        PictureError: as `grey`.
    """
    green = _decoded(data).convert("RGB").getchannel("G").filter(ImageFilter.SHARPEN)
    return np.asarray(green, dtype=np.float32) / np.float32(255)


def _decoded(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is replaced by ours, below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)

        if image.width * image.height > MAX_PIXELS:
            raise PictureError(
                f"{image.height} x {image.width} pixels found, at most {MAX_PIXELS} wanted"
            )
        _refuse_pages(image)
        image.load()
        return image
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("no PNG, JPEG or TIFF that can be read") from error
    except Exception as error:
        # On arbitrary bytes the decoder may raise anything.
        raise PictureError(f"{type(error).__name__}: {error}") from error


def _refuse_pages(image: Image.Image) -> None:
    """Raise if a second page or frame holds another picture, which would be ignored."""
    if image.format not in ("PNG", "TIFF"):
        # A telephone's JPEG may contain a preview as a second frame.
        return

    try:
        image.seek(1)
    except EOFError:
        return
    if not int(_tag(image, _SUBFILE_TYPE) or 0) & _REDUCED:
        raise PictureError("more than one page or frame found, one wanted")
    image.seek(0)


def _tag(image: Image.Image, number: int) -> Any:
    """A TIFF's tag; None if it is absent, or the picture is not a TIFF."""
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(number)
