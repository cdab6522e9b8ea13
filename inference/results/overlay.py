"""The picture in the Secondary Capture: the radiograph, a fine contour, and a banner below it.

Nothing but the contour lies on the anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset

from inference.results import banner, layout
from inference.results.case import Case
from inference.results.lesions import outlines_of
from inference.results.typesetting import typeface, typeset

# Distance between samples of a line, from which the distances to it are taken: off by at most
# 0.07 px at its rim.
SAMPLE_EVERY_PX = 0.8
# Bounds the memory that a mask full of edges takes.
SAMPLES_AT_ONCE = 20_000
HALO_OPACITY = 0.6
NO_IMAGE_TEXT_GREY = 160


@dataclass(frozen=True)
class Panel:
    """The place of the radiograph in the picture, in the picture's pixels.

    `scale` is how many of them the shorter side of a source pixel takes, and `scales` how many its
    height and its width take.
    """

    left: int
    width: int
    height: int
    scale: float
    scales: tuple[float, float]
    canvas_width: int
    banner_top: int

    @property
    def line_px(self) -> float:
        """The width of a contour."""
        return float(np.clip(max(self.width, self.height) * layout.LINE_PART, *layout.LINE_PX))

    @property
    def halo_px(self) -> float:
        """How far the dark halo goes beyond the line on either side; it fades to nothing there."""
        return self.line_px * layout.HALO_PART


def place(case: Case) -> Panel:
    """Lay the radiograph out in true proportions: at most `longest_side`; enlarged only where tiny,
    by a whole factor.
    """
    rows, columns = _no_image_shape(case.header)
    stretch = (1.0, 1.0)
    if case.pixels is not None:
        # The shorter side of a pixel is kept, so that no detail is lost.
        stretch = (max(1.0, case.aspect), max(1.0, 1 / case.aspect))
        rows = round(case.pixels.shape[0] * stretch[0])
        columns = round(case.pixels.shape[1] * stretch[1])

    longest, limit = max(rows, columns), case.appearance.longest_side
    if longest > limit:
        scale = limit / longest
    else:
        scale = float(max(1, min(-(-layout.ENLARGE_BELOW_PX // longest), limit // longest)))
    width, height = max(1, round(columns * scale)), max(1, round(rows * scale))
    canvas = max(width, layout.NARROWEST_BANNER_PX)
    left = (canvas - width) // 2 // layout.JPEG_BLOCK_PX * layout.JPEG_BLOCK_PX
    banner_top = -(-height // layout.JPEG_BLOCK_PX) * layout.JPEG_BLOCK_PX
    scales = (scale * stretch[0], scale * stretch[1])
    return Panel(left, width, height, scale, scales, canvas, banner_top)


def draw(case: Case) -> Image.Image:
    """The whole picture, RGB: the radiograph on top, the banner below."""
    panel = place(case)
    words = typeset(banner.message(case), panel.canvas_width, panel.height)

    canvas = Image.new("L", (panel.canvas_width, panel.banner_top + words.height), 0)
    canvas.paste(_radiograph(case, panel), (panel.left, 0))
    # Merging takes a third of converting's time.
    picture = Image.merge("RGB", (canvas, canvas, canvas))

    if case.segmented is not None:
        # Pixel centres at whole numbers, in the source as in the picture.
        lines = [(line + 0.5) * panel.scales - 0.5 for line in outlines_of(case)]
        stroked, at = _stroked(canvas, lines, panel)
        picture.paste(stroked, at)

    picture.paste(words, (0, panel.banner_top))
    return picture


# The radiograph and its contour


def _radiograph(case: Case, panel: Panel) -> Image.Image:
    """The grey panel, of its size."""
    size = (panel.width, panel.height)

    if case.pixels is None:
        blank = Image.new("L", size, layout.NO_IMAGE_GREY)
        font, middle = typeface(panel.canvas_width * 0.026), (size[0] / 2, size[1] / 2)
        ImageDraw.Draw(blank).text(
            middle, "No image to show", font=font, fill=NO_IMAGE_TEXT_GREY, anchor="mm"
        )
        return blank

    grey = Image.fromarray(_grey(case.pixels))
    if panel.scale < 1 or case.aspect != 1:
        # As sharp as bicubic here, in two thirds of the time.
        return grey.resize(size, Image.Resampling.HAMMING)
    return grey if panel.scale == 1 else grey.resize(size, Image.Resampling.NEAREST)


def _grey(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert (rows, columns) of 0..1 to 0..255, a few rows at a time.

    Data that stay in the cache take a quarter of the time.
    """
    shown = np.empty(pixels.shape, dtype=np.uint8)
    for top in range(0, len(pixels), 32):
        part = pixels[top : top + 32] * np.float32(255)
        part += np.float32(0.5)
        np.clip(part, 0, 255, out=part)
        shown[top : top + 32] = part
    return shown


def _stroked(
    canvas: Image.Image, lines: list[NDArray[np.float64]], panel: Panel
) -> tuple[Image.Image, tuple[int, int]]:
    """The part of a grey canvas that closed lines touch, with these lines drawn: a fine colour over
    a dark halo, anti-aliased. Also its upper left corner (x, y). Lines are (row, column) on the
    panel.

    A pixel's share of colour and halo follows from its distance to the nearest line, so that no
    halo covers another line and nothing further away than the halo is touched.
    """
    half = panel.line_px / 2
    reach = half + panel.halo_px + 0.5
    corner, squared = _squared_distances(lines, half, reach, panel)

    # The part of the box that is on the panel.
    end = corner + squared.shape
    first = np.maximum(corner, 0)
    last = np.minimum(end, [panel.height, panel.width])
    top, left = first - corner
    bottom, right = last - corner
    squared = squared[top:bottom, left:right].ravel()
    box = (int(first[1]) + panel.left, int(first[0]), int(last[1]) + panel.left, int(last[0]))

    near = np.flatnonzero(squared < reach**2)
    distance = np.sqrt(squared[near])
    halo = HALO_OPACITY * np.clip((reach - distance) / panel.halo_px, 0, 1)
    line = np.clip(half + 0.5 - distance, 0, 1)

    part = canvas.crop(box)
    grey = np.asarray(part)
    dimmed = grey.ravel()[near] * ((1 - halo) * (1 - line))
    bands = []
    for colour in layout.ORANGE:
        band = grey.copy()
        band.reshape(-1)[near] = dimmed + line.astype(np.float64) * colour + 0.5
        bands.append(Image.fromarray(band))
    return Image.merge("RGB", bands), box[:2]


def _squared_distances(
    lines: list[NDArray[np.float64]], half: float, reach: float, panel: Panel
) -> tuple[NDArray[np.int_], NDArray[np.float32]]:
    """The corner (row, column) of the lines' box, and in it each pixel's distance to the nearest
    line, squared; infinite beyond `reach`.
    """
    # Around a point's pixel, rounded down.
    window = np.arange(-int(reach), int(reach) + 2)
    # A region at the border of the image has its line just within.
    samples = np.clip(_samples(lines), half, np.array([panel.height, panel.width]) - 1 - half)
    low = np.floor(samples.min(axis=0)).astype(int) + window[0]
    high = np.floor(samples.max(axis=0)).astype(int) + window[-1] + 1
    squared = np.full(tuple(high - low), np.inf, dtype=np.float32)

    for some in np.array_split(samples - low, -(-len(samples) // SAMPLES_AT_ONCE)):
        whole = np.floor(some).astype(np.intp)
        rows, columns = (
            (window - (some - whole)[:, axis, None]).astype(np.float32) ** 2 for axis in (0, 1)
        )
        down = (whole[:, 0, None] + window)[:, :, None]
        across = (whole[:, 1, None] + window)[:, None, :]
        np.minimum.at(
            squared.reshape(-1),
            (down * squared.shape[1] + across).reshape(-1),
            (rows[:, :, None] + columns[:, None, :]).reshape(-1),
        )

    return low, squared


def _samples(lines: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Points on the lines, (n, 2), at most SAMPLE_EVERY_PX apart."""
    pieces = []
    for line in lines:
        length = np.concatenate([[0.0], np.hypot(*np.diff(line, axis=0).T).cumsum()])
        along = np.linspace(0, length[-1], 2 + int(length[-1] / SAMPLE_EVERY_PX))
        pieces.append(
            np.stack([np.interp(along, length, line[:, axis]) for axis in (0, 1)], axis=1)
        )
    return np.concatenate(pieces)


def _no_image_shape(header: Dataset) -> tuple[int, int]:
    """(rows, columns) of the panel in place of a radiograph that cannot be shown."""
    rows, columns = header.get("Rows"), header.get("Columns")
    if (
        not isinstance(rows, int)
        or not isinstance(columns, int)
        or not 0 < columns <= 2 * rows <= 4 * columns
    ):
        rows = columns = 1
    factor = layout.NO_IMAGE_SIDE_PX / max(rows, columns)
    return round(rows * factor), round(columns * factor)
