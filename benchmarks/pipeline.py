"""The analyse role beside the bare work on the same files.

It shows how much time the role gains by overlapping its steps, and how much durability costs.

In alternate turns, on two sets of images (real X-rays of 1024 x 1024, phantoms of 2500 x 2048):
- bare: this process decodes, runs the networks, and encodes and checks SEG and SC, one image after
  another; it keeps nothing;
- role: `pleura analyse` as a separate process, from images in the spool until their results are in
  the spool and owed in the ledger; many images at once (images per second), and one at a time
  (latency).

Both use the settings of daemon/torch_process.py, as the role does. The engine is chosen (tuned)
before anything is timed.

    python -m benchmarks.pipeline [--images N] [--rounds N] [--data DIR] [--model FOLDER]
        [--device D]

Prints medians and ratios of medians. Absolute times hold only for this machine and its other load.
"""

# torch reads some settings only when it is imported, so they are set before.
# ruff: noqa: E402

from __future__ import annotations

import argparse
import itertools
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from daemon import torch_process

torch_process.prepare()

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import UID

from benchmarks.measurement import (
    add_data_option,
    command_line,
    machine,
    median_ms,
    processor_s,
    seconds_of,
    xray_files,
)
from daemon.analyse.worker import build_pipeline
from daemon.config import Config
from daemon.ledger import Arrival, Ledger
from daemon.spool import Spool
from inference.pipeline import Pipeline
from training import phantom

# The share of a core below which a process counts as idle.
_AT_REST = 0.05
_LOOK_S = 2.0


def main() -> None:
    """Compare the role and the bare work on both sets of images."""
    options = _options()
    facts = (f"torch {torch.__version__}", f"{options.rounds} rounds of {options.images} images")
    print(machine(*facts))

    sets = {"real X-rays": lambda: xrays(options.data, options.images), "2500 x 2048": large}
    for name, originals in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            role = Role(Path(folder), options.model, options.device)
            pipeline = build_pipeline(role.config, role.ledger)
            pipeline.warm_up()
            pipeline.engine.tune()

            with role.running():
                compare(name, role, pipeline, originals(), options)
            role.check()
            print(f"    engines: {pipeline.engine.running}", flush=True)


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--images", type=int, default=40, help="images that wait at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto")
    add_data_option(parser)
    return parser.parse_args()


# ---- the role


class Role:
    """`pleura analyse` with its own spool and ledger."""

    def __init__(self, folder: Path, model: str, device: str, **more: Any) -> None:
        """`more`: further settings."""
        self._folder = folder
        self.path = folder / "pleura.yaml"

        settings = {
            "spool": str(folder / "spool"),
            "ledger": f"sqlite:///{folder / 'ledger.db'}",
            "model": model,
            "device": device,
            "destinations": [{"name": "outbox", "folder": str(folder / "outbox")}],
        } | more
        self.path.write_text(yaml.safe_dump(settings))

        self.config = Config.model_validate(settings)
        self.ledger = Ledger(self.config.ledger)
        self.spool = Spool(self.config.spool)
        self.spool.claim(self.ledger.spool_identity)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the role's process until the block ends. The block starts when the role is idle."""
        with (self._folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "daemon.cli", "analyse", "-c", str(self.path)],
                stdout=subprocess.PIPE,
                stderr=log,
            )
            assert process.stdout is not None
            if process.stdout.readline() != b"READY\n":
                raise SystemExit((self._folder / "log.txt").read_text())

            self._rest(process.pid)
            yield
            process.terminate()
            process.wait()

    def seconds(self, files: Iterable[bytes]) -> float:
        """The seconds from the moment when all files wait until none waits."""
        arrivals = [self._arrival(data) for data in files]

        with closing(sqlite3.connect(self._folder / "ledger.db")) as connection:
            self.ledger.receive(arrivals)
            started = time.perf_counter()
            while _waiting(connection):
                time.sleep(0.001)
            return time.perf_counter() - started

    def _arrival(self, data: bytes) -> Arrival:
        """Write a file to the spool; returns its arrival for the ledger."""
        uid = str(dcmread(BytesIO(data), stop_before_pixels=True).SOPInstanceUID)
        name = self.spool.write(data)
        sop_class_uid = "1.2.840.10008.5.1.4.1.1.1"
        return Arrival(name, sop_class_uid, uid, "1.2.1", "BENCH", "dimse", 1, len(data))

    def check(self) -> None:
        """Assert that all images were analysed: otherwise the times mean something else."""
        counts = self.ledger.inspect.counts()["instances"]
        assert counts["failed"] == counts["not_analysed"] == 0, counts

    @staticmethod
    def _rest(pid: int) -> None:
        """Wait until the process is idle: then its engine is chosen."""
        while True:
            before_s = processor_s(pid)
            time.sleep(_LOOK_S)
            if processor_s(pid) - before_s < _LOOK_S * _AT_REST:
                return


def _waiting(connection: sqlite3.Connection) -> int:
    rows = connection.execute("SELECT count(*) FROM instances WHERE state = 'received'")
    (count,) = rows.fetchone()
    return int(count)


# ---- the comparison


def compare(
    name: str,
    role: Role,
    pipeline: Pipeline,
    originals: Sequence[bytes],
    options: argparse.Namespace,
) -> None:
    """Print the rates of many images and the times of single images, for the role and bare."""
    # Images per second of many images; seconds of single images.
    rates: dict[str, list[float]] = {"bare": [], "role": []}
    times: dict[str, list[float]] = {"bare": [], "role": []}
    serials = itertools.count(1)

    for turn in range(options.rounds + 1):
        chosen = itertools.islice(itertools.cycle(originals), options.images)
        files = [renamed(original, next(serials)) for original in chosen]
        took = {"bare": bare(pipeline, files), "role": role.seconds(files)}

        singles = files[: max(4, options.images // 4)]
        copies = [renamed(file, next(serials)) for file in singles]
        pairs = [(bare(pipeline, [copy]), role.seconds([copy])) for copy in copies]

        # The first turn warms up.
        if turn:
            for side in rates:
                rates[side].append(len(files) / took[side])
            times["bare"] += [bare_s for bare_s, _ in pairs]
            times["role"] += [role_s for _, role_s in pairs]

    _print(name, rates, times)


def _print(
    name: str, rates: Mapping[str, Sequence[float]], times: Mapping[str, Sequence[float]]
) -> None:
    bare_rate, role_rate = (statistics.median(rates[side]) for side in ("bare", "role"))
    bare_ms, role_ms = (median_ms(times[side]) for side in ("bare", "role"))
    rounds = zip(rates["role"], rates["bare"], strict=True)

    print(
        f"{name}: images/s  bare {bare_rate:.2f}  role {role_rate:.2f}  "
        f"ratio {role_rate / bare_rate:.2f}"
    )
    print(
        f"{name}: one image, ms  bare {bare_ms:.1f}  role {role_ms:.1f}  "
        f"ratio {role_ms / bare_ms:.2f}"
    )
    by_round = " ".join(f"{of_role / of_bare:.2f}" for of_role, of_bare in rounds)
    print(f"{'':4}by round, role / bare: {by_round}", flush=True)


def bare(pipeline: Pipeline, files: Sequence[bytes]) -> float:
    """The seconds of the bare work, one image after another."""

    def analyse() -> None:
        for data in files:
            (outcome,) = pipeline.analyse([data], datetime.now().astimezone())
            assert outcome.results, outcome.detail

    return seconds_of(analyse)


# ---- the images


def xrays(data: Path, images: int) -> list[bytes]:
    """Real X-rays of adults, in JPEG Baseline and JPEG-LS, with and without a pneumothorax."""
    adults = []
    for path in xray_files(data):
        age = str(dcmread(path, stop_before_pixels=True).get("PatientAge") or "040Y")
        if int("".join(filter(str.isdigit, age))) >= 18:
            adults.append(path)

    return [path.read_bytes() for path in adults[:: max(1, len(adults) // images)][:images]]


def large() -> list[bytes]:
    """Synthetic uncompressed images, 12 bits in 16, with the matrix of a flat detector (drawn at
    half its size).
    """
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(4):
            drawn = phantom.draw(seed, bool(seed % 2), 1250)
            chest = phantom.Phantom(_twice(drawn.pixels), _twice(drawn.mask), seed)
            files.append(phantom.write(chest, Path(folder) / "large.dcm").read_bytes())
    return files


def _twice(plane: NDArray[Any]) -> NDArray[Any]:
    """The middle of a plane, enlarged twice."""
    return np.repeat(np.repeat(plane[:, 113:1137], 2, axis=0), 2, axis=1)


def renamed(data: bytes, serial: int) -> bytes:
    """The same picture with a new UID, because a duplicate would not be analysed."""
    dataset = dcmread(BytesIO(data))
    uid = UID(f"2.25.{serial}")
    dataset.SOPInstanceUID = uid
    dataset.file_meta.MediaStorageSOPInstanceUID = uid

    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
