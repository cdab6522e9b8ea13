"""Pictures of a network's batches after augmentation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from training.fitting.batches import Batch

_OUTLINE = (230, 159, 0)
_GAP = 2


def sheet(batch: Batch, path: Path) -> None:
    """Write a batch as one PNG: its images side by side, masks outlined, labels in a corner.

    Each image is stretched from its lowest to its highest value, as its normalisation hides both.
    """
    inputs, targets = (tensor.cpu().float().numpy() for tensor in batch)
    count, side = len(inputs), inputs.shape[-1]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    page = Image.new("RGB", (columns * (side + _GAP), rows * (side + _GAP)))

    for number, (image, target) in enumerate(zip(inputs[:, 0], targets, strict=True)):
        picture = _labelled(image, target) if target.ndim == 1 else _outlined(image, target[0])
        row, column = divmod(number, columns)
        page.paste(picture, (column * (side + _GAP), row * (side + _GAP)))

    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def _grey(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(image.min()), float(image.max())
    return np.asarray(255 * (image - low) / max(high - low, 1e-6)).astype(np.uint8)


def _labelled(image: NDArray[np.float32], label: NDArray[np.float32]) -> Image.Image:
    picture = Image.fromarray(_grey(image)).convert("RGB")
    ImageDraw.Draw(picture).text((2, 2), f"{float(label[0]):g}", fill=_OUTLINE)
    return picture


def _outlined(image: NDArray[np.float32], mask: NDArray[np.float32]) -> Image.Image:
    colours = np.repeat(_grey(image)[:, :, None], 3, axis=2)
    inside = mask >= 0.5
    colours[inside & ~ndimage.binary_erosion(inside)] = _OUTLINE
    return Image.fromarray(colours)
