# ruff: noqa: T201
"""`python -m tests.soak`: the long form of the memory and hostile-network tests.

It prints a table for each. The exit status is 1 on any violation.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.peers import runs
from tests.peers.footprint import Course
from tests.peers.hostile import Account, Honest, Receive, bad_log_lines, connects, fuzz, sample
from tools.peers.ports import unused_port

# Mutated conversations between two checks of the node.
_BATCH = 500
# The growth in MB of RSS that a role may have in the second half of a run.
_SECOND_HALF_MB = 10.0


def main() -> int:
    """Run the tests with the numbers of the arguments. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--associations", type=int, default=10_000)
    parser.add_argument("--connects", type=int, default=100_000)
    parser.add_argument("--cases", type=int, default=20_000, help="mutated conversations")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="pleura-soak-"))
    bad = []
    for what, number, run in (
        ("associations", options.associations, _associations),
        ("connects", options.connects, _connects),
        (
            "mutated conversations",
            options.cases,
            lambda folder, number: _fuzz(folder, number, options.seed),
        ),
        ("images", options.images, _images),
    ):
        if number:
            began = time.monotonic()
            print(f"\n{number} {what}", flush=True)
            bad += run(folder / what.split()[0], number)
            print(f"  {time.monotonic() - began:.0f} s", flush=True)

    print(f"\nviolations {len(bad)}", *bad[:50], sep="\n  ")
    if bad:
        print(f"kept: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _associations(folder: Path, number: int) -> list[str]:
    return _judged({"receive": runs.associations(folder, unused_port(), number)})


def _images(folder: Path, number: int) -> list[str]:
    return _judged(runs.images(folder, unused_port(), number))


def _connects(folder: Path, number: int) -> list[str]:
    def step(honest: Honest, first: int, end: int) -> None:
        with honest.meanwhile():
            connects(honest.node, end - first)

    return _watched(folder, number, max(1, number // 40), step)


def _fuzz(folder: Path, number: int, seed: int) -> list[str]:
    def step(honest: Honest, first: int, end: int) -> None:
        with honest.meanwhile():
            fuzz(honest.node, seed, range(first, end), honest.account)

    return _watched(folder, number, _BATCH, step)


def _watched(
    folder: Path, number: int, at_once: int, step: Callable[[Honest, int, int], None]
) -> list[str]:
    """Call `step(honest, first, end)` for each `at_once` of `number`, and check the node after
    each.
    """
    with Receive(folder, unused_port()) as node:
        honest = Honest(node, Account(), sample(folder).read_bytes(), folder)
        honest.store()
        node.at_rest()
        course = Course(node.process.pid)

        bad: list[str] = []
        for first in range(0, number, at_once):
            step(honest, first, min(number, first + at_once))
            honest.store()
            node.at_rest()
            course.look(min(number, first + at_once))

        bad += honest.account.violations(node) + bad_log_lines(node.log)
        print(
            f"  {honest.account.acknowledged.total()} acknowledged, {len(node.rows())} in the spool"
        )
        print(f"  honest senders: {honest.stored} objects stored in {honest.tried} tries")
    return bad + _judged({"receive": course})


def _judged(courses: dict[str, Course]) -> list[str]:
    for role, course in courses.items():
        print(f"  {role}\n{course}")
    return [
        f"{role} grew by {course.growth_mb():.1f} MB of RSS in the second half"
        for role, course in courses.items()
        if course.growth_mb() > _SECOND_HALF_MB
    ]


if __name__ == "__main__":
    sys.exit(main())
