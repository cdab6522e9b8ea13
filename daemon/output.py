"""Standard output whose reader may be gone, or whose disk may be full."""

from __future__ import annotations

import os
import sys


def say(line: str) -> None:
    """Print a line at once. A role goes on where nobody can read it."""
    try:
        print(line, flush=True)  # noqa: T201 - the contract: READY on stdout
    except OSError:
        discard()


def discard() -> None:
    """Send what is printed, and what waits in the buffer, to nowhere.

    Else Python tries to write it once more at its end, and ends with status 120.
    """
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
