"""Free TCP ports for programs that are started on loopback."""

from __future__ import annotations

import secrets
import socket

# Below the ports that Linux gives to outgoing connections (32768 and up): one of those could be
# taken by a connection between the draw here and a server's listen.
_PORTS = range(15_000, 32_000)


def unused_port() -> int:
    """A TCP port that no program listens on; drawn at random, so that parallel tests get others."""
    while True:
        port = secrets.choice(_PORTS)

        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue

        return port
