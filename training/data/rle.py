"""SIIM-ACR run lengths: pairs of (gap since the last run's end, length), column by column; "-1" is
no mask.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from inference.run_lengths import NONE as NONE
from inference.run_lengths import encode as encode

# Rows and columns of every image of SIIM-ACR
SIDE = 1024
_FAULTS_SAID = 20


def decode(text: str, rows: int = SIDE, columns: int = SIDE) -> NDArray[np.bool_]:
    """A (rows, columns) mask.

    Raises:
        ValueError: not pairs of whole numbers, or runs that leave the matrix.
    """
    return union([text], rows, columns)


def union(texts: Iterable[str], rows: int = SIDE, columns: int = SIDE) -> NDArray[np.bool_]:
    """One (rows, columns) mask of all the rows of an image.

    Raises:
        ValueError: as `decode`.
    """
    flat = np.zeros(rows * columns, dtype=bool)
    for text in texts:
        end = 0
        numbers = _numbers(text, flat.size)
        for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
            start = end + gap
            end = start + length
            flat[start:end] = True

    return flat.reshape(columns, rows).T


def read(
    path: Path, sizes: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, tuple[str, ...]]:
    """ImageId -> the run lengths of each of its rows.

    They are checked and kept as text, so that a data set's masks need little memory.

    The published header has a blank: "ImageId, EncodedPixels". A name that ends in .gz is
    decompressed. `sizes` has the (rows, columns) of images that may not be 1024 by 1024.

    Raises:
        ValueError: malformed rows and runs that leave the image, each with its line number.
    """
    texts: dict[str, list[str]] = {}
    faults = []
    with _opened(path) as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        if header != ["ImageId", "EncodedPixels"]:
            raise ValueError(
                f"{path}: line 1: header {header} found, ImageId, EncodedPixels wanted"
            )

        for row in reader:
            try:
                image_id, text = (word.strip() for word in row)
                if not image_id:
                    raise ValueError("no ImageId")
                rows, columns = (sizes or {}).get(image_id, (SIDE, SIDE))
                _numbers(text, rows * columns)
                texts.setdefault(image_id, []).append(text)
            except ValueError as error:
                faults.append(f"{path}: line {reader.line_num}: {error}")

    if faults:
        more = [f"... and {len(faults) - _FAULTS_SAID} more"] if len(faults) > _FAULTS_SAID else []
        raise ValueError("\n".join(faults[:_FAULTS_SAID] + more))

    return {image_id: tuple(several) for image_id, several in texts.items()}


def _numbers(text: str, pixels: int) -> list[int]:
    if text.strip() == NONE:
        return []
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(f"run lengths: {error}; whole numbers wanted") from error

    if not numbers or len(numbers) % 2 or min(numbers) < 0:
        raise ValueError(
            f"run lengths: {len(numbers)} numbers found, pairs of gap and length, none negative, "
            "wanted"
        )
    if sum(numbers) > pixels:
        raise ValueError(
            f"run lengths: the last run ends at pixel {sum(numbers)}, the matrix has {pixels}"
        )

    return numbers


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8")
    return path.open(newline="", encoding="utf-8")
