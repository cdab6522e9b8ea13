"""Trains every recipe at its real size for one epoch of a few images: `make recipes`.

It takes more than half an hour on two cores.
"""

# ruff: noqa: T201 - a program

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests import recipes
from training import loop


def main() -> int:
    """`python -m tests.recipes [NAME...]`. Returns 1 if a recipe failed."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="pleura-recipes-") as folder:
        made = recipes.made(Path(folder) / "made", images=8)
        for name in sys.argv[1:] or recipes.NAMES:
            started = time.monotonic()
            wanted = recipes.short(name)
            try:
                package = loop.train(
                    wanted,
                    made,
                    Path(folder) / name,
                    ["pleura", "train", "--recipe", name],
                    recipes.at_random(wanted),
                )
                assert package is not None
                answered = recipes.answers(package, wanted.task) == 1
            except Exception as error:
                answered = False
                print(f"{type(error).__name__}: {error}", file=sys.stderr)

            failed += not answered
            sides = ", ".join(f"{stage.architecture} {stage.side} px" for stage in wanted.networks)
            print(
                f"{name}: {sides}: {'ok' if answered else 'FAILED'}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )

    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
