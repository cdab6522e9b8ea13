"""From C-STORE success to every result in the archive, beside the bare work on the same image.

One image at a time, ours and the bare work alternating, in one run:
- through the node: storescu's exit -> Orthanc holds the image's objects (a node and an Orthanc of
  their own, loopback);
- bare: decode, classifier and (positives) segmenter forward passes, encode and check of the
  objects, in this process.

    python -m benchmarks.end_to_end [--images N] [--data DIR]

Prints medians in milliseconds and the ratio of medians. Absolute times are of this machine and its
noise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

import torch
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from inference import package
from inference.engine import Engine
from inference.pipeline import AnalysisSettings, Pipeline
from tools.peers.harness import Node, Orthanc, storescu
from tools.peers.ports import unused_port
from tools.peers.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("PLEURA_DATA", REPOSITORY.parent / "shared/data")),
    )
    options = parser.parse_args()
    files = sorted((options.data / "siim" / "dicom").glob("*.dcm"))[
        :: max(1, 240 // options.images)
    ][: options.images]

    pipeline = Pipeline(
        Engine(package.load(package.default_folder()), torch.device("cpu")), AnalysisSettings()
    )
    pipeline.warm_up()
    programs = {
        name: shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
        for name in ("Orthanc", "storescu")
    }
    for name, path in programs.items():
        if path is None:
            raise SystemExit(f"{name} is not installed (apt-get install dcmtk orthanc)")
    through, bare, expected = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        archive = Orthanc(
            str(programs["Orthanc"]), Path(folder) / "orthanc", (unused_port(), unused_port())
        )
        node = Node(Path(folder) / "node", unused_port(), destinations=[archive.destination()])
        with archive, node:
            for path in files:
                started = time.perf_counter()
                (outcome,) = pipeline.analyse([path.read_bytes()], datetime.now().astimezone())
                bare.append(time.perf_counter() - started)
                expected += len(outcome.results)
                syntax = dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
                sent = storescu(
                    str(programs["storescu"]),
                    node,
                    [path],
                    "-xy" if syntax == JPEGBaseline8Bit else "-xt",
                )
                assert sent.returncode == 0, sent.stderr
                started = time.perf_counter()
                wait_until(
                    "the results",
                    lambda wanted=expected: archive.get("/statistics")["CountInstances"] >= wanted,
                    0.002,
                )
                through.append(time.perf_counter() - started)
    results, bare_ms, through_ms = (
        expected,
        statistics.median(bare) * 1e3,
        statistics.median(through) * 1e3,
    )
    print(
        f"{len(files)} images, {results} result objects, {os.cpu_count()} cores, torch {torch.__version__}"
    )
    print(f"bare decode + forward + encode     median {bare_ms:7.1f} ms")
    print(f"C-STORE success -> in the archive  median {through_ms:7.1f} ms")
    print(f"ratio of medians {through_ms / bare_ms:.2f}, difference {through_ms - bare_ms:.1f} ms")


if __name__ == "__main__":
    main()
