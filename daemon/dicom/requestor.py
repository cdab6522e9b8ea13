"""One association, at the end that requests it: PS3.8 over one connection, in the caller's own thread.

pynetdicom's classes encode and decode the negotiation. Its own association runs two threads that poll every
millisecond and copy each object several times: two to five times the cost of storescu (benchmarks/send.py). Here
a fragment is read from the file into its place behind a PDU header that is there already, and up to a megabyte of
such PDUs goes out at once.
"""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext

from daemon.dicom.pdu import (
    ELEMENT,
    P_DATA,
    P_DATA_TF,
    PDV_HEADER_BYTES,
    Fragment,
    MalformedError,
    command_set,
    fragments,
)
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAXIMUM_PDU_BYTES,
    no_delay,
    printable,
)

APPLICATION_CONTEXT = UID("1.2.840.10008.3.1.1.1")  # PS3.7 A.2.1
_BUFFER_BYTES = 1 << 20  # of PDUs that go out at once
_FAREWELL_S = 1.0  # for a PDU that nobody needs to read any more

# PS3.8 9.3.1: types of PDU; each begins with its type, a reserved byte and the length of the rest.
_ASSOCIATE_AC, _ASSOCIATE_RJ, _, _RELEASE_RQ, _RELEASE_RP, _ABORT = range(0x02, 0x08)
_PDU = struct.Struct(">BBL")
_RELEASE_RQ_PDU = _PDU.pack(_RELEASE_RQ, 0, 4) + bytes(4)  # PS3.8 9.3.6
_RELEASE_RP_PDU = _PDU.pack(_RELEASE_RP, 0, 4) + bytes(4)  # PS3.8 9.3.7
_ABORT_PDU = _PDU.pack(_ABORT, 0, 4) + bytes(4)  # PS3.8 9.3.8: by the service user

# PS3.8 E.2: bits of a message control header.
_COMMAND = 0b01
_LAST = 0b10

# PS3.7 E.1: elements (0000,xxxx) of a command set, implicit VR little endian.
AFFECTED_SOP_CLASS_UID = 0x0002
REQUESTED_SOP_CLASS_UID = 0x0003
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_RESPONDED_TO = 0x0120
PRIORITY = 0x0700
_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
AFFECTED_SOP_INSTANCE_UID = 0x1000
REQUESTED_SOP_INSTANCE_UID = 0x1001
_EVENT_TYPE_ID = 0x1002
ACTION_TYPE_ID = 0x1008
_NO_DATA_SET = 0x0101
_DATA_SET = 0x0001

# PS3.7 E.1-1: command fields; that of a response has the highest bit set.
C_STORE_RQ = 0x0001
C_ECHO_RQ = 0x0030
N_EVENT_REPORT_RQ = 0x0100
N_ACTION_RQ = 0x0130
_RESPONSE = 0x8000

# PS3.8 9.3.4: result, source and reason of an A-ASSOCIATE-RJ, in words.
_REJECTED = {1: "rejected", 2: "rejected for now"}
_REASONS = {
    (1, 1): "no reason given; see whether this node's AE title and address are configured there",
    (1, 2): "it does not take DICOM's application context; is this a DICOM node?",
    (
        1,
        3,
    ): "it does not know this node's AE title {calling}: add that, with this node's address, there",
    (1, 7): "its AE title is not {called}: correct `ae_title` of the destination",
    (2, 1): "no reason given by its association layer; its log may tell",
    (2, 2): "it does not take version 1 of the DICOM upper layer protocol; is this a DICOM node?",
    (3, 1): "it is busy (temporary congestion)",
    (3, 2): "it is busy (its limit of associations is reached)",
}

Source = io.FileIO | io.BytesIO


@dataclass(frozen=True)
class Limits:
    """Deadlines and bounds of an association that this node requests."""

    connect_s: float = 10.0
    # For the answer to an association or release request.
    acse_s: float = 30.0
    # A peer that takes no byte for so long is gone.
    stalled_s: float = 60.0
    # For the answer to a message, on top of the time that its bytes need at the slowest rate.
    answer_s: float = 60.0
    slowest_bytes_per_s: float = 50_000.0
    # Of a message that the peer sends: a commitment report on 200 objects has 30 KB.
    message_bytes: int = 4 << 20


DEFAULT_LIMITS = Limits()


class RejectedError(ConnectionError):
    """The answer was A-ASSOCIATE-RJ."""


class ProtocolError(ConnectionError):
    """The peer sent bytes that are not allowed in this state."""


@dataclass(frozen=True)
class Request:
    """A DIMSE request: the elements of its command set, and its data set, if any, from where `data` is now."""

    context_id: int
    command_field: int
    # The other elements, without those that ask() adds.
    command: Mapping[int, int | str]
    data: Source | None = None
    data_bytes: int = 0


@dataclass(frozen=True)
class Answer:
    """A DIMSE response: its status, and the peer's Error Comment (0000,0902), escaped and bounded."""

    status: int
    comment: str = ""

    def __str__(self) -> str:
        return f"answered 0x{self.status:04X}" + (f" ({self.comment})" if self.comment else "")


@dataclass(frozen=True)
class EventReport:
    """An N-EVENT-REPORT request of the peer (PS3.7 10.3.1). UIDs as the peer wrote them: unchecked."""

    sop_class_uid: str
    sop_instance_uid: str
    event_type: int
    information: bytes
    transfer_syntax_uid: str


# Takes a report and returns the status to answer with. It must not raise.
EventHandler = Callable[[EventReport], int]


@dataclass(frozen=True)
class _Message:
    """A whole DIMSE message of the peer: command elements by number, and the encoded data set."""

    context_id: int
    elements: Mapping[int, bytes]
    data: bytes

    def number(self, element: int) -> int | None:
        """The value of a US element; None where it is absent or of another length."""
        value = self.elements.get(element, b"")
        return int.from_bytes(value, "little") if len(value) == 2 else None

    def text(self, element: int) -> str:
        return self.elements.get(element, b"").decode("ascii", "replace").strip("\0 ")


class Requestor:
    """An association. Any OSError of a method ends it: only abort() is left then."""

    def __init__(
        self,
        connection: socket.socket,
        limits: Limits = DEFAULT_LIMITS,
        on_event_report: EventHandler | None = None,
    ) -> None:
        """Own a TCP connection; open() negotiates over it.

        `on_event_report` takes a report that the peer sends while an answer is awaited.
        """
        self._socket = connection
        self._limits = limits
        self._on_event_report = on_event_report
        self._message_id = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._fragment_bytes = 0
        # Read from the connection, and not yet understood.
        self._ahead = b""
        # Established, and no message is under way.
        self._idle = False
        # (abstract syntax, transfer syntax) -> context ID
        self.accepted: dict[tuple[str, str], int] = {}

    @classmethod
    def open(
        cls,
        connection: socket.socket,
        ae_titles: tuple[str, str],
        contexts: Sequence[PresentationContext],
        limits: Limits = DEFAULT_LIMITS,
        on_event_report: EventHandler | None = None,
    ) -> Requestor:
        """Negotiate over a TCP connection, which is the requestor's from now on. `ae_titles`: calling, called.

        Raises:
            RejectedError, ProtocolError, OSError: there is no association, and the connection is closed.
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
            TimeoutError, ProtocolError, OSError: the association is lost; or `data` cannot be read, or ends early.
        """
        if not self._idle:
            raise ConnectionError("there is no association any more")

        # A new ID each time, so that a second answer to this request is not taken for the next one's.
        self._message_id = self._message_id % 0xFFFF + 1
        known = {
            _COMMAND_FIELD: request.command_field,
            _MESSAGE_ID: self._message_id,
            _DATA_SET_TYPE: _NO_DATA_SET if request.data is None else _DATA_SET,
        }
        command = command_set({**request.command, **known})

        self._idle = False
        within_s = self._limits.answer_s + request.data_bytes / self._limits.slowest_bytes_per_s
        deadline = time.monotonic() + within_s
        self._send_part(request.context_id, io.BytesIO(command), len(command), _COMMAND, deadline)
        if request.data is not None:
            self._send_part(request.context_id, request.data, request.data_bytes, 0, deadline)

        response = self._response(deadline)
        answers_this = (
            response.number(_COMMAND_FIELD) == _RESPONSE | request.command_field
            and response.number(_RESPONDED_TO) == self._message_id
        )
        if not answers_this:
            raise ProtocolError("a response to another request came")
        status = response.number(_STATUS)
        if status is None:
            raise ProtocolError("a response without a status came")

        self._idle = True
        return Answer(status, printable(response.text(_ERROR_COMMENT)))

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
            raise ProtocolError("a message that is no event report came unasked")
        self._answer_event_report(message, deadline)
        self._idle = True
        return True

    def release(self) -> None:
        """End the association as PS3.8 7.2 has it, or abort it where that is not possible."""
        within_s = self._limits.acse_s
        deadline = time.monotonic() + within_s
        with contextlib.suppress(OSError):
            if self._idle:
                self._send(memoryview(_RELEASE_RQ_PDU), within_s, deadline)
                while (kind := self._receive(deadline)[0]) != _RELEASE_RP:
                    if kind == _RELEASE_RQ:
                        # Both released at the same time: PS3.8 7.2.2.7.
                        self._send(memoryview(_RELEASE_RP_PDU), within_s, deadline)
                self._socket.close()
        self.abort()

    def abort(self) -> None:
        """End the association at once. Allowed at any time, also after the end."""
        self._idle = False
        with contextlib.suppress(OSError):
            self._socket.settimeout(0)
            self._socket.send(_ABORT_PDU)
        self._socket.close()

    # -- negotiation ---------------------------------------------------------------------------

    def _negotiate(
        self, ae_titles: tuple[str, str], contexts: Sequence[PresentationContext]
    ) -> None:
        no_delay(self._socket)
        deadline = time.monotonic() + self._limits.acse_s
        request = _associate_request(ae_titles, contexts)
        self._send(memoryview(request), self._limits.acse_s, deadline)
        kind, body = self._receive(deadline)

        longest = self._take_answer(kind, body, ae_titles, contexts) or MAXIMUM_PDU_BYTES
        longest = min(longest, MAXIMUM_PDU_BYTES)

        # PS3.8 D.1: the length after a PDU's header. An object of even length is cut evenly.
        self._fragment_bytes = (longest - PDV_HEADER_BYTES) // 2 * 2
        if self._fragment_bytes <= 0:
            raise ProtocolError(
                f"the peer takes PDUs of at most {longest} bytes, and nothing fits into them"
            )
        self._idle = True

    def _take_answer(
        self,
        kind: int,
        body: bytes,
        ae_titles: tuple[str, str],
        contexts: Sequence[PresentationContext],
    ) -> int:
        """Note the accepted contexts; returns the peer's maximum PDU length, 0 for no limit."""
        if kind not in (_ASSOCIATE_AC, _ASSOCIATE_RJ):
            raise ProtocolError(
                f"the association request was answered with a PDU of type {kind:#04x}"
            )
        if kind == _ASSOCIATE_RJ:
            raise RejectedError(_rejection(body, ae_titles))

        pdu = A_ASSOCIATE_AC()
        classes = {context.context_id: context.abstract_syntax for context in contexts}
        try:
            pdu.decode(_PDU.pack(kind, 0, len(body)) + body)
            answer = pdu.to_primitive()
            for result in answer.presentation_context_definition_results_list:
                accepted_id = result.context_id
                if result.result == 0 and accepted_id is not None and accepted_id in classes:
                    key = (str(classes[accepted_id]), str(result.transfer_syntax[0]))
                    self.accepted.setdefault(key, accepted_id)
            return answer.maximum_length_received or 0
        except Exception as error:
            # pynetdicom's decoder met bytes that it cannot take.
            raise ProtocolError(
                "the association request was answered with bytes that cannot be decoded"
            ) from error

    # -- messages ------------------------------------------------------------------------------

    def _response(self, deadline: float) -> _Message:
        """The next message that is a response; event reports before it are answered."""
        while True:
            message = self._message(deadline)
            if not self._is_event_report(message):
                return message
            self._answer_event_report(message, deadline)

    def _is_event_report(self, message: _Message) -> bool:
        return (
            self._on_event_report is not None
            and message.number(_COMMAND_FIELD) == N_EVENT_REPORT_RQ
        )

    def _answer_event_report(self, message: _Message, deadline: float) -> None:
        assert self._on_event_report is not None
        syntaxes = {number: syntax for (_, syntax), number in self.accepted.items()}
        if message.context_id not in syntaxes:
            raise ProtocolError(
                "an event report came in a presentation context that is not accepted"
            )

        report = EventReport(
            message.text(AFFECTED_SOP_CLASS_UID),
            message.text(AFFECTED_SOP_INSTANCE_UID),
            message.number(_EVENT_TYPE_ID) or 0,
            message.data,
            syntaxes[message.context_id],
        )
        status = self._on_event_report(report)

        # PS3.7 Table 10.3-1
        command = command_set(
            {
                AFFECTED_SOP_CLASS_UID: report.sop_class_uid[:64],
                _COMMAND_FIELD: _RESPONSE | N_EVENT_REPORT_RQ,
                _RESPONDED_TO: message.number(_MESSAGE_ID) or 0,
                _DATA_SET_TYPE: _NO_DATA_SET,
                _STATUS: status,
                AFFECTED_SOP_INSTANCE_UID: report.sop_instance_uid[:64],
                _EVENT_TYPE_ID: report.event_type,
            }
        )
        self._send_part(message.context_id, io.BytesIO(command), len(command), _COMMAND, deadline)

    def _message(self, deadline: float) -> _Message:
        """The next message: its command set, then its data set where it has one."""
        command = bytearray()
        data = bytearray()
        context_id = 0
        elements: dict[int, bytes] | None = None
        complete = False
        while not complete:
            for fragment in self._fragments(deadline):
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
                    elements = _elements(bytes(command))
                    no_data_set = _NO_DATA_SET.to_bytes(2, "little")
                    complete = elements.get(_DATA_SET_TYPE, no_data_set) == no_data_set
                else:
                    complete = True
        assert elements is not None
        return _Message(context_id, elements, bytes(data))

    def _fragments(self, deadline: float) -> list[Fragment]:
        """The PDVs of the next PDU."""
        kind, body = self._receive(deadline)
        if kind == _RELEASE_RQ:
            self._send(memoryview(_RELEASE_RP_PDU), _FAREWELL_S, deadline)
            raise ConnectionError("the peer released the association")
        if kind != P_DATA_TF:
            raise ProtocolError(f"a PDU of type {kind:#04x} came where a message was due")
        try:
            return fragments(memoryview(body))
        except MalformedError as error:
            raise ProtocolError(f"the peer sent {error}") from error

    # -- bytes ---------------------------------------------------------------------------------

    def _send_part(
        self, context_id: int, source: Source, length: int, kind: int, deadline: float
    ) -> None:
        """Send the next `length` bytes of `source` as a command set (_COMMAND) or a data set (0)."""
        for pdus in self._pdus(context_id, source, length, kind):
            self._send(pdus, self._limits.stalled_s, deadline)

    def _pdus(
        self, context_id: int, source: Source, length: int, kind: int
    ) -> Iterator[memoryview]:
        """The same bytes as P-DATA-TF PDUs, as many at a time as fit into the buffer."""
        at_once = _BUFFER_BYTES // (P_DATA.size + self._fragment_bytes)
        while length:
            end = 0
            places: list[memoryview] = []
            while length and len(places) < at_once:
                size = min(length, self._fragment_bytes)
                length -= size
                control = kind if length else kind | _LAST
                header = (P_DATA_TF, 0, size + PDV_HEADER_BYTES, size + 2, context_id, control)
                P_DATA.pack_into(self._buffer, end, *header)
                begin = end + P_DATA.size
                end = begin + size
                places.append(self._buffer[begin:end])
            for place in places:
                _fill(place, source)
            yield self._buffer[:end]

    def _send(self, pdus: memoryview, stalled_s: float, deadline: float) -> None:
        while pdus:
            self._socket.settimeout(min(stalled_s, _left_s(deadline)))
            try:
                pdus = pdus[self._socket.send(pdus) :]
            except TimeoutError as error:
                raise TimeoutError("the peer reads no more") from error

    def _receive(self, deadline: float) -> tuple[int, bytes]:
        """The type and the rest of the next PDU."""
        kind, _, length = _PDU.unpack(self._read(_PDU.size, deadline))
        if kind == _ABORT:
            raise ConnectionAbortedError("the peer aborted the association")
        if kind > _ABORT or length > MAXIMUM_PDU_BYTES:
            raise ProtocolError(
                f"a PDU of type {kind:#04x} and {length} bytes came; such a PDU is not taken"
            )
        return kind, self._read(length, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        data = self._ahead[:size]
        self._ahead = self._ahead[size:]
        while len(data) < size:
            self._socket.settimeout(_left_s(deadline))
            try:
                part = self._socket.recv(size - len(data))
            except TimeoutError as error:
                raise TimeoutError("no answer came in time") from error
            if not part:
                raise ConnectionResetError("the peer closed the connection")
            data += part
        return data


def _associate_request(
    ae_titles: tuple[str, str], contexts: Sequence[PresentationContext]
) -> bytes:
    """An A-ASSOCIATE-RQ PDU, PS3.8 9.3.2."""
    longest = MaximumLengthNotification()
    longest.maximum_length_received = MAXIMUM_PDU_BYTES
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME

    for number, context in enumerate(contexts):
        # Odd: PS3.8 9.3.2.2.
        context.context_id = 2 * number + 1

    request = A_ASSOCIATE()
    request.application_context_name = APPLICATION_CONTEXT
    request.calling_ae_title, request.called_ae_title = ae_titles
    request.presentation_context_definition_list = list(contexts)
    request.user_information = [longest, implementation, version]
    return A_ASSOCIATE_RQ(request).encode()


def _rejection(body: bytes, ae_titles: tuple[str, str]) -> str:
    """An A-ASSOCIATE-RJ in words (PS3.8 9.3.4), with the thing to do."""
    _, result, source, reason = (body + bytes(4))[:4]
    calling, called = ae_titles
    words = _REASONS.get((source, reason), "a reason that DICOM does not define; its log may tell")
    return (
        f"association {_REJECTED.get(result, 'rejected')} with {result}/{source}/{reason}: "
        + words.format(calling=calling, called=called)
    )


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


def _elements(command: bytes) -> dict[int, bytes]:
    """Element number -> value. A value that reaches beyond the end is cut there."""
    values: dict[int, bytes] = {}
    while len(command) >= ELEMENT.size:
        _, number, length = ELEMENT.unpack_from(command)
        end = ELEMENT.size + length
        values[number] = command[ELEMENT.size : end]
        command = command[end:]
    return values
