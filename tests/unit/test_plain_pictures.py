"""Pictures without a DICOM header: which formats and value types are read, and the errors for the
others.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from inference import plain_pictures

# The grey rises from the first pixel to the last.
RAMP = np.arange(64 * 48).reshape(64, 48)
BYTES = Image.fromarray((RAMP / 12).astype(np.uint8))
WORDS = Image.fromarray((RAMP * 21).astype(np.uint16))


def written(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def white_is_zero(values: NDArray[Any]) -> bytes:
    """An uncompressed TIFF in which the largest value is black."""
    form = {"u": 1, "f": 3}[values.dtype.kind]
    data = values.tobytes()
    entries = [
        (256, 3, 1, values.shape[1]), (257, 3, 1, values.shape[0]),
        (258, 3, 1, 8 * values.itemsize), (259, 3, 1, 1), (262, 3, 1, 0), (273, 4, 1, 8),
        (277, 3, 1, 1), (278, 3, 1, values.shape[0]), (279, 4, 1, len(data)), (339, 3, 1, form),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(entries)) + directory + bytes(4)


GREY = {
    "8 bits": written(BYTES, "PNG"),
    "16 bits, PNG": written(WORDS, "PNG"),
    "16 bits, TIFF": written(WORDS, "TIFF"),
    "a palette": written(BYTES.convert("RGB").quantize(64), "PNG"),
    "colour and alpha": written(BYTES.convert("RGBA"), "PNG"),
    "CMYK": written(BYTES.convert("CMYK"), "JPEG", quality=100),
    "a palette and alpha": written(BYTES.convert("P").convert("PA"), "TIFF"),
    "float": written(Image.fromarray(RAMP.astype(np.float32) - 7), "TIFF"),
    "32 bits": written(Image.fromarray(RAMP.astype(np.int32) * 1000), "TIFF"),
    "white is zero, 8 bits": white_is_zero((255 - RAMP / 12.1).astype(np.uint8)),
    "white is zero, 16 bits": white_is_zero((65535 - RAMP * 21).astype(np.uint16)),
    "white is zero, float": white_is_zero(-RAMP.astype(np.float32)),
    "a smaller copy after it": written(
        BYTES, "TIFF", save_all=True, append_images=[BYTES.resize((8, 8))], tiffinfo={254: 1}
    ),
}
REFUSED = {
    "two pages": (written(BYTES, "TIFF", save_all=True, append_images=[BYTES]), "more than one"),
    "frames": (
        written(BYTES, "PNG", save_all=True, append_images=[BYTES.rotate(90)]), "more than one",
    ),
    "LAB": (written(Image.merge("LAB", (BYTES, BYTES, BYTES)), "TIFF"), "colours found"),
    "a TIFF cut off": (written(WORDS, "TIFF")[:-200], "truncated"),
    "a PNG cut off": (written(WORDS, "PNG")[:-30], "truncated"),
    "eight bytes": (b"\x89PNG\r\n\x1a\n", "no PNG, JPEG or TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("name", GREY)
def test_every_grey_format_gives_the_picture(name: str) -> None:
    values = plain_pictures.grey(GREY[name])
    assert values.shape == RAMP.shape
    assert values.dtype == np.float32
    assert np.corrcoef(values.ravel(), RAMP.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_one_grey_picture_is_refused(name: str) -> None:
    data, words = REFUSED[name]
    with pytest.raises(plain_pictures.PictureError, match=words):
        plain_pictures.grey(data)
