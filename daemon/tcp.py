"""What the system knows of a TCP connection."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios


def unacknowledged_bytes(connection: socket.socket) -> int:
    """The bytes that were sent and that the other side has not acknowledged (SIOCOUTQ of tcp(7)).

    Raises OSError.
    """
    answer = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)
