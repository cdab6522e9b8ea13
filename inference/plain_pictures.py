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
    image = _decoded(data)
    stored = image.convert("L") if image.mode in _COLOUR_MODES else image
    return np.asarray(stored, dtype=np.float32)


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
        image.load()
        return image
    except PictureError:
        raise
    except Exception as error:
        # The decoder meets arbitrary bytes and may raise anything.
        raise PictureError(f"{type(error).__name__}: {error}") from error
