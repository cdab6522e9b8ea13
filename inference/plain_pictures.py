"""A picture that is no DICOM file: PNG, JPEG or TIFF, as bytes, to grey values.

Such a picture has no header: nothing says whose it is, how it is turned, or how large a pixel is.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from inference.pixels import MAX_PIXELS

# The file names' endings, for whoever looks for such pictures in a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "TIFF")
_FIRST_BYTES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
# Pillow's modes that hold colours; all others hold grey values.
_COLOUR_MODES = ("1", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr")


class PictureError(ValueError):
    """The bytes are no picture that can be read; the message says why."""


def is_picture(data: bytes) -> bool:
    """Whether the bytes begin as a PNG, JPEG or TIFF.

    A DICOM file's preamble may hold a TIFF's first bytes (PS3.10 7.1): its prefix decides.
    """
    return data[128:132] != b"DICM" and data.startswith(_FIRST_BYTES)


def grey(data: bytes) -> NDArray[np.float32]:
    """(rows, columns) float32 grey values as they are stored, in the file's own range.

    Raises:
        PictureError: no such picture, broken, or more pixels than an X-ray has.
    """
    image = _opened(data)
    return _values(image.convert("L") if image.mode in _COLOUR_MODES else image)


def flair(data: bytes) -> NDArray[np.float32]:
    """(rows, columns) float32, 0 to 1: the FLAIR slice of a TCGA-LGG picture, sharpened.

    FLAIR is the green channel (training/data/lgg.py).

    Raises:
        PictureError: as `grey`.
    """
    image = _opened(data)
    try:
        green = image.convert("RGB").getchannel("G").filter(ImageFilter.SHARPEN)
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(str(error)) from error
    return _values(green) / np.float32(255)


def _opened(data: bytes) -> Image.Image:
    """The picture, its pixels not decoded yet."""
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is replaced by ours, below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    # The errors that Pillow raises for broken files
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(str(error)) from error

    if image.width * image.height > MAX_PIXELS:
        raise PictureError(
            f"{image.height} x {image.width} pixels found, at most {MAX_PIXELS} wanted"
        )
    return image


def _values(image: Image.Image) -> NDArray[np.float32]:
    try:
        return np.asarray(image, dtype=np.float32)
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(str(error)) from error
