"""The gate's rules for a Secondary Capture: each yields what is wrong with what was read back."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import generate_frames

from inference.results import banner, overlay
from inference.results.identity import Case

# How far the radiograph in the overlay may be from the case's, as a mean over 64 x 64 cells of 0..1. JPEG and contour
# stayed below 0.015 on all looked at; the two most alike of the 248 chests in the test data are 0.045 apart.
PICTURE_TOLERANCE = 0.03
# How far any block of the banner may be from the same words set again: 0.004 measured, one digit of the score 0.06.
WORDS_TOLERANCE = 0.02
BLOCK = overlay.JPEG_BLOCK_PX


def _description(dataset: Dataset, case: Case) -> Iterator[str]:
    described = (dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit)
    if described != (3, 8, 8, 7) or dataset.PixelRepresentation or dataset.PlanarConfiguration:
        yield "the pixels are not described as three interleaved samples of 8 bits"
    if dataset.PhotometricInterpretation != "YBR_FULL_422":
        yield f"PhotometricInterpretation {dataset.PhotometricInterpretation}, wanted YBR_FULL_422"
    if "PixelSpacing" in dataset or "ImagerPixelSpacing" in dataset:
        yield "a spacing invites measuring on a picture"
    if dataset.BurnedInAnnotation != ("NO" if case.header.get("BurnedInAnnotation") == "NO" else "YES"):
        yield "BurnedInAnnotation is not the source's"


def _picture(dataset: Dataset, case: Case) -> Iterator[str]:
    """The JPEG decodes to the stated size and shows this radiograph, above the words of this answer."""
    panel = overlay.place(case)
    words = banner.draw(case, panel.canvas_width)
    size = (panel.canvas_width, panel.banner_top + words.height)
    jpeg = next(generate_frames(dataset.PixelData, number_of_frames=1))
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        if "progressive" in picture.info or picture.mode != "RGB":
            yield "the JPEG is not a baseline one in colour"
            return
        if not picture.size == size == (dataset.Columns, dataset.Rows):
            yield f"a JPEG of {picture.size} in {(dataset.Columns, dataset.Rows)}, wanted {size}: radiograph and banner"
            return
        # The decoder reads everything and gives the mean of each block.
        picture.draft("RGB", (size[0] // BLOCK, size[1] // BLOCK))
        blocks = picture.convert("L")
    if blocks.width != -(-size[0] // BLOCK):
        yield "the JPEG does not decode block by block"
        return
    box = (panel.left / BLOCK, 0.0, (panel.left + panel.width) / BLOCK, panel.height / BLOCK)
    shown = _unit(blocks.resize((64, 64), Image.Resampling.BOX, box))
    if case.pixels is None:
        wanted = np.full((64, 64), np.mean(overlay.NO_IMAGE) / 255)
    else:
        source = Image.fromarray((case.pixels * 255).astype(np.uint8))
        wanted = _unit(source.resize((64, 64), Image.Resampling.BOX, reducing_gap=2))
    if float(np.abs(shown - wanted).mean()) > PICTURE_TOLERANCE:
        yield "the picture does not show the source's pixels"
    written = _unit(blocks.crop((0, panel.banner_top // BLOCK, blocks.width, blocks.height)))
    if float(np.abs(written - _unit(words.convert("L").reduce(BLOCK))).max()) > WORDS_TOLERANCE:
        yield "the banner does not say this answer"


def _unit(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image, dtype=np.float64) / 255


RULES = (_description, _picture)
