"""The gate's rules for a Secondary Capture: each yields what is wrong with what was read back."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import generate_frames

from inference.contours import LARGEST_DISTANCE_PX
from inference.results import banner, overlay
from inference.results.identity import Case

BLOCK = (
    overlay.JPEG_BLOCK_PX
)  # all is compared in the means of blocks, which the decoder gives at once
# How far the radiograph in the overlay may be from the case's, in 0..1, in the blocks that no contour touches: on the
# average, and in any of them. 30 real X-rays, each at 2048 and quality 90 and at 512 and 50, stayed below 0.0022
# and 0.026; noise from pixel to pixel goes further. The two most alike of the 248 chests in the test data are 0.045
# apart on the average.
PICTURE_TOLERANCE, BLOCK_TOLERANCE = 0.01, 0.12
# How far any block of the banner may be from the same words set again: 0.004 measured, one digit of the score 0.06.
WORDS_TOLERANCE = 0.02
# Red above blue, in 0..1: of a grey block at most, and of the contour's colour, summed up over the pixels that it needs
# to have in the neighbourhood of any piece of the mask's edge.
GREY_TOLERANCE, CONTOUR_PX = 0.02, 3.0


def _description(dataset: Dataset, case: Case) -> Iterator[str]:
    described = (
        dataset.SamplesPerPixel,
        dataset.BitsAllocated,
        dataset.BitsStored,
        dataset.HighBit,
    )
    if described != (3, 8, 8, 7) or dataset.PixelRepresentation or dataset.PlanarConfiguration:
        yield "the pixels are not described as three interleaved samples of 8 bits"
    if dataset.PhotometricInterpretation != "YBR_FULL_422":
        yield f"PhotometricInterpretation {dataset.PhotometricInterpretation}, wanted YBR_FULL_422"
    if "PixelSpacing" in dataset or "ImagerPixelSpacing" in dataset:
        yield "a spacing invites measuring on a picture"
    if dataset.BurnedInAnnotation != (
        "NO" if case.header.get("BurnedInAnnotation") == "NO" else "YES"
    ):
        yield "BurnedInAnnotation is not the source's"


def _picture(dataset: Dataset, case: Case) -> Iterator[str]:
    """The JPEG decodes to the stated size and shows this radiograph and contour, above the words of this answer."""
    panel = overlay.place(case)
    words = banner.draw(case, panel.canvas_width, panel.height)
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
        picture.load()
        if picture.width != -(-size[0] // BLOCK):
            yield "the JPEG does not decode block by block"
            return
        shown = _unit(picture)
        written = _unit(picture.convert("L"))[panel.banner_top // BLOCK :]
    if float(np.abs(written - _unit(words.convert("L").reduce(BLOCK))).max()) > WORDS_TOLERANCE:
        yield "the banner does not say this answer"
    first = panel.left // BLOCK
    # A block at the right or lower rim that is not all radiograph is not looked at.
    yield from _radiograph(
        shown[: panel.height // BLOCK, first : first + panel.width // BLOCK], panel, case
    )


def _radiograph(shown: NDArray[np.float64], panel: overlay.Panel, case: Case) -> Iterator[str]:
    """The (rows, columns, RGB) means of blocks are the source's grey but for a contour along the mask's edge."""
    if shown.size == 0:
        return
    rows, columns = shown.shape[:2]
    touched = np.zeros((rows + 2, columns + 2), dtype=bool)  # with a rim of one block
    coloured = shown[..., 0] - shown[..., 2]
    if case.segmented is not None:
        edge = (_edge(case.segmented) + 0.5) * panel.scale  # (n, 2) of (row, column) on the panel
        # A contour lies within LARGEST_DISTANCE_PX of the edge, and that within half a pixel of a side's middle.
        reach = panel.line_px / 2 + panel.halo_px + 1 + (LARGEST_DISTANCE_PX + 0.5) * panel.scale
        steps = np.linspace(-reach, reach, 2 + int(2 * reach / BLOCK))
        for down in steps:
            for across in steps:
                row, column = np.floor((edge + np.array([down, across])).T / BLOCK).astype(int)
                touched[np.clip(row + 1, 0, rows + 1), np.clip(column + 1, 0, columns + 1)] = True
        about = 1 + int(LARGEST_DISTANCE_PX * panel.scale / BLOCK)  # blocks to every side
        sums = np.pad(np.pad(coloured, about).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        far = 2 * about + 1
        in_colour = sums[far:, far:] - sums[far:, :-far] - sums[:-far, far:] + sums[:-far, :-far]
        row, column = np.floor(
            np.clip(edge.T, 0, [[panel.height - 1], [panel.width - 1]]) / BLOCK
        ).astype(int)
        inside = (row < rows) & (column < columns)
        wanted = CONTOUR_PX / BLOCK**2 * (banner.ORANGE[0] - banner.ORANGE[2]) / 255
        if float(in_colour[row[inside], column[inside]].min(initial=1)) < wanted:
            yield "no contour along a part of the mask's edge"
    alone = ~touched[1:-1, 1:-1]
    if float(np.abs(coloured[alone]).max(initial=0)) > GREY_TOLERANCE:
        yield "the radiograph is coloured where there is no contour"
    if case.pixels is None:  # a plain panel with a few words
        if abs(float(shown.mean()) - overlay.NO_IMAGE / 255) > PICTURE_TOLERANCE:
            yield "the picture shows something where there is no image"
        return
    off = np.abs(shown[..., 1] - _means(case.pixels, (rows, columns), BLOCK / panel.scale))[alone]
    if off.size and (float(off.mean()) > PICTURE_TOLERANCE or float(off.max()) > BLOCK_TOLERANCE):
        yield "the picture does not show the source's pixels"


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, 2) of (row, column): the middles of the sides that True pixels share with False ones or the border."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    middles = []
    for one, other, half in (
        (part[:-1], part[1:], (0.5, 0.0)),
        (part[:, :-1], part[:, 1:], (0.0, 0.5)),
    ):
        row, column = np.divmod(np.flatnonzero(one != other), one.shape[1])
        middles.append(np.stack([row + half[0], column + half[1]], axis=1))
    return np.asarray(np.concatenate(middles) + np.array([rows[0] - 1, columns[0] - 1]))


def _means(pixels: NDArray[np.float32], shape: tuple[int, int], side: float) -> NDArray[np.float64]:
    """The means of (rows, columns) squares of `side` source pixels, from the upper left; parts of pixels count so."""
    bounds = [
        np.minimum(np.arange(count + 1) * side, whole)
        for count, whole in zip(shape, pixels.shape, strict=True)
    ]
    strips = np.empty((shape[0], pixels.shape[1]), dtype=np.float32)
    for number, (top, bottom) in enumerate(itertools.pairwise(bounds[0])):
        first, last = int(top), int(np.ceil(bottom))
        share = np.ones(last - first, dtype=np.float32)
        share[0] -= top - first
        share[-1] -= last - bottom
        strips[number] = share @ pixels[first:last] / share.sum()
    sums = np.zeros((shape[0], pixels.shape[1] + 2))
    np.cumsum(strips, axis=1, out=sums[:, 1:-1])
    sums[:, -1] = sums[:, -2]
    whole = bounds[1].astype(int)
    up_to = sums[:, whole] + (sums[:, whole + 1] - sums[:, whole]) * (bounds[1] - whole)
    return np.asarray(np.diff(up_to, axis=1) / np.diff(bounds[1]))


def _unit(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image, dtype=np.float64) / 255


RULES = (_description, _picture)
