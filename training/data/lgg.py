"""Brain MRI, lower-grade glioma (TCGA-LGG; Buda et al., Computers in Biology and Medicine 2019; 110
patients).

    FOLDER/<patient>_<date>/<patient>_<date>_<slice>.tif            RGB: pre-contrast, FLAIR,
    post-contrast
    FOLDER/<patient>_<date>/<patient>_<date>_<slice>_mask.tif       0 or 255
    FOLDER/data.csv                                                 one row per patient; "Patient",
    then numbers

All of this may lie in a subfolder `kaggle_3m`. A patient's examinations of several dates stay
together.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference import plain_pictures
from training.data import pictures
from training.data.cases import Case, person_of
from training.data.findings import Cases, Finding

_MASK = "_mask"
_DATE = re.compile(r"_\d{8}$")
_MISSING = ("", "na", "nan", "null", "none")


@dataclass(frozen=True, kw_only=True)
class LggCase(Case):
    """One slice; `label` says whether its mask holds anything."""

    path: Path

    def pixels(self) -> NDArray[np.float32]:
        """FLAIR, the green channel, sharpened."""
        try:
            return plain_pictures.flair(self.path.read_bytes())
        except (OSError, plain_pictures.PictureError) as error:
            raise ValueError(f"{self.path}: cannot be read as an image ({error})") from error

    def mask(self) -> NDArray[np.bool_]:
        return pictures.plain(_mask_of(self.path)) > 127

    def identity(self) -> str:
        return f"{self.image_id} {pictures.stamp(self.path, _mask_of(self.path))}"


def look(folder: Path) -> None:
    """Check that there is a slice.

    Raises:
        ValueError: there is no slice.
    """
    found = _home(folder).glob("*/*.tif")
    if not any(path for path in found if not path.stem.endswith(_MASK)):
        raise ValueError(
            f"{folder}: layout lgg: no <patient>/<slice>.tif found, nor "
            "kaggle_3m/<patient>/<slice>.tif"
        )


def read(folder: Path) -> Cases:
    """Every slice that has a mask; the masks are read once, for their labels.

    Raises:
        ValueError: no such folder, or a mask that cannot be read.
    """
    look(folder)
    found = sorted(_home(folder).glob("*/*.tif"))
    masks = {path for path in found if path.stem.endswith(_MASK)}
    slices = [path for path in found if path not in masks]

    masked = [path for path in slices if _mask_of(path) in masks]
    alone = [path.stem for path in slices if _mask_of(path) not in masks]
    orphans = [path.stem for path in masks - {_mask_of(path) for path in slices}]
    return Cases(
        [
            LggCase(
                image_id=path.stem,
                patient=_DATE.sub("", path.parent.name),
                person=person_of(_DATE.sub("", path.parent.name)),
                label=float(pictures.plain(_mask_of(path)).max() > 127),
                path=path,
            )
            for path in sorted(masked, key=_by_number)
        ],
        [
            Finding("warning", "slice without a mask, left out", tuple(alone)),
            Finding("warning", "mask without a slice, left out", tuple(sorted(orphans))),
        ],
    )


def read_clinical(folder: Path) -> dict[str, dict[str, float | None]]:
    """Patient (as `Case.patient`) -> column of data.csv -> number, None if it is missing.

    Raises:
        ValueError: no data.csv, no column Patient, or a value that is not a number, with its line.
    """
    path = _home(folder) / "data.csv"
    if not path.is_file():
        raise ValueError(f"{path}: not found; the clinical table of the collection wanted")
    table: dict[str, dict[str, float | None]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "Patient" not in (reader.fieldnames or ()):
            raise ValueError(
                f"{path}: line 1: header {reader.fieldnames} found, a column Patient wanted"
            )
        for row in reader:
            patient = _DATE.sub("", row.pop("Patient"))
            try:
                table[patient] = {name: _number(text) for name, text in row.items()}
            except (TypeError, AttributeError, ValueError) as error:
                raise ValueError(
                    f"{path}: line {reader.line_num}: {error}; one number per column wanted"
                ) from error

    return table


def _home(folder: Path) -> Path:
    return folder / "kaggle_3m" if (folder / "kaggle_3m").is_dir() else folder


def _mask_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}{_MASK}{path.suffix}")


def _by_number(path: Path) -> tuple[str, int, str]:
    number = path.stem.rpartition("_")[2]
    return path.parent.name, int(number) if number.isdigit() else 0, path.stem


def _number(text: str) -> float | None:
    if text.strip().lower() in _MISSING:
        return None
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} found")
    return number
