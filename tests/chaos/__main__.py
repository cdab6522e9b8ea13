# ruff: noqa: T201 - a program that prints
"""`python -m tests.chaos --kills 1000 --seed 1`: the long run.

It prints a table at its end. The exit status is 1 on any violation.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.chaos import rounds
from tests.chaos.invariant import Account
from tests.chaos.points import POINTS
from tests.chaos.site import Chaos
from tests.conftest import REPOSITORY

# Kills in one round; each round ends with a check of everything.
_AT_ONCE = 150


def main() -> int:
    """Run rounds until the wanted kills or minutes are reached. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument(
        "--minutes", type=float, default=None, help="begin no new round after this time"
    )
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--folder", type=Path, default=None, help="work in this folder, and keep it"
    )
    parser.add_argument("--tls", action="store_true", help="use TLS for every connection")
    options = parser.parse_args()

    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)

    folder = options.folder or Path(tempfile.mkdtemp(prefix="pleura-chaos-"))
    began = time.monotonic()
    chaos = Chaos(folder, seed, _real_pictures(), options.tls)
    deadline = began + 60 * (options.minutes or float("inf"))
    while (left := options.kills - chaos.tally.kills.done) > 0 and time.monotonic() < deadline:
        for name, round_ in _cycle(chaos, left):
            if time.monotonic() > deadline or chaos.tally.kills.done >= options.kills:
                break
            start = time.monotonic()
            try:
                account = round_()
                bad = account.violations
            except Exception as error:
                bad = [f"{name}: {type(error).__name__}: {error}"]
                chaos.tally.account.violations += bad

            print(
                f"{time.monotonic() - began:6.0f} s  {name}: {time.monotonic() - start:.0f} s, "
                f"{chaos.tally.kills.done} kills so far, {len(bad)} violations",
                *bad[:10],
                sep="\n    ",
                flush=True,
            )
    return _table(chaos, time.monotonic() - began, options.folder)


def _cycle(chaos: Chaos, left: int) -> list[tuple[str, Callable[[], Account]]]:
    """One round of each kind, so that a run that is ended early has seen every kind."""
    number = min(left, _AT_ONCE)
    quick = {"keep_days": 5 / 86400, "free_mb": 0}
    return [
        ("kills", lambda: rounds.kills(chaos, number)),
        ("kills, with retention", lambda: rounds.kills(chaos, number, retention=quick)),
        ("PostgreSQL", lambda: rounds.postgresql(chaos, 6, number)),
        ("power loss", lambda: rounds.power_loss(chaos)),
        ("disks", lambda: rounds.full_disks(chaos, 25.0)),
        ("clock", lambda: rounds.clock_steps(chaos, 8, number // 2)),
        ("SIGTERM", lambda: rounds.drains(chaos, 8)),
        ("archive", lambda: rounds.moods(chaos)),
        ("serve", lambda: rounds.serve(chaos, 8)),
    ]


def _real_pictures() -> list[Path]:
    """A real uncompressed X-ray, if the data folder has it."""
    folder = Path(os.environ.get("PLEURA_DATA") or REPOSITORY.parent / "shared" / "data") / "node"
    return [path for name in ("RG2_UNC.dcm",) if (path := folder / name).is_file()]


def _table(chaos: Chaos, seconds: float, kept: Path | None) -> int:
    tally = chaos.tally
    account = tally.account
    print(f"\nseed {chaos.seed}, {seconds / 60:.1f} minutes\n\nkills by role and point")
    for point, number in sorted(tally.kills.counted.items()):
        print(f"  {number:5d}  {point}")

    never = sorted({str(point) for point in POINTS} - tally.kills.counted.keys())
    by_role: Counter[str] = Counter()
    for point, number in tally.kills.counted.items():
        by_role[point.partition(":")[0]] += number
    print(
        f"  {tally.kills.done:5d}  total: "
        + ", ".join(f"{role} {number}" for role, number in by_role.items())
    )
    print(f"  points never reached: {', '.join(never) or 'none'}\n\nfaults")
    for fault, number in sorted(tally.faults.items()):
        print(f"  {number:5d}  {fault}")

    kinds = Counter(violation.partition(":")[0] for violation in account.violations)
    print(f"\nimages acknowledged  {account.acknowledged}  ({_words(account.states)})")
    print(f"  failed by reason   {_words(account.failed)}")
    print(f"results delivered    {account.delivered}")
    print(
        f"  repeated sends     {account.repeated_sends}  (the answer was lost; the archive holds one object)"
    )
    print(
        f"  forgotten          {account.forgotten}  (the archive lost them; they were sent again)"
    )
    print(f"orphans swept        {account.orphans}")
    print(f"lost                 {kinds['lost']}")
    print(f"duplicated           {kinds['duplicated']}")
    print(f"violations           {len(account.violations)}")
    for violation in account.violations[:50]:
        print(f"  {violation}")

    if kept is None and not account.violations:
        shutil.rmtree(chaos.folder)
    else:
        print(f"kept: {chaos.folder}")
    return 1 if account.violations else 0


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items()) or "none"


if __name__ == "__main__":
    sys.exit(main())
