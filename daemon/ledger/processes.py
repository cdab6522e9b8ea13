"""The processes that work on a ledger: their names, and whether they live."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

# A role's sign of life, and the age from which a role counts as silent.
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


def is_alive(owner: str) -> bool:
    """Whether an owner of this machine (owner_name) still runs.

    Asked by a signal, not by /proc: there the processes of the other units are hidden
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
