"""One association, at its acceptor's end: PS3.8 over one connection, in one blocking thread.

The counterpart of requestor.py. The bytes of a C-STORE go from the connection into one buffer and
from there to the handler, a megabyte at a time. Only what is read with a PDU's header, a kilobyte
at most, is copied in between. Back-pressure: beyond that kilobyte, the next request of a pipelining
peer stays unread until the last is answered, so that it waits with its sender and not in our
memory.

The injected Session decides what each message means. The acceptor owns the protocol: which PDU is
allowed when, the limits on time and size, and the words for how an association ended.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING, NamedTuple, Protocol

from daemon import watchdog
from daemon.dicom import negotiation
from daemon.dicom.negotiation import Decision, Rejected, Request, Supported, UserInformation
from daemon.dicom.pdu import (
    PDU_HEADER,
    PDU_HEADER_BYTES,
    PDV_HEADER_BYTES,
    RELEASE_RP,
    RESPONSE,
    AbortReason,
    Command,
    CommandSet,
    Element,
    Fragment,
    MalformedError,
    PduType,
    StoreRequest,
    abort,
    abort_in_words,
    command_pdus,
    fragments,
    read_command_set,
    response_to,
    store_request,
)
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAXIMUM_PDU_BYTES,
    Status,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = logging.getLogger("pleura.receive")

# The size of the pieces in which a data set is handed over.
_WRITTEN_AT_ONCE_BYTES = 1 << 20
_WRITTEN_AT_ONCE_PARTS = 1000  # IOV_MAX is 1024

# Each fragment counts with its headers, so that even empty fragments reach the limit.
_OVERHEAD_BYTES = PDU_HEADER_BYTES + PDV_HEADER_BYTES

# The most that one read of a PDU's header takes: a whole command set, and the next PDU's header.
_AHEAD_BYTES = 1024

_FAREWELL_S = 1.0  # for the peer to read our last PDU, once we have closed our side

_OURSELVES = UserInformation(
    MAXIMUM_PDU_BYTES, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
)


@dataclass(frozen=True)
class Limits:
    """Limits on the time and memory that one peer, and all of them together, may take."""

    idle_s: float = 60.0  # an association without a PDU
    request_s: float = 30.0  # from the connection to the association request (PS3.8 9.1.5, ARTIM)
    pdu_s: float = 30.0  # one PDU from its first byte to its last
    close_s: float = 0.5  # for the peer to close first after our last PDU (PS3.8 9.2, Sta13)

    # 128 contexts of 45 transfer syntaxes each, more than there are, come to 150 KB.
    request_bytes: int = MAXIMUM_PDU_BYTES
    pdu_bytes: int = 4 * MAXIMUM_PDU_BYTES  # for peers that exceed the maximum that we announce
    store_bytes: int = 1 << 30  # one C-STORE; the largest detectors make 40 MB
    command_bytes: int = 64 * 1024  # a command set; a C-STORE-RQ's has about 150
    # Every other message: a commitment report on the 200 objects of one request has 30 KB.
    message_bytes: int = 4 << 20

    associations: int = 64
    unproductive_s: float = 60.0  # without a whole object; then an association may have to give way
    connections: int = 256  # that have not asked for an association; select(2) ends at 1024
    drain_s: float = 20.0  # for the messages in hand when the node stops


class Connection(Protocol):
    """A connected byte stream, plain or TLS.

    recv_into() waits for a full buffer, recv_some() for the first bytes. Both return the number of
    bytes read, 0 when the peer has closed, and raise TimeoutError when nothing came for a fraction
    of a second, so that the acceptor looks at its deadlines. sendall() raises OSError when the peer
    does not read.
    """

    def recv_into(self, buffer: memoryview, /) -> int: ...

    def recv_some(self, buffer: memoryview, /) -> int: ...

    def sendall(self, data: ReadableBuffer, /) -> None: ...

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


class Context(NamedTuple):
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: str


class Incoming(Protocol):
    """One object that is arriving. No method raises: the status tells of every failure."""

    def write(self, *chunks: memoryview) -> None:
        """The next bytes of its data set. They are only valid during the call."""

    def end(self) -> int:
        """The data set is complete: keep it. Returns the status to answer with."""

    def drop(self) -> None:
        """It will not become complete."""


class Session(Protocol):
    """An admitted peer: what it may propose, and the handlers of its messages. No method raises."""

    @property
    def supported(self) -> Mapping[str, Supported]:
        """The contexts that it may propose, by abstract syntax."""

    def negotiated(self, decisions: Iterable[Decision]) -> None:
        """The association is accepted, with these answers to its contexts."""

    def echo(self, context: Context) -> int:
        """A C-ECHO. Returns the status to answer with."""

    def store(self, request: StoreRequest, context: Context) -> Incoming:
        """A C-STORE begins."""

    def event_report(self, command: CommandSet, data_set: bytes, context: Context) -> int:
        """An N-EVENT-REPORT. Returns the status to answer with."""

    def answered(self) -> None:
        """The answer was sent, or could not be: do what the peer need not wait for."""


@dataclass(frozen=True)
class Rejection:
    """Why a peer is not admitted: the answer on the wire, and for the log what was wrong and what
    to do.
    """

    answer: Rejected
    why: str


Admit = Callable[[Request, str], Session | Rejection]  # request, the peer's address


@dataclass(frozen=True)
class End:
    """How an association, or the attempt at one, ended.

    `is_orderly`: as the standard prescribes, or by our own decision.
    """

    why: str
    is_orderly: bool = False


class _EndedError(Exception):
    """The association is over. `last_pdu` is still to be sent."""

    def __init__(self, why: str, last_pdu: bytes = b"", is_orderly: bool = False) -> None:
        super().__init__(why)
        self.end = End(why, is_orderly)
        self.last_pdu = last_pdu


class Association:
    """One peer's association from its request to its end. run() is the whole of it."""

    def __init__(self, connection: Connection, address: str, limits: Limits, admit: Admit) -> None:
        self.address = address
        self.request: Request | None = None
        self.rejection: Rejection | None = None
        self.session: Session | None = None

        self._connection = connection
        self._limits = limits
        self._admit = admit
        self._contexts: dict[int, Context] = {}
        self._peer_takes_bytes = 0  # the longest PDU body; 0 is no limit

        self._is_in_message = False
        self._is_stopping = False
        self._cut_why = ""
        self._pdu_deadline = 0.0

        self._header = memoryview(bytearray(PDU_HEADER_BYTES))
        # A header is read with what has come behind it, because a small object's time goes into
        # its reads. `_ahead` is the part that is not used yet.
        self._read_at_once = memoryview(bytearray(_AHEAD_BYTES))
        self._ahead = self._read_at_once[:0]
        # An anonymous mapping: only used pages take memory, and the kernel gets them back at the
        # end.
        self._buffer: memoryview | None = None
        self._filled = 0
        self._pending: deque[Fragment] = deque()

    def run(self) -> End:
        """Serve the peer until the association ends. Returns why it ended; close() is still due."""
        try:
            self._establish()
            while True:
                self._serve_message()
        except _EndedError as ended:
            end, last_pdu = ended.end, ended.last_pdu
        except MalformedError as error:
            end = End(f"the peer sent {error}")
            last_pdu = abort(AbortReason.INVALID_PARAMETER_VALUE)
        except OSError as error:
            end, last_pdu = End(f"the connection failed ({error.strerror or error})"), b""
        except Exception:
            # The thread's only catch-all: this association ends, the others go on.
            log.exception("an association ended: its message could not be served")
            end, last_pdu = End("of a failure of this node"), abort()

        self._pending.clear()
        self._buffer = None
        if self._cut_why:
            return End(self._cut_why)
        with contextlib.suppress(OSError):
            self._connection.sendall(last_pdu)
        return end

    def stop(self) -> None:
        """End after the message in hand, or at once if there is none.

        Called by another thread.
        """
        self._is_stopping = True

    def cut(self, why: str) -> None:
        """End now, whatever is in hand. Called by another thread."""
        self._cut_why = why
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the peer close first, then close so that our last PDU arrives.

        PS3.8 9.2, Sta13: after a rejection, a release or an abort the requestor closes. Closing
        with unread bytes would reset the connection and might take the last PDU with it.
        """
        with contextlib.suppress(OSError):
            is_closed_by_peer = self._discard_until(time.monotonic() + self._limits.close_s)
            self._connection.shutdown(socket.SHUT_WR)
            if not is_closed_by_peer:
                self._discard_until(time.monotonic() + _FAREWELL_S)
        self._connection.close()

    def hurry(self) -> None:
        """Do not wait in close() for the peer any longer. Called by another thread."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _discard_until(self, deadline: float) -> bool:
        """Read and drop what still comes. Returns whether the peer has closed."""
        scratch = memoryview(bytearray(64 * 1024))
        while time.monotonic() < deadline:
            try:
                if not self._connection.recv_into(scratch):
                    return True
            except TimeoutError:
                continue
        return False

    # ---- negotiation

    def _establish(self) -> None:
        pdu_type, size = self._read_header(self._limits.request_s, "an association request")
        if pdu_type != PduType.ASSOCIATE_RQ:
            # PS3.8 Table 9-10, Sta2: every other PDU is answered by AA-1.
            why = f"the peer sent a PDU of type {pdu_type:#04x} before an association request"
            raise _EndedError(why, abort())
        if size > self._limits.request_bytes:
            raise MalformedError(
                f"an association request of {size} bytes; "
                f"at most {self._limits.request_bytes} are taken"
            )

        body = bytearray(size)
        self._fill(memoryview(body))
        self.request = negotiation.read_request(bytes(body))
        self._accept(self.request)

    def _accept(self, request: Request) -> None:
        admitted = self._admit(request, self.address)
        if isinstance(admitted, Rejection):
            self.rejection = admitted
            why = f"rejected with {admitted.answer}: {admitted.why}"
            raise _EndedError(why, negotiation.write_reject(admitted.answer))
        self.session = admitted

        decisions = negotiation.decide(request, admitted.supported)
        self._contexts = {
            decision.proposal.context_id: Context(
                decision.proposal.abstract_syntax, decision.transfer_syntax
            )
            for decision in decisions
            if decision.result == negotiation.ContextResult.ACCEPTED
        }
        self._peer_takes_bytes = request.user.maximum_pdu_bytes
        admitted.negotiated(decisions)

        roles = negotiation.answered_roles(request, admitted.supported)
        self._connection.sendall(negotiation.write_accept(request, decisions, roles, _OURSELVES))

    # ---- messages

    def _serve_message(self) -> None:
        """Read one request and answer it."""
        self._is_in_message = False
        if self._is_stopping:
            raise self._stopped()
        context_id, command = self._read_command()

        context = self._contexts.get(context_id)
        if context is None:
            raise MalformedError(
                f"a message on presentation context {context_id}, which was not accepted"
            )
        field = command.number(Element.COMMAND_FIELD)
        if field == Command.C_CANCEL_RQ:
            # There is nothing to cancel: each request is answered before the next is read.
            return
        if field is None or command.number(Element.MESSAGE_ID) is None:
            raise MalformedError("a command set without Command Field or Message ID")
        if field & RESPONSE:
            raise MalformedError("a response, which nothing has asked for")

        status = self._handle(field, command, context_id, context)
        is_report = field == Command.N_EVENT_REPORT_RQ
        event_type = command.number(Element.EVENT_TYPE_ID) if is_report else None
        response = response_to(command, status, event_type=event_type)
        assert self.session is not None
        try:
            self._connection.sendall(command_pdus(context_id, response, self._peer_takes_bytes))
        finally:
            self.session.answered()

    def _handle(self, field: int, command: CommandSet, context_id: int, context: Context) -> int:
        """The status that answers a request, whose data set is read meanwhile."""
        assert self.session is not None
        if field == Command.C_STORE_RQ and command.has_data_set:
            incoming = self.session.store(store_request(command), context)
            return self._take_object(incoming, context_id)

        data_set = self._collect(context_id) if command.has_data_set else b""
        if field == Command.C_STORE_RQ:
            return Status.CANNOT_UNDERSTAND
        if field == Command.C_ECHO_RQ:
            return self.session.echo(context)
        if field == Command.N_EVENT_REPORT_RQ:
            return self.session.event_report(command, data_set, context)
        return Status.UNRECOGNIZED_OPERATION

    def _read_command(self) -> tuple[int, CommandSet]:
        """The context ID and the elements of the next message's command set, which may come in
        parts (PS3.8 E.2).
        """
        command = bytearray()
        read_bytes = 0
        fragment = self._next_fragment()
        context_id = fragment.context_id
        self._is_in_message = True

        while True:
            if not fragment.of_command or fragment.context_id != context_id:
                raise MalformedError(
                    "another message inside a command set, or a data set before it"
                )
            command += fragment.value
            if fragment.last:
                return context_id, read_command_set(command)

            read_bytes += len(fragment.value) + _OVERHEAD_BYTES
            if read_bytes > self._limits.command_bytes:
                raise MalformedError(
                    f"a command set of more than {self._limits.command_bytes} bytes"
                )
            fragment = self._next_fragment()

    def _collect(self, context_id: int) -> bytes:
        """The data set of any message but C-STORE. A large one ends the association."""
        data_set = bytearray()
        read_bytes = 0

        while True:
            fragment = self._next_fragment()
            self._require_data(fragment, context_id)
            data_set += fragment.value
            read_bytes += len(fragment.value) + _OVERHEAD_BYTES
            if read_bytes > self._limits.message_bytes:
                raise MalformedError(
                    f"a message of more than {self._limits.message_bytes} bytes, not a C-STORE"
                )
            if fragment.last:
                return bytes(data_set)

    def _take_object(self, incoming: Incoming, context_id: int) -> int:
        """The status of a C-STORE, whose data set is handed over as it arrives."""
        is_whole = False
        try:
            self._stream(incoming, context_id)
            is_whole = True
        finally:
            if not is_whole:
                incoming.drop()
        return incoming.end()

    def _stream(self, incoming: Incoming, context_id: int) -> None:
        waiting: list[memoryview] = []
        read_bytes = 0

        while True:
            if waiting and not self._pending and self._filled >= _WRITTEN_AT_ONCE_BYTES:
                incoming.write(*waiting)
                waiting.clear()
            fragment = self._next_fragment(keep_filled=bool(waiting))
            self._require_data(fragment, context_id)

            waiting.append(fragment.value)
            read_bytes += len(fragment.value) + _OVERHEAD_BYTES
            if read_bytes > self._limits.store_bytes:
                raise MalformedError(f"a C-STORE of more than {self._limits.store_bytes} bytes")
            if fragment.last or len(waiting) >= _WRITTEN_AT_ONCE_PARTS:
                incoming.write(*waiting)
                waiting.clear()
            if fragment.last:
                return

    @staticmethod
    def _require_data(fragment: Fragment, context_id: int) -> None:
        if fragment.of_command or fragment.context_id != context_id:
            raise MalformedError("another message inside a data set")

    # ---- PDUs

    def _next_fragment(self, keep_filled: bool = False) -> Fragment:
        """The next PDV.

        `keep_filled`: values of earlier fragments, which lie in the buffer, are still needed.
        """
        if not self._pending and not keep_filled:
            self._filled = 0
        while not self._pending:
            self._read_p_data()
        return self._pending.popleft()

    def _read_p_data(self) -> None:
        """Read a P-DATA-TF PDU behind what the buffer holds. A PDU without a PDV is ignored."""
        pdu_type, size = self._read_header(self._limits.idle_s, "a message (limits.idle_s)")
        if pdu_type != PduType.P_DATA_TF:
            raise self._ended_by_pdu(pdu_type, size)
        if size > self._limits.pdu_bytes:
            raise MalformedError(
                f"a PDU of {size} bytes; at most {self._limits.pdu_bytes} are taken"
            )

        if self._buffer is None:
            # A shared mapping, which is mmap's default, takes twice the time for each new page.
            capacity_bytes = _WRITTEN_AT_ONCE_BYTES + self._limits.pdu_bytes
            self._buffer = memoryview(mmap(-1, capacity_bytes, MAP_PRIVATE | MAP_ANONYMOUS))
        body = self._buffer[self._filled : self._filled + size]
        self._fill(body)
        self._filled += size
        self._pending.extend(fragments(body))

    def _ended_by_pdu(self, pdu_type: int, size: int) -> _EndedError:
        """How any PDU but P-DATA-TF ends the association (PS3.8 Table 9-10, Sta6)."""
        where = " in the middle of a message" if self._is_in_message else ""
        if pdu_type == PduType.RELEASE_RQ:
            return _EndedError(f"the peer released it{where}", RELEASE_RP, not where)
        if pdu_type == PduType.ABORT:
            body = memoryview(bytearray(min(size, 4)))
            self._fill(body)
            return _EndedError(f"the peer aborted it{where}, {abort_in_words(bytes(body))}")

        try:
            name = PduType(pdu_type).name
        except ValueError:
            why = f"the peer sent {pdu_type:#04x} where a PDU begins, which is not a PDU type"
            return _EndedError(why, abort(AbortReason.UNRECOGNIZED_PDU))
        why = f"the peer sent {name}, a PDU that is not allowed in this state"
        return _EndedError(why, abort(AbortReason.UNEXPECTED_PDU))

    def _read_header(self, patience_s: float, awaited: str) -> tuple[int, int]:
        """The type and length of the next PDU, which may keep us waiting for `patience_s`."""
        began = time.monotonic()
        while not self._ahead:
            watchdog.beat()
            try:
                count = self._connection.recv_some(self._read_at_once)
            except TimeoutError:
                self._require_patience(began, patience_s, awaited)
                continue
            if not count:
                raise self._closed()
            self._ahead = self._read_at_once[:count]

        self._pdu_deadline = time.monotonic() + self._limits.pdu_s
        self._fill(self._header)
        pdu_type, size = PDU_HEADER.unpack(self._header)
        return pdu_type, size

    def _require_patience(self, began: float, patience_s: float, awaited: str) -> None:
        if self._is_stopping and not self._is_in_message:
            raise self._stopped()
        if time.monotonic() > began + patience_s:
            rest = "the rest of " if self._is_in_message else ""
            why = f"{patience_s:g} s without {rest}{awaited}"
            raise _EndedError(why, abort(), is_orderly=not rest)

    def _fill(self, view: memoryview) -> None:
        """Read the whole of `view` before the deadline of its PDU."""
        count = min(len(view), len(self._ahead))
        view[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        view = view[count:]

        while view:
            watchdog.beat()
            try:
                count = self._connection.recv_into(view)
            except TimeoutError:
                count = -1
            if not count:
                raise self._closed()

            view = view[max(0, count) :]
            if view and time.monotonic() > self._pdu_deadline:
                why = f"the peer needs more than {self._limits.pdu_s:g} s for one PDU"
                raise _EndedError(why, abort())

    def _closed(self) -> _EndedError:
        where = " in the middle of a message" if self._is_in_message else " without a release"
        return _EndedError(f"the peer closed the connection{where}")

    @staticmethod
    def _stopped() -> _EndedError:
        return _EndedError("this node stops", abort(), is_orderly=True)
