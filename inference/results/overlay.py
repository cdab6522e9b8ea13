"""The picture in the Secondary Capture: the radiograph as it is, a fine contour, and a banner below the anatomy.

Nothing but the contour lies on the anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset
from scipy import ndimage

from inference.results import banner
from inference.results.identity import Case

NARROWEST_BANNER_PX = 760  # below this the text would not be legible; a small radiograph stands in its middle
ENLARGE_BELOW_PX = 640  # a smaller radiograph is enlarged by a whole factor: its pixels stay its pixels
NO_IMAGE_SIDE_PX = 1024
JPEG_BLOCK_PX = 8  # the banner begins on a block of its own: none of its colour bleeds into the anatomy
SUPERSAMPLING = 4  # lines are drawn this much larger and averaged down: Pillow's own lines are jagged

VERTEX_EVERY_PX = 2.0  # of a smooth line, more vertices cost time and change nothing
NO_IMAGE = (44, 47, 52)


@dataclass(frozen=True)
class Panel:
    """Where the radiograph stands in the picture, in its pixels, and how many of them one source pixel takes."""

    left: int
    width: int
    height: int
    scale: float
    canvas_width: int
    banner_top: int


def place(case: Case) -> Panel:
    """Lay the radiograph out: at most `longest_side`, never enlarged but by a whole factor where it is tiny."""
    rows, columns = case.pixels.shape if case.pixels is not None else _no_image_shape(case.header)
    longest, limit = max(rows, columns), case.appearance.longest_side
    if longest > limit:
        scale = limit / longest
    else:
        scale = float(max(1, min(-(-ENLARGE_BELOW_PX // longest), limit // longest)))
    width, height = max(1, round(columns * scale)), max(1, round(rows * scale))
    canvas = max(width, NARROWEST_BANNER_PX)
    left = (canvas - width) // 2 // JPEG_BLOCK_PX * JPEG_BLOCK_PX
    banner_top = -(-height // JPEG_BLOCK_PX) * JPEG_BLOCK_PX
    return Panel(left, width, height, scale, canvas, banner_top)


def draw(case: Case) -> Image.Image:
    """The whole picture, RGB: the radiograph on top, the banner below."""
    panel = place(case)
    words = banner.draw(case, panel.canvas_width)
    picture = Image.new("RGB", (panel.canvas_width, panel.banner_top + words.height), (0, 0, 0))
    picture.paste(_radiograph(case, panel), (panel.left, 0))
    picture.paste(words, (0, panel.banner_top))
    return picture


# The radiograph and its contour


def _radiograph(case: Case, panel: Panel) -> Image.Image:
    size = (panel.width, panel.height)
    if case.pixels is None:
        blank = Image.new("RGB", size, NO_IMAGE)
        font = banner.typeface(panel.canvas_width * 0.026)
        ImageDraw.Draw(blank).text(
            (size[0] / 2, size[1] / 2), "No image to show", font=font, fill=banner.DIM, anchor="mm"
        )
        return blank
    grey = Image.fromarray((case.pixels * 255.0 + 0.5).clip(0, 255).astype(np.uint8))
    if panel.scale < 1:
        grey = grey.resize(size, Image.Resampling.BICUBIC)
    elif panel.scale > 1:
        grey = grey.resize(size, Image.Resampling.NEAREST)
    image = grey.convert("RGB")
    if case.segmented is not None:
        for line in contours(case.segmented):
            # Pixel centres at whole numbers, in the source as in the picture.
            _stroke(image, (line + 0.5) * panel.scale - 0.5)
    return image


def contours(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The outlines of a (rows, columns) mask: closed lines of (column, row), pixel centres at whole numbers.

    Each runs half-way between the last pixel inside and the first outside, its stairs smoothed along the line by a
    Gaussian of one pixel (more on matrices over 1000, in proportion). Vertices lie at most a pixel apart, so none moves
    by more than 0.8 of that width from the stairs, and no region, however thin, is lost.
    """
    filled_rows, filled_columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if filled_rows.size == 0:
        return []
    top, left = int(filled_rows[0]), int(filled_columns[0])
    part = np.pad(mask[top : filled_rows[-1] + 1, left : filled_columns[-1] + 1].astype(np.float64), 1)
    lines = contourpy.contour_generator(z=part, line_type=contourpy.LineType.Separate).lines(0.5)
    outlines = []
    for line in lines:
        vertices = np.asarray(line, dtype=np.float64)[:-1]
        width = min(max(1.0, max(mask.shape) / 1000), len(vertices) / 12)
        vertices = ndimage.gaussian_filter1d(vertices, width, axis=0, mode="wrap")
        outlines.append(np.vstack([vertices, vertices[:1]]) + np.array([left - 1, top - 1]))
    return outlines


def _stroke(image: Image.Image, line: NDArray[np.float64]) -> None:
    """Draw one closed line of (column, row) onto the image: a fine colour over a dark halo, both anti-aliased."""
    steps_px = float(np.linalg.norm(np.diff(line, axis=0), axis=1).mean())
    every = max(1, min(round(VERTEX_EVERY_PX / steps_px), len(line) // 24))
    line = np.vstack([line[:-1:every], line[:1]])
    width = float(np.clip(max(image.size) * 0.0015, 2.0, 3.2))
    halo = width + float(np.clip(max(image.size) * 0.0012, 1.8, 3.0))
    margin = int(halo) + 2
    low = np.maximum(np.floor(line.min(axis=0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(line.max(axis=0)).astype(int) + margin + 1, image.size)
    box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    size = (box[2] - box[0], box[3] - box[1])
    points = [(float(x), float(y)) for x, y in (line - low + 0.5) * SUPERSAMPLING - 0.5]
    points += points[1:3]  # past the seam, so that it is joined as every other vertex
    for colour, stroke, opacity in (((0, 0, 0), halo, 0.6), (banner.AMBER, width, 1.0)):
        cover = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), 0)
        ImageDraw.Draw(cover).line(
            points, fill=round(255 * opacity), width=round(stroke * SUPERSAMPLING), joint="curve"
        )
        image.paste(colour, box, cover.reduce(SUPERSAMPLING))


def _no_image_shape(header: Dataset) -> tuple[int, int]:
    """(rows, columns) of the panel that stands for a radiograph which cannot be shown: its shape if plausible."""
    rows, columns = header.get("Rows"), header.get("Columns")
    if not isinstance(rows, int) or not isinstance(columns, int) or not 0 < columns <= 2 * rows <= 4 * columns:
        rows = columns = 1
    factor = NO_IMAGE_SIDE_PX / max(rows, columns)
    return round(rows * factor), round(columns * factor)
