"""PDUs, PDVs and DIMSE command sets as bytes, for both ends of an association. Pure functions."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class PduType(IntEnum):
    """The first byte of a PDU (PS3.8 9.3.1)."""

    ASSOCIATE_RQ = 0x01
    ASSOCIATE_AC = 0x02
    ASSOCIATE_RJ = 0x03
    P_DATA_TF = 0x04
    RELEASE_RQ = 0x05
    RELEASE_RP = 0x06
    ABORT = 0x07


class AbortReason(IntEnum):
    """Why the service provider aborts (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER_VALUE = 6


class Command(IntEnum):
    """Command Field (0000,0100) of the messages that we send or answer (PS3.7 E.1-1)."""

    C_STORE_RQ = 0x0001
    C_ECHO_RQ = 0x0030
    N_EVENT_REPORT_RQ = 0x0100
    N_ACTION_RQ = 0x0130
    C_CANCEL_RQ = 0x0FFF


class Element(IntEnum):
    """Elements (0000,xxxx) of a command set (PS3.7 E.1)."""

    GROUP_LENGTH = 0x0000
    AFFECTED_SOP_CLASS_UID = 0x0002
    REQUESTED_SOP_CLASS_UID = 0x0003
    COMMAND_FIELD = 0x0100
    MESSAGE_ID = 0x0110
    MESSAGE_ID_RESPONDED_TO = 0x0120
    PRIORITY = 0x0700
    DATA_SET_TYPE = 0x0800
    STATUS = 0x0900
    OFFENDING_ELEMENT = 0x0901
    ERROR_COMMENT = 0x0902
    AFFECTED_SOP_INSTANCE_UID = 0x1000
    REQUESTED_SOP_INSTANCE_UID = 0x1001
    EVENT_TYPE_ID = 0x1002
    ACTION_TYPE_ID = 0x1008


# The bit of a Command Field that marks a response.
RESPONSE = 0x8000
# Command Data Set Type (0000,0800).
DATA_SET, NO_DATA_SET = 0x0001, 0x0101

# PS3.8 9.3.1: type, a reserved byte, the length of the rest.
PDU_HEADER = struct.Struct(">BxL")
PDU_HEADER_BYTES = PDU_HEADER.size

# PS3.8 9.3.5 and E.2: a P-DATA-TF PDU with one PDV. The PDV's length, context ID and message
# control header; then the fragment.
P_DATA = struct.Struct(">BBLLBB")
PDV_HEADER = struct.Struct(">LBB")
PDV_HEADER_BYTES = PDV_HEADER.size

# Bits of the message control header (PS3.8 E.2).
OF_COMMAND, LAST_FRAGMENT = 0b01, 0b10

# PS3.7 6.3.1: group, element, length; then the value. Implicit VR little endian.
ELEMENT = struct.Struct("<HHL")

_UID_BYTES = 64


class MalformedError(Exception):
    """The bytes violate the standard. The message says what was found."""


def pdu(pdu_type: PduType, body: bytes) -> bytes:
    """A whole PDU."""
    return PDU_HEADER.pack(pdu_type, len(body)) + body


def abort(reason: AbortReason | None = None) -> bytes:
    """An A-ABORT PDU (PS3.8 9.3.8): with a reason from the provider, else from the service user."""
    if reason is None:
        return pdu(PduType.ABORT, bytes((0, 0, 0, 0)))
    return pdu(PduType.ABORT, bytes((0, 0, 2, reason)))


# PS3.8 9.3.6 and 9.3.7.
RELEASE_RQ = pdu(PduType.RELEASE_RQ, bytes(4))
RELEASE_RP = pdu(PduType.RELEASE_RP, bytes(4))


def abort_in_words(body: bytes) -> str:
    """The body of an A-ABORT in words: its source and its reason."""
    source, reason = (*body[2:4], 0, 0)[:2]
    if source != 2:
        return "by its application"
    try:
        words = AbortReason(reason).name.lower().replace("_", " ")
    except ValueError:
        words = str(reason)
    return f"by its protocol layer: {words}"


class Fragment(NamedTuple):
    """One PDV (PS3.8 9.3.5.1): a part of a message's command set or data set."""

    context_id: int
    of_command: bool
    last: bool
    value: memoryview


def fragments(body: memoryview) -> list[Fragment]:
    """The PDVs in the body of a P-DATA-TF PDU. Raises MalformedError."""
    found = []
    at = 0

    while at < len(body):
        if len(body) - at < PDV_HEADER_BYTES:
            raise MalformedError("a PDV header that is cut off")
        length, context_id, control = PDV_HEADER.unpack_from(body, at)
        end = at + 4 + length
        if length < 2 or end > len(body):
            raise MalformedError("a PDV length that does not fit its PDU")

        value = body[at + PDV_HEADER_BYTES : end]
        of_command, last = bool(control & OF_COMMAND), bool(control & LAST_FRAGMENT)
        found.append(Fragment(context_id, of_command, last, value))
        at = end
    return found


def command_pdus(context_id: int, command: bytes, longest: int) -> bytes:
    """The PDUs that carry a command set to a peer whose maximum PDU length is `longest`.

    `longest` counts the bytes after a PDU's header; 0 means no limit (PS3.8 D.1). A peer whose
    limit leaves no room for a fragment gets fragments of two bytes.
    """
    step = max(2, longest - PDV_HEADER_BYTES) if longest else len(command)
    pdus = bytearray()

    for begin in range(0, len(command), step):
        part = command[begin : begin + step]
        last = LAST_FRAGMENT if begin + step >= len(command) else 0
        length = len(part) + PDV_HEADER_BYTES
        control = OF_COMMAND | last
        pdus += P_DATA.pack(PduType.P_DATA_TF, 0, length, len(part) + 2, context_id, control)
        pdus += part
    return bytes(pdus)


def command_set(elements: Mapping[int, int | str | bytes]) -> bytes:
    """A command set with its group length (PS3.7 6.3.1): element number -> US, text or bytes.

    Raises:
        ValueError: a text is not ASCII.
    """
    body = b""
    for number, value in sorted(elements.items()):
        raw = value.to_bytes(2, "little") if isinstance(value, int) else even(value, b"\0")
        body += ELEMENT.pack(0, number, len(raw)) + raw
    return ELEMENT.pack(0, Element.GROUP_LENGTH, 4) + len(body).to_bytes(4, "little") + body


class CommandSet:
    """A peer's command set: any element may be absent, and any value may have any length."""

    def __init__(self, values: Mapping[int, bytes]) -> None:
        self._values = values

    def number(self, element: Element) -> int | None:
        """A US value (two bytes, little endian); None if it is absent or has another length."""
        value = self._values.get(element)
        if value is None or len(value) != 2:
            return None
        return int.from_bytes(value, "little")

    def text(self, element: Element) -> str:
        """A text without its padding, "" if it is absent. Bytes beyond ASCII become U+FFFD."""
        return self.raw(element).rstrip(b"\0 ").decode("ascii", "replace")

    def raw(self, element: Element) -> bytes:
        """The bytes of a value, b"" if it is absent."""
        return self._values.get(element, b"")

    def __contains__(self, element: Element) -> bool:
        return element in self._values

    @property
    def has_data_set(self) -> bool:
        """Whether a data set follows: any type but 0x0101 says so (PS3.7 E.1-1)."""
        return self.number(Element.DATA_SET_TYPE) != NO_DATA_SET


def read_command_set(encoded: bytes | bytearray | memoryview) -> CommandSet:
    """The elements of an encoded command set.

    An element whose value runs past the end is absent; elements of other groups are ignored.
    """
    encoded = bytes(encoded)
    values: dict[int, bytes] = {}
    value_at, end = ELEMENT.size, len(encoded)

    while value_at <= end:
        group, number, length = ELEMENT.unpack_from(encoded, value_at - ELEMENT.size)
        value_end = value_at + length
        if value_end > end:
            break
        if group == 0:
            values[number] = encoded[value_at:value_end]
        value_at = value_end + ELEMENT.size
    return CommandSet(values)


def response_to(
    request: CommandSet, status: int, comment: str = "", event_type: int | None = None
) -> bytes:
    """The command set that answers a request with a status (PS3.7 9.3, 10.3).

    UIDs are returned as the peer's own bytes, cut to the length of a UID.
    """
    elements: dict[int, int | str | bytes] = {
        Element.COMMAND_FIELD: (request.number(Element.COMMAND_FIELD) or 0) | RESPONSE,
        Element.MESSAGE_ID_RESPONDED_TO: request.number(Element.MESSAGE_ID) or 0,
        Element.DATA_SET_TYPE: NO_DATA_SET,
        Element.STATUS: status,
    }

    names = (
        (Element.AFFECTED_SOP_CLASS_UID, Element.REQUESTED_SOP_CLASS_UID),
        (Element.AFFECTED_SOP_INSTANCE_UID, Element.REQUESTED_SOP_INSTANCE_UID),
    )
    for affected, requested in names:
        uid = request.raw(affected) or request.raw(requested)
        if uid:
            elements[affected] = uid[:_UID_BYTES]

    if event_type is not None:
        elements[Element.EVENT_TYPE_ID] = event_type
    if comment:
        # LO: at most 64 characters.
        elements[Element.ERROR_COMMENT] = comment.encode("ascii", "replace")[:64]
    return command_set(elements)


@dataclass(frozen=True)
class StoreRequest:
    """The object of a C-STORE-RQ as its command set describes it (PS3.7 9.3.1.1).

    The UIDs are the peer's and unchecked.
    """

    sop_class_uid: str
    sop_instance_uid: str
    priority: int = 0


def store_request(command: CommandSet) -> StoreRequest:
    """The object of a C-STORE-RQ. An absent UID is "", an absent priority is medium."""
    return StoreRequest(
        command.text(Element.AFFECTED_SOP_CLASS_UID),
        command.text(Element.AFFECTED_SOP_INSTANCE_UID),
        command.number(Element.PRIORITY) or 0,
    )


def even(text: str | bytes, filler: bytes) -> bytes:
    """A value padded to even length (PS3.5 6.2). Raises ValueError for text beyond ASCII."""
    encoded = text.encode("ascii") if isinstance(text, str) else text
    return encoded + filler * (len(encoded) % 2)
