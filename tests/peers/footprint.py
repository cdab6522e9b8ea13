"""What a process holds, as the kernel counts it, and whether that stays the same over a long run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple


class Footprint(NamedTuple):
    """One process at one moment."""

    rss_kb: int
    pss_kb: int
    threads: int
    descriptors: int
    of_files: int  # of these descriptors, those that are regular files

    def __str__(self) -> str:
        rss_mb, pss_mb = self.rss_kb / 1024, self.pss_kb / 1024
        return f"RSS {rss_mb:6.1f} MB  PSS {pss_mb:6.1f} MB  {self.threads:2d} threads  {self.descriptors:3d} descriptors"


def footprint(pid: int) -> Footprint:
    """What process `pid` holds now."""
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    shares = dict(
        line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:]
    )
    targets = [_target(link) for link in (folder / "fd").iterdir()]
    return Footprint(
        rss_kb=int(status["VmRSS"].split()[0]),
        pss_kb=int(shares["Pss"].split()[0]),
        threads=int(status["Threads"]),
        descriptors=len(targets),
        of_files=sum(
            target.startswith("/") and not target.startswith("/dev/") for target in targets
        ),
    )


def _target(link: Path) -> str:
    """What a descriptor is, such as `socket:[1234]`; "" where it was closed meanwhile."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


@dataclass
class Course:
    """A process's footprints over a run, each with how much work was done by then."""

    pid: int
    done: list[int] = field(default_factory=list)
    seen: list[Footprint] = field(default_factory=list)

    def look(self, done: int) -> None:
        self.done.append(done)
        self.seen.append(footprint(self.pid))

    def growth_mb(self) -> float:
        """By how much RSS rose over the second half of the run.

        From the median of the second quarter to that of the fourth, whose middles lie half a run
        apart: one look in the middle of a burst decides nothing, and what is allocated only once
        has been by then.
        """
        quarter = len(self.seen) // 4
        before, after = self.seen[quarter : 2 * quarter], self.seen[-quarter:]
        return (median(one.rss_kb for one in after) - median(one.rss_kb for one in before)) / 1024

    def __str__(self) -> str:
        """A table."""
        lines = [f"  {done:7d}  {one}" for done, one in zip(self.done, self.seen, strict=True)]
        step = max(1, len(lines) // 10)
        return "\n".join(
            [*lines[:-1:step], lines[-1], f"  second half: {self.growth_mb():+.2f} MB of RSS"]
        )
