"""Memory, threads and descriptors of a process as the kernel counts them, and their growth over a
long run.
"""

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
    # How many of the descriptors are regular files
    of_files: int

    def __str__(self) -> str:
        rss_mb, pss_mb = self.rss_kb / 1024, self.pss_kb / 1024
        return f"RSS {rss_mb:6.1f} MB  PSS {pss_mb:6.1f} MB  {self.threads:2d} threads  {self.descriptors:3d} descriptors"


def footprint(pid: int) -> Footprint:
    """The footprint of process `pid` now."""
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
    """What a descriptor refers to, such as `socket:[1234]`; "" if it was closed meanwhile."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


@dataclass
class Course:
    """A process's footprints over a run, each with the amount of work done by then."""

    pid: int
    done: list[int] = field(default_factory=list)
    seen: list[Footprint] = field(default_factory=list)

    def look(self, done: int) -> None:
        self.done.append(done)
        self.seen.append(footprint(self.pid))

    def growth_mb(self) -> float:
        """The growth of RSS over the second half of the run.

        It compares the medians of the second and the fourth quarter, whose middles are half a run
        apart. A median is not affected by one look during a burst, and by the second quarter
        everything that is allocated only once has been allocated.
        """
        quarter = len(self.seen) // 4
        before = median(look.rss_kb for look in self.seen[quarter : 2 * quarter])
        after = median(look.rss_kb for look in self.seen[-quarter:])
        return (after - before) / 1024

    def __str__(self) -> str:
        """A table of about ten footprints, and the growth."""
        lines = [f"  {done:7d}  {look}" for done, look in zip(self.done, self.seen, strict=True)]
        step = max(1, len(lines) // 10)
        return "\n".join(
            [*lines[:-1:step], lines[-1], f"  second half: {self.growth_mb():+.2f} MB of RSS"]
        )
