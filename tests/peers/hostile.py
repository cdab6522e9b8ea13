"""A hostile network: valid conversations, everything that can be done to their bytes, and crowds of connections.

Seeded: a case is its seed and number, and can be had again alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import yaml

from daemon.scu import send
from daemon.spool import Spool
from tests.peers.footprint import Footprint, footprint
from tests.peers.harness import DEADLINE_S, wait_until

CR, SC = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.7"
VERIFICATION, COMMITMENT = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CONTEXTS = {1: (VERIFICATION, IMPLICIT), 3: (CR, EXPLICIT), 5: (SC, EXPLICIT), 7: (COMMITMENT, IMPLICIT)}
RELEASE_RQ = b"\x05\0\0\0\0\x04\0\0\0\0"
ABORT = b"\x07\0\0\0\0\x04\0\0\0\0"
_P_DATA = 0x04
_ASSOCIATED_S = 1.0  # an association request that is not answered by then is no valid one
_ANSWERED_S = 0.1  # nothing more comes after so long: only how much of the answers is seen hangs on it
_DRIP_S = 0.2  # between two words of a crowd
_STOPS_S = 60.0  # twice what the node gives what it is receiving
_EXTREMES = (0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

Rng = random.Random
Pdus = list[bytes]


# What is valid: PS3.8 9.3, PS3.7 6.3.1.


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_rq(calling: str = "TESTER", called: str = "PLEURA") -> bytes:
    """An A-ASSOCIATE-RQ with each kind of sub-item that has been defined (PS3.7 D.3.3)."""
    contexts = b"".join(
        item(0x20, bytes([number, 0, 0, 0]) + item(0x30, abstract.encode()) + item(0x40, syntax.encode()))
        for number, (abstract, syntax) in CONTEXTS.items()
    )
    uid = COMMITMENT.encode()
    user = (
        item(0x51, struct.pack(">L", 16384))
        + item(0x52, b"1.2.3")
        + item(0x53, b"\0\1\0\1")  # asynchronous operations window
        + item(0x54, struct.pack(">H", len(uid)) + uid + b"\0\1")  # roles
        + item(0x55, b"HOSTILE")
        + item(0x56, struct.pack(">H", len(uid)) + uid + b"\0\0\0\0")  # extended negotiation
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
    """`control`: 1 command, 2 last."""
    return struct.pack(">LBB", len(value) + 2, context_id, control) + value


def p_data(*pdvs: bytes) -> bytes:
    return pdu(_P_DATA, b"".join(pdvs))


def echo_rq(message_id: int = 1) -> bytes:
    command = command_set({0x0002: VERIFICATION, 0x0100: 0x0030, 0x0110: message_id, 0x0800: 0x0101})
    return p_data(pdv(1, 3, command))


def store_command(message_id: int, uid: str, sop_class: str = CR) -> bytes:
    return command_set({0x0002: sop_class, 0x0100: 0x0001, 0x0110: message_id, 0x0700: 0, 0x0800: 0x0001, 0x1000: uid})


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
    command, data = store_command(message_id, uid, sop_class), data_set(uid, size, sop_class)
    cuts = sorted(rng.sample(range(1, len(data)), rng.randint(0, 3)))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    pieces = [pdv(context_id, 2 * (number == len(parts)), part) for number, part in enumerate(parts, start=1)]
    heads = [pdv(context_id, 3, command)]
    if rng.random() < 0.2:
        heads = [pdv(context_id, 1, command[:40]), pdv(context_id, 3, command[40:])]
    if rng.random() < 0.3:
        return [p_data(*heads, *pieces)]
    return [p_data(one) for one in (*heads, *pieces)]


def report_pdus(rng: Rng) -> Pdus:
    """N-EVENT-REPORT or N-ACTION of storage commitment (PS3.4 J.3), its information garbage more often than not."""
    event = rng.random() < 0.5
    elements: dict[int, int | str] = {0x0110: 9, 0x0800: 0x0001}
    instance = "1.2.840.10008.1.20.1.1"
    if event:
        elements |= {0x0002: COMMITMENT, 0x0100: 0x0100, 0x1000: instance, 0x1002: rng.choice((1, 2, 3, 0xFFFF))}
    else:
        elements |= {0x0003: COMMITMENT, 0x0100: 0x0130, 0x1001: instance, 0x1008: rng.choice((1, 2, 0xFFFF))}
    uid = _value("1.2.3.4")
    reference = struct.pack("<HHL", 8, 0x1150, 26) + _value(CR) + struct.pack("<HHL", 8, 0x1155, 8) + uid
    items = struct.pack("<HHL", 0xFFFE, 0xE000, len(reference)) + reference
    information = (
        struct.pack("<HHL", 8, 0x1195, 8) + uid + struct.pack("<HHL", 8, 0x1199, len(items)) + items,
        rng.randbytes(rng.randint(0, 300)),
        struct.pack("<HHL", 8, 0x1199, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) * 400,  # nested
        b"",
    )
    return [p_data(pdv(7, 3, command_set(elements))), p_data(pdv(7, 2, rng.choice(information)))]


def conversation(rng: Rng, name: str) -> Pdus:
    """A valid conversation: each object under a UID that begins with `name`."""
    said = [associate_rq()]
    for number in range(1, rng.randint(2, 4)):
        kind = rng.random()
        if kind < 0.2:
            said.append(echo_rq(number))
        elif kind < 0.35:
            said += report_pdus(rng)
        else:
            said += store_pdus(rng, number, f"{name}.{number}", rng.choice((100, 1000, 40_000)))
    return [*said, RELEASE_RQ]


# What can be done to it. Each takes the PDUs and gives others.


def _at(rng: Rng, pdus: Pdus, change: Callable[[bytearray], None]) -> Pdus:
    """One PDU changed in place, more often than not one after the association request."""
    number = rng.randrange(len(pdus)) if rng.random() < 0.3 else rng.randrange(min(1, len(pdus) - 1), len(pdus))
    changed = bytearray(pdus[number])
    change(changed)
    return [*pdus[:number], bytes(changed), *pdus[number + 1 :]]


def _of_data(rng: Rng, pdus: Pdus, change: Callable[[bytearray], None], command: bool = False) -> Pdus:
    """One P-DATA-TF changed in place; `command`: one that begins with a command set."""
    numbers = [
        number
        for number, one in enumerate(pdus)
        if len(one) > 12 and one[0] == _P_DATA and (not command or one[11] & 1)
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
    def change(one: bytearray) -> None:
        for _ in range(rng.randint(1, 8)):
            one[rng.randrange(len(one))] ^= 1 << rng.randrange(8)

    return _at(rng, pdus, change)


def overwrite(rng: Rng, pdus: Pdus) -> Pdus:
    def change(one: bytearray) -> None:
        at = rng.randrange(len(one))
        value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * rng.randint(1, 8)
        one[at : at + len(value)] = value

    return _at(rng, pdus, change)


def truncate_one(rng: Rng, pdus: Pdus) -> Pdus:
    def change(one: bytearray) -> None:
        del one[rng.randrange(len(one)) :]
        if rng.random() < 0.5 and len(one) >= 6:
            _with_length(one)

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
    """A PDU of any type, with any length said and any number of bytes there."""
    kind = rng.choice((*range(0x01, 0x08), rng.randrange(256)))
    body = rng.randbytes(rng.choice((0, 1, 4, 10, 68, 200)))
    length = len(body) if rng.random() < 0.6 else rng.choice(_EXTREMES)
    number = rng.randint(0, len(pdus))
    return [*pdus[:number], struct.pack(">BBL", kind, 0, length) + body, *pdus[number:]]


def pdu_length(rng: Rng, pdus: Pdus) -> Pdus:
    def change(one: bytearray) -> None:
        near = max(0, len(one) - 6 + rng.choice((-2, -1, 1, 2, 6)))
        one[2:6] = struct.pack(">L", rng.choice((*_EXTREMES, near, near)))

    return _at(rng, pdus, change)


def pdv_length(rng: Rng, pdus: Pdus) -> Pdus:
    def change(one: bytearray) -> None:
        near = struct.unpack_from(">L", one, 6)[0] + rng.choice((-2, -1, 1, 2))
        one[6:10] = struct.pack(">L", rng.choice((*_EXTREMES, near & 0xFFFFFFFF)))

    return _of_data(rng, pdus, change)


def context_id(rng: Rng, pdus: Pdus) -> Pdus:
    def change(one: bytearray) -> None:
        one[10] = rng.choice((0, 1, 2, 3, 5, 7, 9, 255))

    return _of_data(rng, pdus, change)


def control_header(rng: Rng, pdus: Pdus) -> Pdus:
    def change(one: bytearray) -> None:
        one[11] = rng.choice((0, 1, 2, 3, 4, 0x80, 0xFF))

    return _of_data(rng, pdus, change)


def element_length(rng: Rng, pdus: Pdus) -> Pdus:
    """A command element that says it is longer, or shorter, than it is."""

    def change(one: bytearray) -> None:
        starts = list(_command_elements(one))
        at = rng.choice(starts) if starts else 12
        one[at + 4 : at + 8] = struct.pack("<L", rng.choice((*_EXTREMES, 64, 0xFFFF)))
        _with_length(one)

    return _of_data(rng, pdus, change, command=True)


def element_missing(rng: Rng, pdus: Pdus) -> Pdus:
    def change(one: bytearray) -> None:
        starts = [*_command_elements(one)]
        if not starts:
            return
        at = rng.choice(starts)
        size = 8 + struct.unpack_from("<L", one, at + 4)[0]
        del one[at : at + size]
        one[6:10] = struct.pack(">L", max(0, struct.unpack_from(">L", one, 6)[0] - size))
        _with_length(one)

    return _of_data(rng, pdus, change, command=True)


def element_value(rng: Rng, pdus: Pdus) -> Pdus:
    """Any value in a command element: another command field, a UID of other bytes."""

    def change(one: bytearray) -> None:
        starts = [*_command_elements(one)]
        if not starts:
            return
        at = rng.choice(starts)
        size = struct.unpack_from("<L", one, at + 4)[0]
        fields = (0x0020, 0x0021, 0x0010, 0x0FFF, 0x8001, 0x8030, 0x0140, 0x0150, 0x0110, 0x0120, 0x0101)
        value = struct.pack("<H", rng.choice(fields)) if size == 2 else rng.randbytes(min(size, 64))
        one[at + 8 : at + 8 + len(value)] = value

    return _of_data(rng, pdus, change, command=True)


def _command_elements(one: bytearray) -> Iterator[int]:
    """Where the elements of the command set in a P-DATA-TF begin."""
    at, end = 12, min(len(one), 10 + struct.unpack_from(">L", one, 6)[0])
    while at + 8 <= end:
        yield at
        at += 8 + int(struct.unpack_from("<L", one, at + 4)[0])


def interleave(rng: Rng, pdus: Pdus) -> Pdus:
    """Two messages at once, on one context or two."""
    name = f"1.2.{rng.getrandbits(48)}"
    one, other = (store_pdus(rng, number, f"{name}.{number}", 300) for number in (1, 2))
    mixed = []
    while one or other:
        take = one if one and (not other or rng.random() < 0.5) else other
        mixed.append(take.pop(0))
    return [pdus[0], *mixed, RELEASE_RQ]


def after_release(rng: Rng, pdus: Pdus) -> Pdus:
    return [*pdus, *rng.sample(pdus, rng.randint(1, len(pdus)))]


def item_length(rng: Rng, pdus: Pdus) -> Pdus:
    """An item or sub-item of the association request with a length that is not its own."""
    request = bytearray(pdus[0])
    if len(request) < 80 or request[0] != 0x01:
        return pdus
    starts, at = [], 74
    while at + 4 <= len(request):
        starts.append(at)
        kind, _, size = struct.unpack_from(">BBH", request, at)
        # Into a context or the user information; over everything else.
        at += {0x20: 8, 0x21: 8, 0x50: 4}.get(kind, 4 + size)
    at = rng.choice(starts)
    near = struct.unpack_from(">H", request, at + 2)[0]
    request[at + 2 : at + 4] = struct.pack(">H", rng.choice((0, 1, 3, near ^ 1, near + 1 & 0xFFFF, 0x7FFF, 0xFFFF)))
    return [bytes(request), *pdus[1:]]


def many_items(rng: Rng, pdus: Pdus) -> Pdus:
    """An association request that goes on and on."""
    context = item(0x20, b"\1\0\0\0" + item(0x30, b"1.2") + item(0x40, b"1.2"))
    repeated = rng.choice((context, item(0x55, b"x"), item(0, b"")))
    request = bytearray(pdus[0] + repeated * rng.choice((200, 3000)))
    _with_length(request)
    return [bytes(request), *pdus[1:]]


def noise(rng: Rng, pdus: Pdus) -> Pdus:
    number = rng.randint(0, len(pdus))
    return [*pdus[:number], rng.randbytes(rng.randint(1, 3000)), *pdus[number:]]


MUTATIONS: tuple[Callable[[Rng, Pdus], Pdus], ...] = (
    flip, overwrite, truncate_one, cut_off, duplicate, swap, leave_out, insert, pdu_length, pdv_length, context_id,
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
    def said(self) -> bytes:
        return b"".join(self.pdus)

    @property
    def name(self) -> str:
        return f"case {self.number} ({', '.join(self.mutations)})"


def case(seed: int, number: int) -> Case:
    """Case `number` of a seed: each mutation in turn, sometimes with others on top."""
    rng = Rng(f"{seed}:{number}")
    pdus = conversation(rng, f"1.2.{seed}.{number}")
    chosen = [MUTATIONS[number % len(MUTATIONS)]]
    while rng.random() < 0.3:
        chosen.append(rng.choice(MUTATIONS))
    for mutation in chosen:
        pdus = mutation(rng, pdus) or pdus
    return Case(number, tuple(one.__name__ for one in chosen), tuple(pdus))


# What may come of it.


def offered(said: bytes) -> set[bytes]:
    """The data sets that are complete in a stream, by an independent reading of it; digests.

    Generous where a stream has a data set begin before its command, for nobody can say what belongs together there:
    what follows the last command set, and what follows the last data set, are both taken for one.
    """
    found: set[bytes] = set()
    since_command, since_data = bytearray(), bytearray()
    for kind, body in _pdus(said):
        for control, value in _pdvs(body) if kind == _P_DATA else ():
            if control & 1:
                since_command.clear()
                continue
            since_command += value
            since_data += value
            if control & 2:
                found |= {hashlib.sha256(since_command).digest(), hashlib.sha256(since_data).digest()}
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
                elements[number], value = value[8 : 8 + length], value[8 + length :]
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
    """(message control header, fragment) of each; of a PDU that is malformed anywhere, what is before that place."""
    found = []
    while len(body) >= 6:
        length, _, control = struct.unpack_from(">LBB", body)
        if length < 2 or len(body) < 4 + length:
            break
        found.append((control, body[6 : 4 + length]))
        body = body[4 + length :]
    return found


# The node, and whoever talks to it.


class Receive:
    """`pleura receive` as a process of its own."""

    def __init__(self, folder: Path, port: int, quicker: Mapping[str, float] | None = None) -> None:
        """`quicker`: constants of the node as "module:name", so that nobody waits half a minute here."""
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port
        self.log = folder / "log.txt"
        self._ledger = folder / "ledger.db"
        settings = {
            "host": "127.0.0.1",
            "port": port,
            "spool": str(folder / "spool"),
            "ledger": f"sqlite:///{self._ledger}",
            "spool_reserve_mb": 1,
            "retention": {"free_mb": 0},
        }
        (folder / "pleura.yaml").write_text(yaml.safe_dump(settings))
        lines = ["import faulthandler, importlib, signal, sys; faulthandler.register(signal.SIGUSR1)"]
        for target, value in (quicker or {}).items():
            module, name = target.split(":")
            lines.append(f"m = importlib.import_module({module!r}); m.{name}; m.{name} = {value!r}")
        lines.append("from daemon.cli import main; sys.exit(main(sys.argv[1:]))")
        self._command = [sys.executable, "-c", "\n".join(lines), "receive", "-c", str(folder / "pleura.yaml")]

    def __enter__(self) -> Receive:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "READY\n", self.log.read_text()
        self.spool = Spool(self.log.parent / "spool")
        self._threads = self.footprint().threads
        self._descriptors: int | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(_STOPS_S)
        except subprocess.TimeoutExpired:  # where it hangs is in its log
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            raise
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
        assert status == 0 or error is not None, self.log.read_text()[-2000:]

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S, source_address=(address, 0))

    def footprint(self) -> Footprint:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return footprint(self.process.pid)

    def at_rest(self) -> Footprint:
        """What it holds once no association is left: as many threads as at READY, descriptors as at the first call."""

        def back() -> Footprint | None:
            now = self.footprint()
            is_back = now.threads <= self._threads and now.descriptors <= (self._descriptors or 0)
            return now if is_back else None

        if self._descriptors is None:  # the ledger's connections are open from the first object on
            wait_until("the first associations end", lambda: self.footprint().threads <= self._threads)
            self._descriptors = self.footprint().descriptors
        there: Footprint = wait_until(f"{self._threads} threads, {self._descriptors} descriptors again", back)
        return there

    def rows(self) -> list[tuple[str, str]]:
        """(SOP Instance UID, spool name) of all that was accepted."""
        with contextlib.closing(sqlite3.connect(self._ledger)) as connection:
            return connection.execute("SELECT sop_instance_uid, spool_name FROM instances").fetchall()


def data_set_of(part10: bytes) -> bytes:
    """What follows the file meta information (PS3.10 7.1), whose length its first element tells."""
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


def sample(folder: Path, size: int = 30_000) -> Path:
    """A file for honest(); its UID is TEMPLATE_UID."""
    from daemon.wire import StoreRequest, file_meta

    request = StoreRequest(1, CR, TEMPLATE_UID, 0)
    meta = file_meta(request, EXPLICIT, ("1.2.3", "TEST"), "TESTER")
    path = folder / "template.dcm"
    path.write_bytes(meta + data_set(TEMPLATE_UID, size))
    return path


TEMPLATE_UID = "1.2.826.0.1.1000000000"


def copy(template: bytes, path: Path, number: int) -> Path:
    """`template`, whose UID is TEMPLATE_UID, as a file of its own UID."""
    path.write_bytes(template.replace(TEMPLATE_UID.encode(), uid_of(number).encode()))
    return path


def uid_of(number: int) -> str:
    return f"1.2.826.0.1.{2_000_000_000 + number}"


@dataclass
class Account:
    """What was said to the node, and what it has acknowledged."""

    offered: set[bytes] = field(default_factory=set)
    acknowledged: Counter[str] = field(default_factory=Counter)
    cases: int = 0

    def violations(self, node: Receive) -> list[str]:
        """What is in the spool and was never completely sent, and what was acknowledged and is not there."""
        rows = node.rows()
        names, known = set(node.spool.names()), {name for _, name in rows}
        bad = [f"file without a row: {name}" for name in names - known]
        bad += [f"row without a file: {name}" for name in known - names]
        bad += [f"left over: {path.name}" for path in node.spool.folder.rglob("*.part")]
        by_uid = Counter(uid for uid, _ in rows)
        bad += [f"acknowledged, not there: {uid!r}" for uid, times in self.acknowledged.items() if by_uid[uid] < times]
        for uid, name in rows:
            if name in names and hashlib.sha256(data_set_of(node.spool.read(name))).digest() not in self.offered:
                bad.append(f"never sent like this: {uid}")
        return bad


@dataclass
class Honest:
    """A sender that keeps to the standard, and tries again when it is not let in, as each does."""

    node: Receive
    account: Account
    template: bytes
    folder: Path
    stored: int = 0
    tried: int = 0

    def store(self) -> str:
        """Send one object until it is answered with 0x0000, and find it in the spool. Returns its UID."""
        self.stored += 1
        path = copy(self.template, self.folder / "honest.dcm", self.stored)
        self.account.offered.add(hashlib.sha256(data_set_of(path.read_bytes())).digest())

        def accepted() -> bool:
            self.tried += 1
            (sent,) = send([path], ("127.0.0.1", self.node.port), "PLEURA", "HONEST")
            assert sent.status in (0, None), f"0x{sent.status:04X}"
            return sent.ok

        wait_until("an honest sender gets through", accepted, every_s=0.2)
        uid = uid_of(self.stored)
        self.account.acknowledged[uid] += 1
        kept = [name for known, name in self.node.rows() if known == uid]
        assert kept
        assert all(data_set_of(self.node.spool.read(name)) == data_set_of(path.read_bytes()) for name in kept)
        return uid

    @contextlib.contextmanager
    def meanwhile(self) -> Iterator[None]:
        """While it lasts, objects are sent, one after another; at least one."""
        over = threading.Event()

        def run() -> None:
            while True:
                self.store()
                if over.wait(0.1):
                    return

        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(run)
            try:
                yield
            finally:
                over.set()
            running.result()


def converse(node: Receive, pdus: Sequence[bytes], rng: Rng) -> bytes:
    """Say it, in pieces of any size, and go: politely, rudely, or with half the line closed. Returns the answers.

    Mostly the answer to the association request is waited for, as PS3.8 Table 9-10 has it, else nothing else is tried.
    """
    heard = b""
    with node.connect() as connection, contextlib.suppress(OSError):  # it may well throw us out before we have done
        for number, one in enumerate(pdus):
            _say(connection, one, rng)
            if rng.random() < (0.95 if number == 0 else 0.2):
                heard += _hear(connection, _ASSOCIATED_S if number == 0 else _ANSWERED_S)
        if rng.random() < 0.2:
            connection.shutdown(socket.SHUT_WR)
        while part := _hear(connection, _ANSWERED_S):
            heard += part
        if rng.random() < 0.3:
            be_rude(connection)
    return heard


def _say(connection: socket.socket, said: bytes, rng: Rng) -> None:
    connection.settimeout(_ASSOCIATED_S)
    while said:
        said = said[connection.send(said[: rng.choice((1, 5, 100, 5000, len(said)))]) :]


def _hear(connection: socket.socket, within_s: float) -> bytes:
    connection.settimeout(within_s)
    try:
        return connection.recv(65536)
    except TimeoutError:
        return b""


def be_rude(connection: socket.socket) -> None:
    """Closing it will reset it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def fuzz(node: Receive, seed: int, numbers: Sequence[int], account: Account, at_once: int = 8) -> None:
    """Play these cases, `at_once` at a time."""

    def play(number: int) -> tuple[Case, bytes]:
        one = case(seed, number)
        return one, converse(node, one.pdus, Rng(f"{seed}:{number}:conduct"))

    with ThreadPoolExecutor(at_once) as threads:
        for one, heard in threads.map(play, numbers):
            account.offered |= offered(one.said)
            account.acknowledged.update(acknowledged(heard))
            account.cases += 1


def connects(node: Receive, number: int, at_once: int = 4) -> None:
    """Bare TCP connects at full speed, as load balancers and port scanners make them: half end with a reset."""

    def probe(which: int) -> None:
        # Other addresses of this machine, for the ports of one are used up by what was closed.
        with contextlib.suppress(ConnectionError), node.connect(f"127.0.0.{2 + which % 50}") as connection:
            if which % 2:
                be_rude(connection)

    def probes(first: int) -> None:
        for which in range(first, number, at_once):
            probe(which)

    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(probes, range(at_once)))


def wait_thrown_out(connection: socket.socket) -> bytes:
    """Read until the node ends the connection. Returns what it said."""
    heard = b""
    connection.settimeout(DEADLINE_S)
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            heard += part
    return heard


class Crowd:
    """Connections that each say the same, a little at a time and without end. Who is thrown out comes back."""

    def __init__(
        self, node: Receive, number: int, said: tuple[bytes, bytes, bytes], at_once: int = 1, reads: bool = True
    ) -> None:
        """Each says the first, and once that is answered the second, then the third over and over, `at_once` bytes.

        Who does not read has a small window, so that the node is soon left with what it wants to say.
        """
        self.ended = 0
        self._node, self._number, (self._first, self._next, self._then) = node, number, said
        self._at_once, self._reads = at_once, reads
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        said: dict[socket.socket, int] = {}
        while not self._over.is_set():
            while len(said) < self._number and not self._over.is_set():  # who was thrown out comes back
                connection = socket.socket()
                try:
                    if not self._reads:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                    connection.connect(("127.0.0.1", self._node.port))
                    connection.settimeout(_ASSOCIATED_S)
                    connection.sendall(self._first)
                    if self._first:
                        connection.recv(500)  # no more than the answer to the association request
                        connection.sendall(self._next)
                    connection.setblocking(False)
                    said[connection] = 0
                except OSError:
                    connection.close()
            for connection in [*said]:
                try:
                    self._go_on(connection, said)
                except OSError:
                    self.ended += 1
                    del said[connection]
                    connection.close()
            self._over.wait(_DRIP_S)
        for connection in said:
            connection.close()

    def _go_on(self, connection: socket.socket, said: dict[socket.socket, int]) -> None:
        with contextlib.suppress(BlockingIOError):
            if self._reads and not connection.recv(65536):
                raise ConnectionResetError
        with contextlib.suppress(BlockingIOError):
            if self._then:
                at = said[connection] % len(self._then)
                said[connection] += connection.send(self._then[at : at + self._at_once])


def bad_log_lines(log: Path) -> list[str]:
    """The lines of a node's log that are not of its one-line form, or hold what a peer has sent: tracebacks first."""
    import re

    form = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) pleura\.\w+ [ -~]+")
    return [
        line
        for line in log.read_text(errors="replace").splitlines()
        if not form.fullmatch(line) or "Geheim" in line or "could not be" in line
    ]
