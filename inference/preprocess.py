"""Image -> network input and network output -> image; training and serving call the same functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SCHEMES = ("image-standard",)


@dataclass(frozen=True)
class Geometry:
    """Where a (rows, columns) image lies inside its (side, side) square: the way back."""

    rows: int
    columns: int
    side: int
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Fitted:
    """A letterboxed image: `pixels` (side, side) float32, 0 black to 1 white, black beside the image."""

    pixels: NDArray[np.float32]
    geometry: Geometry


def fit(pixels: NDArray[np.float32], side: int) -> Fitted:
    """Letterbox a (rows, columns) float32 image into a (side, side) square, aspect ratio kept, antialiased."""
    rows, columns = pixels.shape
    scale = side / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    geometry = Geometry(rows, columns, side, (side - height) // 2, (side - width) // 2, height, width)
    square = np.zeros((side, side), dtype=np.float32)
    resized = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    square[_inside(geometry)] = np.asarray(resized)
    return Fitted(square, geometry)


def unfit(probability: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Bring a (side, side) float32 map back to the source's (rows, columns), bilinear."""
    inside = np.ascontiguousarray(probability[_inside(geometry)], dtype=np.float32)
    back = Image.fromarray(inside).resize((geometry.columns, geometry.rows), Image.Resampling.BILINEAR)
    return np.array(back, dtype=np.float32)


def _inside(geometry: Geometry) -> tuple[slice, slice]:
    g = geometry
    return slice(g.top, g.top + g.height), slice(g.left, g.left + g.width)


def normalise(pixels: NDArray[np.float32], geometry: Geometry, scheme: str) -> NDArray[np.float32]:
    """Network input from a fitted image, (side, side) float32, by a scheme that a model package names.

    "image-standard": zero mean and unit deviation of the image's own pixels, so that one picture shown through two
    windows is nearly one input; the letterbox is 0.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"normalisation: {scheme!r} found, allowed: {', '.join(SCHEMES)}")
    inside = pixels[_inside(geometry)]
    square = np.zeros_like(pixels)
    square[_inside(geometry)] = (inside - inside.mean()) / (inside.std() + 1e-3)
    return square
