"""The requestor's end of one association: PS3.8 over one connection, in the caller's thread.

A fragment is read from the file straight behind its prepared PDU header, and up to a megabyte of
PDUs is sent in one call. An association of pynetdicom costs two to five times as much
(benchmarks/send.py).
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from daemon import watchdog
from daemon.dicom import negotiation
from daemon.dicom.negotiation import Proposal, Rejected, UserInformation
from daemon.dicom.pdu import (
    DATA_SET,
    LAST_FRAGMENT,
    NO_DATA_SET,
    P_DATA,
    PDU_HEADER,
    PDV_HEADER_BYTES,
    RELEASE_RP,
    RELEASE_RQ,
    RESPONSE,
    Command,
    CommandSet,
    Element,
    Fragment,
    MalformedError,
    PduType,
    abort,
    abort_in_words,
    command_pdus,
    command_set,
    fragments,
    read_command_set,
    response_to,
)
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAXIMUM_PDU_BYTES,
    no_delay,
    printable,
)

_BUFFER_BYTES = 1 << 20  # of PDUs that go out at once
_FAREWELL_S = 1.0  # for a PDU that nobody needs to read any more
_USER = UserInformation(MAXIMUM_PDU_BYTES, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME)

# How often a thread that waits for an answer shows that it is not stuck (daemon/watchdog.py).
_BEAT_S = 10.0

# The first bytes of services other than DICOM.
_STRANGERS = {
    b"HTTP": "an HTTP server",
    b"<!DO": "an HTTP server",
    b"<htm": "an HTTP server",
    b"\x15\x03": "a TLS server",
    b"SSH-": "an SSH server",
}

Source = io.FileIO | io.BytesIO


@dataclass(frozen=True)
class Limits:
    """Deadlines and bounds of an association that this node requests."""

    connect_s: float = 10.0
    # For the answer to an association or release request.
    acse_s: float = 30.0
    # A peer that accepts no byte for this long is gone.
    stalled_s: float = 60.0
    # For the answer to a message, on top of the time that its bytes need at the slowest rate.
    answer_s: float = 60.0
    slowest_bytes_per_s: float = 50_000.0
    # The largest message from the peer: a commitment report on 200 objects has 30 KB.
    message_bytes: int = 4 << 20


DEFAULT_LIMITS = Limits()


class RejectedError(ConnectionError):
    """The answer was A-ASSOCIATE-RJ."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(f"association rejected with {rejected}")
        self.rejected = rejected


class ProtocolError(ConnectionError):
    """The peer sent bytes that are not allowed in this state."""


@dataclass(frozen=True)
class Request:
    """A DIMSE request: the elements of its command set, and its data set, if any, from where `data`
    is now.
    """

    context_id: int
    command_field: Command
    # The other elements, without those that ask() adds.
    command: Mapping[int, int | str | bytes]
    data: Source | None = None
    data_bytes: int = 0


@dataclass(frozen=True)
class Answer:
    """A DIMSE response: status, and the peer's Error Comment (0000,0902), escaped and bounded."""

    status: int
    comment: str = ""

    def __str__(self) -> str:
        return f"answered 0x{self.status:04X}" + (f" ({self.comment})" if self.comment else "")


@dataclass(frozen=True)
class EventReport:
    """An N-EVENT-REPORT request of the peer (PS3.7 10.3.1). Its UIDs are unchecked."""

    sop_class_uid: str
    sop_instance_uid: str
    event_type: int
    information: bytes
    transfer_syntax_uid: str


# Takes a report and returns the status to answer with. It must not raise.
EventHandler = Callable[[EventReport], int]


@dataclass(frozen=True)
class _Message:
    """A whole DIMSE message of the peer: its command set, and its encoded data set."""

    context_id: int
    command: CommandSet
    data: bytes


class Requestor:
    """An association. After an OSError from any method, only abort() may be called."""

    def __init__(
        self,
        connection: socket.socket,
        limits: Limits = DEFAULT_LIMITS,
        on_event_report: EventHandler | None = None,
    ) -> None:
        """Own a connection, plain or TLS; open() negotiates over it.

        `on_event_report` takes a report that the peer sends while an answer is awaited.
        """
        self._socket = connection
        self._limits = limits
        self._on_event_report = on_event_report
        self._message_id = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

        # Of a PDU after its header, and of the fragment in it.
        self._longest = 0
        self._fragment_bytes = 0
        # Bytes read from the connection, not yet parsed.
        self._ahead = b""
        # Established, and no message is under way.
        self._idle = False

        # The peer's.
        self.implementation_class_uid = ""
        # (abstract syntax, transfer syntax) -> context ID
        self.accepted: dict[tuple[str, str], int] = {}
        # The same pairs, of the contexts that it declined -> negotiation.ContextResult, or any
        # other number that it sent.
        self.declined: dict[tuple[str, str], int] = {}

    @classmethod
    def open(
        cls,
        connection: socket.socket,
        ae_titles: tuple[str, str],
        contexts: Sequence[Proposal],
        limits: Limits = DEFAULT_LIMITS,
        on_event_report: EventHandler | None = None,
    ) -> Requestor:
        """Negotiate over a connection, plain or TLS, which is the requestor's from now on.

        `ae_titles`: calling, called.

        Raises:
            RejectedError, ProtocolError, OSError: there is no association, and the connection is
                closed.
        """
        requestor = cls(connection, limits, on_event_report)
        try:
            requestor._negotiate(ae_titles, contexts)
        except BaseException:
            requestor.abort()
            raise

        return requestor

    def ask(self, request: Request) -> Answer:
        """Send a request; returns the answer.

        Raises:
            ValueError: the command set cannot be encoded; nothing was sent.
            TimeoutError, ProtocolError, OSError: the association is lost; or `data` cannot be read,
                or ends early.
        """
        if not self._idle:
            raise ConnectionError("there is no association any more")

        # A new ID each time, so that a second answer to this request is not mistaken for an answer
        # to the next.
        self._message_id = self._message_id % 0xFFFF + 1
        known: dict[int, int] = {
            Element.COMMAND_FIELD: request.command_field,
            Element.MESSAGE_ID: self._message_id,
            Element.DATA_SET_TYPE: NO_DATA_SET if request.data is None else DATA_SET,
        }
        command = command_set({**request.command, **known})

        self._idle = False
        within_s = self._limits.answer_s + request.data_bytes / self._limits.slowest_bytes_per_s
        deadline = time.monotonic() + within_s
        self._send_command(request.context_id, command, deadline)
        if request.data is not None:
            for pdus in self._pdus(request.context_id, request.data, request.data_bytes):
                self._send(pdus, self._limits.stalled_s, deadline)

        response = self._response(deadline)
        answers_this = (
            response.number(Element.COMMAND_FIELD) == RESPONSE | request.command_field
            and response.number(Element.MESSAGE_ID_RESPONDED_TO) == self._message_id
        )
        if not answers_this:
            raise ProtocolError("a response to another request came")
        status = response.number(Element.STATUS)
        if status is None:
            raise ProtocolError("a response without a status came")

        self._idle = True
        return Answer(status, printable(response.text(Element.ERROR_COMMENT)))

    def await_event_report(self, within_s: float) -> bool:
        """Take one N-EVENT-REPORT, if the peer sends one in time; returns whether it did.

        Raises:
            ProtocolError, OSError: the association is lost.
        """
        if not self._idle:
            return False

        try:
            self._ahead = self._read(1, time.monotonic() + within_s)
        except TimeoutError:
            return False

        self._idle = False
        deadline = time.monotonic() + self._limits.answer_s
        message = self._message(deadline)
        if not self._is_event_report(message):
            raise ProtocolError("a message other than an event report came unasked")
        self._answer_event_report(message, deadline)
        self._idle = True
        return True

    def release(self) -> None:
        """Release the association (PS3.8 7.2), or abort it if that is not possible."""
        within_s = self._limits.acse_s
        deadline = time.monotonic() + within_s
        with contextlib.suppress(OSError):
            if self._idle:
                self._send(memoryview(RELEASE_RQ), within_s, deadline)
                self._await_release(deadline)
                _say_close_notify(self._socket)
                self._socket.close()
        self.abort()

    def _await_release(self, deadline: float) -> None:
        """Read until A-RELEASE-RP. Raises OSError, ProtocolError."""
        while True:
            kind, body = self._receive(deadline)
            if kind == PduType.RELEASE_RP:
                return

            if kind == PduType.RELEASE_RQ:
                # Both released at the same time: PS3.8 7.2.2.7.
                self._send(memoryview(RELEASE_RP), self._limits.acse_s, deadline)

            if kind == PduType.P_DATA_TF:
                # PS3.8 Table 9-10, Sta7: a message that was on its way still counts. It can no
                # longer be answered.
                message = self._message(deadline, _pdvs(body))
                if self._is_event_report(message):
                    self._take_event_report(message)

    def abort(self) -> None:
        """End the association at once. Allowed at any time, also after the end."""
        self._idle = False
        with contextlib.suppress(OSError):
            self._socket.settimeout(0)
            self._socket.send(abort())
        self._socket.close()

    # -- negotiation ---------------------------------------------------------------------------

    def _negotiate(self, ae_titles: tuple[str, str], contexts: Sequence[Proposal]) -> None:
        no_delay(self._socket)
        deadline = time.monotonic() + self._limits.acse_s
        calling, called = ae_titles

        # Odd numbers: PS3.8 9.3.2.2.
        proposed = [replace(each, context_id=2 * n + 1) for n, each in enumerate(contexts)]
        request = negotiation.write_request(called, calling, proposed, _USER)
        self._send(memoryview(request), self._limits.acse_s, deadline)

        try:
            kind, body = self._receive(deadline)
        except (ConnectionResetError, TimeoutError) as error:
            raise ProtocolError(
                f"no answer to the association request ({error}); is this the port of a DICOM "
                "node, and does it take associations from this address?"
            ) from error
        try:
            answer = negotiation.read_answer(kind, body)
        except MalformedError as error:
            raise ProtocolError(f"the association request was answered with {error}") from error
        if isinstance(answer, Rejected):
            raise RejectedError(answer)

        for context in proposed:
            if syntax := answer.contexts.get(context.context_id):
                self.accepted.setdefault((context.abstract_syntax, syntax), context.context_id)
                continue
            result = answer.results.get(context.context_id, negotiation.ContextResult.NO_REASON)
            for syntax in context.transfer_syntaxes:
                self.declined[context.abstract_syntax, syntax] = result
        self._note_maximum(answer.user.maximum_pdu_bytes or MAXIMUM_PDU_BYTES)
        self.implementation_class_uid = answer.user.implementation_class_uid
        self._idle = True

    def _note_maximum(self, maximum_bytes: int) -> None:
        # PS3.8 D.1: the length after a PDU's header. An object of even length is cut evenly.
        longest = min(maximum_bytes, MAXIMUM_PDU_BYTES)
        self._longest = longest
        self._fragment_bytes = (longest - PDV_HEADER_BYTES) // 2 * 2
        if self._fragment_bytes <= 0:
            raise ProtocolError(
                f"the peer takes PDUs of at most {longest} bytes, and nothing fits into them"
            )

    # -- messages ------------------------------------------------------------------------------

    def _response(self, deadline: float) -> CommandSet:
        """The command set of the next response; event reports before it are answered."""
        while True:
            message = self._message(deadline)
            if not self._is_event_report(message):
                return message.command
            self._answer_event_report(message, deadline)

    def _is_event_report(self, message: _Message) -> bool:
        field = message.command.number(Element.COMMAND_FIELD)
        return self._on_event_report is not None and field == Command.N_EVENT_REPORT_RQ

    def _answer_event_report(self, message: _Message, deadline: float) -> None:
        status = self._take_event_report(message)
        event_type = message.command.number(Element.EVENT_TYPE_ID)
        response = response_to(message.command, status, event_type=event_type)
        self._send_command(message.context_id, response, deadline)

    def _take_event_report(self, message: _Message) -> int:
        """Pass the report to the handler. Returns the status to answer. Raises ProtocolError."""
        assert self._on_event_report is not None
        syntaxes = {number: syntax for (_, syntax), number in self.accepted.items()}
        if message.context_id not in syntaxes:
            raise ProtocolError("an event report came in a context that is not accepted")

        command = message.command
        report = EventReport(
            command.text(Element.AFFECTED_SOP_CLASS_UID),
            command.text(Element.AFFECTED_SOP_INSTANCE_UID),
            command.number(Element.EVENT_TYPE_ID) or 0,
            message.data,
            syntaxes[message.context_id],
        )
        return self._on_event_report(report)

    def _message(self, deadline: float, begun: Sequence[Fragment] = ()) -> _Message:
        """The next message: its command set, then its data set where it has one.

        `begun`: the PDVs of a PDU that was read already.
        """
        command = bytearray()
        data = bytearray()
        context_id = 0
        elements: CommandSet | None = None
        complete = False

        while not complete:
            for fragment in begun or self._fragments(deadline):
                if complete or fragment.of_command != (elements is None):
                    raise ProtocolError("the peer sent a PDV out of turn")

                part = command if fragment.of_command else data
                part += fragment.value

                if len(command) + len(data) > self._limits.message_bytes:
                    raise ProtocolError(
                        f"the peer sent a message of more than {self._limits.message_bytes} bytes"
                    )

                if not fragment.last:
                    continue

                if fragment.of_command:
                    context_id = fragment.context_id
                    elements = read_command_set(command)
                    complete = not elements.has_data_set
                else:
                    complete = True
            begun = ()

        assert elements is not None
        return _Message(context_id, elements, bytes(data))

    def _fragments(self, deadline: float) -> list[Fragment]:
        """The PDVs of the next PDU."""
        kind, body = self._receive(deadline)
        if kind == PduType.RELEASE_RQ:
            self._send(memoryview(RELEASE_RP), _FAREWELL_S, deadline)
            raise ConnectionError("the peer released the association")
        if kind != PduType.P_DATA_TF:
            raise ProtocolError(f"a PDU of type {kind:#04x} came where a message was due")
        return _pdvs(body)

    # -- bytes ---------------------------------------------------------------------------------

    def _send_command(self, context_id: int, command: bytes, deadline: float) -> None:
        pdus = command_pdus(context_id, command, self._longest)
        self._send(memoryview(pdus), self._limits.stalled_s, deadline)

    def _pdus(self, context_id: int, source: Source, length: int) -> Iterator[memoryview]:
        """The next `length` bytes of a data set as PDUs, as many at a time as the buffer holds."""
        at_once = _BUFFER_BYTES // (P_DATA.size + self._fragment_bytes)
        while length:
            end = 0
            places: list[memoryview] = []
            while length and len(places) < at_once:
                size = min(length, self._fragment_bytes)
                length -= size
                control = 0 if length else LAST_FRAGMENT
                header = (PduType.P_DATA_TF, 0, size + PDV_HEADER_BYTES, size + 2)
                P_DATA.pack_into(self._buffer, end, *header, context_id, control)
                begin = end + P_DATA.size
                end = begin + size
                places.append(self._buffer[begin:end])

            for place in places:
                _fill(place, source)
            yield self._buffer[:end]

    def _send(self, pdus: memoryview, stalled_s: float, deadline: float) -> None:
        while pdus:
            watchdog.beat()
            self._socket.settimeout(min(stalled_s, _left_s(deadline)))
            try:
                pdus = pdus[self._socket.send(pdus) :]
            except TimeoutError as error:
                raise TimeoutError("the peer has stopped reading") from error

    def _receive(self, deadline: float) -> tuple[int, bytes]:
        """The type and the rest of the next PDU."""
        header = self._read(PDU_HEADER.size, deadline)
        kind, length = PDU_HEADER.unpack(header)
        if kind > PduType.ABORT or length > MAXIMUM_PDU_BYTES:
            raise ProtocolError(
                f"a PDU of type {kind:#04x} and {length} bytes came; such a PDU is not taken"
                + _stranger(header)
            )

        body = self._read(length, deadline)
        if kind == PduType.ABORT:
            raise ConnectionAbortedError(
                f"the peer aborted the association ({abort_in_words(body)})"
            )

        return kind, body

    def _read(self, size: int, deadline: float) -> bytes:
        data = self._ahead[:size]
        self._ahead = self._ahead[size:]

        while len(data) < size:
            watchdog.beat()
            self._socket.settimeout(min(_BEAT_S, _left_s(deadline)))
            try:
                part = self._socket.recv(size - len(data))
            except TimeoutError as error:
                if time.monotonic() < deadline:
                    continue
                raise TimeoutError("no answer came in time") from error

            if not part:
                raise ConnectionResetError("the peer closed the connection")
            data += part
        return data


def _pdvs(body: bytes) -> list[Fragment]:
    """The PDVs of a P-DATA-TF PDU. Raises ProtocolError."""
    try:
        return fragments(memoryview(body))
    except MalformedError as error:
        raise ProtocolError(f"the peer sent {error}") from error


def _say_close_notify(connection: socket.socket) -> None:
    """Over TLS, tell the peer that the stream was not cut off. Its close_notify is not awaited."""
    if isinstance(connection, ssl.SSLSocket):
        with contextlib.suppress(OSError, ValueError):
            connection.settimeout(0)
            connection.unwrap()


def _stranger(header: bytes) -> str:
    """A hint, if these first bytes of an answer are known to come from another service."""
    for beginning, service in _STRANGERS.items():
        if header.startswith(beginning):
            return f"; {service} answers so: give the port of the DICOM service"
    return ""


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("it took too long")
    return left_s


def _fill(place: memoryview, source: Source) -> None:
    while place:
        count = source.readinto(place)
        if not count:
            raise OSError("the file became shorter while it was sent")
        place = place[count:]
