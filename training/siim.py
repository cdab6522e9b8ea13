"""The labelled images as arrays: siim/ (masks, folds by patient) and stage2/ (silver probabilities)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit

from inference import radiograph
from inference.preprocess import fit
from inference.radiograph import Radiograph
from training import phantom, rle

Pictures = NDArray[np.uint8]  # (n, side, side), letterboxed, 0 black to 255 white
_EQUAL_QUALITY = 85  # every picture of siim/ that trains is JPEG-compressed once at this quality: see `_equalised`


@dataclass(frozen=True, eq=False)
class Case:
    """One image of siim/."""

    image_id: str
    path: Path
    fold: int
    patient: str
    positive: bool
    mask: NDArray[np.bool_]  # (rows, columns) of the image

    def read(self) -> Radiograph:
        return radiograph.decode(radiograph.parse(self.path.read_bytes())[0])

    @property
    def jpeg_baseline(self) -> bool:
        """As published; the others were re-wrapped from copies, and that alone predicts their label (SOURCES.md)."""
        return bool(radiograph.parse(self.path.read_bytes())[0].file_meta.TransferSyntaxUID == JPEGBaseline8Bit)


def read_cases(folder: Path) -> list[Case]:
    """Every image of `folder`, which holds dicom/, train-rle.csv and folds.csv.

    Raises:
        ValueError: a malformed row or an image without a mask row, with file and line.
    """
    masks = rle.read_masks(folder / "train-rle.csv")
    cases = []
    with (folder / "folds.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            image_id = row["ImageId"]
            if image_id not in masks:
                raise ValueError(f"{folder / 'folds.csv'}: {image_id} has no row in train-rle.csv")
            path = folder / "dicom" / f"{image_id}.dcm"
            positive = bool(int(row["pneumothorax"]))
            cases.append(Case(image_id, path, int(row["fold"]), row["patient"], positive, masks[image_id]))
    return cases


def read_silver(folder: Path, side: int) -> tuple[Pictures, NDArray[np.float32]]:
    """Pictures of `folder` and their silver probabilities: the output of somebody's ensemble, not a reading."""
    pictures, probabilities = [], []
    with (folder / "silver-labels.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            with Image.open(folder / "jpeg512" / f"{row['ImageId']}.jpg") as image:
                grey = np.asarray(image.convert("L"), dtype=np.float32)
            pictures.append(_byte(fit(radiograph.stretch(grey), side).pixels))
            probabilities.append(float(row["probability"]))
    return np.stack(pictures), np.array(probabilities, dtype=np.float32)


def pictures_and_masks(cases: Sequence[Case], side: int) -> tuple[Pictures, Pictures]:
    """Pictures, and masks as 0 to 255 shares of each pixel, both (n, side, side)."""
    pictures, masks = [], []
    for case in cases:
        pictures.append(_byte(fit(_equalised(case.read().pixels), side).pixels))
        masks.append(_byte(fit(case.mask.astype(np.float32), side).pixels))
    return np.stack(pictures), np.stack(masks)


def phantoms(count: int, side: int, first_seed: int) -> tuple[Pictures, Pictures]:
    """Synthetic pictures and masks; every second one has a pneumothorax."""
    drawn = [phantom.draw(first_seed + n, pneumothorax=n % 2 == 0, size=side) for n in range(count)]
    pictures = [_byte(radiograph.stretch(one.pixels)) for one in drawn]
    return np.stack(pictures), np.stack([one.mask.astype(np.uint8) * 255 for one in drawn])


def _equalised(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    # 43 of the 49 re-wrapped images are positive: without this a network could learn the copy's codec instead.
    buffer = io.BytesIO()
    Image.fromarray(_byte(pixels)).save(buffer, "JPEG", quality=_EQUAL_QUALITY)
    with Image.open(buffer) as image:
        return np.asarray(image, dtype=np.float32) / np.float32(255)


def _byte(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
