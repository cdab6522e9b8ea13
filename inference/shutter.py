"""The display shutter (PS3.3 C.7.6.11): the part of an image that its header lets a viewer show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.multival import MultiValue

# The attributes that describe each shape.
SHAPES: dict[str, tuple[str, ...]] = {
    "RECTANGULAR": (
        "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge", "ShutterUpperHorizontalEdge",
        "ShutterLowerHorizontalEdge",
    ),
    "CIRCULAR": ("CenterOfCircularShutter", "RadiusOfCircularShutter"),
    "POLYGONAL": ("VerticesOfThePolygonalShutter",),
}  # fmt: skip
KEYWORDS = ("ShutterShape", *(keyword for keywords in SHAPES.values() for keyword in keywords))

# A shutter that leaves less than this part of the image is ignored.
_LEAST_OPENING = 0.1

Opening = NDArray[np.bool_]  # (rows, columns), True where the image is shown


def opening_of(
    header: Dataset, shape: tuple[int, int], aspect: float
) -> tuple[Opening | None, tuple[str, ...], str | None]:
    """The shutter's opening, the names of its usable shapes, and a note on what was ignored.

    Several shapes are combined: only pixels inside all of them are shown. A shape that is
    incomplete, empty or outside the image is ignored.

    Args:
        header: the source's data set.
        shape: (rows, columns) of the image.
        aspect: height of a pixel divided by its width; a circle is round on the screen.

    Returns:
        The opening is None without a usable shutter.
    """
    names = [name.strip().upper() for name in _texts(header.get("ShutterShape"))]
    if not any(names):
        return None, (), None

    opening = np.ones(shape, dtype=bool)
    usable = []
    for name in names:
        inside = _inside(header, name, shape, aspect)
        if inside is not None:
            opening &= inside
            usable.append(name)

    if not usable or opening.mean() < _LEAST_OPENING:
        return None, (), "the display shutter is not usable and is ignored"
    note = None if len(usable) == len(names) else "a shape of the display shutter is ignored"
    return opening, tuple(usable), note


def _inside(header: Dataset, name: str, shape: tuple[int, int], aspect: float) -> Opening | None:
    """The pixels inside one shape; None if it is unknown, incomplete or empty."""
    draw = _DRAWN.get(name)
    if draw is None:
        return None

    values = [_numbers(header.get(keyword)) for keyword in SHAPES[name]]
    if any(value is None for value in values):
        return None

    inside = draw([number for value in values for number in value or ()], shape, aspect)
    return inside if inside is not None and inside.any() else None


# Rows and columns are counted from 1, and a shutter's edge belongs to its opening.


def _rectangle(numbers: Sequence[float], shape: tuple[int, int], _: float) -> Opening | None:
    if len(numbers) != 4:
        return None
    left, right, upper, lower = numbers
    if left >= right or upper >= lower:
        return None

    row, column = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    return (row >= upper) & (row <= lower) & (column >= left) & (column <= right)


def _circle(numbers: Sequence[float], shape: tuple[int, int], aspect: float) -> Opening | None:
    if len(numbers) != 3:
        return None
    centre_row, centre_column, radius = numbers
    if radius <= 0:
        return None

    # The radius is a number of pixels along a row.
    row, column = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    return np.asarray(
        ((row - centre_row) * aspect) ** 2 + (column - centre_column) ** 2 <= radius**2
    )


def _polygon(numbers: Sequence[float], shape: tuple[int, int], _: float) -> Opening | None:
    if len(numbers) < 6 or len(numbers) % 2:
        return None

    points = [
        (column - 1, row - 1) for row, column in zip(numbers[::2], numbers[1::2], strict=True)
    ]
    canvas = Image.new("1", (shape[1], shape[0]), 0)
    ImageDraw.Draw(canvas).polygon(points, fill=1, outline=1)
    return np.asarray(canvas, dtype=bool)


_DRAWN: dict[str, Callable[[Sequence[float], tuple[int, int], float], Opening | None]] = {
    "RECTANGULAR": _rectangle,
    "CIRCULAR": _circle,
    "POLYGONAL": _polygon,
}


def _texts(value: object) -> list[str]:
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, MultiValue | list) else [str(value)]


def _numbers(value: object) -> list[float] | None:
    """The numbers of an attribute; None if it is absent, or one of them is not a number."""
    try:
        numbers = [float(text) for text in _texts(value)]
    except ValueError:
        return None
    usable = numbers and all(math.isfinite(number) and abs(number) < 1e6 for number in numbers)
    return numbers if usable else None
