"""Process settings that torch and glibc read once: made before torch is imported."""

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
    """Prepare this process to share cores and memory with others."""
    # OpenMP's threads would spin while they wait for each other. On a busy machine, as when `pleura
    # doctor` runs beside a node, a forward pass would take several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    # glibc keeps free memory for each thread: here, the size of several pictures.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)

        # glibc returns the memory of each layer to the kernel, which then has to map every page for
        # the next layer: 56,000 page faults for an image, and nearly half of the classifier's
        # processor time.
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
