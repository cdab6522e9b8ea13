"""Audit messages on the wire: RFC 5424, over UDP (RFC 5426) or TLS (RFC 5425)."""

from __future__ import annotations

import datetime
import select
import socket
import ssl
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from daemon.audit.message import Source, document
from daemon.ledger import AuditRow
from daemon.tls import TlsClient

# PS3.15 A.6: facility 10 (security), severity 5 (notice) or 4 (warning).
_NOTICE, _WARNING = 10 * 8 + 5, 10 * 8 + 4
_WARNED = {"refused", "recording_stopped"}
_MESSAGE_ID = "DICOM+RFC3881"
_BOM = "\ufeff"
# RFC 5424 7.3.1: sequenceId begins again at 1 after this.
_LAST_SEQUENCE_ID = 2147483647
_TIMEOUT_S = 10.0
# Syslog over TLS has no acknowledgement. A message counts as taken if the connection is still open
# this long after its last byte; otherwise it is sent again.
_SETTLED_S = 0.3


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
        self._require_open(_SETTLED_S)

    def _require_open(self, within_s: float) -> None:
        """A repository sends nothing: a readable connection is one that ends, or a ticket."""
        readable, _, _ = select.select([self._socket], [], [], within_s)
        if not readable:
            return
        self._socket.settimeout(0.0)
        try:
            if not self._socket.recv(1024):
                raise ConnectionResetError("the repository closed the connection")
        except ssl.SSLWantReadError:
            pass
        finally:
            self._socket.settimeout(_TIMEOUT_S)

    def close(self) -> None:
        self._socket.close()
