"""Readiness, as a process reports it to systemd and to `pleura serve`."""

from __future__ import annotations

import contextlib
import os
import socket

READY = "READY"

# In a role's environment: the process ID of the `serve` that started it.
PARENT = "PLEURA_PARENT"


def notify(message: str) -> None:
    """Tell systemd (sd_notify(3)); does nothing outside systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return

    # A leading @ stands for the NUL of an abstract socket.
    path = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(path)
        sock.send(message.encode())
