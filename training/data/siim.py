"""SIIM-ACR 2019 pneumothorax, as published, and this project's folder of a part of it.

As published: `FOLDER/train-rle.csv` and images anywhere under `FOLDER/dicom-images-train`, named by
their ImageId:

    dicom-images-train/<study>/<series>/<ImageId>.dcm
    train-rle.csv             header "ImageId, EncodedPixels" with its blank; one row per mask,
                              several rows of an image are united, "-1" is no mask; an ImageId
                              may be repeated

The second stage's names are taken too: `stage_2_train.csv` and `stage_2_images`. Without a folder
of images of these names, images are looked for under `dicom`, and without that under FOLDER itself.
An optional `folds.csv` (ImageId, fold, patient, pneumothorax) brings folds and patient keys, an
optional `patients.csv` (ImageId, patient) only patients. Without them the patient comes from the
header, where the published files have a different one for every image. What patients.csv or a
header calls a patient goes into no file of a run. All of this may lie in a subfolder `siim`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from inference.silence import silenced_warnings
from training.data import pictures, rle
from training.data.cases import Case, numbered, person_of
from training.data.findings import Cases, Finding

# The table of masks and the folder of images, by the names of either stage of the competition
_MASKS = ("train-rle.csv", "stage_2_train.csv")
_IMAGES = ("dicom-images-train", "stage_2_images", "dicom")
# PS3.5 6.2: 058Y; the published files leave the unit out
_AGE = re.compile(r"(\d+)([YMWD]?)")
_PER_YEAR = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}
_KEYWORDS = ["PatientID", "ViewPosition", "PatientSex", "PatientAge", "Rows", "Columns"]


@dataclass(frozen=True)
class _Header:
    """The attributes that are read of a file besides its pixels."""

    # (rows, columns)
    size: tuple[int, int] = (rle.SIDE, rle.SIDE)
    patient: str = ""
    view: str = ""
    sex: str = ""
    age_years: float | None = None
    jpeg_baseline: bool = False


@dataclass(frozen=True, kw_only=True)
class SiimCase(Case):
    """One image of SIIM-ACR: its file and its rows of the table of masks, still as text."""

    path: Path
    # (rows, columns) as stored
    size: tuple[int, int]
    runs: tuple[str, ...]

    def pixels(self) -> NDArray[np.float32]:
        return self.picture().pixels

    def picture(self) -> pictures.Picture:
        return pictures.read(self.path)

    def mask(self) -> NDArray[np.bool_]:
        return pictures.as_shown(self.stored_mask(), self.path)

    def stored_mask(self) -> NDArray[np.bool_]:
        return rle.union(self.runs, *self.size)

    def identity(self) -> str:
        return f"{self.image_id} {self.label} {pictures.stamp(self.path)} {' '.join(self.runs)}"


def read(folder: Path) -> Cases:
    """Every image that has a row in the table of masks; of the files only the headers are read.

    Raises:
        ValueError: no such folder, malformed rows with their line numbers, or no image.
    """
    masks = look(folder)
    home = masks.parent
    images = _image_folder(home)
    paths, repeated = _image_paths(images)
    with silenced_warnings():
        headers = {image_id: _header(path) for image_id, path in paths.items()}

    sizes = {image_id: header.size for image_id, header in headers.items()}
    tables = _Tables(
        masks=masks.name,
        rows=rle.read(masks, sizes),
        folds=_read_folds(home / "folds.csv"),
        patients=_read_patients(home / "patients.csv"),
    )

    cases = _cases(tables, paths, headers)
    if not cases:
        raise ValueError(
            f"{home}: layout siim: {len(paths)} *.dcm under {images.name}, none named in "
            f"{masks.name}"
        )

    findings = [
        _finding("error", "two files of one ImageId", repeated),
        *_label_findings(cases, tables),
        *_coverage_findings(cases, tables, paths),
        *_patient_findings(cases, tables),
    ]
    return Cases(cases, findings)


@dataclass(frozen=True)
class _Tables:
    """The tables beside the images, by ImageId."""

    # Name of the table of masks
    masks: str
    # Run lengths as text
    rows: Mapping[str, tuple[str, ...]]
    # Rows of folds.csv, empty without it
    folds: Mapping[str, Mapping[str, str]]
    # Of patients.csv, empty without it
    patients: Mapping[str, str]


def look(folder: Path) -> Path:
    """The table of masks, if there are images too.

    Raises:
        ValueError: no such table, or no *.dcm.
    """
    places = [home / name for home in (folder, folder / "siim") for name in _MASKS]
    masks = next((path for path in places if path.is_file()), None)
    if masks is None:
        raise ValueError(
            f"{folder}: layout siim: no {' nor '.join(_MASKS)} found, nor one in siim/; one "
            "of them wanted"
        )

    images = _image_folder(masks.parent)
    if next(images.rglob("*.dcm"), None) is None:
        raise ValueError(f"{images}: layout siim: no *.dcm found; the images of {masks} wanted")
    return masks


def _image_folder(home: Path) -> Path:
    for name in _IMAGES:
        if (home / name).is_dir():
            return home / name
    return home


def _image_paths(images: Path) -> tuple[dict[str, Path], list[str]]:
    """The file of each ImageId, the first of equals, and the ImageIds that name several files."""
    paths: dict[str, Path] = {}
    repeated = []
    for path in sorted(images.rglob("*.dcm")):
        if paths.setdefault(path.stem, path) is not path:
            repeated.append(path.stem)
    return paths, repeated


def _cases(
    tables: _Tables, paths: Mapping[str, Path], headers: Mapping[str, _Header]
) -> list[SiimCase]:
    """The images that have a row and a file, in the order of folds.csv if there is one."""
    listed = dict.fromkeys([*tables.folds, *tables.rows])
    wanted = [image_id for image_id in listed if image_id in tables.rows and image_id in paths]

    patients = tables.patients or {image_id: headers[image_id].patient for image_id in wanted}
    keys = numbered(patients[image_id] for image_id in wanted if patients.get(image_id))

    cases = []
    for image_id in wanted:
        named = patients.get(image_id, "")
        patient = keys.get(named, image_id)
        fold = tables.folds.get(image_id, {})
        runs = tables.rows[image_id]
        case = _case(fold, patient, paths[image_id], headers[image_id], runs)
        cases.append(replace(case, person=person_of(named)))
    return cases


def _label_findings(cases: Sequence[SiimCase], tables: _Tables) -> list[Finding]:
    contradicted = []
    for case in cases:
        fold = tables.folds.get(case.image_id)
        if fold is not None and fold["pneumothorax"] != str(int(case.positive)):
            contradicted.append(case.image_id)

    both = [
        image_id
        for image_id, runs in tables.rows.items()
        if rle.NONE in runs and len(set(runs)) > 1
    ]

    return [
        _finding("error", f"label of folds.csv is not that of {tables.masks}", contradicted),
        _finding("warning", f"mask and -1 for one image in {tables.masks}", both),
    ]


def _coverage_findings(
    cases: Sequence[SiimCase], tables: _Tables, paths: Mapping[str, Path]
) -> list[Finding]:
    """Images, rows and tables that do not name each other."""
    used = {case.image_id for case in cases}
    rows, files, folds = set(tables.rows), set(paths), set(tables.folds)
    findings = [
        _finding("warning", f"image without a row in {tables.masks}, left out", files - rows),
        _finding("warning", f"row in {tables.masks} without an image, left out", rows - files),
        _finding("warning", "image in folds.csv that has no row or no file", folds - used),
    ]

    if tables.folds:
        findings.append(_finding("warning", "image that folds.csv does not name", used - folds))
    if tables.patients:
        unnamed = used - set(tables.patients)
        findings.append(_finding("warning", "image that patients.csv does not name", unnamed))
    return findings


def _patient_findings(cases: Sequence[SiimCase], tables: _Tables) -> list[Finding]:
    named_by_table = bool(tables.patients) or any(fold["patient"] for fold in tables.folds.values())
    patients = {case.patient for case in cases}
    if named_by_table or len(cases) == 1 or len(patients) < len(cases):
        return []

    what = "the data name no patients: a split cannot keep a patient's images together"
    return [Finding("warning", what, ("give patients.csv (ImageId,patient)",))]


def _finding(level: Literal["error", "warning"], what: str, image_ids: Iterable[str]) -> Finding:
    return Finding(level, what, tuple(sorted(image_ids)))


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
    """PatientAge in years, with or without its unit; None if it is unreadable.

    Implausible ages are left to the checks.
    """
    found = _AGE.fullmatch(age.strip().upper())
    return int(found[1]) / _PER_YEAR[found[2]] if found else None


def _header(path: Path) -> _Header:
    """The header of a file, empty if unreadable. Reading the pixels will report the fault."""
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
        # On arbitrary bytes the parser may raise anything.
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
