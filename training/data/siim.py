"""SIIM-ACR 2019 pneumothorax, as published, and this project's folder of a part of it.

As published: `FOLDER/train-rle.csv` and images anywhere under `FOLDER/dicom-images-train`, named by
their ImageId:

    dicom-images-train/<study>/<series>/<ImageId>.dcm
    train-rle.csv             header "ImageId, EncodedPixels" with its blank; one row per mask, several rows of an image
                              are united, "-1" is none; an ImageId may be repeated

Without dicom-images-train, images are looked for under `dicom`, and without that under FOLDER
itself. An optional `folds.csv` (ImageId, fold, patient, pneumothorax) brings folds and keys of
patients along, an optional `patients.csv` (ImageId, patient) patients alone. Without them the
patient is that of the header, where the published files have another one for every image. What
patients.csv or a header calls a patient goes into no file of a run. All of this may lie in a
subfolder `siim`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from inference.silence import silenced_warnings
from training.data import pictures, rle
from training.data.cases import Case, numbered
from training.data.findings import Cases, Finding

# PS3.5 6.2: 058Y; the published files leave the unit out
_AGE = re.compile(r"(\d+)([YMWD]?)")
_PER_YEAR = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}
_KEYWORDS = ["PatientID", "ViewPosition", "PatientSex", "PatientAge", "Rows", "Columns"]


@dataclass(frozen=True)
class _Header:
    """What is wanted of a file besides its pixels."""

    # (rows, columns)
    size: tuple[int, int] = (rle.SIDE, rle.SIDE)
    patient: str = ""
    view: str = ""
    sex: str = ""
    age_years: float | None = None
    jpeg_baseline: bool = False


@dataclass(frozen=True, kw_only=True)
class SiimCase(Case):
    """One image of SIIM-ACR: its file and its rows of train-rle.csv, still as text."""

    path: Path
    # (rows, columns) as stored
    size: tuple[int, int]
    runs: tuple[str, ...]

    def pixels(self) -> NDArray[np.float32]:
        return pictures.grey(self.path)

    def mask(self) -> NDArray[np.bool_]:
        return pictures.as_shown(rle.union(self.runs, *self.size), self.path)

    def identity(self) -> str:
        return f"{self.image_id} {self.label} {pictures.stamp(self.path)} {' '.join(self.runs)}"


def read(folder: Path) -> Cases:
    """Every image that has a row in train-rle.csv; of the files only the headers are read.

    Raises:
        ValueError: no such folder, malformed rows with their line numbers, or no image.
    """
    home = next(
        (home for home in (folder, folder / "siim") if (home / "train-rle.csv").is_file()), None
    )
    if home is None:
        raise ValueError(
            f"{folder}: layout siim: no train-rle.csv found, nor siim/train-rle.csv; one of them "
            "wanted"
        )

    images = next(
        (home / name for name in ("dicom-images-train", "dicom") if (home / name).is_dir()), home
    )
    paths: dict[str, Path] = {}
    twice = []

    for path in sorted(images.rglob("*.dcm")):
        if paths.setdefault(path.stem, path) is not path:
            twice.append(path.stem)

    with silenced_warnings():
        headers = {image_id: _header(path) for image_id, path in paths.items()}
    rows = rle.read(
        home / "train-rle.csv", {image_id: header.size for image_id, header in headers.items()}
    )
    folds = _read_folds(home / "folds.csv")

    patients = _read_patients(home / "patients.csv")
    # In the order of folds.csv, if there is one
    wanted = [
        image_id
        for image_id in dict.fromkeys([*folds, *rows])
        if image_id in rows and image_id in paths
    ]
    named = patients or {image_id: headers[image_id].patient for image_id in wanted}
    keys = numbered(named[image_id] for image_id in wanted if named.get(image_id))
    cases = [
        _case(
            folds.get(image_id, {}),
            keys.get(named.get(image_id, ""), image_id),
            paths[image_id],
            headers[image_id],
            rows[image_id],
        )
        for image_id in wanted
    ]

    if not cases:
        raise ValueError(
            f"{home}: layout siim: {len(paths)} *.dcm under {images.name}, none named in "
            "train-rle.csv"
        )

    labels = {case.image_id: str(int(case.positive)) for case in cases}
    where: dict[tuple[Literal["error", "warning"], str], Iterable[str]] = {
        ("error", "two files of one ImageId"): twice,
        ("error", "label of folds.csv is not that of train-rle.csv"): (
            name for name in labels if name in folds and folds[name]["pneumothorax"] != labels[name]
        ),
        ("warning", "image without a row in train-rle.csv, left out"): paths.keys() - rows.keys(),
        ("warning", "row in train-rle.csv without an image, left out"): rows.keys() - paths.keys(),
        ("warning", "image in folds.csv that has no row or no file"): folds.keys() - labels.keys(),
        ("warning", "image that folds.csv does not name"): labels.keys() - folds.keys()
        if folds
        else (),
        ("warning", "image that patients.csv does not name"): labels.keys() - patients.keys()
        if patients
        else (),
        ("warning", "the data name no patients: a split cannot keep a patient's images together"): (
            ["give patients.csv (ImageId,patient)"]
            if not patients
            and not any(fold["patient"] for fold in folds.values())
            and len({case.patient for case in cases}) == len(cases) > 1
            else ()
        ),
        ("warning", "mask and -1 for one image in train-rle.csv"): (
            name for name, texts in rows.items() if rle.NONE in texts and len(set(texts)) > 1
        ),
    }

    return Cases(
        cases,
        [Finding(level, what, tuple(sorted(names))) for (level, what), names in where.items()],
    )


def _case(
    fold: Mapping[str, str], patient: str, path: Path, header: _Header, runs: tuple[str, ...]
) -> SiimCase:
    return SiimCase(
        image_id=path.stem,
        patient=fold.get("patient") or patient,
        label=float(any(text != rle.NONE for text in runs)),
        fold=int(fold["fold"]) if fold else None,
        as_published=header.jpeg_baseline,
        view=header.view,
        sex=header.sex,
        age_years=header.age_years,
        path=path,
        size=header.size,
        runs=runs,
    )


def years(age: str) -> float | None:
    """PatientAge in years, with its unit or without; None where it says none.

    Nothing is too old: checks say so.
    """
    found = _AGE.fullmatch(age.strip().upper())
    return int(found[1]) / _PER_YEAR[found[2]] if found else None


def _header(path: Path) -> _Header:
    """What a file says; of one that cannot be read nothing: that shows when its pixels are read."""
    try:
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=_KEYWORDS, force=True)
        number, view, sex, age = (
            str(dataset.get(keyword) or "").strip() for keyword in _KEYWORDS[:4]
        )

        return _Header(
            size=(int(dataset.get("Rows", rle.SIDE)), int(dataset.get("Columns", rle.SIDE))),
            patient=number,
            view=view if view in ("PA", "AP") else "",
            sex=sex if sex in ("M", "F") else "",
            age_years=years(age),
            jpeg_baseline=getattr(dataset.file_meta, "TransferSyntaxUID", None) == JPEGBaseline8Bit,
        )
    except Exception:
        # The parser meets arbitrary bytes and raises what it likes
        return _Header()


def _read_folds(path: Path) -> dict[str, dict[str, str]]:
    folds = {}
    for line, row in _rows(path, {"ImageId", "fold", "patient", "pneumothorax"}):
        if not (row["fold"] or "").isdigit():
            raise ValueError(
                f"{path}: line {line}: fold {row['fold']!r} found, a whole number wanted"
            )
        folds[row["ImageId"]] = row
    return folds


def _read_patients(path: Path) -> dict[str, str]:
    patients: dict[str, str] = {}
    for line, row in _rows(path, {"ImageId", "patient"}):
        if (
            not row["patient"]
            or patients.setdefault(row["ImageId"], row["patient"]) != row["patient"]
        ):
            raise ValueError(
                f"{path}: line {line}: patient {row['patient']!r} found, one for each ImageId "
                "wanted"
            )
    return patients


def _rows(path: Path, wanted: set[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a table that may be missing."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not wanted <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path}: line 1: header {reader.fieldnames} found, {', '.join(sorted(wanted))} "
                "wanted"
            )
        for row in reader:
            yield reader.line_num, row
