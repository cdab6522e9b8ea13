"""Audit messages on the wire: RFC 5424, over UDP (RFC 5426) or TLS (RFC 5425)."""

from __future__ import annotations

import datetime
import select
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol
from urllib.parse import urlsplit

from daemon.audit.message import Source, document
from daemon.ledger import AuditRow
from daemon.tcp import unacknowledged_bytes
from daemon.tls import TlsClient

# PS3.15 A.6: facility 10 (security), severity 5 (notice) or 4 (warning).
_NOTICE, _WARNING = 10 * 8 + 5, 10 * 8 + 4
_WARNED = {"refused", "recording_stopped"}
_MESSAGE_ID = "DICOM+RFC3881"
_BOM = "\ufeff"
# RFC 5424 7.3.1: sequenceId begins again at 1 after this.
_LAST_SEQUENCE_ID = 2147483647
_TIMEOUT_S = 10.0
# Syslog over TLS has no acknowledgement. A message counts as taken if the repository's system has
# acknowledged its bytes (TCP), and the connection is still open this long afterwards; otherwise it
# is sent again.
_SETTLED_S = 0.3
_LOOK_S = 0.01


class Channel(Protocol):
    """A way to the repository. Every method raises OSError if it cannot be reached."""

    def send(self, messages: Sequence[bytes]) -> None:
        """Returns when the messages have been sent, as far as the transport can tell."""

    def close(self) -> None: ...


def formatted(row: AuditRow, source: Source) -> bytes:
    """One event in the format of RFC 5424. A repetition is the same, with the same sequenceId."""
    when = datetime.datetime.fromtimestamp(row.made_at, datetime.UTC)
    stamp = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    priority = _WARNING if row.event in _WARNED else _NOTICE
    sequence_id = (row.number - 1) % _LAST_SEQUENCE_ID + 1
    head = (
        f"<{priority}>1 {stamp} {source.host} Pleura - {_MESSAGE_ID} "
        f'[meta sequenceId="{sequence_id}"]'
    )
    return f"{head} {_BOM}{document(row, source)}".encode()


def open_channel(repository: str, security: TlsClient | None) -> Channel:
    """Reach the repository at udp://host:port or tls://host:port. Raises OSError."""
    parts = urlsplit(repository)
    assert parts.hostname is not None
    assert parts.port is not None
    if security is None:
        return _Datagrams(parts.hostname, parts.port)
    return _Stream(parts.hostname, parts.port, security)


class _Datagrams:
    """RFC 5426: one datagram for each message, without an acknowledgement."""

    def __init__(self, host: str, port: int) -> None:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[
            0
        ]
        self._socket = socket.socket(family, kind, protocol)
        self._socket.connect(address)

    def send(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            self._socket.send(message)

    def close(self) -> None:
        self._socket.close()


class _Stream:
    """RFC 5425: each message after its length, over TLS."""

    def __init__(self, host: str, port: int, security: TlsClient) -> None:
        connection = socket.create_connection((host, port), _TIMEOUT_S)
        self._socket = security.wrap(connection, host)

    def send(self, messages: Sequence[bytes]) -> None:
        self._require_open(0.0)
        self._socket.sendall(b"".join(b"%d %b" % (len(each), each) for each in messages))
        self._require_acknowledged()
        self._require_open(_SETTLED_S)

    def _require_acknowledged(self) -> None:
        """Raises TimeoutError if no byte is acknowledged for `_TIMEOUT_S`.

        Where the network is cut, or the repository reads nothing, what was sent lies in the kernel,
        and would be lost with the connection.
        """
        before, deadline = 0, 0.0
        while left := unacknowledged_bytes(self._socket):
            now = time.monotonic()
            if left != before:
                before, deadline = left, now + _TIMEOUT_S
            elif now >= deadline:
                raise TimeoutError("the repository does not read its messages")
            self._require_open(_LOOK_S)

    def _require_open(self, for_s: float) -> None:
        """Raises OSError if the repository closes the connection in this time.

        It sends nothing but tickets, which say nothing: the wait goes on after them.
        """
        deadline = time.monotonic() + for_s
        self._socket.settimeout(0.0)
        try:
            while self._is_readable(max(0.0, deadline - time.monotonic())):
                with suppress(ssl.SSLWantReadError):
                    if not self._socket.recv(1024):
                        raise ConnectionResetError("the repository closed the connection")
                if time.monotonic() >= deadline:
                    return
        finally:
            self._socket.settimeout(_TIMEOUT_S)

    def _is_readable(self, within_s: float) -> bool:
        readable, _, _ = select.select([self._socket], [], [], within_s)
        return bool(readable or self._socket.pending())

    def close(self) -> None:
        self._socket.close()
