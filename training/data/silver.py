"""Pictures with silver labels: an ensemble's probabilities, used as soft targets. No reading.

    FOLDER/jpeg512/<ImageId>.jpg
    FOLDER/silver-labels.csv          ImageId,probability

Both may lie in a subfolder `stage2`. Patients are unknown: each image counts as its own patient.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data import pictures
from training.data.cases import Case
from training.data.findings import Cases, Finding

_TABLE = "silver-labels.csv"


@dataclass(frozen=True, kw_only=True)
class SilverCase(Case):
    """One picture; `label` is the probability."""

    path: Path

    def pixels(self) -> NDArray[np.float32]:
        return pictures.grey(self.path)

    @property
    def mask_known(self) -> bool:
        return False

    def mask(self) -> None:
        return None

    def identity(self) -> str:
        return f"{self.image_id} {self.label} {pictures.stamp(self.path)}"


def home(folder: Path) -> Path:
    """The folder that holds silver-labels.csv.

    Raises:
        ValueError: there is no such folder.
    """
    for found in (folder, folder / "stage2"):
        if (found / _TABLE).is_file():
            return found
    raise ValueError(
        f"{folder}: layout silver: no {_TABLE} found, nor stage2/{_TABLE}; one of them wanted"
    )


def read(folder: Path) -> Cases:
    """Every row of silver-labels.csv.

    Raises:
        ValueError: no such folder, or a malformed row with its line number.
    """
    pictures_home = home(folder)
    path = pictures_home / _TABLE
    cases = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                image_id, probability = row["ImageId"], float(row["probability"])
                picture = pictures.inside(pictures_home / "jpeg512", f"{image_id}.jpg")
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}: line {reader.line_num}: ImageId,probability wanted ({error!r})"
                ) from error
            cases.append(
                SilverCase(image_id=image_id, patient=image_id, label=probability, path=picture)
            )

    missing = tuple(case.image_id for case in cases if not case.path.is_file())
    return Cases(cases, [Finding("error", "missing file", missing)])
