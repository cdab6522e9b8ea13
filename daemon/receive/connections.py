"""The connections of daemon.dicom.acceptor: plain, and TLS over the same kind of socket."""

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

_NOTICE_S = 0.1  # after so long without a byte, a read lets its caller look at its deadlines
# One read of encrypted bytes: eight records of TLS.
_ENCRYPTED_BYTES = 128 * 1024


class PlainConnection:
    """A TCP connection whose waits the kernel bounds: a read takes one system call, where Python's
    time-outs take two.
    """

    # A peer without TLS has no certificate.
    certificate: PeerCertificate | None = None

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def bound_waits(self, send_s: float) -> None:
        """From now on a read waits a moment, and a write at most `send_s` for a peer that does not
        read.
        """
        self._socket.settimeout(None)
        # Every byte counts again, after the wait for a whole request.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        for option, seconds in ((socket.SO_RCVTIMEO, _NOTICE_S), (socket.SO_SNDTIMEO, send_s)):
            timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, option, timeval)
        no_delay(self._socket)

    def recv_into(self, buffer: memoryview, /) -> int:
        """Fill `buffer`, or what of it comes in a moment.

        Raises TimeoutError where nothing comes, OSError.
        """
        return self._receive(buffer, socket.MSG_WAITALL)

    def recv_some(self, buffer: memoryview, /) -> int:
        """The bytes that have come, at least one, after a moment at most; 0 at the end.

        Raises TimeoutError where nothing comes, OSError.
        """
        return self._receive(buffer, 0)

    def acknowledge(self) -> None:
        """Tell the peer now what has come, where the kernel would wait 40 ms for more to tell.

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

    The encrypted bytes pass through two buffers in memory: the waits stay the plain connection's,
    one read takes many records, and a large object is decrypted right into the caller's buffer.
    """

    def __init__(
        self,
        plain: PlainConnection,
        tls: ssl.SSLObject,
        buffers: tuple[ssl.MemoryBIO, ssl.MemoryBIO],
        ahead: bytes,
    ) -> None:
        """`buffers`: the encrypted bytes that came in, and those to go out. `ahead`: what was
        decrypted already.
        """
        self.certificate = PeerCertificate.of(tls)

        self._plain = plain
        self._tls = tls

        self._incoming, self._outgoing = buffers
        self._ahead = memoryview(ahead)
        self._encrypted = memoryview(bytearray(_ENCRYPTED_BYTES))

    def recv_into(self, buffer: memoryview, /) -> int:
        """Fill `buffer`, or what of it comes in a moment; 0 at the end.

        Raises TimeoutError where nothing comes, OSError.
        """
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count

        filled = 0
        while filled < len(buffer):
            try:
                # With a buffer it returns the number of bytes.
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
        """Take encrypted bytes from the wire. False at the end, or where none come in a moment.

        Raises TimeoutError in place of the latter where `may_wait`, OSError.
        """
        # An answer to a key update may be due.
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
        """SHUT_WR says close_notify first. SHUT_RDWR, which another thread may call, cuts."""
        if how == socket.SHUT_WR:
            with contextlib.suppress(OSError):
                with contextlib.suppress(ssl.SSLWantReadError):
                    self._tls.unwrap()
                self._flush()
        self._plain.shutdown(how)

    def close(self) -> None:
        self._plain.close()


Served = PlainConnection | TlsConnection
