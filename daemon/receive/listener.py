"""The TCP edge before the Storage SCP: which connections are worth two threads, and how much they may make us hold.

pynetdicom starts two polling threads for every TCP connection and keeps them for the whole ACSE timeout, reads a PDU of
whatever length its header names, and waits for its bytes as long as they drip. So a connection here first waits, for
nothing but its file descriptor, until a whole association request lies in the kernel's buffer: neither the probe of a
load balancer nor who says one byte takes the place of a sender. What then reads from it is a socket that bounds the
length of a PDU, the time it may take, and the bytes that lie unanswered.
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
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from pynetdicom.transport import AssociationServer

from daemon.dicom.pdu import P_DATA_TF, PDU_HEADER_BYTES
from daemon.dicom.tables import MAXIMUM_PDU_BYTES, no_delay

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = logging.getLogger("pleura.receive")

_MAXIMUM_SILENT = (
    256  # connections that have not asked; with one more, one of them goes. select(2) ends at 1024
)
_SILENCE_S = 30.0  # how long one may take to ask for an association (PS3.8 9.1.5, ARTIM)
_NOTICE_S = 0.1  # how soon a wait for a peer that is silent notices that it is no longer wanted
_PDU_S = 30.0  # how long one PDU may take from its first byte to its last
PDU_LIMIT_BYTES = 4 * MAXIMUM_PDU_BYTES  # for peers that do not keep to what we announced
_MESSAGE_LIMIT_BYTES = 1 << 30  # one C-STORE; the largest detectors make 40 MB
_BACKLOG = 512
_ACCEPTED_AT_ONCE = 64  # then those that speak are heard, also in a flood
_PDU_TYPES = range(0x01, 0x08)
_A_ASSOCIATE_RQ, _A_ASSOCIATE_AC = 0x01, 0x02
_A_ABORT = b"\x07\0\0\0\0\x04\0\0\0\0"  # PS3.8 9.3.8: as AA-1 of 9.2.3 has it
_REQUEST_LIMIT_BYTES = (
    MAXIMUM_PDU_BYTES  # 128 contexts of 45 syntaxes each, more than there are, come to 150 KB
)


class PeerSocket(socket.socket):
    """An accepted connection. Reads whole PDU parts, and fails like a broken line where a peer goes too far."""

    unanswered_bytes = 0  # of P-DATA since our last answer: what this peer makes us hold in memory
    _header = b""
    _body_bytes = 0
    _spoilt = False  # where the next PDU begins is unknown, so nothing more is read
    _answered = False  # the association request, by whatever PDU
    _awaited_bytes = 0  # of the association request, in the kernel's buffer

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self._again: deque[bytes] = deque()  # what was unread

    def await_request(self, size: int = PDU_HEADER_BYTES) -> None:
        """Only when so much has come, or the connection is closed, does select(2) say that there is something to read.

        A peer that says one byte at a time thus wakes nobody. The kernel makes its buffer as large as that asks for: it
        is told twice as much first, for what small segments cost on top of their bytes.
        """
        self._awaited_bytes = size
        for wanted in (2 * size, size):
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

    def has_request(self) -> bool:
        """Whether all of an A-ASSOCIATE-RQ has come, once select(2) has said that what was awaited is there.

        Nothing of it is read. If it is not yet whole, all of it is awaited from now on.

        Raises:
            OSError: it will not become whole: closed, something else, or more than is taken.
        """
        header = self.recv(PDU_HEADER_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if len(header) < PDU_HEADER_BYTES:
            raise OSError(errno.ECONNRESET, "the connection was closed")
        body_bytes = int.from_bytes(header[2:], "big")
        if header[0] != _A_ASSOCIATE_RQ:  # PS3.8 Table 9-10: Sta2 answers everything else with AA-1
            self.recv(
                _REQUEST_LIMIT_BYTES, socket.MSG_DONTWAIT
            )  # what is unread resets the connection when it closes
            super().send(_A_ABORT, socket.MSG_DONTWAIT)
            raise OSError(errno.EPROTO, "no association request")
        if body_bytes > _REQUEST_LIMIT_BYTES:
            raise self._too_much(
                f"a PDU of {body_bytes} bytes; at most {_REQUEST_LIMIT_BYTES} are taken"
            )
        whole = PDU_HEADER_BYTES + body_bytes
        if len(self.recv(whole, socket.MSG_PEEK | socket.MSG_DONTWAIT)) == whole:
            return True
        if (
            self._awaited_bytes == whole
        ):  # closed half-way, or so finely cut up that the kernel holds no more of it
            raise OSError(errno.ECONNRESET, "the association request does not become whole")
        self.await_request(whole)
        return False

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        """Our first PDU answers the association request; unless it accepts, nothing more is read.

        pynetdicom reads on otherwise (PS3.8 9.2.3, Sta13), and who sends it half a PDU then keeps a place.
        """
        sent = super().send(data, flags)
        if not self._answered:
            self._answered = True
            if memoryview(data)[0] != _A_ASSOCIATE_AC:
                self._spoilt = True
        return sent

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """The six bytes of a PDU's header, then its body: all of it at once, however few bytes are asked for.

        pynetdicom asks in steps of 4 KiB and takes what it is given: so a part costs a few system calls, not hundreds.

        Raises:
            OSError: the PDU is too long or too slow, or the peer has sent too much without an answer.
        """
        if flags:
            return super().recv(bufsize, flags)
        if self._again:
            return self._again.popleft()
        if self._spoilt:
            raise OSError(errno.EPROTO, "no PDU can follow")
        if self._body_bytes:
            wanted, self._body_bytes = self._body_bytes, 0
            return self._read(wanted)
        header = self._read(PDU_HEADER_BYTES)
        if len(header) == PDU_HEADER_BYTES:
            self._expect(header[0], int.from_bytes(header[2:], "big"))
        return header

    def bound_waits(self) -> None:
        """Let the kernel bound each wait: one system call for a read or write, where Python's time-outs take two."""
        self.settimeout(None)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)  # every byte counts again
        for option, seconds in ((socket.SO_RCVTIMEO, _NOTICE_S), (socket.SO_SNDTIMEO, _PDU_S)):
            self.setsockopt(
                socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            )

    def begin_pdu(self, wanted: Callable[[], bool]) -> tuple[int, int] | None:
        """The type and length of the next PDU, whose body is then to be read, or the whole to be unread.

        Waits for it as long as `wanted`, asked every now and then, says yes; then None.

        Raises:
            OSError: as recv(), and at the end of the connection.
        """
        if self._spoilt:
            raise OSError(errno.EPROTO, "no PDU can follow")
        header = bytearray(PDU_HEADER_BYTES)
        if self._fill(memoryview(header), wanted) < len(header):
            if self._spoilt:
                raise OSError(errno.ECONNRESET, "the connection was closed")
            return None
        self._header = bytes(header)
        self._expect(header[0], int.from_bytes(header[2:], "big"))
        return header[0], self._body_bytes

    def read_body(self, into: memoryview) -> None:
        """Fill `into`, which is as long as the PDU, without another copy. Raises OSError, as begin_pdu()."""
        self._body_bytes = 0
        if self._fill(into) < len(into):
            raise OSError(errno.ECONNRESET, "the connection was closed")

    @property
    def has_unread(self) -> bool:
        """Whether recv() has something to give that select(2) does not know of."""
        return bool(self._again)

    def unread(self, body: bytes | memoryview = b"") -> None:
        """recv() gives the PDU that was begun last again: its header, then its `body` if that was read.

        Before it, those that were unread before and that recv() has not yet given.
        """
        self._again.append(self._header)
        if body:
            self._again.append(bytes(body))

    def forget_unread(self) -> None:
        """What was unread is not to be read again after all."""
        self._again.clear()

    def answer(self, pdu: bytes) -> None:
        """Send what ends a message: what may lie unanswered is counted anew. Raises OSError."""
        self.sendall(pdu)
        self.unanswered_bytes = 0

    def spoil(self) -> None:
        """Nothing more is to be read: recv() fails."""
        self._again.clear()
        self._spoilt = True

    def _expect(self, pdu_type: int, body_bytes: int) -> None:
        if pdu_type not in _PDU_TYPES:  # pynetdicom answers it with A-ABORT, and reads on
            self._spoilt = True
            return
        if body_bytes > PDU_LIMIT_BYTES:
            raise self._too_much(
                f"a PDU of {body_bytes} bytes; at most {PDU_LIMIT_BYTES} are taken"
            )
        if pdu_type == P_DATA_TF:
            self.unanswered_bytes += body_bytes
        if self.unanswered_bytes > _MESSAGE_LIMIT_BYTES:
            raise self._too_much(f"a message of more than {_MESSAGE_LIMIT_BYTES} bytes")
        self._body_bytes = body_bytes

    def shutdown(self, how: int, /) -> None:
        """End the connection; the peer may have done so before, and then the file descriptor must still be closed."""
        with contextlib.suppress(OSError):
            super().shutdown(how)

    def _read(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer when the peer closes."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self._fill(memoryview(buffer))])

    def _fill(self, view: memoryview, wanted: Callable[[], bool] | None = None) -> int:
        """Read into the whole of `view`. Returns how much was read: less when the peer closes.

        Nothing is read, and the next PDU can still follow, when `wanted` has said no.
        """
        got, began = 0, time.monotonic()
        self._spoilt = True  # until it is complete
        # The request is there, and nothing may follow it but an A-ABORT, until it is answered (PS3.8 Table 9-10, Sta3):
        # who lets us wait for the rest of a PDU there would keep the answer back, and so a place.
        flags = socket.MSG_WAITALL if self._answered else socket.MSG_DONTWAIT
        while got < len(view):
            try:
                count = self.recv_into(view[got:], 0, flags)
            except BlockingIOError:  # nothing has come in _NOTICE_S
                if not self._answered:
                    raise
                if wanted is not None and not got:
                    began = time.monotonic()
                    if not wanted():
                        break
            else:
                got += count
                if not count:
                    return got
            if got < len(view) and time.monotonic() > began + _PDU_S:
                raise TimeoutError("the peer sends too slowly")
        self._spoilt = False
        return got

    def _too_much(self, what: str) -> OSError:
        self._spoilt = True
        log.warning("connection ended: the peer sent %s", what)
        return OSError(errno.EMSGSIZE, what)


class Listener:
    """Accepts TCP connections and hands those that ask for an association to pynetdicom's server."""

    def __init__(self, server: AssociationServer, maximum_associations: int) -> None:
        """`server` has bound its socket; pynetdicom's own accept loop is not used."""
        self._server = server
        self._maximum_running = (
            2 * maximum_associations
        )  # beyond the maximum, pynetdicom answers 2/3/2 by itself
        self._listening: socket.socket = server.socket  # type: ignore[assignment]
        self._listening.listen(_BACKLOG)
        self._listening.setblocking(False)
        self._silent: dict[
            PeerSocket, tuple[tuple[str, int], float]
        ] = {}  # oldest first: its address, its time
        self._selector = selectors.DefaultSelector()
        self._stop_receiver, self._stop_sender = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Returns at once: the socket listens already."""
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._stop_receiver, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Take no new connection; associations go on."""
        self._stop_sender.send(b"\0")
        self._thread.join()
        for connection in [*self._silent]:
            self._drop(connection)
        self._selector.close()
        self._stop_receiver.close()
        self._stop_sender.close()
        self._server.server_close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._stop_receiver:
                    return
                try:
                    if key.fileobj is self._listening:
                        for _ in range(_ACCEPTED_AT_ONCE):
                            if not self._accept():
                                break
                    elif key.fileobj in self._silent:
                        self._hear(key.fileobj)
                except (
                    Exception
                ):  # the loop's one catch-all: one connection must not end the listening
                    log.exception("a connection could not be served")
            overdue = time.monotonic() - _SILENCE_S
            for connection in [one for one, (_, since) in self._silent.items() if since < overdue]:
                self._drop(connection)

    def _accept(self) -> bool:
        """Take one connection. Returns whether there may be another."""
        try:
            accepted, address = self._listening.accept()
        except BlockingIOError:
            return False
        except OSError as error:  # too many open files, say: a silent one has to go
            log.warning("no connection can be accepted (%s)", error.strerror)
            if self._silent:
                self._drop(self._most_dispensable())
            else:
                time.sleep(0.1)
            return False
        connection = PeerSocket(accepted.detach())
        connection.await_request()
        self._silent[connection] = (address, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)
        if len(self._silent) > _MAXIMUM_SILENT:
            self._drop(self._most_dispensable())
        return True

    def _most_dispensable(self) -> PeerSocket:
        """The oldest silent one of the address that has most of them: a crowd from one address is its own rival."""
        crowds = Counter(address[0] for address, _ in self._silent.values())
        ((largest, _),) = crowds.most_common(1)  # of equals the first, which has the oldest
        return next(
            connection for connection, (address, _) in self._silent.items() if address[0] == largest
        )

    def _hear(self, connection: PeerSocket) -> None:
        """It has spoken, or gone."""
        try:
            if not connection.has_request():
                return
        except OSError:
            self._drop(connection)
            return
        if len(self._server.active_associations) >= self._maximum_running:
            self._drop(connection)
            return
        self._selector.unregister(connection)
        address, _ = self._silent.pop(connection)
        try:
            connection.bound_waits()
            no_delay(connection)
            self._server.service_actions()  # collects what ended associations have left
            self._server.process_request(connection, address)
        except BaseException:
            connection.close()
            raise

    def _drop(self, connection: PeerSocket) -> None:
        self._selector.unregister(connection)
        del self._silent[connection]
        connection.close()
