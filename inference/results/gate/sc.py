"""The gate's rules for a Secondary Capture: the picture, decoded, shows radiograph and answer."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import generate_frames

from inference.results import layout
from inference.results.case import Case
from inference.results.gate import common, images
from inference.results.gate.banner import expected_message
from inference.results.gate.expected import Expected, Rule
from inference.results.gate.outline import (
    displacement_px,
    edge_of,
    fine_box,
    has_contour,
    sides_of,
    tolerated_px,
    touched_blocks,
)
from inference.results.gate.panel import BLOCK, FINE, Panel, panel_of
from inference.results.typesetting import typeset

# How far the radiograph in the overlay may be from the case's, in 0..1, in the blocks that no
# contour touches: on the average, and in any of them. 30 real X-rays, each at 2048 and quality 90
# and at 512 and 50, stayed below 0.0022 and 0.026; noise from pixel to pixel goes further. The two
# most alike of the 248 chests in the test data are 0.045 apart on the average.
PICTURE_TOLERANCE = 0.01
BLOCK_TOLERANCE = 0.12
# How far the banner may be from the same words set again, at half the size and in any place: 0.09
# measured at quality 50, 0.02 at 90; another digit in the narrowest banner is 0.2 away.
WORDS_TOLERANCE = 0.14
# Red above blue, in 0..1, of a grey block at most.
GREY_TOLERANCE = 0.02


def _description(dataset: Dataset, expected: Expected) -> Iterator[str]:
    described = (
        dataset.SamplesPerPixel,
        dataset.BitsAllocated,
        dataset.BitsStored,
        dataset.HighBit,
        dataset.PixelRepresentation,
        dataset.PlanarConfiguration,
    )
    if described != (3, 8, 8, 7, 0, 0):
        yield "the pixels are not described as three interleaved samples of 8 bits"
    if dataset.PhotometricInterpretation != "YBR_FULL_422":
        yield f"PhotometricInterpretation {dataset.PhotometricInterpretation}, wanted YBR_FULL_422"
    if "PixelSpacing" in dataset or "ImagerPixelSpacing" in dataset:
        yield "a spacing invites measuring on a picture"

    promised = expected.case.header.get("BurnedInAnnotation") == "NO"
    if dataset.BurnedInAnnotation != ("NO" if promised else "YES"):
        yield "BurnedInAnnotation is not the source's"


def _picture(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """The JPEG shows this radiograph and contour, above the words of this answer."""
    panel = panel_of(expected.case)
    words = typeset(expected_message(expected), panel.picture_width, panel.height)
    size = (panel.picture_width, panel.banner_top + words.height)

    jpeg = next(generate_frames(dataset.PixelData, number_of_frames=1))
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        if "progressive" in picture.info or picture.mode != "RGB":
            yield "the JPEG is not a baseline JPEG in colour"
            return
        stated = (dataset.Columns, dataset.Rows)
        if not picture.size == size == stated:
            yield f"a JPEG of {picture.size} in {stated}, wanted {size}: radiograph and banner"
            return

        picture.draft("RGB", (size[0] // FINE, size[1] // FINE))
        picture.load()
        if picture.width != -(-size[0] // FINE):
            yield "the JPEG does not decode at half its size"
            return
        blocks = _unit(picture.reduce(BLOCK // FINE))
        banner = picture.crop((0, panel.banner_top // FINE, picture.width, picture.height))
        written = _unit(banner.convert("L"))

    wanted = _unit(words.convert("L").reduce(FINE))
    if float(np.abs(written - wanted).max()) > WORDS_TOLERANCE:
        yield "the banner does not say this answer"

    yield from _contour(picture, panel, expected.case)

    # A block at the right or lower rim that is not all radiograph is not looked at.
    first = panel.left // BLOCK
    rows, columns = panel.height // BLOCK, panel.width // BLOCK
    yield from _radiograph(blocks[:rows, first : first + columns], panel, expected.case)


def _contour(fine: Image.Image, panel: Panel, case: Case) -> Iterator[str]:
    """The contour runs along the mask's edge, not beside it; `fine` is the picture at half size."""
    if case.segmented is None:
        return

    # What no stroke reaches is not looked at.
    rows, columns = fine_box(case, panel)
    left, width, height = (part // FINE for part in (panel.left, panel.width, panel.height))
    right, bottom = min(columns.stop, width), min(rows.stop, height)
    if right <= columns.start or bottom <= rows.start:
        return
    part = fine.crop((left + columns.start, rows.start, left + right, bottom))

    red, _, blue = (np.asarray(band, dtype=np.float32) for band in part.split())
    colour = (red - blue) / np.float32(layout.ORANGE[0] - layout.ORANGE[2])
    off = displacement_px(sides_of(case), colour, (rows.start, columns.start), panel)
    if any(abs(px) > most for px, most in zip(off, tolerated_px(panel), strict=True)):
        yield "the contour lies {:.1f} pixels below and {:.1f} right of the mask's edge".format(
            *off
        )


def _radiograph(shown: NDArray[np.float32], panel: Panel, case: Case) -> Iterator[str]:
    """The (rows, columns, RGB) means of blocks are the source's grey but for the contour."""
    if shown.size == 0:
        return

    touched = np.zeros(shown.shape[:2], dtype=bool)
    coloured = shown[..., 0] - shown[..., 2]
    if case.segmented is not None:
        # (n, 2) of (row, column) on the panel
        edge = (edge_of(case) + 0.5) * panel.scales
        touched = touched_blocks(edge, shown.shape[:2], panel)
        if not has_contour(edge, coloured, panel):
            yield "no contour along a part of the mask's edge"

    alone = ~touched
    if float(np.abs(coloured[alone]).max(initial=0)) > GREY_TOLERANCE:
        yield "the radiograph is coloured where there is no contour"

    if case.pixels is None:  # a plain panel with a few words
        if abs(float(shown.mean()) - layout.NO_IMAGE_GREY / 255) > PICTURE_TOLERANCE:
            yield "the picture shows something where there is no image"
        return

    means = _means(case.pixels, shown.shape[:2], panel.scales)
    off = np.abs(shown[..., 1] - means)[alone]
    if off.size and (float(off.mean()) > PICTURE_TOLERANCE or float(off.max()) > BLOCK_TOLERANCE):
        yield "the picture does not show the source's pixels"


def _means(
    pixels: NDArray[np.float32], shape: tuple[int, int], scales: tuple[float, float]
) -> NDArray[np.float64]:
    """The means of the source's pixels in (rows, columns) blocks of the picture, from the upper
    left.

    A part of a pixel counts as a part.
    """
    bounds = [
        np.minimum(np.arange(count + 1) * (BLOCK / scale), whole)
        for count, whole, scale in zip(shape, pixels.shape, scales, strict=True)
    ]
    strips = np.empty((shape[0], pixels.shape[1]), dtype=np.float32)
    tops, bottoms = bounds[0][:-1, None], bounds[0][1:, None]
    # As many rows for each strip as the most have.
    count = min(int(np.ceil(BLOCK / scales[0])) + 1, len(pixels))
    firsts = np.minimum(tops.astype(int), len(pixels) - count)
    rows = firsts + np.arange(count)
    shares = np.maximum(np.minimum(rows + 1, bottoms) - np.maximum(rows, tops), 0)
    shares = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    for first, share, strip in zip(firsts.ravel().tolist(), shares, strips, strict=True):
        np.matmul(share, pixels[first : first + count], out=strip)

    # The sums of whole columns, without the part of the first that lies before each bound.
    whole = np.minimum(bounds[1].astype(int), pixels.shape[1] - 1)
    sums = np.add.reduceat(strips, whole, axis=1)[:, :-1]
    # Of two bounds within one column, reduceat gives that column.
    sums[:, np.diff(whole) == 0] = 0
    before = strips[:, whole] * (bounds[1] - whole).astype(np.float32)
    return np.asarray((sums + np.diff(before, axis=1)) / np.diff(bounds[1]))


def _unit(image: Image.Image) -> NDArray[np.float32]:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


RULES: tuple[Rule, ...] = (*common.RULES, *images.RULES, _description, _picture)
