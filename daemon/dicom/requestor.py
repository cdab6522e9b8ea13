"""One association, at its requestor's end: PS3.8 over one socket, in the caller's own thread.

pynetdicom encodes and decodes the negotiation. Its own association runs two threads that look around every millisecond
and hand an object to each other in pieces, each copied several times: two to five times what storescu takes
(benchmarks/send.py). Here a piece is read from the file to its place behind the PDU header that is there already, and
up to a megabyte of such PDUs goes out at once.
"""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext

from daemon.dicom.pdu import ELEMENT, P_DATA, P_DATA_TF, PDV_HEADER_BYTES, command_set
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAXIMUM_PDU_BYTES,
    no_delay,
)

_APPLICATION_CONTEXT = UID("1.2.840.10008.3.1.1.1")  # PS3.7 A.2.1
_BUFFER_BYTES = 1 << 20  # of PDUs that go out at once
_FAREWELL_S = 1.0  # for what nobody needs to read any more

# PS3.8 9.3.1: types of PDU; each begins with its type, a reserved byte and the length of the rest.
_ASSOCIATE_AC, _ASSOCIATE_RJ, _, _RELEASE_RQ, _RELEASE_RP, _ABORT = range(0x02, 0x08)
_PDU = struct.Struct(">BBL")
_RELEASE_RQ_PDU = _PDU.pack(_RELEASE_RQ, 0, 4) + bytes(4)  # PS3.8 9.3.6
_RELEASE_RP_PDU = _PDU.pack(_RELEASE_RP, 0, 4) + bytes(4)  # PS3.8 9.3.7
_ABORT_PDU = _PDU.pack(_ABORT, 0, 4) + bytes(4)  # PS3.8 9.3.8: by the service user

_COMMAND, _LAST = 0b01, 0b10

# PS3.7 E.1: elements (0000,xxxx) of a command set, implicit VR little endian.
AFFECTED_SOP_CLASS_UID, PRIORITY, AFFECTED_SOP_INSTANCE_UID = 0x0002, 0x0700, 0x1000
_COMMAND_FIELD, _MESSAGE_ID, _RESPONDED_TO, _DATA_SET_TYPE, _STATUS = (
    0x0100,
    0x0110,
    0x0120,
    0x0800,
    0x0900,
)
_NO_DATA_SET, _DATA_SET = 0x0101, 0x0001
C_STORE_RQ, C_ECHO_RQ, _RESPONSE = 0x0001, 0x0030, 0x8000

Source = io.FileIO | io.BytesIO


class RejectedError(ConnectionError):
    """The answer was A-ASSOCIATE-RJ."""


class ProtocolError(ConnectionError):
    """The peer said what nobody may say at this point."""


@dataclass(frozen=True)
class Message:
    """A DIMSE request: the elements of its command set, and its data set, if any, from where `data` is now."""

    context_id: int
    command_field: int
    command: Mapping[int, int | str]  # the other elements, without what ask() knows
    data: Source | None = None
    data_bytes: int = 0


class Requestor:
    """An association. Any OSError of a method ends it: only abort() is left then."""

    def __init__(
        self,
        connection: socket.socket,
        ae_titles: tuple[str, str],
        contexts: Sequence[PresentationContext],
        within_s: float,
    ) -> None:
        """Negotiate over a TCP connection, which is ours from now on. `ae_titles`: calling, called.

        Raises:
            RejectedError, ProtocolError, OSError: there is no association, and the connection is closed.
        """
        self._socket = connection
        self._message_id = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._idle = False  # established, and no message is under way
        self.accepted: dict[
            tuple[str, str], int
        ] = {}  # (abstract syntax, transfer syntax) -> context ID
        try:
            no_delay(connection)
            deadline = time.monotonic() + within_s
            self._send(memoryview(_request(ae_titles, contexts)), within_s, deadline)
            longest = self._take(*self._receive(deadline), contexts)
            # PS3.8 D.1: what may follow a PDU's header; 0 is no limit. An object of even length is cut evenly.
            longest = min(longest or MAXIMUM_PDU_BYTES, MAXIMUM_PDU_BYTES)
            self._fragment_bytes = (longest - PDV_HEADER_BYTES) // 2 * 2
            if self._fragment_bytes <= 0:
                raise ProtocolError(
                    f"the peer takes PDUs of at most {longest} bytes, and nothing fits into them"
                )
        except BaseException:
            self.abort()
            raise
        self._idle = True

    def ask(self, message: Message, stalled_s: float, within_s: float) -> int:
        """Send a request; returns the status of its response.

        The peer may take no byte for at most `stalled_s`, and everything takes at most `within_s`.

        Raises:
            ValueError: the command set cannot be encoded; nothing was sent.
            TimeoutError, ProtocolError, OSError: the association is lost; or `data` cannot be read, or ends early.
        """
        if not self._idle:
            raise ConnectionError("there is no association any more")
        self._message_id = (
            self._message_id % 0xFFFF + 1
        )  # its own each time: a second answer is not taken for the next
        data_set_type = _NO_DATA_SET if message.data is None else _DATA_SET
        known = {
            _COMMAND_FIELD: message.command_field,
            _MESSAGE_ID: self._message_id,
            _DATA_SET_TYPE: data_set_type,
        }
        command = command_set({**message.command, **known})
        self._idle = False
        deadline = time.monotonic() + within_s
        for pdus in self._fragments(
            message.context_id, io.BytesIO(command), len(command), _COMMAND
        ):
            self._send(pdus, stalled_s, deadline)
        if message.data is not None:
            for pdus in self._fragments(message.context_id, message.data, message.data_bytes, 0):
                self._send(pdus, stalled_s, deadline)
        response = self._response(deadline)
        due = {_COMMAND_FIELD: _RESPONSE | message.command_field, _RESPONDED_TO: self._message_id}
        if any(
            response.get(number) != value.to_bytes(2, "little") for number, value in due.items()
        ):
            raise ProtocolError("a response to another request came")
        if len(response.get(_STATUS, b"")) != 2:
            raise ProtocolError("a response without a status came")
        self._idle = True
        return int.from_bytes(response[_STATUS], "little")

    def release(self, within_s: float) -> None:
        """End it as PS3.8 7.2 has it, or abort it where that is not possible."""
        deadline = time.monotonic() + within_s
        with contextlib.suppress(OSError):
            if self._idle:
                self._send(memoryview(_RELEASE_RQ_PDU), within_s, deadline)
                while (kind := self._receive(deadline)[0]) != _RELEASE_RP:
                    if kind == _RELEASE_RQ:  # both at the same time: PS3.8 7.2.2.7
                        self._send(memoryview(_RELEASE_RP_PDU), within_s, deadline)
                self._socket.close()
        self.abort()

    def abort(self) -> None:
        """End it at once. Allowed at any time, also after the end."""
        self._idle = False
        with contextlib.suppress(OSError):
            self._socket.settimeout(0)
            self._socket.send(_ABORT_PDU)
        self._socket.close()

    def _take(self, kind: int, body: bytes, contexts: Sequence[PresentationContext]) -> int:
        """Note what was accepted; returns the peer's maximum length."""
        if kind not in (_ASSOCIATE_AC, _ASSOCIATE_RJ):
            raise ProtocolError(
                f"the association request was answered with a PDU of type {kind:#04x}"
            )
        pdu = A_ASSOCIATE_AC() if kind == _ASSOCIATE_AC else A_ASSOCIATE_RJ()
        classes = {context.context_id: context.abstract_syntax for context in contexts}
        try:
            pdu.decode(_PDU.pack(kind, 0, len(body)) + body)
            answer = pdu.to_primitive()
            if kind == _ASSOCIATE_AC:
                for one in answer.presentation_context_definition_results_list:
                    if one.result == 0 and one.context_id is not None and one.context_id in classes:
                        key = (str(classes[one.context_id]), str(one.transfer_syntax[0]))
                        self.accepted.setdefault(key, one.context_id)
                return answer.maximum_length_received or 0
            why = (
                f"{answer.result}/{answer.result_source}/{answer.diagnostic} ({answer.reason_str})"
            )
        except Exception as error:  # the decoder met what it cannot take
            raise ProtocolError(
                "the association request was answered with what cannot be decoded"
            ) from error
        raise RejectedError(f"association rejected with {why}")

    def _fragments(
        self, context_id: int, source: Source, length: int, kind: int
    ) -> Iterator[memoryview]:
        """The next `length` bytes of `source` as P-DATA-TF PDUs, as many at a time as fit into the buffer."""
        at_once = _BUFFER_BYTES // (P_DATA.size + self._fragment_bytes)
        while length:
            end, fragments = 0, list[memoryview]()
            while length and len(fragments) < at_once:
                size = min(length, self._fragment_bytes)
                length -= size
                control = kind if length else kind | _LAST
                P_DATA.pack_into(
                    self._buffer,
                    end,
                    P_DATA_TF,
                    0,
                    size + PDV_HEADER_BYTES,
                    size + 2,
                    context_id,
                    control,
                )
                begin, end = end + P_DATA.size, end + P_DATA.size + size
                fragments.append(self._buffer[begin:end])
            for fragment in fragments:
                _fill(fragment, source)
            yield self._buffer[:end]

    def _response(self, deadline: float) -> dict[int, bytes]:
        """The command set of the next message."""
        command, complete = b"", False
        while not complete:
            kind, body = self._receive(deadline)
            if kind == _RELEASE_RQ:
                self._send(memoryview(_RELEASE_RP_PDU), _FAREWELL_S, deadline)
                raise ConnectionError("the peer released the association")
            if kind != P_DATA_TF or len(command) > MAXIMUM_PDU_BYTES:
                raise ProtocolError(f"a PDU of type {kind:#04x} came where a response was due")
            while body:  # PS3.8 9.3.5.1: any number of PDVs
                end = 4 + int.from_bytes(body[:4], "big")
                if not PDV_HEADER_BYTES <= end <= len(body) or complete or not body[5] & _COMMAND:
                    raise ProtocolError("a response came that is none")
                command, complete = command + body[PDV_HEADER_BYTES:end], bool(body[5] & _LAST)
                body = body[end:]
        return _decode(command)

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
                f"a PDU of type {kind:#04x} and {length} bytes came; such are not taken"
            )
        return kind, self._read(length, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        data = b""
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


def _request(ae_titles: tuple[str, str], contexts: Sequence[PresentationContext]) -> bytes:
    """An A-ASSOCIATE-RQ PDU, PS3.8 9.3.2."""
    longest = MaximumLengthNotification()
    longest.maximum_length_received = MAXIMUM_PDU_BYTES
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1  # odd: PS3.8 9.3.2.2
    request = A_ASSOCIATE()
    request.application_context_name = _APPLICATION_CONTEXT
    request.calling_ae_title, request.called_ae_title = ae_titles
    request.presentation_context_definition_list = list(contexts)
    request.user_information = [longest, implementation, version]
    return A_ASSOCIATE_RQ(request).encode()


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("it took too long")
    return left_s


def _fill(fragment: memoryview, source: Source) -> None:
    while fragment:
        count = source.readinto(fragment)
        if not count:
            raise OSError("what was to be sent became shorter")
        fragment = fragment[count:]


def _decode(command: bytes) -> dict[int, bytes]:
    """Element number -> value; what lies beyond the end is not there."""
    values: dict[int, bytes] = {}
    while len(command) >= ELEMENT.size:
        _, number, length = ELEMENT.unpack_from(command)
        end = ELEMENT.size + length
        values[number], command = command[ELEMENT.size : end], command[end:]
    return values
