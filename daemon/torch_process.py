"""Settings of a process that torch and glibc read once: made before torch is imported."""

from __future__ import annotations

import ctypes
import os
import sys

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# The largest that every glibc takes.
_MMAP_THRESHOLD_BYTES = 32 << 20
_TRIM_THRESHOLD_BYTES = 512 << 20


def prepare() -> None:
    """Let this process share its cores, and its memory, with others."""
    # OpenMP's threads would spin while they wait for one another. Beside any other work, such as
    # the node that `pleura doctor` asks about, a forward pass then takes several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    # glibc keeps free memory apart for each thread: here, the size of several pictures.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)

        # glibc gives the memory of each layer back to the kernel, which hands out every page of
        # the next one anew: 56,000 page faults for an image, and nearly half of the classifier's
        # processor time.
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
