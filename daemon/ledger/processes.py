"""The processes that work on a ledger: their names, and whether they are alive."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

# The interval of heartbeats, and the age of the last one from which a role counts as silent.
SIGN_EVERY_S = 15.0
SILENT_AFTER_S = 60.0


def owner_name() -> str:
    """The name that this process holds leases under: its machine and its process ID."""
    return f"{this_machine()}:{os.getpid()}"


def this_machine() -> str:
    """The space in which process IDs are unique: host, boot and (containers) namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def host_of(owner: str) -> str:
    """The host name in an owner's name (owner_name)."""
    return owner.partition("/")[0]


def is_running(owner: str, silent_s: float) -> bool:
    """Whether a process counts as running whose last heartbeat is `silent_s` old."""
    return silent_s < SILENT_AFTER_S and not is_gone(owner)


def is_gone(owner: str) -> bool:
    """Whether an owner was a process of this machine that has ended."""
    machine, _, _ = owner.rpartition(":")
    return machine == this_machine() and not is_alive(owner)


def is_alive(owner: str) -> bool:
    """Whether an owner of this machine (owner_name) still runs.

    Tested with a signal, not in /proc, which hides the processes of the other units
    (ProtectProc=invisible).
    """
    machine, _, pid = owner.rpartition(":")
    if machine != this_machine():
        return False

    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
