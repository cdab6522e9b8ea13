"""SIIM-ACR run lengths: pairs of (gap since the last run's end, length), column by column; "-1" is no mask."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NONE = "-1"


def decode(text: str, rows: int = 1024, columns: int = 1024) -> NDArray[np.bool_]:
    """A (rows, columns) mask.

    Raises:
        ValueError: not pairs of whole numbers, or runs that leave the matrix.
    """
    flat = np.zeros(rows * columns, dtype=bool)
    if text.strip() == NONE:
        return flat.reshape(columns, rows).T
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(f"run lengths: {error}; whole numbers wanted") from error
    if not numbers or len(numbers) % 2 or min(numbers) < 0:
        raise ValueError(f"run lengths: {len(numbers)} numbers found, pairs of gap and length, none negative, wanted")
    position = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        start = position + gap
        position = start + length
        if position > flat.size:
            raise ValueError(f"run lengths: a run ends at pixel {position}, the matrix has {flat.size}")
        flat[start:position] = True
    return flat.reshape(columns, rows).T


def encode(mask: NDArray[np.bool_]) -> str:
    """The text of a (rows, columns) mask; "-1" when it is empty."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    if not len(edges):
        return NONE
    starts, ends = edges[::2], edges[1::2]
    gaps = starts - np.concatenate([[0], ends[:-1]])
    return " ".join(f"{gap} {length}" for gap, length in zip(gaps, ends - starts, strict=True))


def read_masks(path: Path, rows: int = 1024, columns: int = 1024) -> dict[str, NDArray[np.bool_]]:
    """ImageId -> mask, several rows of one image united. The published header has a blank: "ImageId, EncodedPixels".

    Raises:
        ValueError: a malformed row, with its line number.
    """
    masks: dict[str, NDArray[np.bool_]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        if header != ["ImageId", "EncodedPixels"]:
            raise ValueError(f"{path}: line 1: header {header} found, ImageId, EncodedPixels wanted")
        for row in reader:
            try:
                image_id, text = row
                mask = decode(text, rows, columns)
            except ValueError as error:
                raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
            masks[image_id] = masks[image_id] | mask if image_id in masks else mask
    return masks
