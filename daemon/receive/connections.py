"""The byte streams that daemon.dicom.acceptor reads: plain TCP, and TLS over TCP."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import struct
from typing import TYPE_CHECKING, cast

from daemon.dicom.tables import no_delay
from daemon.tls import PeerCertificate

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# A read without a byte raises TimeoutError after this time, so that its caller sees its deadlines.
_READ_S = 0.1
# One read of encrypted bytes: eight TLS records.
_ENCRYPTED_BYTES = 128 * 1024


class PlainConnection:
    """A TCP connection with time-outs in the kernel.

    A read then takes one system call; with Python's time-outs it takes two.
    """

    # A peer without TLS has no certificate.
    certificate: PeerCertificate | None = None

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def bound_waits(self, send_s: float) -> None:
        """From now on, a read waits at most `_READ_S`, and a write at most `send_s`."""
        self._socket.settimeout(None)

        # A read returns at the first byte again: `waiting` had waited for a whole request.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

        for option, seconds in ((socket.SO_RCVTIMEO, _READ_S), (socket.SO_SNDTIMEO, send_s)):
            timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, option, timeval)

        no_delay(self._socket)

    def recv_into(self, buffer: memoryview, /) -> int:
        """Read until `buffer` is full or `_READ_S` is over; 0 at the end of the stream.

        Raises:
            TimeoutError: no byte came.
            OSError: the connection is broken.
        """
        return self._receive(buffer, socket.MSG_WAITALL)

    def recv_some(self, buffer: memoryview, /) -> int:
        """Read what has come, at least one byte; 0 at the end of the stream.

        Raises:
            TimeoutError: no byte came in `_READ_S`.
            OSError: the connection is broken.
        """
        return self._receive(buffer, 0)

    def acknowledge(self) -> None:
        """Send the TCP acknowledgement now, where the kernel would delay it by 40 ms.

        A sender with Nagle's algorithm holds back the end of an object until then.
        """
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _receive(self, buffer: memoryview, flags: int) -> int:
        try:
            return self._socket.recv_into(buffer, 0, flags)
        except BlockingIOError as error:
            raise TimeoutError("nothing came") from error

    def sendall(self, data: ReadableBuffer, /) -> None:
        """Raises OSError when the peer does not read."""
        try:
            self._socket.sendall(data)
        except BlockingIOError as error:
            raise TimeoutError(errno.ETIMEDOUT, "the peer does not read its answers") from error

    def shutdown(self, how: int, /) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()


class TlsConnection:
    """TLS over a plain connection, after its handshake.

    The encrypted bytes pass through two memory buffers. So the plain connection's time-outs hold,
    one read takes many records, and a large object is decrypted straight into the caller's buffer.
    """

    def __init__(
        self,
        plain: PlainConnection,
        tls: ssl.SSLObject,
        buffers: tuple[ssl.MemoryBIO, ssl.MemoryBIO],
        ahead: bytes,
    ) -> None:
        """`buffers`: encrypted bytes, incoming and outgoing. `ahead`: bytes decrypted already."""
        self.certificate = PeerCertificate.of(tls)

        self._plain = plain
        self._tls = tls

        self._incoming, self._outgoing = buffers
        self._ahead = memoryview(ahead)
        self._encrypted = memoryview(bytearray(_ENCRYPTED_BYTES))

    def recv_into(self, buffer: memoryview, /) -> int:
        """Read until `buffer` is full or no byte comes for `_READ_S`; 0 at the end of the stream.

        Raises:
            TimeoutError: no byte came.
            OSError: the connection is broken.
        """
        return self._receive(buffer, is_filled=True)

    def recv_some(self, buffer: memoryview, /) -> int:
        """Read what has come, at least one byte; 0 at the end of the stream.

        Raises:
            TimeoutError: no byte came in `_READ_S`.
            OSError: the connection is broken.
        """
        return self._receive(buffer, is_filled=False)

    def _receive(self, buffer: memoryview, is_filled: bool) -> int:
        """`is_filled`: go on until `buffer` is full."""
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count

        filled = 0
        while filled < len(buffer) and (is_filled or not filled):
            try:
                # read() returns the number of bytes when it is given a buffer.
                count = cast(int, self._tls.read(len(buffer) - filled, buffer[filled:]))
            except ssl.SSLWantReadError:
                if self._read_encrypted(may_wait=not filled):
                    continue
                return filled
            except ssl.SSLZeroReturnError:
                return filled
            if not count:
                return filled
            filled += count
        return filled

    def _read_encrypted(self, may_wait: bool) -> bool:
        """Take encrypted bytes from the wire. False at the end of the stream, or if none came.

        Raises:
            TimeoutError: none came, and `may_wait`.
            OSError: the connection is broken.
        """
        # A key update of the peer may have to be answered.
        self._flush()

        self._plain.acknowledge()
        try:
            count = self._plain.recv_some(self._encrypted)
        except TimeoutError:
            if may_wait:
                raise
            return False

        self._incoming.write(self._encrypted[:count])
        return bool(count)

    def sendall(self, data: ReadableBuffer, /) -> None:
        """Raises OSError when the peer does not read."""
        left = memoryview(data).cast("B")
        while left:
            left = left[self._tls.write(left) :]
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.sendall(self._outgoing.read())

    def shutdown(self, how: int, /) -> None:
        """SHUT_WR sends close_notify first. SHUT_RDWR cuts at once; any thread may call it."""
        if how == socket.SHUT_WR:
            with contextlib.suppress(OSError):
                with contextlib.suppress(ssl.SSLWantReadError):
                    self._tls.unwrap()
                self._flush()
        self._plain.shutdown(how)

    def close(self) -> None:
        self._plain.close()


Served = PlainConnection | TlsConnection
