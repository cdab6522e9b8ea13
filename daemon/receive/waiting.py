"""Connections that have not asked for an association yet: plain, and TLS.

A plain connection costs only a file descriptor until a whole association request is in the kernel's
buffer; nothing is read before that. A TLS connection does its handshake step by step as bytes
arrive, and then collects its request in our memory. Neither has a thread of its own: a peer that
stops half-way costs a file descriptor until its deadline.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import Protocol

from daemon.dicom.negotiation import escaped
from daemon.dicom.pdu import PDU_HEADER, PDU_HEADER_BYTES, PduType, abort
from daemon.receive.connections import PlainConnection, Served, TlsConnection
from daemon.tls import EXPIRED, PeerCertificate, Renewed, in_words

# One read during a handshake: more than any message but a long chain of certificates.
_HANDSHAKE_BYTES = 16 * 1024
_TLS_HANDSHAKE = b"\x16\x03"

# How other protocols begin, their names, and what to do about them.
_HTTP = (b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"CONN", b"DELE", b"PRI ")
_OTHER_PROTOCOLS = (
    (_HTTP, "an HTTP request", "this is a DICOM port: give the sender a web server's port"),
    ((b"\x0bMSH",), "an HL7 message", "this is a DICOM port: give the sender an HL7 server's port"),
    ((b"SSH-",), "an SSH hello", "this is a DICOM port"),
)
_PDU_NAMES = {each.value: f"a PDU {each.name}" for each in PduType}
_REQUEST = "association request"


class NoRequestError(Exception):
    """Something else came instead of an association request: says what, and what to do.

    `wanted` is what a TLS port awaits before it.
    """

    def __init__(self, what: str, remedy: str, wanted: str = "an association request") -> None:
        super().__init__(f"{what} came instead of {wanted}; {remedy}")
        self.what = what


class HandshakeError(Exception):
    """The TLS handshake failed: says why, and what to do."""


class Waiting(Protocol):
    """An accepted connection that has not asked for an association yet."""

    socket: socket.socket
    address: str
    since: float
    # Whether served() needs a millisecond or two of CPU time.
    computes: bool

    def served(self, limit_bytes: int) -> Served | None:
        """The connection, once a whole association request has come; call it when select(2) has
        reported the connection.

        Raises:
            ConnectionError: it is closed, or the request cannot become complete.
            NoRequestError, HandshakeError: something else came.
        """

    def unfinished(self) -> str | None:
        """What has begun and not become whole; None: no byte has come. Raises OSError."""

    def say_abort(self, unread_bytes: int) -> None:
        """Answer anything but a request (PS3.8 Table 9-10: Sta2, AA-1)."""


class PlainWaiting:
    """A connection to the plain port."""

    computes = False

    def __init__(self, connection: socket.socket, address: str, tls_port: int | None) -> None:
        """`tls_port`: the port for peers that speak TLS, if any."""
        self.socket = connection
        self.address = address
        self.since = time.monotonic()
        self._tls_port = tls_port
        self._awaited_bytes = 0
        self._await_bytes(PDU_HEADER_BYTES)

    def _await_bytes(self, size: int) -> None:
        """Let select(2) report the connection only when this much has come, or when it is closed.

        So a peer that sends one byte at a time does not wake the listener. The kernel sizes its
        buffer by SO_RCVLOWAT; twice as much is set first, to cover the overhead of small segments.
        """
        self._awaited_bytes = size
        for wanted in (2 * size, size):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

    def served(self, limit_bytes: int) -> Served | None:
        """If the request is not yet complete, wait for all of it from now on."""
        header = _peek(self.socket, PDU_HEADER_BYTES)
        if len(header) < PDU_HEADER_BYTES:
            raise ConnectionResetError("closed before an association request")
        body_bytes = _request_bytes(header, limit_bytes, self._tls_port)

        whole = PDU_HEADER_BYTES + body_bytes
        if len(_peek(self.socket, whole)) == whole:
            return PlainConnection(self.socket)
        if self._awaited_bytes == whole:
            # Closed half-way, or sent in such small segments that the kernel's buffer is full.
            raise ConnectionResetError("the association request does not become whole")
        self._await_bytes(whole)
        return None

    def unfinished(self) -> str | None:
        """The bytes lie unread in the kernel's buffer."""
        return _REQUEST if _peek(self.socket, 1) else None

    def say_abort(self, unread_bytes: int) -> None:
        """In plain bytes."""
        _say_plain_abort(self.socket, unread_bytes)


class TlsWaiting:
    """A connection to the TLS port: first its handshake, then its request."""

    computes = True

    def __init__(self, connection: socket.socket, address: str, renewed: Renewed) -> None:
        """Raises TlsError as Renewed.current()."""
        self.socket = connection
        self.address = address
        self.since = time.monotonic()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._renewed = renewed
        self._context = renewed.current()
        self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._heard = 0
        self._is_established = False
        self._request = bytearray()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, PDU_HEADER_BYTES)

    def served(self, limit_bytes: int) -> Served | None:
        """Continue the handshake, then the request, as far as the bytes allow."""
        if not self._heard:
            self._require_tls()
        self._take_bytes()
        if not self._is_established and not self._shake_hands():
            return None

        if not self._read_request(limit_bytes):
            return None
        buffers = (self._incoming, self._outgoing)
        return TlsConnection(PlainConnection(self.socket), self._tls, buffers, bytes(self._request))

    def _require_tls(self) -> None:
        """Raises NoRequestError for a peer that speaks another protocol. It only peeks."""
        header = _peek(self.socket, PDU_HEADER_BYTES)
        if len(header) < PDU_HEADER_BYTES:
            raise ConnectionResetError("closed before a TLS handshake")
        if not header.startswith(_TLS_HANDSHAKE):
            if header[0] == PduType.ASSOCIATE_RQ:
                raise NoRequestError(
                    "an association request without TLS",
                    "this port speaks DICOM over TLS: switch TLS on at the sender, or give it the "
                    "plain port, if there is one",
                    wanted="a TLS hello",
                )
            raise NoRequestError(*_other_protocol(header))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _take_bytes(self) -> None:
        """Raises HandshakeError if the peer breaks off its handshake.

        Later it may close the connection: a load balancer's probe does so.
        """
        try:
            data = self.socket.recv(_HANDSHAKE_BYTES, socket.MSG_DONTWAIT)
            if not data:
                raise ConnectionResetError("closed before an association request")
        except BlockingIOError:
            return
        except ConnectionError as error:
            if self._heard and not self._is_established:
                raise HandshakeError(in_words(error, "tls", "tls.ca")) from error
            raise
        self._heard += len(data)
        self._incoming.write(data)

    def _shake_hands(self) -> bool:
        """Continue the handshake. Returns whether it is done."""
        try:
            self._tls.do_handshake()
            self._require_valid()
            self._is_established = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            # The TLS alert tells the peer why.
            with contextlib.suppress(OSError):
                self._flush()
            raise HandshakeError(in_words(error, "tls", "tls.ca")) from error
        self._flush()
        return self._is_established

    def _require_valid(self) -> None:
        """Raises HandshakeError for a resumed session whose certificate has expired since.

        OpenSSL verifies a certificate in a whole handshake only, and each resumption brings a new
        ticket. A peer that has renewed its certificate may still hold such a ticket: its next
        connection gets a whole handshake.
        """
        if not self._tls.session_reused:
            return
        certificate = PeerCertificate.of(self._tls)
        if certificate is not None and certificate.valid_until < time.time():
            self._renewed.end_resumption(self._context)
            raise HandshakeError(EXPIRED)

    def _read_request(self, limit_bytes: int) -> bool:
        """Read no byte beyond the request. Returns whether it is complete."""
        if not self._read_up_to(PDU_HEADER_BYTES):
            return False
        header = bytes(self._request[:PDU_HEADER_BYTES])
        body_bytes = _request_bytes(header, limit_bytes, None)
        return self._read_up_to(PDU_HEADER_BYTES + body_bytes)

    def _read_up_to(self, size: int) -> bool:
        while len(self._request) < size:
            try:
                data = self._tls.read(size - len(self._request))
            except ssl.SSLWantReadError:
                self._flush()
                return False
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError as error:
                # In TLS 1.3, a client that refuses our certificate says so only now.
                raise HandshakeError(in_words(error, "tls", "tls.ca")) from error

            if not data:
                raise ConnectionResetError("closed before an association request")
            self._request += data
        return True

    def _flush(self) -> None:
        """A whole flight fits into the kernel's empty buffer.

        If it does not, the peer is not reading.
        """
        data = self._outgoing.read()
        if not data:
            # These bytes get no answer, so acknowledge them now. After a resumed TLS 1.2 handshake,
            # a sender with Nagle's algorithm would hold back its request for 40 ms.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        elif self.socket.send(data, socket.MSG_DONTWAIT) < len(data):
            raise ConnectionResetError("the peer does not read the handshake")

    def unfinished(self) -> str | None:
        """After the handshake, the request is due even if none of its bytes has come."""
        if self._is_established:
            return _REQUEST
        return "TLS handshake" if self._heard or _peek(self.socket, 1) else None

    def say_abort(self, unread_bytes: int) -> None:
        """In plain bytes if no handshake has begun: such a peer does not speak TLS."""
        if not self._heard:
            _say_plain_abort(self.socket, unread_bytes)
        elif self._is_established:
            with contextlib.suppress(OSError):
                self._tls.write(abort())
                self._flush()


def _peek(connection: socket.socket, size: int) -> bytes:
    """The first `size` bytes, as far as they have come, left unread. Raises OSError."""
    return connection.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def _say_plain_abort(connection: socket.socket, unread_bytes: int) -> None:
    with contextlib.suppress(OSError):
        # Closing with unread bytes would reset the connection before the peer reads the A-ABORT.
        connection.recv(unread_bytes, socket.MSG_DONTWAIT)
        connection.send(abort(), socket.MSG_DONTWAIT)


def _request_bytes(header: bytes, limit_bytes: int, tls_port: int | None) -> int:
    """The length of an association request after its header. Raises NoRequestError."""
    pdu_type, body_bytes = PDU_HEADER.unpack(header)
    if pdu_type != PduType.ASSOCIATE_RQ:
        raise NoRequestError(*_other_protocol(header, tls_port))
    if body_bytes > limit_bytes:
        raise NoRequestError(
            f"an association request of {body_bytes} bytes", f"at most {limit_bytes} are taken"
        )
    return int(body_bytes)


def _other_protocol(header: bytes, tls_port: int | None = None) -> tuple[str, str]:
    """The protocol that these first bytes belong to, and the remedy."""
    if header.startswith(_TLS_HANDSHAKE):
        elsewhere = f", or give it the TLS port {tls_port}" if tls_port else ""
        remedy = f"this port speaks DICOM without TLS: switch it off on the sender{elsewhere}"
        return "a TLS hello", remedy
    for beginnings, name, remedy in _OTHER_PROTOCOLS:
        if header.startswith(beginnings):
            return name, remedy
    if header[0] in _PDU_NAMES:
        return _PDU_NAMES[header[0]], "a DICOM sender asks for an association first"
    return f"'{escaped(header)}'", "this is a DICOM port"
