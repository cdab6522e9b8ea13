"""A plain folder with a table of its images.

    FOLDER/labels.csv                 image,label[,mask,patient,view,sex,age,fold]

`image` and `mask` are paths inside FOLDER; images are DICOM, PNG, JPEG or TIFF, masks PNG of the
image's stored size, 0 for nothing. `label` is 0 to 1. `patient` keeps images together in a split
(left out: each its own) and goes into no file of a run; `view` is PA or AP, `sex` M or F, `age` in
years, `fold` a whole number from 0. Further columns are not read.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.plain_pictures import without_ending
from training.data import pictures
from training.data.cases import Case, numbered, person_of
from training.data.findings import Cases, Finding

TABLE = "labels.csv"
_FAULTS_SAID = 20


@dataclass(frozen=True, kw_only=True)
class TableCase(Case):
    """One row of the table."""

    path: Path
    mask_path: Path | None

    def pixels(self) -> NDArray[np.float32]:
        return self.picture().pixels

    def picture(self) -> pictures.Picture:
        return pictures.read(self.path)

    @property
    def mask_known(self) -> bool:
        return self.mask_path is not None or self.label == 0

    def mask(self) -> NDArray[np.bool_] | None:
        stored = self.stored_mask()
        return None if stored is None else pictures.as_shown(stored, self.path)

    def stored_mask(self) -> NDArray[np.bool_] | None:
        if self.mask_path is not None:
            return pictures.plain(self.mask_path) > 0
        return np.zeros(self.picture().shape, dtype=bool) if self.label == 0 else None

    def identity(self) -> str:
        return f"{self.image_id} {self.label} {pictures.stamp(self.path, self.mask_path)}"


def look(folder: Path) -> Path:
    """The table.

    Raises:
        ValueError: there is no table.
    """
    path = folder / TABLE
    if not path.is_file():
        raise ValueError(
            f"{folder}: layout table: no {TABLE} found; header image,label[,mask,patient,...] "
            "wanted"
        )
    return path


def read(folder: Path) -> Cases:
    """Every row of the table.

    Raises:
        ValueError: no table, or malformed rows with their line numbers.
    """
    path = look(folder)
    cases: list[TableCase] = []
    faults = []
    for number, row in _rows(path):
        try:
            cases.append(_case(folder, row))
        except ValueError as error:
            faults.append(f"{path}: line {number}: {error}")

    if faults or not cases:
        raise ValueError("\n".join(faults[:_FAULTS_SAID]) or f"{path}: no row found")
    files = [path for case in cases for path in (case.path, case.mask_path) if path is not None]
    missing = tuple(path.relative_to(folder).as_posix() for path in files if not path.is_file())
    named = numbered(case.patient for case in cases if case.patient)

    return Cases(
        (replace(case, patient=named.get(case.patient, case.image_id)) for case in cases),
        [Finding("error", "missing file", missing)],
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of its line, texts by column) of each row.

    Raises:
        ValueError: not UTF-8, not CSV, or another header; with the path.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; CSV in UTF-8 wanted") from error

    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if not {"image", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path}: line 1: header {reader.fieldnames} found, at least image,label wanted"
            )
        for row in reader:
            yield (
                reader.line_num,
                {name: (text or "").strip() for name, text in row.items() if name},
            )
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: not CSV ({error})") from error


def _case(folder: Path, row: Mapping[str, str]) -> TableCase:
    image = row["image"]
    image_id = without_ending(Path(image)).as_posix()
    age = _number(row, "age") if row.get("age") else None
    if row.get("fold") and not row["fold"].isdigit():
        raise ValueError(f"fold {row['fold']!r} found, a whole number wanted")

    return TableCase(
        image_id=image_id,
        patient=row.get("patient", ""),
        person=person_of(row.get("patient", "")),
        label=_number(row, "label"),
        fold=int(row["fold"]) if row.get("fold") else None,
        view=_one_of(row, "view", ("PA", "AP")),
        sex=_one_of(row, "sex", ("M", "F")),
        age_years=age,
        path=pictures.inside(folder, image),
        mask_path=pictures.inside(folder, row["mask"]) if row.get("mask") else None,
    )


def _number(row: Mapping[str, str], column: str) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column} {row[column]!r} found, a number wanted")
    return number


def _one_of(row: Mapping[str, str], column: str, allowed: tuple[str, ...]) -> str:
    found = row.get(column, "").upper()
    if found and found not in allowed:
        raise ValueError(f"{column} {row[column]!r} found, {', '.join(allowed)} or nothing wanted")
    return found
