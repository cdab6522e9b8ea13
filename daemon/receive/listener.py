"""The TCP edge before the acceptor: which connections are worth a thread.

A connection here first waits, for nothing but its file descriptor, until a whole association
request lies in the kernel's buffer. Neither the probe of a load balancer nor a peer that sends one
byte takes the place of a sender. Nothing is read before that: the request is looked at, and left to
the acceptor.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from daemon import watchdog
from daemon.dicom.acceptor import Limits
from daemon.dicom.negotiation import escaped
from daemon.dicom.pdu import PDU_HEADER, PDU_HEADER_BYTES, PduType, abort
from daemon.dicom.tables import no_delay

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = logging.getLogger("pleura.receive")

_NOTICE_S = 0.1  # after so long without a byte, a read lets its caller look at its deadlines
_BACKLOG = 512
_ACCEPTED_AT_ONCE = 64  # then connections that speak are heard, also in a flood

# A line of the log for the same trouble of the same address comes at most so often.
_QUIET_S = 60.0
_REMEMBERED_TROUBLES = 1000

# How other protocols begin, what they are, and what to do about it.
_HTTP = (b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"CONN", b"DELE", b"PRI ")
_OTHER_PROTOCOLS = (
    (
        (b"\x16\x03",),
        "a TLS hello",
        "this port speaks DICOM without TLS: switch it off on the sender",
    ),
    (_HTTP, "an HTTP request", "this is a DICOM port: give the sender a web server's port"),
    ((b"\x0bMSH",), "an HL7 message", "this is a DICOM port: give the sender an HL7 server's port"),
    ((b"SSH-",), "an SSH hello", "this is a DICOM port"),
)
_PDU_NAMES = {each.value: f"a PDU {each.name}" for each in PduType}

Serve = Callable[["PlainConnection", str], None]


class PlainConnection:
    """A TCP connection whose waits the kernel bounds: a read takes one system call, where Python's
    time-outs take two.

    It is what daemon.dicom.acceptor calls a Connection. A TLS connection would wrap the same socket
    here.
    """

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
        try:
            return self._socket.recv_into(buffer, 0, socket.MSG_WAITALL)
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


class _Waiting:
    """An accepted connection that has not asked for an association yet."""

    def __init__(self, connection: socket.socket, address: str) -> None:
        self.socket = connection
        self.address = address
        self.since = time.monotonic()
        self._awaited_bytes = 0

    def await_bytes(self, size: int = PDU_HEADER_BYTES) -> None:
        """select(2) reports the connection only when so much has come, or when it is closed.

        A peer that sends one byte at a time thus wakes nobody. The kernel makes its buffer as large
        as SO_RCVLOWAT asks for: it is told twice as much first, for what small segments cost on top
        of their bytes.
        """
        self._awaited_bytes = size
        for wanted in (2 * size, size):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

    def peek(self, size: int) -> bytes:
        """What of `size` bytes has come. They stay to be read. Raises OSError."""
        return self.socket.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)

    def has_request(self, limit_bytes: int) -> bool:
        """Whether a whole A-ASSOCIATE-RQ has come, once select(2) has reported the connection.

        If it is not yet whole, all of it is awaited from now on.

        Raises:
            ConnectionError: it is closed, or the request does not become whole.
            _NoRequestError: something else came.
        """
        header = self.peek(PDU_HEADER_BYTES)
        if len(header) < PDU_HEADER_BYTES:
            raise ConnectionResetError("closed before an association request")
        pdu_type, body_bytes = PDU_HEADER.unpack(header)
        if pdu_type != PduType.ASSOCIATE_RQ:
            raise _NoRequestError(*_in_words(header))
        if body_bytes > limit_bytes:
            raise _NoRequestError(
                f"an association request of {body_bytes} bytes", f"at most {limit_bytes} are taken"
            )

        whole = PDU_HEADER_BYTES + body_bytes
        if len(self.peek(whole)) == whole:
            return True
        if self._awaited_bytes == whole:
            # Closed half-way, or cut up so finely that the kernel holds no more of it.
            raise ConnectionResetError("the association request does not become whole")
        self.await_bytes(whole)
        return False

    def say_abort(self, unread_bytes: int) -> None:
        """Answer anything but a request (PS3.8 Table 9-10: Sta2, AA-1)."""
        with contextlib.suppress(OSError):
            # Closing with unread bytes would reset the connection before the peer reads the
            # A-ABORT.
            self.socket.recv(unread_bytes, socket.MSG_DONTWAIT)
            self.socket.send(abort(), socket.MSG_DONTWAIT)


class _NoRequestError(Exception):
    """Something else came instead of an association request: what, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} came instead of an association request; {remedy}")
        self.what = what


def _in_words(header: bytes) -> tuple[str, str]:
    for beginnings, name, remedy in _OTHER_PROTOCOLS:
        if header.startswith(beginnings):
            return name, remedy
    if header[0] in _PDU_NAMES:
        return _PDU_NAMES[header[0]], "a DICOM sender asks for an association first"
    return f"'{escaped(header)}'", "this is a DICOM port"


class Listener:
    """Accepts TCP connections and hands those that ask for an association to `serve`, on its own
    thread.
    """

    def __init__(self, address: tuple[str, int], limits: Limits, serve: Serve) -> None:
        self._address = address
        self._limits = limits
        self._serve = serve
        self._waiting: dict[socket.socket, _Waiting] = {}  # oldest first
        self._said: dict[tuple[str, str], float] = {}  # (address, trouble) -> when it was logged
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Listen. Returns at once.

        Raises:
            OSError: host and port cannot be listened on.
        """
        host, port = self._address
        is_ipv6 = ":" in host
        self._listening = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
        )
        self._listening.setblocking(False)

        self._selector = selectors.DefaultSelector()
        self._stop_receiver, self._stop_sender = socket.socketpair()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._stop_receiver, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Take no new connection; associations go on."""
        self._stop_sender.send(b"\0")
        self._thread.join()
        for connection in [*self._waiting]:
            self._drop(connection)
        for each in (self._selector, self._stop_receiver, self._stop_sender, self._listening):
            each.close()

    @property
    def waiting(self) -> int:
        """How many connections have not asked for an association yet."""
        return len(self._waiting)

    def _run(self) -> None:
        with watchdog.watched("listener"):
            self._listen()

    def _listen(self) -> None:
        while True:
            watchdog.beat()
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._stop_receiver:
                    return
                try:
                    self._look(key.fileobj)
                except Exception:
                    # The loop's one catch-all: one connection must not end the listening.
                    log.exception("a connection could not be served")
            self._drop_overdue()

    def _look(self, ready: object) -> None:
        if ready is self._listening:
            for _ in range(_ACCEPTED_AT_ONCE):
                if not self._accept():
                    break
        elif isinstance(ready, socket.socket) and ready in self._waiting:
            self._hear(self._waiting[ready])

    def _drop_overdue(self) -> None:
        oldest = time.monotonic() - self._limits.request_s
        for waiting in [each for each in self._waiting.values() if each.since < oldest]:
            with contextlib.suppress(OSError):
                if waiting.peek(1):
                    seconds = f"{self._limits.request_s:g} s"
                    self._say(
                        waiting.address,
                        f"no whole association request in {seconds} (limits.request_s)",
                    )
            self._drop(waiting.socket)

    def _accept(self) -> bool:
        """Take one connection. Returns whether there may be another."""
        try:
            connection, address = self._listening.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            # Too many open files, say: a silent connection has to go.
            log.warning("no connection can be accepted (%s)", error.strerror)
            if self._waiting:
                self._drop(self._most_dispensable())
            else:
                time.sleep(0.1)
            return False

        waiting = _Waiting(connection, str(address[0]))
        waiting.await_bytes()
        self._waiting[connection] = waiting
        self._selector.register(connection, selectors.EVENT_READ)
        if len(self._waiting) > self._limits.connections:
            self._drop(self._most_dispensable())
        return True

    def _most_dispensable(self) -> socket.socket:
        """The oldest connection of the address with the most waiting connections: a crowd competes
        with itself.
        """
        crowds = Counter(waiting.address for waiting in self._waiting.values())
        # Of equals the first, which has the oldest connection.
        ((largest, _),) = crowds.most_common(1)
        return next(
            waiting.socket for waiting in self._waiting.values() if waiting.address == largest
        )

    def _hear(self, waiting: _Waiting) -> None:
        """The connection has bytes, or has ended."""
        try:
            if not waiting.has_request(self._limits.request_bytes):
                return
        except _NoRequestError as error:
            self._say(waiting.address, error.what, str(error))
            waiting.say_abort(self._limits.request_bytes)
            self._drop(waiting.socket)
            return
        except OSError:
            self._drop(waiting.socket)
            return

        self._selector.unregister(waiting.socket)
        del self._waiting[waiting.socket]
        try:
            connection = PlainConnection(waiting.socket)
            connection.bound_waits(self._limits.pdu_s)
            self._serve(connection, waiting.address)
        except BaseException:
            waiting.socket.close()
            raise

    def _say(self, address: str, trouble: str, words: str = "") -> None:
        """Log a connection that comes to nothing: the same trouble of an address once a minute."""
        now = time.monotonic()
        if now < self._said.get((address, trouble), 0.0) + _QUIET_S:
            return
        if len(self._said) >= _REMEMBERED_TROUBLES:
            self._said.clear()
        self._said[address, trouble] = now
        log.warning("connection from %s ended: %s", address, words or trouble)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._waiting[connection]
        connection.close()
