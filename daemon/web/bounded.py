"""Run one of our modules on an untrusted file, in a process with resource limits.

    python -P -m daemon.web.bounded MEMORY_BYTES CPU_S MODULE ARGUMENT...

The new process limits itself and then executes the module. subprocess's preexec_fn could set the
limits too, but it is not safe in a process that has threads.
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

# The largest file that the module may write: an overlay or a segmentation.
_FILE_BYTES = 256 * 1024 * 1024
# Below the analyse role: the images that the node receives go first.
_NICENESS = 10


class BoundedRunError(Exception):
    """The module failed, or exceeded a limit."""


@dataclass(frozen=True)
class Bounds:
    """The limits of one run."""

    memory_bytes: int
    cpu_s: int
    wall_s: float


def run(module: str, arguments: Sequence[str], data: bytes, bounds: Bounds) -> bytes:
    """Run a module with `data` as its standard input. Returns its standard output.

    Raises:
        BoundedRunError: it took too long, or its exit status is neither 0 nor 1.
    """
    command = [
        sys.executable, "-P", "-m", "daemon.web.bounded",
        str(bounds.memory_bytes), str(bounds.cpu_s), module, *arguments,
    ]  # fmt: skip
    # A session of its own, so that killpg also ends its children.
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
            raise BoundedRunError("took too long") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    if process.returncode not in (0, 1):
        raise BoundedRunError(f"ended with status {process.returncode}")
    return written


def _environment() -> dict[str, str]:
    """Our environment without systemd's sockets and without PLEURA_*, which may hold passwords."""
    private = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "PLEURA_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(private)}
    # With a thread and a malloc arena for each core, a large host would exceed the memory limit.
    return kept | {"OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "2"}


def main() -> None:
    """Limit this process, then replace it with the module."""
    memory_bytes, cpu_s, module, *arguments = sys.argv[1:]

    end_with_parent()
    # The sandbox of the systemd unit forbids nice(2); there the unit's CPUWeight does the same.
    with contextlib.suppress(PermissionError):
        os.nice(_NICENESS)

    _limit(resource.RLIMIT_AS, int(memory_bytes))
    _limit(resource.RLIMIT_CPU, int(cpu_s))
    _limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
    # A core dump would hold pixels of a patient.
    _limit(resource.RLIMIT_CORE, 0)

    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])  # noqa: S606


def _limit(resource_kind: int, wanted: int) -> None:
    """Set soft and hard limit, never above the hard limit that the process already has."""
    _, hard = resource.getrlimit(resource_kind)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource_kind, (limit, limit))


if __name__ == "__main__":
    main()
