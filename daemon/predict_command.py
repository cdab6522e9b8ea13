"""`pleura predict`: answers for files and folders, without a node."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import torch_process
from daemon.exits import EXIT_DONE, EXIT_FAILED, CannotStartError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inference.pipeline import Pipeline
    from inference.prediction import Prediction

# The endings of DICOM files in a folder; a UID as a name, and a name without an ending, count too.
_DICOM_SUFFIXES = (".dcm", ".dicom", "")
_MASK = "_mask"


@dataclass(frozen=True)
class _Image:
    """A file to analyse; `name` is its path inside the folder that was given."""

    path: Path
    name: Path


def predict(options: argparse.Namespace) -> int:
    """Analyse files; one JSON line each, and files of results where the options name them."""
    from inference.plain_pictures import without_ending

    images = list(_images(options.file))
    if options.masks:
        _require_apart([str(without_ending(image.name)) for image in images], "--masks")
    if options.submission:
        _require_apart([without_ending(image.name).name for image in images], "--submission")

    _require_places(options)

    torch_process.prepare()
    pipeline = _pipeline(options)
    run = _Run(pipeline, options, options.at or _default_time())
    for image in images:
        run.answer(image)
    if options.submission:
        run.write_submission(options.submission)

    return EXIT_DONE if run.is_sound else EXIT_FAILED


def _images(given: Sequence[Path]) -> Iterator[_Image]:
    """Every file that is given, and every image below each folder that is given.

    Raises:
        CannotStartError: a folder without an image.
    """
    for path in given:
        if not path.is_dir():
            yield _Image(path, Path(path.name))
            continue

        found = [file for file in sorted(path.rglob("*")) if _is_image(file)]
        if not found:
            raise CannotStartError(
                f"{path}: no image found; files .dcm, .png, .jpg or .tif, or without an ending, "
                "wanted"
            )
        for file in found:
            yield _Image(file, file.relative_to(path))


def _is_image(path: Path) -> bool:
    """Whether a file of a folder is an image, by its name; a mask beside an image is not."""
    from inference.plain_pictures import SUFFIXES

    if path.name.startswith(".") or not path.is_file():
        return False
    if path.stem.endswith(_MASK):
        return not path.with_name(path.stem.removesuffix(_MASK) + path.suffix).is_file()

    suffix = path.suffix.lower()
    return suffix in (*_DICOM_SUFFIXES, *SUFFIXES) or suffix[1:].isdigit()


def _require_apart(names: Sequence[str], option: str) -> None:
    """Raise where two images would be written under one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise CannotStartError(
                f"{option}: two images are named {name}; give them in folders of their own, one "
                "after the other"
            )
        seen.add(name)


def _require_places(options: argparse.Namespace) -> None:
    """Raise before any work where its outcome could not be written."""
    for option, folder in (("--out", options.out), ("--masks", options.masks)):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotStartError(
                f"{option}: {folder}: {error.strerror}; a folder that can be written wanted"
            ) from error

    path = options.submission
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise CannotStartError(
            f"--submission: {path}: {error.strerror}; a file that can be written wanted"
        ) from error


def _pipeline(options: argparse.Namespace) -> Pipeline:
    from inference.engine import Engine, choose_device
    from inference.package import PackageError, folder_of, load
    from inference.pipeline import AnalysisSettings, Pipeline

    try:
        package = load(folder_of(options.model), any_task=True)
        engine = Engine(package, choose_device(options.device))
        return Pipeline(engine, AnalysisSettings(kinds=_kinds(options.results)))
    except (PackageError, ValueError) as error:
        raise CannotStartError(f"model, device: {error}") from error


def _kinds(text: str) -> frozenset[str]:
    """The kinds of result that `--results` names, such as "SEG,SC".

    Raises:
        CannotStartError: a name that is not a kind.
    """
    from inference.results.kinds import KINDS

    names = [name.strip().upper() for name in text.split(",")]
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise CannotStartError(f"--results: found {unknown[0]!r}; allowed: {', '.join(KINDS)}")
    return frozenset(names)


@dataclass(eq=False)
class _Run:
    """One call of the command."""

    pipeline: Pipeline
    options: argparse.Namespace
    result_time: datetime
    # False once a file could not be read or written, or its analysis broke
    is_sound: bool = True
    # (ImageId, run lengths) of each file
    rows: list[tuple[str, str]] = field(default_factory=list)
    unanswered: int = 0

    def answer(self, image: _Image) -> None:
        """Analyse one file, print its line and write what is wanted of it."""
        try:
            data = image.path.read_bytes()
        except OSError as error:
            self.is_sound = False
            print(f"{image.path}: cannot be read ({error.strerror})", file=sys.stderr)
            self._add_row(image, None)
            return

        prediction = self._prediction(image.path, data)
        line = {"file": str(image.path)} | prediction.summary()
        line["model"] = self.pipeline.engine.identity.id
        print(json.dumps(line), flush=True)
        self._add_row(image, prediction.mask)
        try:
            self._write(image, prediction)
        except OSError as error:
            self._tell_unwritten(error)

    def _tell_unwritten(self, error: OSError) -> None:
        self.is_sound = False
        print(f"{error.filename}: cannot be written ({error.strerror})", file=sys.stderr)

    def _prediction(self, path: Path, data: bytes) -> Prediction:
        from inference import prediction

        admission = not self.options.any_image
        try:
            return prediction.predict(self.pipeline, data, self.result_time, admission)
        except Exception as error:
            # The loop's only catch-all: the other files still get their answers.
            self.is_sound = False
            print(f"{path}: the analysis broke ({type(error).__name__})", file=sys.stderr)
            return prediction.given_up(self.pipeline, data, self.result_time)

    def _write(self, image: _Image, prediction: Prediction) -> None:
        from inference.plain_pictures import without_ending

        if self.options.out is not None:
            for result in prediction.outcome.results:
                path = self.options.out / f"{result.sop_instance_uid}.dcm"
                path.write_bytes(result.data)

        mask = prediction.mask
        if mask is not None and self.options.masks is not None:
            from PIL import Image

            bare = without_ending(image.name)
            path = self.options.masks / bare.with_name(f"{bare.name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).convert("L").save(path)

    def _add_row(self, image: _Image, mask: NDArray[np.bool_] | None) -> None:
        from inference import run_lengths
        from inference.plain_pictures import without_ending

        self.unanswered += mask is None
        text = run_lengths.encode(mask) if mask is not None else run_lengths.NONE
        self.rows.append((without_ending(image.name).name, text))

    def write_submission(self, path: Path) -> None:
        """Write a row for each file.

        A file without an answer counts as an empty mask, which is logged.
        """
        try:
            # A file's name may be bytes that are not UTF-8.
            with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(("ImageId", "EncodedPixels"))
                writer.writerows(self.rows)
        except OSError as error:
            self._tell_unwritten(error)
            return

        if self.unanswered:
            print(
                f"{path}: {self.unanswered} of {len(self.rows)} images were not analysed and have "
                "-1; --any-image also answers for images that a node refuses by their header",
                file=sys.stderr,
            )


def _default_time() -> datetime:
    """Now, or SOURCE_DATE_EPOCH (reproducible-builds.org) for results that repeat byte by byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now().astimezone()

    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise CannotStartError(
            f"SOURCE_DATE_EPOCH: found {epoch!r}; seconds since 1970 wanted"
        ) from error
