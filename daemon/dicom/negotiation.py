"""Association negotiation (PS3.8 9.3.2 to 9.3.4, PS3.7 Annex D): bytes in, values out. No I/O.

Reading is lenient where the standard says so. Unknown items and sub-items are ignored (PS3.8
9.3.1), only bit 0 of the protocol version is tested (9.3.2), and texts may have any length and any
bytes. A length that exceeds its item is malformed, because the next item cannot be found.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from daemon.dicom.pdu import MalformedError, PduType, pdu

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1
_IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
_PROTOCOL_VERSION = 0x0001
_LONGEST_VERSION_NAME = 16

_ITEM = struct.Struct(">BxH")  # type, a reserved byte, length
_FIXED = struct.Struct(">H2x16s16s32x")  # PS3.8 9.3.2: version, called and calling AE title


class Item(IntEnum):
    """Types of items and sub-items (PS3.8 9.3.2 and 9.3.3, PS3.7 D.3.3)."""

    APPLICATION_CONTEXT = 0x10
    PROPOSED_CONTEXT = 0x20
    ANSWERED_CONTEXT = 0x21
    ABSTRACT_SYNTAX = 0x30
    TRANSFER_SYNTAX = 0x40
    USER_INFORMATION = 0x50
    MAXIMUM_LENGTH = 0x51
    IMPLEMENTATION_CLASS_UID = 0x52
    ASYNCHRONOUS_WINDOW = 0x53
    ROLE_SELECTION = 0x54
    IMPLEMENTATION_VERSION_NAME = 0x55
    USER_IDENTITY = 0x58


class ContextResult(IntEnum):
    """The answer to a proposed presentation context (PS3.8 Table 9-18)."""

    ACCEPTED = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


class Roles(NamedTuple):
    """Role selection (PS3.7 D.3.3.4): the roles of the requestor for one SOP class."""

    scu: bool
    scp: bool


@dataclass(frozen=True)
class Proposal:
    """A presentation context as proposed. Absent syntaxes are "" and ()."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class Rejected:
    """An A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""

    result: int
    source: int
    reason: int

    def __str__(self) -> str:
        lasting = {1: "permanent", 2: "transient"}.get(self.result, str(self.result))
        words = _REASONS.get((self.source, self.reason), "a reason that the standard does not have")
        return f"{self.result}/{self.source}/{self.reason} ({lasting}: {words})"


_REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}

NO_REASON_GIVEN = Rejected(1, 1, 1)
NO_REASON_GIVEN_FOR_NOW = Rejected(2, 1, 1)
APPLICATION_CONTEXT_NOT_SUPPORTED = Rejected(1, 1, 2)
CALLING_AE_TITLE_NOT_RECOGNIZED = Rejected(1, 1, 3)
CALLED_AE_TITLE_NOT_RECOGNIZED = Rejected(1, 1, 7)
PROTOCOL_VERSION_NOT_SUPPORTED = Rejected(1, 2, 2)
LOCAL_LIMIT_EXCEEDED = Rejected(2, 3, 2)


@dataclass(frozen=True)
class UserInformation:
    """User information of either end (PS3.7 D.3.3). A maximum length of 0 means no limit."""

    maximum_pdu_bytes: int = 0
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    roles: Mapping[str, Roles] = field(default_factory=dict)  # by SOP class UID
    window: tuple[int, int] | None = None  # operations invoked, operations performed
    has_user_identity: bool = False


@dataclass(frozen=True)
class Request:
    """An A-ASSOCIATE-RQ. AE titles are the 16 bytes as they came; ae_title() reads them."""

    protocol_version: int
    called_ae_title: bytes
    calling_ae_title: bytes
    application_context: str
    contexts: tuple[Proposal, ...]
    user: UserInformation


@dataclass(frozen=True)
class Accepted:
    """An A-ASSOCIATE-AC. `contexts`: context ID -> transfer syntax, of the accepted contexts."""

    contexts: Mapping[int, str]
    results: Mapping[int, int]  # context ID -> ContextResult, or any other number a peer sends
    user: UserInformation


@dataclass(frozen=True)
class Supported:
    """The transfer syntaxes and roles that the acceptor takes for one abstract syntax.

    `transfer_syntaxes`: in order of its preference. `takes_scp`: it lets the requestor be SCP of
    this class, as the archive that reports storage commitment is (PS3.4 J.3.3).
    """

    transfer_syntaxes: tuple[str, ...]
    takes_scp: bool = False


@dataclass(frozen=True)
class Decision:
    """The answer to one proposal. `transfer_syntax` matters only if the context is accepted."""

    proposal: Proposal
    result: ContextResult
    transfer_syntax: str


def ae_title(raw: bytes) -> str | None:
    """The AE title in 16 bytes, without padding; None where they hold no AE title (PS3.5 6.2, AE).

    Some senders pad with NUL where the standard has spaces, or leave another string's rest behind
    the NUL.
    """
    title = raw.partition(b"\0")[0].strip(b" ")
    if not title or not all(0x20 <= byte < 0x7F and byte != 0x5C for byte in title):
        return None
    return title.decode("ascii")


def escaped(raw: bytes) -> str:
    """Any bytes as one line of ASCII that is safe to log: b"M\\xfcller" -> M\\xfcller."""
    return repr(bytes(raw))[2:-1]


def read_request(body: bytes) -> Request:
    """The request in the body of an A-ASSOCIATE-RQ.

    Raises:
        MalformedError: it is cut off, an item leaves its PDU, or a context ID is even or used twice
            (PS3.8 9.3.2.2: odd, between 1 and 255, each once).
    """
    if len(body) < _FIXED.size:
        raise MalformedError(
            f"an association request of {len(body)} bytes; at least {_FIXED.size} are due"
        )
    version, called, calling = _FIXED.unpack_from(body)
    application_context = ""
    contexts: list[Proposal] = []
    user = UserInformation()

    for kind, value in _items(body[_FIXED.size :]):
        if kind == Item.APPLICATION_CONTEXT:
            application_context = _uid(value)
        elif kind == Item.PROPOSED_CONTEXT:
            contexts.append(_read_proposal(value))
        elif kind == Item.USER_INFORMATION:
            user = _read_user_information(value)

    _require_context_ids([context.context_id for context in contexts])
    return Request(version, called, calling, application_context, tuple(contexts), user)


def _require_context_ids(numbers: Sequence[int]) -> None:
    for number in numbers:
        if number % 2 == 0:
            raise MalformedError(f"presentation context ID {number}; odd numbers are allowed")
    if len(set(numbers)) < len(numbers):
        raise MalformedError("a presentation context ID that is used twice")


def protocol_rejection(request: Request) -> Rejected | None:
    """Why a request is rejected from any peer; None if it is not."""
    # Only bit 0 is tested: a later version sets further bits (PS3.8 9.3.2).
    if not request.protocol_version & _PROTOCOL_VERSION:
        return PROTOCOL_VERSION_NOT_SUPPORTED
    if request.application_context != APPLICATION_CONTEXT:
        return APPLICATION_CONTEXT_NOT_SUPPORTED
    return None


def decide(request: Request, supported: Mapping[str, Supported]) -> tuple[Decision, ...]:
    """The answer to each proposed context: the first of our transfer syntaxes that it offers."""
    return tuple(_decide(proposal, supported) for proposal in request.contexts)


def _decide(proposal: Proposal, supported: Mapping[str, Supported]) -> Decision:
    # The transfer syntax of a declined context is not significant, but it must be there (PS3.8
    # 9.3.3.2).
    insignificant = _IMPLICIT_VR_LITTLE_ENDIAN
    ours = supported.get(proposal.abstract_syntax)
    if ours is None:
        result = ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED
        return Decision(proposal, result, insignificant)

    for syntax in ours.transfer_syntaxes:
        if syntax in proposal.transfer_syntaxes:
            return Decision(proposal, ContextResult.ACCEPTED, syntax)
    return Decision(proposal, ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED, insignificant)


def answered_roles(request: Request, supported: Mapping[str, Supported]) -> dict[str, Roles]:
    """The answers to role selection, for classes that allow other roles than the default.

    A class without an answer keeps the default roles: the requestor is SCU (PS3.7 D.3.3.4). Where
    the requestor may be SCP, it is SCP if it asks for that, and SCU if it asks for nothing else.
    """
    answers = {}
    for sop_class, asked in request.user.roles.items():
        ours = supported.get(sop_class)
        if ours is not None and ours.takes_scp:
            answers[sop_class] = Roles(asked.scu and not asked.scp, asked.scp)
    return answers


def write_accept(
    request: Request,
    decisions: Iterable[Decision],
    roles: Mapping[str, Roles],
    user: UserInformation,
) -> bytes:
    """The A-ASSOCIATE-AC that answers a request.

    `user`: our maximum length, class UID and version name.

    One operation at a time: an asynchronous window is answered with 1, 1 (PS3.7 D.3.3.3). User
    identity is ignored, which a requestor sees by the absent answer (PS3.7 D.3.3.7).
    """
    contexts = b""
    for decision in decisions:
        head = bytes((decision.proposal.context_id, 0, decision.result, 0))
        syntax = _item(Item.TRANSFER_SYNTAX, decision.transfer_syntax.encode("ascii"))
        contexts += _item(Item.ANSWERED_CONTEXT, head + syntax)

    window = (1, 1) if request.user.window is not None else None
    # PS3.8 Table 9-17: the AE titles are returned unchanged.
    fixed = _FIXED.pack(_PROTOCOL_VERSION, request.called_ae_title, request.calling_ae_title)
    body = fixed + _item(Item.APPLICATION_CONTEXT, APPLICATION_CONTEXT.encode()) + contexts
    return pdu(PduType.ASSOCIATE_AC, body + _user_information(user, roles, window))


def write_reject(rejected: Rejected) -> bytes:
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    body = bytes((0, rejected.result, rejected.source, rejected.reason))
    return pdu(PduType.ASSOCIATE_RJ, body)


def write_request(
    called_ae_title: str,
    calling_ae_title: str,
    contexts: Iterable[Proposal],
    user: UserInformation,
) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2). Raises ValueError for a text that is not ASCII."""
    titles = (
        called_ae_title.encode("ascii").ljust(16),
        calling_ae_title.encode("ascii").ljust(16),
    )
    body = _FIXED.pack(_PROTOCOL_VERSION, *titles)
    body += _item(Item.APPLICATION_CONTEXT, APPLICATION_CONTEXT.encode())

    for context in contexts:
        value = bytes((context.context_id, 0, 0, 0))
        value += _item(Item.ABSTRACT_SYNTAX, context.abstract_syntax.encode("ascii"))
        for syntax in context.transfer_syntaxes:
            value += _item(Item.TRANSFER_SYNTAX, syntax.encode("ascii"))
        body += _item(Item.PROPOSED_CONTEXT, value)
    return pdu(PduType.ASSOCIATE_RQ, body + _user_information(user, user.roles, user.window))


def read_answer(pdu_type: int, body: bytes) -> Accepted | Rejected:
    """The answer to an association request, read as leniently as a request.

    Raises:
        MalformedError: it is another PDU, is cut off, or an item leaves it.
    """
    if pdu_type == PduType.ASSOCIATE_RJ:
        if len(body) < 4:
            raise MalformedError(f"an A-ASSOCIATE-RJ of {len(body)} bytes; 4 are due")
        return Rejected(*body[1:4])
    if pdu_type != PduType.ASSOCIATE_AC:
        raise MalformedError(f"a PDU of type {pdu_type:#04x} in answer to an association request")
    if len(body) < _FIXED.size:
        raise MalformedError(
            f"an A-ASSOCIATE-AC of {len(body)} bytes; at least {_FIXED.size} are due"
        )

    results: dict[int, int] = {}
    contexts: dict[int, str] = {}
    user = UserInformation()
    for kind, value in _items(body[_FIXED.size :]):
        if kind == Item.ANSWERED_CONTEXT:
            if len(value) < 4:
                raise MalformedError("a presentation context that is cut off")
            number, result = value[0], value[2]
            results[number] = result
            syntaxes = [_uid(one) for sub, one in _items(value[4:]) if sub == Item.TRANSFER_SYNTAX]
            if result == ContextResult.ACCEPTED and syntaxes:
                contexts[number] = syntaxes[0]
        elif kind == Item.USER_INFORMATION:
            user = _read_user_information(value)
    return Accepted(contexts, results, user)


def _items(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each item. Raises MalformedError if an item exceeds what contains it."""
    at = 0
    while at < len(encoded):
        if len(encoded) - at < _ITEM.size:
            raise MalformedError("an item header that is cut off")
        kind, length = _ITEM.unpack_from(encoded, at)
        at += _ITEM.size
        if length > len(encoded) - at:
            raise MalformedError(f"an item of type {kind:#04x} that is longer than what holds it")
        yield kind, encoded[at : at + length]
        at += length


def _read_proposal(value: bytes) -> Proposal:
    if len(value) < 4:
        raise MalformedError("a presentation context that is cut off")
    abstract_syntax = ""
    transfer_syntaxes: list[str] = []

    for kind, uid in _items(value[4:]):
        if kind == Item.ABSTRACT_SYNTAX:
            abstract_syntax = _uid(uid)
        elif kind == Item.TRANSFER_SYNTAX:
            transfer_syntaxes.append(_uid(uid))
    return Proposal(value[0], abstract_syntax, tuple(transfer_syntaxes))


def _read_user_information(value: bytes) -> UserInformation:
    """A sub-item that is too short for what it should hold is ignored, like an unknown sub-item."""
    longest = 0
    class_uid = ""
    version_name = ""
    roles: dict[str, Roles] = {}
    window: tuple[int, int] | None = None
    has_user_identity = False

    for kind, part in _items(value):
        if kind == Item.MAXIMUM_LENGTH and len(part) >= 4:
            longest = int.from_bytes(part[:4], "big")
        elif kind == Item.IMPLEMENTATION_CLASS_UID:
            class_uid = _uid(part)
        elif kind == Item.IMPLEMENTATION_VERSION_NAME:
            version_name = escaped(part.strip(b"\0 "))
        elif kind == Item.ASYNCHRONOUS_WINDOW and len(part) >= 4:
            window = int.from_bytes(part[:2], "big"), int.from_bytes(part[2:4], "big")
        elif kind == Item.ROLE_SELECTION and len(part) >= 4:
            length = int.from_bytes(part[:2], "big")
            flags = part[2 + length : 4 + length]
            if len(flags) == 2:
                roles[_uid(part[2 : 2 + length])] = Roles(flags[0] == 1, flags[1] == 1)
        elif kind == Item.USER_IDENTITY:
            has_user_identity = True
    return UserInformation(longest, class_uid, version_name, roles, window, has_user_identity)


def _user_information(
    user: UserInformation, roles: Mapping[str, Roles], window: tuple[int, int] | None
) -> bytes:
    value = _item(Item.MAXIMUM_LENGTH, user.maximum_pdu_bytes.to_bytes(4, "big"))
    value += _item(Item.IMPLEMENTATION_CLASS_UID, user.implementation_class_uid.encode("ascii"))

    if window is not None:
        value += _item(Item.ASYNCHRONOUS_WINDOW, struct.pack(">HH", *window))
    for sop_class, (scu, scp) in roles.items():
        uid = sop_class.encode("ascii")
        selection = len(uid).to_bytes(2, "big") + uid + bytes((scu, scp))
        value += _item(Item.ROLE_SELECTION, selection)
    if user.implementation_version_name:
        name = user.implementation_version_name.encode("ascii")[:_LONGEST_VERSION_NAME]
        value += _item(Item.IMPLEMENTATION_VERSION_NAME, name)
    return _item(Item.USER_INFORMATION, value)


def _item(kind: Item, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _uid(raw: bytes) -> str:
    """A UID without padding.

    Bytes that a UID cannot have are escaped, which makes it an unknown UID.
    """
    return escaped(raw.strip(b"\0 "))
