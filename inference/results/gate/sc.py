"""The gate's rules for a Secondary Capture: the picture, decoded, shows radiograph and answer."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import generate_frames

from inference.contours import LARGEST_DISTANCE_PX
from inference.results import layout
from inference.results.case import Case
from inference.results.gate import common, images
from inference.results.gate.banner import expected_message
from inference.results.gate.expected import Expected, Rule
from inference.results.typesetting import typeset

# Everything is compared in the means of blocks, which the decoder gives at once.
BLOCK = layout.JPEG_BLOCK_PX
# How far the radiograph in the overlay may be from the case's, in 0..1, in the blocks that no
# contour touches: on the average, and in any of them. 30 real X-rays, each at 2048 and quality 90
# and at 512 and 50, stayed below 0.0022 and 0.026; noise from pixel to pixel goes further. The two
# most alike of the 248 chests in the test data are 0.045 apart on the average.
PICTURE_TOLERANCE = 0.01
BLOCK_TOLERANCE = 0.12
# How far any block of the banner may be from the same words set again: 0.004 measured, one digit of
# the score 0.06.
WORDS_TOLERANCE = 0.02
# Red above blue, in 0..1, of a grey block at most.
GREY_TOLERANCE = 0.02
# Pixels of the contour's colour, summed up, in the neighbourhood of any piece of the mask's edge.
CONTOUR_PX = 3.0


@dataclass(frozen=True)
class _Panel:
    """Where the radiograph has to stand in the picture, in the picture's pixels.

    `scales` is how many of them the height and the width of a source pixel take.
    """

    left: int
    width: int
    height: int
    scales: tuple[float, float]
    picture_width: int
    banner_top: int

    @property
    def contour_reach_px(self) -> float:
        """How far a contour and its halo reach from the middle of the line."""
        line_px = float(np.clip(max(self.width, self.height) * layout.LINE_PART, *layout.LINE_PX))
        return line_px * (0.5 + layout.HALO_PART)


def _panel(case: Case) -> _Panel:
    """In true proportions, at most `longest_side`; a tiny source is enlarged by a whole factor."""
    rows, columns = _matrix(case)
    higher, wider = 1.0, 1.0
    if case.pixels is not None and case.aspect > 1:
        higher = case.aspect
    elif case.pixels is not None:
        wider = 1 / case.aspect
    rows, columns = round(rows * higher), round(columns * wider)

    longest, limit = max(rows, columns), case.appearance.longest_side
    enlarged = min(-(-layout.ENLARGE_BELOW_PX // longest), limit // longest)
    scale = limit / longest if longest > limit else float(max(1, enlarged))

    width, height = max(1, round(columns * scale)), max(1, round(rows * scale))
    picture_width = max(width, layout.NARROWEST_BANNER_PX)
    return _Panel(
        left=(picture_width - width) // 2 // BLOCK * BLOCK,
        width=width,
        height=height,
        scales=(scale * higher, scale * wider),
        picture_width=picture_width,
        banner_top=-(-height // BLOCK) * BLOCK,
    )


def _matrix(case: Case) -> tuple[int, int]:
    """(rows, columns) of the radiograph, or of the panel that stands for it without pixels."""
    if case.pixels is not None:
        return case.pixels.shape[0], case.pixels.shape[1]

    rows, columns = case.header.get("Rows"), case.header.get("Columns")
    numbers = isinstance(rows, int) and isinstance(columns, int)
    if not numbers or not 0 < columns <= 2 * rows <= 4 * columns:
        return layout.NO_IMAGE_SIDE_PX, layout.NO_IMAGE_SIDE_PX
    factor = layout.NO_IMAGE_SIDE_PX / max(rows, columns)
    return round(rows * factor), round(columns * factor)


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
    panel = _panel(expected.case)
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

        # The decoder reads everything and gives the mean of each block.
        picture.draft("RGB", (size[0] // BLOCK, size[1] // BLOCK))
        picture.load()
        if picture.width != -(-size[0] // BLOCK):
            yield "the JPEG does not decode block by block"
            return
        shown = _unit(picture)
        written = _unit(picture.convert("L"))[panel.banner_top // BLOCK :]

    wanted = _unit(words.convert("L").reduce(BLOCK))
    if float(np.abs(written - wanted).max()) > WORDS_TOLERANCE:
        yield "the banner does not say this answer"

    # A block at the right or lower rim that is not all radiograph is not looked at.
    first = panel.left // BLOCK
    rows, columns = panel.height // BLOCK, panel.width // BLOCK
    yield from _radiograph(shown[:rows, first : first + columns], panel, expected.case)


def _radiograph(shown: NDArray[np.float64], panel: _Panel, case: Case) -> Iterator[str]:
    """The (rows, columns, RGB) means of blocks are the source's grey but for the contour."""
    if shown.size == 0:
        return

    touched = np.zeros(shown.shape[:2], dtype=bool)
    coloured = shown[..., 0] - shown[..., 2]
    if case.segmented is not None:
        # (n, 2) of (row, column) on the panel
        edge = (_edge(case.segmented) + 0.5) * panel.scales
        touched = _touched(edge, shown.shape[:2], panel)
        if not _has_contour(edge, coloured, panel):
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


def _touched(edge: NDArray[np.float64], shape: tuple[int, int], panel: _Panel) -> NDArray[np.bool_]:
    """The (rows, columns) blocks that a contour along the edge may touch."""
    rows, columns = shape
    touched = np.zeros((rows + 2, columns + 2), dtype=bool)  # with a rim of one block

    # A contour lies within LARGEST_DISTANCE_PX of the edge, and that within half a pixel of a
    # side's middle.
    reach = panel.contour_reach_px + 1 + (LARGEST_DISTANCE_PX + 0.5) * max(panel.scales)
    steps = np.linspace(-reach, reach, 2 + int(2 * reach / BLOCK))
    for down in steps:
        for across in steps:
            row, column = np.floor((edge + np.array([down, across])).T / BLOCK).astype(int)
            touched[np.clip(row + 1, 0, rows + 1), np.clip(column + 1, 0, columns + 1)] = True

    return touched[1:-1, 1:-1]


def _has_contour(edge: NDArray[np.float64], coloured: NDArray[np.float64], panel: _Panel) -> bool:
    """True if there is the contour's colour near every piece of the edge."""
    rows, columns = coloured.shape

    # The sum of colour over the blocks around each block, by a table of sums.
    about = 1 + int(LARGEST_DISTANCE_PX * max(panel.scales) / BLOCK)
    far = 2 * about + 1
    sums = np.pad(np.pad(coloured, about).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    around = sums[far:, far:] - sums[far:, :-far] - sums[:-far, far:] + sums[:-far, :-far]

    limits = np.array([[panel.height - 1], [panel.width - 1]])
    row, column = np.floor(np.clip(edge.T, 0, limits) / BLOCK).astype(int)
    inside = (row < rows) & (column < columns)
    colour = (layout.ORANGE[0] - layout.ORANGE[2]) / 255
    wanted = CONTOUR_PX / BLOCK**2 * colour
    return float(around[row[inside], column[inside]].min(initial=1)) >= wanted


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, 2) of (row, column): the middles of the sides between the mask and other pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corner = np.array([rows[0] - 1, columns[0] - 1])
    part = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)

    middles = []
    for one, other, half in (
        (part[:-1], part[1:], (0.5, 0.0)),
        (part[:, :-1], part[:, 1:], (0.0, 0.5)),
    ):
        row, column = np.divmod(np.flatnonzero(one != other), one.shape[1])
        middles.append(np.stack([row + half[0], column + half[1]], axis=1))
    return np.asarray(np.concatenate(middles) + corner)


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


RULES: tuple[Rule, ...] = (*common.RULES, *images.RULES, _description, _picture)
