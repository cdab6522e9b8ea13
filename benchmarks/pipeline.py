"""The analyse role beside the bare work on the same files: what overlapping gains, and what
durability costs.

Alternating in one run, on two sets of images (real X-rays of 1024 x 1024, phantoms of 2500 x 2048):
- bare: decode, forward passes, encode and check of SEG and SC, one image after another in this
  process, nothing kept;
- role: `pleura analyse` as a separate process, from images that lie in the spool to results that
  lie in the spool and are owed by the ledger; many at once (images per second), and one at a time
  (latency).

Both with the settings of daemon/torch_process.py, as the role makes them; the engine is chosen
(tuned) before anything is timed.

    python -m benchmarks.pipeline [--images N] [--rounds N] [--data DIR] [--model FOLDER] [--device D]

Prints medians and ratios of medians. Absolute times are of this machine and its noise.
"""

# What torch reads once is set before it is imported.
# ruff: noqa: E402

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from daemon import torch_process

torch_process.prepare()  # before torch is loaded

import numpy as np
import torch
import yaml
from pydicom import dcmread

from daemon.analyse.worker import build_pipeline
from daemon.config import Config
from daemon.ledger import Arrival, Ledger
from daemon.spool import Spool
from inference.pipeline import Pipeline
from training import phantom

REPOSITORY = Path(__file__).resolve().parent.parent
_AT_REST = 0.05  # of a core: a process that uses less has nothing to do


class Role:
    """`pleura analyse` over its own spool and ledger."""

    def __init__(self, folder: Path, model: str, device: str, **more: Any) -> None:
        """`more`: further settings."""
        self._folder, self.path = folder, folder / "pleura.yaml"
        settings = {
            "spool": str(folder / "spool"),
            "ledger": f"sqlite:///{folder / 'ledger.db'}",
            "model": model,
            "device": device,
            "destinations": [{"name": "outbox", "folder": str(folder / "outbox")}],
        } | more
        self.path.write_text(yaml.safe_dump(settings))
        self.config = Config.model_validate(settings)
        self.ledger, self.spool = Ledger(self.config.ledger), Spool(self.config.spool)
        self.spool.claim(self.ledger.spool_identity)

    @contextmanager
    def running(self) -> Iterator[None]:
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
        """From the moment when all of them wait to the moment when none does."""
        arrivals = []
        for data in files:
            uid = str(dcmread(BytesIO(data), stop_before_pixels=True).SOPInstanceUID)
            name = self.spool.write(data)
            arrivals.append(
                Arrival(
                    name, "1.2.840.10008.5.1.4.1.1.1", uid, "1.2.1", "BENCH", "dimse", 1, len(data)
                )
            )
        connection = sqlite3.connect(self._folder / "ledger.db")
        self.ledger.receive(arrivals)
        started = time.perf_counter()
        while connection.execute(
            "SELECT count(*) FROM instances WHERE state = 'received'"
        ).fetchone()[0]:
            time.sleep(0.001)
        took = time.perf_counter() - started
        connection.close()
        return took

    def check(self) -> None:
        """All were analysed, or what was timed is something else."""
        counts = self.ledger.inspect.counts()["instances"]
        assert counts["failed"] == counts["not_analysed"] == 0, counts

    @staticmethod
    def _rest(pid: int) -> None:
        """Until the process has nothing more to do: its engine is chosen."""
        while True:
            before = cpu_s(pid)
            time.sleep(2.0)
            if cpu_s(pid) - before < 2.0 * _AT_REST:
                return


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40, help="that wait at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("PLEURA_DATA", REPOSITORY.parent / "shared/data")),
    )
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__}, {options.rounds} rounds of {options.images} images"
    )
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


def compare(
    name: str, role: Role, pipeline: Pipeline, originals: list[bytes], options: argparse.Namespace
) -> None:
    alone: dict[str, list[float]] = {"bare": [], "role": []}
    many: dict[str, list[float]] = {"bare": [], "role": []}
    serial = 0
    for turn in range(options.rounds + 1):
        files = []
        for number in range(options.images):
            serial += 1
            files.append(renamed(originals[number % len(originals)], serial))
        singles = files[: max(4, options.images // 4)]
        took = {"bare": bare(pipeline, files), "role": role.seconds(files)}
        for file in singles:
            serial += 1
            one = renamed(file, serial)
            first, second = bare(pipeline, [one]), role.seconds([one])
            if turn:
                alone["bare"].append(first)
                alone["role"].append(second)
        for who in many if turn else ():  # the first turn warms up
            many[who].append(len(files) / took[who])
    rates = {who: statistics.median(found) for who, found in many.items()}
    times = {who: statistics.median(found) * 1e3 for who, found in alone.items()}
    print(
        f"{name}: images/s  bare {rates['bare']:.2f}  role {rates['role']:.2f}  ratio {ratio(rates):.2f}"
    )
    print(
        f"{name}: one image, ms  bare {times['bare']:.1f}  role {times['role']:.1f}  ratio {ratio(times):.2f}"
    )
    print(
        f"{'':4}by round, role / bare: {' '.join(f'{b / a:.2f}' for a, b in zip(*many.values(), strict=True))}",
        flush=True,
    )


def ratio(figures: dict[str, float]) -> float:
    return figures["role"] / figures["bare"]


def bare(pipeline: Pipeline, files: list[bytes]) -> float:
    started = time.perf_counter()
    for data in files:
        (outcome,) = pipeline.analyse([data], datetime.now().astimezone())
        assert outcome.results, outcome.detail
    return time.perf_counter() - started


def xrays(data: Path, images: int) -> list[bytes]:
    """Real X-rays, JPEG Baseline and JPEG-LS, with and without a pneumothorax; adults."""
    found = []
    for path in sorted((data / "siim" / "dicom").glob("*.dcm")):
        age = str(dcmread(path, stop_before_pixels=True).get("PatientAge") or "040Y")
        if int("".join(filter(str.isdigit, age))) >= 18:
            found.append(path)
    return [path.read_bytes() for path in found[:: max(1, len(found) // images)][:images]]


def large() -> list[bytes]:
    """Synthetic, 12 bits in 16, uncompressed: the matrix of a flat detector (drawn at half its
    size).
    """
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(4):
            drawn = phantom.draw(seed, bool(seed % 2), 1250)
            twice = [
                np.repeat(np.repeat(one[:, 113:1137], 2, axis=0), 2, axis=1)
                for one in (drawn.pixels, drawn.mask)
            ]
            part = phantom.Phantom(twice[0], twice[1], seed)
            files.append(phantom.write(part, Path(folder) / "large.dcm").read_bytes())
    return files


def renamed(data: bytes, serial: int) -> bytes:
    """The same picture as another instance: a duplicate would be no new work."""
    dataset = dcmread(BytesIO(data))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{serial}"
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
