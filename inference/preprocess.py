"""From image to network input, and from network output back: training and serving share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.orientation import directions
from inference.spacing import is_square

SCHEMES = ("image-standard", "unit")


Pixels = TypeVar("Pixels", bound=NDArray[Any])


def upright(pixels: Pixels, patient_orientation: Sequence[str] | None) -> Pixels:
    """A (rows, columns) image as networks expect it: the patient's left on the right, feet down.

    The result is a view. `patient_orientation` is PatientOrientation (0020,0020), the directions
    of rows and columns (PS3.3 C.7.6.1.1.1). Unless it states both, the image stays as stored.
    """
    transposed, mirrored, upside_down = _turn(patient_orientation)
    turned: Any = pixels.T if transposed else pixels
    row_step = -1 if upside_down else 1
    column_step = -1 if mirrored else 1
    return turned[::row_step, ::column_step]  # type: ignore[no-any-return]


def as_stored(pixels: Pixels, patient_orientation: Sequence[str] | None) -> Pixels:
    """The inverse of `upright`: its image turned back to the source's matrix, as a view."""
    transposed, mirrored, upside_down = _turn(patient_orientation)
    turned: Any = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    return turned.T if transposed else turned  # type: ignore[no-any-return]


def as_seen(
    pixels: NDArray[np.float32], aspect: float, patient_orientation: Sequence[str] | None
) -> NDArray[np.float32]:
    """The networks' view of a stored (rows, columns) image: in true proportions, upright.

    `aspect` is a pixel's height divided by its width.
    """
    return upright(with_square_pixels(pixels, aspect), patient_orientation)


def in_source(
    seen: NDArray[np.float32],
    shape: tuple[int, ...],
    patient_orientation: Sequence[str] | None,
    opening: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """The inverse of `as_seen`: a map of the networks' view in the source's matrix of `shape`.

    It is 0 outside the display shutter's `opening`.
    """
    stored = with_stored_pixels(as_stored(seen, patient_orientation), shape)
    return stored if opening is None else np.where(opening, stored, np.float32(0))


def with_square_pixels(pixels: NDArray[np.float32], aspect: float) -> NDArray[np.float32]:
    """A (rows, columns) float32 image in true proportions, its shorter pixel side kept.

    Args:
        pixels: as stored; returned unchanged if its pixels are square within 1 %.
        aspect: a pixel's height divided by its width.
    """
    if is_square(aspect):
        return pixels
    rows, columns = pixels.shape
    wanted = (max(rows, round(rows * aspect)), max(columns, round(columns / aspect)))
    return with_stored_pixels(pixels, wanted)


def with_stored_pixels(pixels: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The inverse of `with_square_pixels`: resampled, bilinear, to the source's (rows, columns)."""
    if pixels.shape == shape:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    resized = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.float32)


def _turn(patient_orientation: Sequence[str] | None) -> tuple[bool, bool, bool]:
    """(transposed, mirrored, upside down) relative to L\\F, in the order of undoing them."""
    stated = directions(patient_orientation)
    if stated is None:
        return False, False, False

    along_row, along_column = (direction[0] for direction in stated)
    if along_row in ("H", "F") and along_column in ("L", "R"):
        return True, along_column == "R", along_row == "H"
    if along_row in ("L", "R") and along_column in ("H", "F"):
        return False, along_row == "R", along_column == "H"

    return False, False, False


@dataclass(frozen=True)
class Geometry:
    """The place of a (rows, columns) image inside its (side, side) square."""

    rows: int
    columns: int
    side: int
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Fitted:
    """A letterboxed image: `pixels` is (side, side) float32, 0 black to 1 white, black borders."""

    pixels: NDArray[np.float32]
    geometry: Geometry


def fit(pixels: NDArray[np.float32], side: int) -> Fitted:
    """Letterbox a (rows, columns) float32 image into a (side, side) square.

    The aspect ratio is kept; the resize is antialiased.
    """
    rows, columns = pixels.shape
    scale = side / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    geometry = Geometry(
        rows, columns, side, (side - height) // 2, (side - width) // 2, height, width
    )
    square = np.zeros((side, side), dtype=np.float32)
    resized = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    square[_inside(geometry)] = np.asarray(resized)

    return Fitted(square, geometry)


def unfit(probability: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Bring a (side, side) float32 map back to the source's (rows, columns), bilinear."""
    inside = np.ascontiguousarray(probability[_inside(geometry)], dtype=np.float32)
    back = Image.fromarray(inside).resize(
        (geometry.columns, geometry.rows), Image.Resampling.BILINEAR
    )
    return np.array(back, dtype=np.float32)


def _inside(geometry: Geometry) -> tuple[slice, slice]:
    g = geometry
    return slice(g.top, g.top + g.height), slice(g.left, g.left + g.width)


def normalise(pixels: NDArray[np.float32], geometry: Geometry, scheme: str) -> NDArray[np.float32]:
    """Network input from a fitted image, (side, side) float32, by a model package's scheme.

    "image-standard": zero mean and unit deviation of the image's own pixels, so that one picture
    shown through two windows gives nearly the same input; the letterbox is 0. "unit": unchanged, 0
    black to 1 white, the letterbox black; a network that needs another range converts it in its
    first step.

    Raises:
        ValueError: another scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"normalisation: {scheme!r} found, allowed: {', '.join(SCHEMES)}")
    if scheme == "unit":
        return pixels

    inside = pixels[_inside(geometry)]
    square = np.zeros_like(pixels)
    square[_inside(geometry)] = (inside - inside.mean()) / (inside.std() + 1e-3)

    return square
