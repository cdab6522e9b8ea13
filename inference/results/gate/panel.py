"""The places of radiograph and banner in an overlay's picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inference.results import layout
from inference.results.case import Case

# The side of the blocks in whose means the radiograph's grey is compared ...
BLOCK = layout.JPEG_BLOCK_PX
# ... fine strokes, contour and letters, are compared at half the picture's size, which the decoder
# gives directly, in two thirds of the time of the full size.
FINE = 2


@dataclass(frozen=True)
class Panel:
    """The place that the radiograph must have in the picture, in the picture's pixels.

    `scales` is how many of them the height and the width of a source pixel take.
    """

    left: int
    width: int
    height: int
    scales: tuple[float, float]
    picture_width: int
    banner_top: int

    @property
    def line_px(self) -> float:
        """The width of a contour."""
        return float(np.clip(max(self.width, self.height) * layout.LINE_PART, *layout.LINE_PX))

    @property
    def contour_reach_px(self) -> float:
        """How far a contour and its halo reach from the middle of the line."""
        return self.line_px * (0.5 + layout.HALO_PART)


def panel_of(case: Case) -> Panel:
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
    return Panel(
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
