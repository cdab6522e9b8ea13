"""DIMSE as bytes: command sets and PDUs on the wire, for both ends; file meta information on disk. Pure functions."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PDU_HEADER_BYTES = 6  # PS3.8 9.3.1: type, reserved, length (4 bytes, big endian)
P_DATA_TF = 0x04
A_ABORT_BY_PROVIDER = (
    b"\x07\0\0\0\0\x04\0\0\x02\x06"  # PS3.8 9.3.8: source provider, invalid PDU parameter value
)
SMALLEST_PDU_BYTES = 1024  # any answer of ours fits into one

# PS3.8 9.3.5 and E.2: a P-DATA-TF PDU with one PDV. Its length, context ID, message control header; then the fragment.
P_DATA = struct.Struct(">BBLLBB")
PDV_HEADER_BYTES = 6  # PS3.8 9.3.5.1: length (4 bytes, big endian), context, message control header
ELEMENT = struct.Struct(
    "<HHL"
)  # PS3.7 6.3.1: group, element, length; then the value. Implicit VR little endian
_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001  # PS3.7 E.1-1
_NO_DATA_SET = 0x0101


class MalformedError(Exception):
    """These bytes are not what the standard has there."""


@dataclass(frozen=True)
class Fragment:
    """One PDV (PS3.8 9.3.5.1): a part of a message's command set or data set."""

    context_id: int
    of_command: bool
    last: bool
    value: memoryview


@dataclass(frozen=True)
class StoreRequest:
    """What a C-STORE-RQ says of its object (PS3.7 9.3.1.1). UIDs as the peer has put them: unchecked."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    priority: int


def fragments(body: memoryview) -> list[Fragment]:
    """The PDVs in the body of a P-DATA-TF PDU. Raises MalformedError."""
    found, at = [], 0
    while at < len(body):
        if len(body) - at < PDV_HEADER_BYTES:
            raise MalformedError("a PDV header that is cut off")
        length, context_id, control = struct.unpack_from(">LBB", body, at)
        end = at + 4 + length
        if length < 2 or end > len(body):
            raise MalformedError("a PDV length that does not fit its PDU")
        found.append(
            Fragment(
                context_id, bool(control & 1), bool(control & 2), body[at + PDV_HEADER_BYTES : end]
            )
        )
        at = end
    return found


def store_request(command: memoryview) -> StoreRequest | None:
    """The C-STORE-RQ in an encoded command set; None where it is another message, or not one as the standard has it."""
    try:
        elements = _elements(command)
        numbers = {
            number: struct.unpack("<H", elements[number])[0]
            for number in (0x0100, 0x0110, 0x0700, 0x0800)
        }
        sop_class_uid, sop_instance_uid = (
            elements[number].rstrip(b"\0 ").decode("ascii") for number in (0x0002, 0x1000)
        )
    except (KeyError, struct.error, UnicodeDecodeError):
        return None
    if (
        numbers[0x0100] != _C_STORE_RQ
        or numbers[0x0800] == _NO_DATA_SET
        or not sop_class_uid
        or not sop_instance_uid
    ):
        return None
    return StoreRequest(numbers[0x0110], sop_class_uid, sop_instance_uid, numbers[0x0700])


def store_response(context_id: int, request: StoreRequest, status: int) -> bytes:
    """The PDU of a C-STORE-RSP (PS3.7 9.3.1.2)."""
    command = command_set(
        {
            0x0002: request.sop_class_uid,
            0x0100: _C_STORE_RSP,
            0x0120: request.message_id,
            0x0800: _NO_DATA_SET,
            0x0900: status,
            0x1000: request.sop_instance_uid[:64],
        }
    )
    return (
        P_DATA.pack(
            P_DATA_TF, 0, len(command) + PDV_HEADER_BYTES, len(command) + 2, context_id, 0x03
        )
        + command
    )


def command_set(elements: Mapping[int, int | str]) -> bytes:
    """A command set with its group length (PS3.7 6.3.1): element number -> US or text. Raises ValueError."""
    body = b""
    for number, value in sorted(elements.items()):
        raw = value.to_bytes(2, "little") if isinstance(value, int) else _even(value, b"\0")
        body += ELEMENT.pack(0, number, len(raw)) + raw
    return ELEMENT.pack(0, 0, 4) + len(body).to_bytes(4, "little") + body


def file_meta(
    request: StoreRequest,
    transfer_syntax_uid: str,
    implementation: tuple[str, str],
    source_ae_title: str,
) -> bytes:
    """Preamble and file meta information (PS3.10 7.1). `implementation`: its class UID and version name."""
    values: Iterable[tuple[int, bytes, bytes]] = (
        (0x0002, b"UI", _even(request.sop_class_uid, b"\0")),
        (0x0003, b"UI", _even(request.sop_instance_uid, b"\0")),
        (0x0010, b"UI", _even(transfer_syntax_uid, b"\0")),
        (0x0012, b"UI", _even(implementation[0], b"\0")),
        (0x0013, b"SH", _even(implementation[1], b" ")),
        (0x0016, b"AE", _even(source_ae_title, b" ")),
    )
    body = struct.pack("<HH2sHL", 2, 0x0001, b"OB", 0, 2) + b"\0\1"  # File Meta Information Version
    body += b"".join(
        struct.pack("<HH2sH", 2, number, vr, len(value)) + value for number, vr, value in values
    )
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0x0000, b"UL", 4, len(body)) + body


def _elements(command: memoryview) -> dict[int, bytes]:
    """Element number -> value of an encoded command set: implicit VR, little endian, group 0000 (PS3.7 6.3.1)."""
    found, at = {}, 0
    while at < len(command):
        group, number, length = ELEMENT.unpack_from(command, at)
        at += ELEMENT.size
        if group != 0 or length > len(command) - at:
            raise KeyError(number)
        found[number] = bytes(command[at : at + length])
        at += length
    return found


def _even(text: str, filler: bytes) -> bytes:
    encoded = text.encode("ascii")
    return encoded + filler * (len(encoded) % 2)
