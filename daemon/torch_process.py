"""Settings of a process that torch and glibc read once: made before torch is imported."""

from __future__ import annotations

import ctypes
import os
import sys

_M_ARENA_MAX = -8  # mallopt(3)


def prepare() -> None:
    """Let this process share its cores, and its memory, with others."""
    # OpenMP's threads would spin while they wait for one another. Beside any other work, such as
    # the node that `pleura doctor` asks about, a forward pass then takes several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    # glibc keeps free memory apart for each thread: here, the size of several pictures.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)
