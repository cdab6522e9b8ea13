"""Standard output whose reader may be gone, or whose disk may be full."""

from __future__ import annotations

import os
import sys


def say(line: str) -> None:
    """Print a line at once. If nobody can read it, the role goes on."""
    try:
        print(line, flush=True)  # noqa: T201 - the contract: READY on stdout
    except OSError:
        discard()


def discard() -> None:
    """Discard further output, and what is buffered.

    Otherwise Python tries to write it again when it ends, and exits with status 120.
    """
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
