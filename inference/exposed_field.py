"""The exposed field of a radiograph, which shows the body.

Outside are the black film margin, the collimator and the surrounding air. All of these are black
and reach the edge of the picture. A lung is dark too, but the chest wall separates it from the
edge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

# A margin is black, except for compression noise. At this limit, and at 0.1 too, no pixel of the
# 102 annotated masks at hand is lost.
_BLACK = 0.06
# The side in pixels at which the margin is looked for.
_SMALL = 256
# A margin is wide; only a few black pixels may connect a lung with the edge.
_NECK = 3


def exposed(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(rows, columns) bool: False where a (rows, columns) image is black from its edge on.

    The image is float32 in display polarity, 0 black to 1 white.
    """
    rows, columns = pixels.shape
    scale = min(1.0, _SMALL / max(rows, columns))
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    picture = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    small = np.asarray(picture.resize(size, Image.Resampling.BOX))

    # A morphological opening, so that no neck of black pixels joins a lung to the margin. The edge
    # is padded, because a margin continues beyond the picture.
    black = np.pad(small <= _BLACK, _NECK, mode="edge")
    opened = ndimage.binary_opening(black, np.ones((_NECK, _NECK), dtype=bool))
    opened = opened[_NECK:-_NECK, _NECK:-_NECK]

    parts, _ = ndimage.label(opened)
    at_edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    margin = np.isin(parts, at_edge[at_edge > 0])

    shown = Image.fromarray(~margin).resize((columns, rows), Image.Resampling.NEAREST)
    return np.asarray(shown, dtype=bool)
