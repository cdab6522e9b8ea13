"""A program run on a stranger's file: with bounds on its time, memory and files, and alone.

    python -P -m daemon.web.bounded MEMORY_BYTES CPU_S PROGRAM ARGUMENT...

The bounds are set in the new process before the program takes its place, because a fork of a
process with threads may run no Python of its own (preexec_fn).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.parent import end_with_parent

# The largest file that the program may write: an overlay or a segmentation.
_FILE_BYTES = 256 * 1024 * 1024
# Images of the hospital go first.
_NICENESS = 10


class StrangerError(Exception):
    """The program failed, or went beyond its bounds."""


@dataclass(frozen=True)
class Bounds:
    """Limits of one run."""

    memory_bytes: int
    cpu_s: int
    wall_s: float


def run(module: str, arguments: Sequence[str], data: bytes, bounds: Bounds) -> bytes:
    """Run a module of ours in its own process. Returns what it writes to stdout.

    Raises:
        StrangerError: it took too long, or ended with another status than 0 or 1.
    """
    command = [
        sys.executable, "-P", "-m", "daemon.web.bounded",
        str(bounds.memory_bytes), str(bounds.cpu_s), module, *arguments,
    ]  # fmt: skip
    # Its own session, so that whatever it starts ends with it.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=_environment(),
    ) as process:
        try:
            written, _ = process.communicate(data, bounds.wall_s)
        except subprocess.TimeoutExpired as error:
            raise StrangerError("took too long") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    if process.returncode not in (0, 1):
        raise StrangerError(f"ended with status {process.returncode}")
    return written


def _environment() -> dict[str, str]:
    """Without what only this role needs: its watchdog, its parent, the ledger's password."""
    private = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "PLEURA_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(private)}
    # A pool of threads for each core would take the address space of hundreds.
    return kept | {"OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "2"}


def main() -> None:
    """Bound this process, then become the module."""
    memory_bytes, cpu_s, module, *arguments = sys.argv[1:]

    end_with_parent()
    # The unit's sandbox refuses it; there the unit's own weight holds.
    with contextlib.suppress(PermissionError):
        os.nice(_NICENESS)
    _limit(resource.RLIMIT_AS, int(memory_bytes))
    _limit(resource.RLIMIT_CPU, int(cpu_s))
    _limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
    # A core dump would hold pixels of a patient.
    _limit(resource.RLIMIT_CORE, 0)
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])  # noqa: S606


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (bound, bound))


if __name__ == "__main__":
    main()
