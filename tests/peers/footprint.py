"""What a process holds, as the kernel counts it, and whether that stays the same over a long run."""

from __future__ import annotations

from collections.abc import Callable
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

    def __str__(self) -> str:
        rss_mb, pss_mb = self.rss_kb / 1024, self.pss_kb / 1024
        return (
            f"RSS {rss_mb:6.1f} MB  PSS {pss_mb:6.1f} MB  {self.threads:2d} threads  {self.descriptors:3d} descriptors"
        )


def footprint(pid: int) -> Footprint:
    """What process `pid` holds now."""
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    shares = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
    return Footprint(
        rss_kb=int(status["VmRSS"].split()[0]),
        pss_kb=int(shares["Pss"].split()[0]),
        threads=int(status["Threads"]),
        descriptors=len(list((folder / "fd").iterdir())),
    )


@dataclass
class Course:
    """A process's footprints over a run, each with how much work was done by then."""

    pid: int
    done: list[int] = field(default_factory=list)
    seen: list[Footprint] = field(default_factory=list)

    def look(self, done: int) -> None:
        self.done.append(done)
        self.seen.append(footprint(self.pid))

    def growth(self, of: Callable[[Footprint], float] = lambda one: one.rss_kb / 1024) -> float:
        """By how much `of` rose over the second half of the run, in its unit: MB of RSS.

        Medians of the second and the fourth quarter, scaled from the half run between their middles to what lies in
        the second half: one sample during a burst decides nothing, and what is only allocated once has been by then.
        """
        quarter = len(self.seen) // 4
        before, after = self.seen[quarter : 2 * quarter], self.seen[-quarter:]
        return median(map(of, after)) - median(map(of, before))

    def growth_per_thousand(self) -> float:
        """MB of RSS per thousand of what was done, over the second half."""
        return self.growth() / (self.done[-1] / 2) * 1000
