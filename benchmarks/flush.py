"""The results of one image made durable together, beside one after another, by alternate turns.

    python -m benchmarks.flush [--rounds N] [--folder DIR]

Prints medians in milliseconds and their ratio. The folder lies on the disk that is meant: by
default where temporary files go.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from daemon.spool import Spool

# SEG, SC, SR and PR of an image of 2500 x 2048 (docs/benchmarks.md, "Encoding").
_SIZES = (640_000, 840_000, 30_000, 20_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        spool = Spool(Path(folder))
        for objects in (2, 4):
            files = [os.urandom(size) for size in _SIZES[:objects]]
            apart, together = [], []
            for _ in range(options.rounds):
                began = time.perf_counter()
                for data in files:
                    spool.write(data)
                apart.append(time.perf_counter() - began)

                began = time.perf_counter()
                spool.write_all([data] for data in files)
                together.append(time.perf_counter() - began)

            one, all_ = statistics.median(apart) * 1e3, statistics.median(together) * 1e3
            print(
                f"{objects} objects: one by one {one:.2f} ms, together {all_:.2f} ms, "
                f"one by one / together {one / all_:.2f}"
            )


if __name__ == "__main__":
    main()
