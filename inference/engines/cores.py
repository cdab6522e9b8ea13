"""The number of threads that a process should compute with."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import torch

log = logging.getLogger("pleura.engine")

_SYSTEM = Path("/sys")


def available(system: Path = _SYSTEM, groups: Path = Path("/proc/self/cgroup")) -> int:
    """The number of cores that this process may use, at least 1.

    It counts the affinity mask (systemd's CPUAffinity, a container's cpuset), two hardware threads
    of one core once, and is at most the CPU quota (systemd's CPUQuota).
    """
    allowed = os.sched_getaffinity(0)
    siblings = (
        _text(system / f"devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        or str(number)
        for number in allowed
    )
    return max(1, min(len(set(siblings)), _quota(system / "fs/cgroup", groups)))


def use(device: torch.device) -> int:
    """Set and give the number of threads torch computes with.

    OMP_NUM_THREADS takes precedence if it is set.
    """
    if "OMP_NUM_THREADS" not in os.environ and device.type == "cpu":
        wanted = available()
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
            log.info("computing with %d threads", wanted)
    return torch.get_num_threads()


def _quota(root: Path, groups: Path) -> int:
    """Whole CPUs of the tightest cpu.max (control groups, version 2) from this process' group up to
    the root.
    """
    path = next((line[3:] for line in _text(groups).splitlines() if line.startswith("0::")), "/")
    quotas = [os.sysconf("SC_NPROCESSORS_ONLN")]

    folder = root / path.lstrip("/")
    for one in (folder, *folder.parents):
        limit, _, period_us = _text(one / "cpu.max").partition(" ")
        if limit.isdigit() and period_us.isdigit() and int(period_us):
            quotas.append(math.ceil(int(limit) / int(period_us)))
        if one == root:
            break

    return min(quotas)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
