"""A receiving node in this process, and raw senders for messages that no toolkit would send."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import decode

from daemon.config import Config
from daemon.dicom.acceptor import Limits
from daemon.ledger import Ledger
from daemon.ledger.schema import instances
from daemon.receive.scp import Receiver
from daemon.spool import Spool

CR = "1.2.840.10008.5.1.4.1.1.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
JPEG = "1.2.840.10008.1.2.4.50"
JPEG_LS = "1.2.840.10008.1.2.4.80"
DEADLINE_S = 30.0
FreePort = Callable[[], int]
Program = Callable[[str], str]


class Node:
    """A receiver with its settings, ledger and spool."""

    def __init__(
        self, folder: Path, port: int, limits: Limits | None = None, **settings: Any
    ) -> None:
        self.config = Config(
            host=settings.pop("host", "127.0.0.1"),
            port=port,
            spool=settings.pop("spool", folder / "spool"),
            ledger=f"sqlite:///{folder / 'ledger.db'}",
            spool_reserve_mb=settings.pop("spool_reserve_mb", 0),
            **settings,
        )

        self.port = port
        self.ledger = Ledger(self.config.ledger)
        self.spool = Spool(self.config.spool)
        self.receiver = Receiver(self.config, self.ledger, self.spool, limits)
        self.running = False
        # pynetdicom leaves an SCU's socket open if the peer closes first.
        self.sockets: list[socket.socket] = []

    def start(self) -> None:
        self.receiver.start()
        self.running = True

    def stop(self) -> None:
        if self.running:
            self.running = False
            self.receiver.stop()
        for connection in self.sockets:
            connection.close()

    def rows(self) -> list[Any]:
        engine = sa.create_engine(self.config.ledger)
        with engine.connect() as conn:
            found = list(conn.execute(sa.select(instances).order_by(instances.c.id)).mappings())
        engine.dispose()
        return found

    def associate(self, calling: str = "TESTER", called: str = "PLEURA") -> Association:
        entity = AE(calling)
        for sop_class in (CR, SC):
            entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
        keep = [
            (evt.EVT_CONN_OPEN, lambda event: self.sockets.append(event.assoc.dul.socket.socket))
        ]
        return entity.associate("127.0.0.1", self.port, ae_title=called, evt_handlers=keep)

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(
            ("127.0.0.1", self.port), timeout=DEADLINE_S, source_address=(address, 0)
        )


def image(
    sop_instance_uid: str = "1.2.3.4", sop_class_uid: str = CR, size_bytes: int = 100
) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = UID(sop_class_uid)
    dataset.SOPInstanceUID = UID(sop_instance_uid)
    dataset.PatientName = "Verraeter^Geheim"
    dataset.PixelData = b"\0" * size_bytes
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def siim(data: Path, count: int) -> dict[str, list[Path]]:
    """The first `count` files of each of the two transfer syntaxes in siim/."""
    found: dict[str, list[Path]] = {JPEG: [], JPEG_LS: []}
    for path in sorted((data / "siim" / "dicom").glob("*.dcm")):
        found[dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID].append(path)
        if min(map(len, found.values())) >= count:
            break
    return {syntax: paths[:count] for syntax, paths in found.items()}


def storescu(
    peer: Program, node: Node, files: list[Path], *options: str
) -> subprocess.CompletedProcess[str]:
    command = [
        peer("storescu"),
        "-v",
        "-aet",
        "XRAY1",
        "-aec",
        "PLEURA",
        *options,
        "127.0.0.1",
        str(node.port),
    ]
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True, timeout=60)


def associate_rq(
    calling: bytes,
    sop_class_uid: str = "1.2.840.10008.1.1",
    maximum_pdu_bytes: int = 16384,
    called: bytes = b"PLEURA",
) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2) for one SOP class in Implicit VR Little Endian.

    `calling` and `called` may be any bytes.
    """

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    context = b"\x01\0\0\0" + item(0x30, sop_class_uid.encode()) + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x51, struct.pack(">L", maximum_pdu_bytes)) + item(0x52, b"1.2.3")
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    body = struct.pack(">HH16s16s32s", 1, 0, called.ljust(16), calling.ljust(16), b"") + items
    return struct.pack(">BBL", 1, 0, len(body)) + body


# The bits of a PDV's message control header (PS3.8 E.2).
COMMAND = 1
DATA = 0
LAST = 2
Pdv = tuple[int, bytes]


def p_data(*pdvs: Pdv, context_id: int = 1) -> bytes:
    body = b"".join(
        struct.pack(">LBB", len(value) + 2, context_id, flags) + value for flags, value in pdvs
    )
    return struct.pack(">BBL", 4, 0, len(body)) + body


def c_store(sop_instance_uid: str = "1.2.3.40", sop_class_uid: str = CR, **other: bytes) -> bytes:
    """The command set of a C-STORE-RQ. `other` replaces elements, as in E0110=b""."""
    elements = {
        0x0002: sop_class_uid.encode() + b"\0" * (len(sop_class_uid) % 2),
        0x0100: b"\x01\0",
        0x0110: b"\x07\0",
        0x0700: b"\0\0",
        0x0800: b"\x01\0",
        0x1000: sop_instance_uid.encode(),
    } | {int(name[1:], 16): value for name, value in other.items()}
    return b"".join(
        struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements.items()
    )


class RawSender:
    """An association over a plain socket, for messages that no toolkit would send."""

    def __init__(
        self,
        node: Node,
        maximum_pdu_bytes: int = 16384,
        address: str = "127.0.0.1",
        calling: bytes = b"TESTER",
        sop_class_uid: str = CR,
    ) -> None:
        self.socket = node.connect(address)
        self.socket.sendall(associate_rq(calling, sop_class_uid, maximum_pdu_bytes))
        assert self.answer()[0] == 0x02

    def __enter__(self) -> RawSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *pdus: bytes) -> None:
        self.socket.sendall(b"".join(pdus))

    def answer(self) -> tuple[int, bytes]:
        """The next PDU's type and body; type 0 at the end of the connection."""
        header = self._exactly(6)
        return (
            (header[0], self._exactly(int.from_bytes(header[2:], "big")))
            if len(header) == 6
            else (0, b"")
        )

    def status(self) -> int:
        """The status of the next response; -1 if the association ends instead."""
        kind, body = self.answer()
        if kind != 0x04:
            return -1
        response = decode(BytesIO(body[6:]), True, True)
        assert response.MessageIDBeingRespondedTo == 7
        assert response.AffectedSOPClassUID
        return int(response.Status)

    def _exactly(self, size: int) -> bytes:
        got = b""
        with contextlib.suppress(ConnectionError):
            while len(got) < size and (more := self.socket.recv(size - len(got))):
                got += more
        return got


BODY = bytes(range(256)) * 40
