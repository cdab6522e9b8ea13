"""Shared parts of the benchmarks: options, facts about the machine, and figures."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).resolve().parent.parent

# File systems in memory, where fsync does nothing, or on top of other file systems.
_NO_DISKS = ("tmpfs", "ramfs", "overlay")

_Party = TypeVar("_Party")


# ---- options


def command_line(document: str | None) -> argparse.ArgumentParser:
    """A parser that describes the benchmark by the first line of its docstring."""
    assert document is not None
    return argparse.ArgumentParser(description=document.splitlines()[0])


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """`--data`: the folder of real X-rays, by default as for the tests."""
    beside = REPOSITORY.parent / "shared" / "data"
    default = Path(os.environ.get("PLEURA_DATA", beside))
    parser.add_argument("--data", type=Path, default=default, help="folder of the real X-rays")


def add_folder_option(parser: argparse.ArgumentParser) -> None:
    """`--folder`: the folder for files during the run, by default that of temporary files."""
    default = Path(tempfile.gettempdir())
    parser.add_argument("--folder", type=Path, default=default, help="on a real disk")


# ---- the machine


def xray_files(data: Path) -> list[Path]:
    """The real X-rays of the folder that `--data` names, in the order of their names."""
    return sorted((data / "siim" / "dicom").glob("*.dcm"))


def program(name: str) -> str:
    """The path of a peer's program. Ends the benchmark if it is not installed."""
    # Debian puts Orthanc into sbin, which is not on every PATH.
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    if path is None:
        raise SystemExit(f"{name} is not installed (apt-get install dcmtk orthanc)")
    return path


def require_real_disk(folder: Path) -> None:
    """End the benchmark if `folder` is in memory or on an overlay file system."""
    kind = _file_system(folder)
    if kind in _NO_DISKS:
        raise SystemExit(f"{folder}: {kind} found, a real disk wanted; give --folder")


def machine(*facts: str, folder: Path | None = None) -> str:
    """Cores and further facts, such as versions, for the first line of a benchmark.

    With `folder`, also the type of its file system.
    """
    places = [_file_system(folder)] if folder else []
    return ", ".join([f"{os.cpu_count()} cores", *facts, *places])


def load() -> str:
    """The machine's load: the mean number of runnable processes in the last minute."""
    return f"load {os.getloadavg()[0]:.1f}"


def _file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`."""
    closest = ""
    kind = ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mounted, mounted_kind, *_ = line.split()
        if folder.resolve().is_relative_to(mounted) and len(mounted) >= len(closest):
            closest = mounted
            kind = mounted_kind
    return kind


# ---- figures


def by_turns(
    measures: Mapping[str, Callable[[], float]], rounds: int, warm_ups: int = 1
) -> dict[str, list[float]]:
    """The figures that each measure returns, round by round; in each round all take their turn.

    The first `warm_ups` rounds are left out, because they include imports, caches and allocations.
    """
    figures: dict[str, list[float]] = {name: [] for name in measures}

    for number in range(warm_ups + rounds):
        for name, measure in measures.items():
            figure = measure()
            if number >= warm_ups:
                figures[name].append(figure)

    return figures


def in_turn(parties: Sequence[_Party], number: int) -> list[_Party]:
    """The parties in the order of round `number`.

    Each party leaves caches, spinning threads or dirty pages to the next, and the first of a round
    starts cold. So each goes first equally often, and the direction changes after each has.
    """
    first = number % len(parties)
    order = [*parties[first:], *parties[:first]]
    is_reversed = number // len(parties) % 2 == 1
    return [order[0], *reversed(order[1:])] if is_reversed else order


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds by `clock` that a call of `work` takes."""
    began = clock()
    work()
    return clock() - began


def processor_s(pid: int) -> float:
    """The processor time of a process so far, user and system, in seconds (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def median_ms(seconds: Iterable[float]) -> float:
    """The median of times in seconds, in milliseconds."""
    return statistics.median(seconds) * 1e3


def median_ratio(figures: Iterable[float], others: Iterable[float]) -> float:
    """The median of each turn's ratio of the first figure to the other.

    Other programs on the machine affect it less than the ratio of the medians.
    """
    pairs = zip(figures, others, strict=True)
    return statistics.median(figure / other for figure, other in pairs)
