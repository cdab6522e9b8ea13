"""Mutated DICOM conversations for the hostile-peer tests, and the outcomes that are allowed.

Each case is reproducible from its seed and number. This module only makes bytes; hostile.py sends
them.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

CR = "1.2.840.10008.5.1.4.1.1.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
VERIFICATION = "1.2.840.10008.1.1"
COMMITMENT = "1.2.840.10008.1.20.1"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
CONTEXTS = {
    1: (VERIFICATION, IMPLICIT),
    3: (CR, EXPLICIT),
    5: (SC, EXPLICIT),
    7: (COMMITMENT, IMPLICIT),
}
RELEASE_RQ = b"\x05\0\0\0\0\x04\0\0\0\0"
_P_DATA = 0x04
_EXTREMES = (0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

Rng = random.Random
Pdus = list[bytes]


# Valid messages: PS3.8 9.3, PS3.7 6.3.1.


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_rq(calling: str = "TESTER", called: str = "PLEURA") -> bytes:
    """An A-ASSOCIATE-RQ with every kind of sub-item that PS3.7 D.3.3 defines."""
    contexts = b"".join(
        item(
            0x20,
            bytes([number, 0, 0, 0]) + item(0x30, abstract.encode()) + item(0x40, syntax.encode()),
        )
        for number, (abstract, syntax) in CONTEXTS.items()
    )

    uid = COMMITMENT.encode()
    user = (
        item(0x51, struct.pack(">L", 16384))
        + item(0x52, b"1.2.3")
        # Asynchronous operations window
        + item(0x53, b"\0\1\0\1")
        # Roles
        + item(0x54, struct.pack(">H", len(uid)) + uid + b"\0\1")
        + item(0x55, b"HOSTILE")
        # Extended negotiation
        + item(0x56, struct.pack(">H", len(uid)) + uid + b"\0\0\0\0")
    )

    items = item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + item(0x50, user)
    titles = called.encode().ljust(16) + calling.encode().ljust(16)
    return pdu(0x01, b"\0\1\0\0" + titles + bytes(32) + items)


def command_set(elements: Mapping[int, int | str]) -> bytes:
    encoded = b"".join(
        struct.pack("<HHL", 0, number, len(value)) + value
        for number, value in sorted((number, _value(value)) for number, value in elements.items())
    )
    return struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded


def _value(value: int | str) -> bytes:
    if isinstance(value, int):
        return struct.pack("<H", value)
    return value.encode() + b"\0" * (len(value) % 2)


def pdv(context_id: int, control: int, value: bytes) -> bytes:
    """A presentation data value. `control`: bit 1 marks a command, bit 2 the last fragment."""
    return struct.pack(">LBB", len(value) + 2, context_id, control) + value


def p_data(*pdvs: bytes) -> bytes:
    return pdu(_P_DATA, b"".join(pdvs))


def echo_rq(message_id: int = 1) -> bytes:
    command = command_set(
        {0x0002: VERIFICATION, 0x0100: 0x0030, 0x0110: message_id, 0x0800: 0x0101}
    )
    return p_data(pdv(1, 3, command))


def store_command(message_id: int, uid: str, sop_class: str = CR) -> bytes:
    return command_set(
        {
            0x0002: sop_class,
            0x0100: 0x0001,
            0x0110: message_id,
            0x0700: 0,
            0x0800: 0x0001,
            0x1000: uid,
        }
    )


def data_set(uid: str, size: int, sop_class: str = CR) -> bytes:
    """A small object in explicit VR little endian."""

    def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
        return struct.pack("<HH2sH", group, number, vr, len(value)) + value

    pixels = bytes(size // 2 * 2)
    return (
        element(0x0008, 0x0016, b"UI", _value(sop_class))
        + element(0x0008, 0x0018, b"UI", _value(uid))
        + element(0x0010, 0x0010, b"PN", b"Verraeter^Geheim")
        + struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, len(pixels))
        + pixels
    )


def store_pdus(rng: Rng, message_id: int, uid: str, size: int) -> Pdus:
    """A C-STORE-RQ, cut into PDUs in one of the ways that PS3.8 Annex E allows."""
    context_id, sop_class = rng.choice(((3, CR), (5, SC)))
    command = store_command(message_id, uid, sop_class)
    data = data_set(uid, size, sop_class)

    cuts = sorted(rng.sample(range(1, len(data)), rng.randint(0, 3)))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    pieces = [
        pdv(context_id, 2 * (number == len(parts)), part)
        for number, part in enumerate(parts, start=1)
    ]
    heads = [pdv(context_id, 3, command)]
    if rng.random() < 0.2:
        heads = [pdv(context_id, 1, command[:40]), pdv(context_id, 3, command[40:])]

    if rng.random() < 0.3:
        return [p_data(*heads, *pieces)]
    return [p_data(piece) for piece in (*heads, *pieces)]


def report_pdus(rng: Rng) -> Pdus:
    """An N-EVENT-REPORT or N-ACTION of storage commitment (PS3.4 J.3).

    Three times in four its data set is garbage or empty.
    """
    event = rng.random() < 0.5
    elements: dict[int, int | str] = {0x0110: 9, 0x0800: 0x0001}
    instance = "1.2.840.10008.1.20.1.1"
    if event:
        elements |= {
            0x0002: COMMITMENT,
            0x0100: 0x0100,
            0x1000: instance,
            0x1002: rng.choice((1, 2, 3, 0xFFFF)),
        }
    else:
        elements |= {
            0x0003: COMMITMENT,
            0x0100: 0x0130,
            0x1001: instance,
            0x1008: rng.choice((1, 2, 0xFFFF)),
        }

    uid = _value("1.2.3.4")
    reference = (
        struct.pack("<HHL", 8, 0x1150, 26) + _value(CR) + struct.pack("<HHL", 8, 0x1155, 8) + uid
    )
    items = struct.pack("<HHL", 0xFFFE, 0xE000, len(reference)) + reference
    information = (
        struct.pack("<HHL", 8, 0x1195, 8)
        + uid
        + struct.pack("<HHL", 8, 0x1199, len(items))
        + items,
        rng.randbytes(rng.randint(0, 300)),
        # Items nested 400 deep
        struct.pack("<HHL", 8, 0x1199, 0xFFFFFFFF)
        + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) * 400,
        b"",
    )
    return [p_data(pdv(7, 3, command_set(elements))), p_data(pdv(7, 2, rng.choice(information)))]


def conversation(rng: Rng, name: str) -> Pdus:
    """A valid conversation. Each object has a UID that begins with `name`."""
    pdus = [associate_rq()]
    for number in range(1, rng.randint(2, 4)):
        kind = rng.random()
        if kind < 0.2:
            pdus.append(echo_rq(number))
        elif kind < 0.35:
            pdus += report_pdus(rng)
        else:
            pdus += store_pdus(rng, number, f"{name}.{number}", rng.choice((100, 1000, 40_000)))
    return [*pdus, RELEASE_RQ]


# Mutations. Each takes the PDUs of a conversation and returns changed PDUs.


def _at(rng: Rng, pdus: Pdus, change: Callable[[bytearray], None]) -> Pdus:
    """Change one PDU, in most cases a PDU after the association request."""
    number = (
        rng.randrange(len(pdus))
        if rng.random() < 0.3
        else rng.randrange(min(1, len(pdus) - 1), len(pdus))
    )
    changed = bytearray(pdus[number])
    change(changed)
    return [*pdus[:number], bytes(changed), *pdus[number + 1 :]]


def _of_data(
    rng: Rng, pdus: Pdus, change: Callable[[bytearray], None], command: bool = False
) -> Pdus:
    """Change one P-DATA-TF. `command`: only a P-DATA-TF that begins with a command set."""
    numbers = [
        number
        for number, data in enumerate(pdus)
        if len(data) > 12 and data[0] == _P_DATA and (not command or data[11] & 1)
    ]
    if not numbers:
        return pdus
    number = rng.choice(numbers)
    changed = bytearray(pdus[number])
    change(changed)
    return [*pdus[:number], bytes(changed), *pdus[number + 1 :]]


def _with_length(pdu_bytes: bytearray) -> None:
    """Make the PDU's length right again."""
    pdu_bytes[2:6] = struct.pack(">L", len(pdu_bytes) - 6)


def flip(rng: Rng, pdus: Pdus) -> Pdus:
    def change(pdu_bytes: bytearray) -> None:
        for _ in range(rng.randint(1, 8)):
            pdu_bytes[rng.randrange(len(pdu_bytes))] ^= 1 << rng.randrange(8)

    return _at(rng, pdus, change)


def overwrite(rng: Rng, pdus: Pdus) -> Pdus:
    def change(pdu_bytes: bytearray) -> None:
        at = rng.randrange(len(pdu_bytes))
        value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * rng.randint(1, 8)
        pdu_bytes[at : at + len(value)] = value

    return _at(rng, pdus, change)


def truncate(rng: Rng, pdus: Pdus) -> Pdus:
    def change(pdu_bytes: bytearray) -> None:
        del pdu_bytes[rng.randrange(len(pdu_bytes)) :]
        if rng.random() < 0.5 and len(pdu_bytes) >= 6:
            _with_length(pdu_bytes)

    return _at(rng, pdus, change)


def cut_off(rng: Rng, pdus: Pdus) -> Pdus:
    kept = pdus[: rng.randint(1, len(pdus))]
    return [*kept[:-1], kept[-1][: rng.randrange(len(kept[-1]) + 1)]]


def duplicate(rng: Rng, pdus: Pdus) -> Pdus:
    number = rng.randrange(len(pdus))
    return [*pdus[: number + 1], *[pdus[number]] * rng.randint(1, 3), *pdus[number + 1 :]]


def swap(rng: Rng, pdus: Pdus) -> Pdus:
    swapped = list(pdus)
    a, b = rng.randrange(len(pdus)), rng.randrange(len(pdus))
    swapped[a], swapped[b] = swapped[b], swapped[a]
    return swapped


def leave_out(rng: Rng, pdus: Pdus) -> Pdus:
    number = rng.randrange(len(pdus))
    return [*pdus[:number], *pdus[number + 1 :]] or pdus


def insert(rng: Rng, pdus: Pdus) -> Pdus:
    """Insert a PDU of any type, whose length field may differ from the bytes that follow."""
    kind = rng.choice((*range(0x01, 0x08), rng.randrange(256)))
    body = rng.randbytes(rng.choice((0, 1, 4, 10, 68, 200)))
    length = len(body) if rng.random() < 0.6 else rng.choice(_EXTREMES)
    number = rng.randint(0, len(pdus))
    return [*pdus[:number], struct.pack(">BBL", kind, 0, length) + body, *pdus[number:]]


def pdu_length(rng: Rng, pdus: Pdus) -> Pdus:
    def change(pdu_bytes: bytearray) -> None:
        near = max(0, len(pdu_bytes) - 6 + rng.choice((-2, -1, 1, 2, 6)))
        pdu_bytes[2:6] = struct.pack(">L", rng.choice((*_EXTREMES, near, near)))

    return _at(rng, pdus, change)


def pdv_length(rng: Rng, pdus: Pdus) -> Pdus:
    def change(pdu_bytes: bytearray) -> None:
        near = struct.unpack_from(">L", pdu_bytes, 6)[0] + rng.choice((-2, -1, 1, 2))
        pdu_bytes[6:10] = struct.pack(">L", rng.choice((*_EXTREMES, near & 0xFFFFFFFF)))

    return _of_data(rng, pdus, change)


def context_id(rng: Rng, pdus: Pdus) -> Pdus:
    def change(pdu_bytes: bytearray) -> None:
        pdu_bytes[10] = rng.choice((0, 1, 2, 3, 5, 7, 9, 255))

    return _of_data(rng, pdus, change)


def control_header(rng: Rng, pdus: Pdus) -> Pdus:
    def change(pdu_bytes: bytearray) -> None:
        pdu_bytes[11] = rng.choice((0, 1, 2, 3, 4, 0x80, 0xFF))

    return _of_data(rng, pdus, change)


def element_length(rng: Rng, pdus: Pdus) -> Pdus:
    """Give a command element a length other than its own."""

    def change(pdu_bytes: bytearray) -> None:
        starts = list(_command_elements(pdu_bytes))
        at = rng.choice(starts) if starts else 12
        pdu_bytes[at + 4 : at + 8] = struct.pack("<L", rng.choice((*_EXTREMES, 64, 0xFFFF)))
        _with_length(pdu_bytes)

    return _of_data(rng, pdus, change, command=True)


def element_missing(rng: Rng, pdus: Pdus) -> Pdus:
    def change(pdu_bytes: bytearray) -> None:
        starts = [*_command_elements(pdu_bytes)]
        if not starts:
            return
        at = rng.choice(starts)
        size = 8 + struct.unpack_from("<L", pdu_bytes, at + 4)[0]
        del pdu_bytes[at : at + size]
        pdu_bytes[6:10] = struct.pack(
            ">L", max(0, struct.unpack_from(">L", pdu_bytes, 6)[0] - size)
        )
        _with_length(pdu_bytes)

    return _of_data(rng, pdus, change, command=True)


def element_value(rng: Rng, pdus: Pdus) -> Pdus:
    """Replace a command element's value: another command field, a UID of random bytes."""

    def change(pdu_bytes: bytearray) -> None:
        starts = [*_command_elements(pdu_bytes)]
        if not starts:
            return
        at = rng.choice(starts)
        size = struct.unpack_from("<L", pdu_bytes, at + 4)[0]

        fields = (
            0x0020,
            0x0021,
            0x0010,
            0x0FFF,
            0x8001,
            0x8030,
            0x0140,
            0x0150,
            0x0110,
            0x0120,
            0x0101,
        )

        value = struct.pack("<H", rng.choice(fields)) if size == 2 else rng.randbytes(min(size, 64))
        pdu_bytes[at + 8 : at + 8 + len(value)] = value

    return _of_data(rng, pdus, change, command=True)


def _command_elements(pdu_bytes: bytearray) -> Iterator[int]:
    """The offsets of the command set's elements in a P-DATA-TF."""
    at = 12
    end = min(len(pdu_bytes), 10 + struct.unpack_from(">L", pdu_bytes, 6)[0])
    while at + 8 <= end:
        yield at
        at += 8 + int(struct.unpack_from("<L", pdu_bytes, at + 4)[0])


def interleave(rng: Rng, pdus: Pdus) -> Pdus:
    """Interleave the PDUs of two messages, on one context or two."""
    name = f"1.2.{rng.getrandbits(48)}"
    first, second = (store_pdus(rng, number, f"{name}.{number}", 300) for number in (1, 2))
    mixed = []
    while first or second:
        take = first if first and (not second or rng.random() < 0.5) else second
        mixed.append(take.pop(0))
    return [pdus[0], *mixed, RELEASE_RQ]


def after_release(rng: Rng, pdus: Pdus) -> Pdus:
    return [*pdus, *rng.sample(pdus, rng.randint(1, len(pdus)))]


def item_length(rng: Rng, pdus: Pdus) -> Pdus:
    """Give an item or sub-item of the association request a length other than its own."""
    request = bytearray(pdus[0])
    if len(request) < 80 or request[0] != 0x01:
        return pdus

    starts = []
    at = 74
    while at + 4 <= len(request):
        starts.append(at)
        kind, _, size = struct.unpack_from(">BBH", request, at)
        # Step into a context or the user information, over every other item.
        at += {0x20: 8, 0x21: 8, 0x50: 4}.get(kind, 4 + size)

    at = rng.choice(starts)
    near = struct.unpack_from(">H", request, at + 2)[0]
    request[at + 2 : at + 4] = struct.pack(
        ">H", rng.choice((0, 1, 3, near ^ 1, near + 1 & 0xFFFF, 0x7FFF, 0xFFFF))
    )
    return [bytes(request), *pdus[1:]]


def many_items(rng: Rng, pdus: Pdus) -> Pdus:
    """Append hundreds or thousands of items to the association request."""
    context = item(0x20, b"\1\0\0\0" + item(0x30, b"1.2") + item(0x40, b"1.2"))
    repeated = rng.choice((context, item(0x55, b"x"), item(0, b"")))
    request = bytearray(pdus[0] + repeated * rng.choice((200, 3000)))
    _with_length(request)
    return [bytes(request), *pdus[1:]]


def noise(rng: Rng, pdus: Pdus) -> Pdus:
    number = rng.randint(0, len(pdus))
    return [*pdus[:number], rng.randbytes(rng.randint(1, 3000)), *pdus[number:]]


MUTATIONS: tuple[Callable[[Rng, Pdus], Pdus], ...] = (
    flip, overwrite, truncate, cut_off, duplicate, swap, leave_out, insert, pdu_length, pdv_length, context_id,
    control_header, element_length, element_missing, element_value, interleave, after_release, item_length, many_items,
    noise,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One mutated conversation."""

    number: int
    mutations: tuple[str, ...]
    pdus: tuple[bytes, ...]

    @property
    def stream(self) -> bytes:
        return b"".join(self.pdus)

    @property
    def name(self) -> str:
        return f"case {self.number} ({', '.join(self.mutations)})"


def case(seed: int, number: int) -> Case:
    """Case `number` of a seed. Mutations come in turn; some cases combine several."""
    rng = Rng(f"{seed}:{number}")
    pdus = conversation(rng, f"1.2.{seed}.{number}")
    chosen = [MUTATIONS[number % len(MUTATIONS)]]
    while rng.random() < 0.3:
        chosen.append(rng.choice(MUTATIONS))
    for mutation in chosen:
        pdus = mutation(rng, pdus) or pdus
    return Case(number, tuple(mutation.__name__ for mutation in chosen), tuple(pdus))


# The outcomes that are allowed.


def offered(stream: bytes) -> set[bytes]:
    """Digests of the data sets that are complete in a stream, by an independent parser.

    If a data set begins before its command set, the stream does not say which fragments belong
    together. Then two readings count: the fragments since the last command set, and those since
    the last data set.
    """
    found: set[bytes] = set()
    since_command = bytearray()
    since_data = bytearray()

    for kind, body in _pdus(stream):
        for control, value in _pdvs(body) if kind == _P_DATA else ():
            if control & 1:
                since_command.clear()
                continue
            since_command += value
            since_data += value
            if control & 2:
                found |= {
                    hashlib.sha256(since_command).digest(),
                    hashlib.sha256(since_data).digest(),
                }
                since_command.clear()
                since_data.clear()

    return found


def acknowledged(heard: bytes) -> Counter[str]:
    """SOP Instance UIDs of the C-STORE-RSPs with status 0x0000 in what the node has answered."""
    found: Counter[str] = Counter()
    for kind, body in _pdus(heard):
        for _, value in _pdvs(body) if kind == _P_DATA else ():
            elements: dict[int, bytes] = {}
            while len(value) >= 8:
                _, number, length = struct.unpack_from("<HHL", value)
                elements[number] = value[8 : 8 + length]
                value = value[8 + length :]
            if elements.get(0x0100) == b"\x01\x80" and elements.get(0x0900) == b"\0\0":
                found[elements.get(0x1000, b"").rstrip(b"\0 ").decode("ascii", "replace")] += 1
    return found


def _pdus(stream: bytes) -> Iterator[tuple[int, bytes]]:
    while len(stream) >= 6:
        kind, _, length = struct.unpack_from(">BBL", stream)
        if len(stream) < 6 + length:
            return
        yield kind, stream[6 : 6 + length]
        stream = stream[6 + length :]


def _pdvs(body: bytes) -> list[tuple[int, bytes]]:
    """(message control header, fragment) of each PDV, up to the first that is malformed."""
    found = []
    while len(body) >= 6:
        length, _, control = struct.unpack_from(">LBB", body)
        if length < 2 or len(body) < 4 + length:
            break
        found.append((control, body[6 : 4 + length]))
        body = body[4 + length :]
    return found
