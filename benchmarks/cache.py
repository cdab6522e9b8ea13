"""Filling the training cache: images per second, beside bare decoding on all cores.

    python -m benchmarks.cache [--rounds N] [--side PX] [--data DIR]

"Ours" is `training.data.cache.prepare` of all 3,205 stage-2 pictures (JPEG, 512 px) into a new
folder: they are decoded, letterboxed, ordered, written and fsynced. "Bare" is one process per core,
each of which decodes and letterboxes its share of the same pictures in the same way and drops them:
without order, communication or files. The two take alternate turns, ours first.

Prints median images per second, and the ratio ours / bare: of the medians, and the median of each
turn's ratio. Then prints the user and system time of all processes, and the ratio bare / ours.
Other work on the machine hardly affects that ratio, but it does not include waiting. Wanted: at
least 0.9.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.measurement import add_data_option, command_line, load, machine, median_ratio
from inference.preprocess import fit
from training import data
from training.data import cache, pictures
from training.data.cases import Case

# "ours" or "bare" -> a figure of each round.
Figures = Mapping[str, Sequence[float]]


def main() -> None:
    """Print the speeds and the CPU times of both, and their ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=320)
    add_data_option(parser)
    options = parser.parse_args()

    cases = data.read("silver", options.data)
    turns: dict[str, Callable[[], None]] = {
        "ours": partial(_ours, cases, options.side),
        "bare": partial(_bare, cases, options.side),
    }
    seconds, costs = _measured(turns, options.rounds)

    print(f"{len(cases)} pictures to {options.side} px, {machine(load())}")
    speeds = {name: [len(cases) / each for each in taken] for name, taken in seconds.items()}
    _print_speeds(speeds)
    _print_costs(costs)


def _measured(turns: Mapping[str, Callable[[], None]], rounds: int) -> tuple[Figures, Figures]:
    """Elapsed seconds and CPU seconds of every round but the first, which reads the files into
    memory.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    costs: dict[str, list[float]] = {name: [] for name in turns}

    for number in range(rounds + 1):
        for name, work in turns.items():
            began = time.perf_counter()
            cpu_began_s = _cpu_s()
            work()
            if number:
                seconds[name].append(time.perf_counter() - began)
                costs[name].append(_cpu_s() - cpu_began_s)

    return seconds, costs


def _print_speeds(speeds: Figures) -> None:
    ours, bare = (statistics.median(speeds[name]) for name in ("ours", "bare"))
    by_turns = median_ratio(speeds["ours"], speeds["bare"])
    print(
        f"ours {ours:.0f}, bare {bare:.0f} images/s; ours / bare {ours / bare:.2f}, by turns "
        f"{by_turns:.2f}"
    )


def _print_costs(costs: Figures) -> None:
    ours_s, bare_s = (statistics.median(costs[name]) for name in ("ours", "bare"))
    print(
        f"ours {ours_s:.1f}, bare {bare_s:.1f} s of CPU time; ratio of CPU time "
        f"{bare_s / ours_s:.2f}"
    )


def _cpu_s() -> float:
    """User and system time of this process and of its ended children, in seconds."""
    return sum(os.times()[:4])


def _ours(cases: Sequence[Case], side: int) -> None:
    """Fill a new cache, which is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        cache.prepare(cases, side, Path(folder))


def _bare(cases: Sequence[Case], side: int) -> None:
    """Decode and letterbox in one process per core."""
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
