"""Decoding what trains: images a second into the cache, beside what the cores can.

    python -m benchmarks.cache [--rounds N] [--side PX] [--data DIR]

Ours is `training.data.cache.prepare` of all 3,205 stage-2 pictures (JPEG, 512 px) into a new
folder: decoded, letterboxed, brought into order, written and fsynced. Bare is a process a core,
each of which decodes and letterboxes its share of the same pictures in the same way and drops them:
no order, no other process to tell, no file. They take alternate turns, ours first. Prints images a
second, medians, and ours by bare: of the medians, and the median of each turn's ratio; then user
and system time of all processes of both, and bare by ours, which other work on the machine hardly
changes, but which does not see waiting. Wanted: at least 0.9.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from inference.preprocess import fit
from training import data
from training.data import cache, pictures
from training.data.cases import Case

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("PLEURA_DATA", REPOSITORY.parent / "shared/data")),
    )

    options = parser.parse_args()
    cases = data.read("silver", options.data)
    turns: dict[str, Callable[[], None]] = {
        "ours": partial(_ours, cases, options.side),
        "bare": partial(_bare, cases, options.side),
    }

    speeds: dict[str, list[float]] = {name: [] for name in turns}
    costs: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(options.rounds + 1):
        for name, work in turns.items():
            started = time.perf_counter()
            cpu_s = _cpu_s()
            work()
            # The first turn reads the files into memory.
            if turn:
                speeds[name].append(len(cases) / (time.perf_counter() - started))
                costs[name].append(_cpu_s() - cpu_s)

    ours, bare = (statistics.median(values) for values in speeds.values())
    by_turns = statistics.median(one / other for one, other in zip(*speeds.values(), strict=True))
    print(
        f"{len(cases)} pictures to {options.side} px, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}"
    )
    print(
        f"ours {ours:.0f}, bare {bare:.0f} images/s; ours / bare {ours / bare:.2f}, by turns "
        f"{by_turns:.2f}"
    )
    ours_s, bare_s = (statistics.median(values) for values in costs.values())
    print(
        f"ours {ours_s:.1f}, bare {bare_s:.1f} s of CPU time; ratio of CPU time "
        f"{bare_s / ours_s:.2f}"
    )


def _cpu_s() -> float:
    """User and system time of this process and of those that ended."""
    return sum(os.times()[:4])


def _ours(cases: Sequence[Case], side: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache.prepare(cases, side, Path(folder))


def _bare(cases: Sequence[Case], side: int) -> None:
    processes = os.cpu_count() or 1
    size = math.ceil(len(cases) / processes)
    shares = [cases[first : first + size] for first in range(0, len(cases), size)]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(partial(_shrink_all, side), shares))


def _shrink_all(side: int, cases: Sequence[Case]) -> None:
    for case in cases:
        pictures.as_bytes(fit(case.pixels(), side).pixels)


if __name__ == "__main__":
    main()
