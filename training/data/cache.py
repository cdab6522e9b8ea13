"""Images decoded once: letterboxed to the size of a network, in memory-mapped files.

They take n x side x side bytes, and non-empty masks as much again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from inference.preprocess import Geometry, fit
from training.data import pictures, pool
from training.data.cases import Case

# Version of the files' content; another number decodes everything again.
_VERSION = 2
_SYNC_S = 0.5
Pictures = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Arrays in the order of the cases.

    They are mapped from files, copy on write: changes stay in this process.
    """

    # (n, side, side), letterboxed, 0 black to 255 white
    images: Pictures
    # (n, side, side), 0 to 255 shares of each pixel; empty where unknown, None where all are
    masks: Pictures | None
    # (n,)
    labels: NDArray[np.float32]
    # (n, 4): top, left, height and width of the image in its letterbox
    inside: NDArray[np.int32]


def prepare(
    cases: Sequence[Case],
    side: int,
    folder: Path,
    equalise: bool | None = None,
    done: Callable[[int, int], None] | None = None,
) -> Prepared:
    """The images and masks of `cases`, from the files in `folder` if they are there, else decoded
    into them.

    A killed process leaves nothing that looks like a finished cache. If two processes run, one
    decodes and the other waits.

    Args:
        equalise: compress each image once as JPEG. None: where some are as published and some are
            copies, because there the copy's codec can tell the label.
        done: called with (images so far, images in all).

    Raises:
        ValueError: no case, an image or mask that cannot be read, with its path, or a mask that
            belies its label.
        OSError: no space for the files.
    """
    if not cases:
        raise ValueError("cache: no image to prepare")
    if equalise is None:
        equalise = len({case.as_published for case in cases}) > 1

    folder.mkdir(parents=True, exist_ok=True)
    files = _Files(folder, _digest(cases, side, equalise))
    with files.lock.open("w") as lock:
        # The system releases the lock if this process is killed.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not files.facts.exists():
            _decode(cases, side, equalise, files, done)

    with np.load(files.facts) as facts:
        inside = facts["inside"]
    labels = np.array([case.label for case in cases], dtype=np.float32)

    # mode "c", copy on write: torch wants writable arrays.
    images, masks = (np.load(path, mmap_mode="c") for path in (files.images, files.masks))
    return Prepared(
        images, masks if any(case.mask_known for case in cases) else None, labels, inside
    )


class _Files:
    """The files of one cache. `facts` is renamed last: where it exists, the others are whole."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.lock = folder / f"{digest}.lock"
        self.images, self.masks = (folder / f"{digest}-{name}.npy" for name in ("images", "masks"))
        self.facts = folder / f"{digest}-facts.npz"


def _digest(cases: Sequence[Case], side: int, equalise: bool) -> str:
    said = json.dumps([_VERSION, side, equalise, [case.identity() for case in cases]])
    return hashlib.sha256(said.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class _Shrink:
    """Decodes one image and writes it and its mask to their places; gives its Geometry.

    It writes to files, because writing through a map kills the process when the disk is full. A
    process whose parent was killed may write at the same time as the next run: the same bytes to
    the same places.
    """

    side: int
    equalise: bool
    images: Path
    masks: Path
    # Bytes of each file before its first image
    start: int

    def __call__(self, numbered: tuple[int, Case]) -> Geometry:
        number, case = numbered
        image, mask, geometry = self._small(case)
        at = self.start + number * self.side * self.side

        _write(self.images, at, image)
        if mask is not None and mask.any():
            _write(self.masks, at, mask)
        return geometry

    def _small(self, case: Case) -> tuple[Pictures, Pictures | None, Geometry]:
        pixels, mask = case.pixels(), case.mask()
        if mask is not None and mask.shape != pixels.shape:
            raise ValueError(
                f"{case.image_id}: the mask has {mask.shape} rows and columns, the image "
                f"{pixels.shape}"
            )
        if mask is not None and mask.any() and not case.positive:
            raise ValueError(
                f"{case.image_id}: label {case.label:g} found, and a mask that is not empty; "
                "correct one of them"
            )

        fitted = fit(pictures.equalised(pixels) if self.equalise else pixels, self.side)
        small = (
            None
            if mask is None
            else pictures.as_bytes(fit(mask.astype(np.float32), self.side).pixels)
        )

        return pictures.as_bytes(fitted.pixels), small, fitted.geometry


def _write(path: Path, at: int, pixels: Pictures) -> None:
    try:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(pixels.data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _decode(
    cases: Sequence[Case],
    side: int,
    equalise: bool,
    files: _Files,
    done: Callable[[int, int], None] | None,
) -> None:
    parts = {path: path.with_suffix(".part") for path in (files.images, files.masks, files.facts)}
    try:
        with (
            parts[files.images].open("wb") as images,
            parts[files.masks].open("wb") as masks,
            parts[files.facts].open("wb") as facts,
        ):
            start = _make_room(images, masks, (len(cases), side, side))
            shrink = _Shrink(side, equalise, parts[files.images], parts[files.masks], start)
            with _synced_meanwhile(images):
                places = pool.each(shrink, list(enumerate(cases)), done)

            inside = np.array(
                [(at.top, at.left, at.height, at.width) for at in places], dtype=np.int32
            )
            np.savez(facts, inside=inside)
            for file in (images, masks, facts):
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        # Remove the files if the disk ran full.
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise

    for path, part in parts.items():
        part.rename(path)


def _make_room(images: BinaryIO, masks: BinaryIO, shape: tuple[int, int, int]) -> int:
    """Write both headers, take the space for all images, and return where the first begins."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    for file in (images, masks):
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()

    start = images.tell()
    size = math.prod(shape)
    try:
        # Fails now, not in an hour, if the disk is full.
        os.posix_fallocate(images.fileno(), 0, start + size)
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}, {size >> 20} MiB wanted", images.name
        ) from error

    # Sparse until a mask is written
    masks.truncate(start + size)
    return start


@contextmanager
def _synced_meanwhile(file: BinaryIO) -> Iterator[None]:
    """Sync written data to the disk every half second, so that little is left at the end."""
    stop = threading.Event()

    def sync() -> None:
        while not stop.wait(_SYNC_S):
            os.fdatasync(file.fileno())

    with ThreadPoolExecutor(1) as thread:
        synced = thread.submit(sync)
        try:
            yield
        finally:
            stop.set()
    # A disk error is reported only once, so the last fsync would miss it.
    synced.result()
