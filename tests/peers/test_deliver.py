"""The deliver role against DCMTK's archives and hostile archives: every owed result arrives, or is
visibly refused.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit
from pynetdicom import AE, evt
from pynetdicom.pdu import P_DATA_TF

from daemon.backoff import Backoff
from daemon.commands.send import send
from daemon.config import Config, DicomDestination, FolderDestination
from daemon.deliver.deliverer import Deliverer
from daemon.deliver.folder import Folder
from daemon.deliver.limits import DeliverLimits
from daemon.dicom.link import LinkDownError
from daemon.dicom.negotiation import (
    ContextResult,
    Decision,
    UserInformation,
    read_request,
    write_accept,
)
from daemon.dicom.outgoing import Outgoing, uncompressed
from daemon.dicom.requestor import DEFAULT_LIMITS, Answer, Limits
from daemon.dicom.tables import VERIFICATION
from daemon.ledger import Arrival, Completion, DeliveryState, Ledger, StoredResult
from daemon.ledger.schema import deliveries, results
from daemon.spool import Spool, write_durably
from tools.peers.archive import serving
from tools.peers.waiting import wait_until

SC = "1.2.840.10008.5.1.4.1.1.7"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
DEADLINE_S = 30.0
FreePort = Callable[[], int]
Program = Callable[[str], str]


def overlay(uid: str) -> bytes:
    """A colour Secondary Capture in JPEG baseline, as a Part 10 file."""
    rows, columns = np.mgrid[0:64, 0:96]
    rgb = np.stack([rows * 3, columns * 2, (rows + columns) % 256], axis=-1).astype(np.uint8)
    jpeg = io.BytesIO()
    # Pillow writes YCbCr with 4:2:0 subsampling.
    Image.fromarray(rgb).save(jpeg, "JPEG", quality=90)

    dataset = common(uid, SC, JPEGBaseline8Bit)
    dataset.Rows = 64
    dataset.Columns = 96
    dataset.SamplesPerPixel = 3
    dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8
    dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = "10"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.PixelData = encapsulate([jpeg.getvalue()])
    dataset["PixelData"].VR = "OB"
    return part10(dataset)


def segmentation(uid: str, size_bytes: int = 1000) -> bytes:
    """An object of the Segmentation class; its content does not matter for sending."""
    dataset = common(uid, SEG, ExplicitVRLittleEndian)
    dataset.PixelData = b"\x55" * size_bytes
    dataset["PixelData"].VR = "OB"
    return part10(dataset)


def common(uid: str, sop_class_uid: str, syntax: str) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = uid
    dataset.PatientName = "Geheim^Vera"
    dataset.PatientID = "4711"
    dataset.StudyInstanceUID = "2.25.1"
    dataset.SeriesInstanceUID = "2.25.2"
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.Modality = ""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def part10(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Node:
    """A deliver role with its ledger and spool."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'ledger.db'}"
        self.ledger = Ledger(self.url)
        self.spool = Spool(folder / "spool")
        self.deliverer: Deliverer | None = None
        self.made: dict[str, bytes] = {}

    def owe(self, *objects: bytes, to: str = "pacs") -> None:
        """Record one analysed image whose results are owed to a destination."""
        self.ledger.receive([Arrival(self.spool.write(b"x"), SC, "1.2.3", "", "", "dimse", 1, 1)])
        (job,) = self.ledger.claim_images("test", 1)
        stored = []
        for data in objects:
            meta = dcmread(io.BytesIO(data), stop_before_pixels=True)
            kind = "SEG" if meta.SOPClassUID == SEG else "SC"
            syntax = meta.file_meta.TransferSyntaxUID
            stored.append(
                StoredResult(
                    kind, self.spool.write(data), meta.SOPClassUID, meta.SOPInstanceUID, str(syntax)
                )
            )
            self.made[meta.SOPInstanceUID] = data

        done = Completion("analysed", f"digest {time.monotonic_ns()}", results=tuple(stored))
        assert self.ledger.complete(job, done, {to: ("SEG", "SC")}) == "analysed"

    def start(
        self,
        *destinations: DicomDestination | FolderDestination,
        association: Limits = DEFAULT_LIMITS,
    ) -> None:
        config = Config(destinations=destinations, ledger=self.url)
        limits = DeliverLimits(association, Backoff(0.1, 0.4), idle_s=0.05)
        self.deliverer = Deliverer(config, self.ledger, self.spool, limits)
        self.deliverer.start()

    def stop(self) -> None:
        if self.deliverer:
            self.deliverer.stop()
        self.ledger.close()

    def counts(self) -> dict[str, int]:
        return {
            state: number
            for state, number in self.ledger.inspect.counts()["deliveries"].items()
            if number
        }

    def rows(self) -> dict[str, Any]:
        """SOP Instance UID -> its delivery."""
        engine = sa.create_engine(self.url)
        with engine.connect() as conn:
            joined = sa.select(deliveries, results.c.sop_instance_uid).join(results)
            found = {row["sop_instance_uid"]: row for row in conn.execute(joined).mappings()}
        engine.dispose()
        return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.stop()


def pauses(caplog: pytest.LogCaptureFixture) -> int:
    """How often the role logged that its destination has failed."""
    return sum("; again in" in record.getMessage() for record in caplog.records)


class StoreSCP:
    """DCMTK's storescp, which writes received bytes unchanged (+B) into a folder."""

    def __init__(self, program: str, port: int, folder: Path, *options: str) -> None:
        self.port = port
        self.folder = folder
        folder.mkdir(exist_ok=True)
        command = [program, "-aet", "ARCHIVE", "-od", str(folder), "+B", *options, str(port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until("storescp listens", self._listens)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def received(self) -> dict[str, Dataset]:
        found = (dcmread(path) for path in sorted(self.folder.iterdir()))
        return {str(dataset.SOPInstanceUID): dataset for dataset in found}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def storescp(peer: Program, tmp_path: Path) -> Iterator[Callable[..., StoreSCP]]:
    """storescp(port, option...) -> a listening storescp."""
    running: list[StoreSCP] = []

    def start(port: int, *options: str) -> StoreSCP:
        running.append(StoreSCP(peer("storescp"), port, tmp_path / "archive", *options))
        return running[-1]

    yield start
    for scp in running:
        scp.stop()


class Archive:
    """A pynetdicom SCP. `answer(SOP Instance UID)` returns the status, or None to abort."""

    def __init__(self, port: int, answer: Callable[[str], int | None]) -> None:
        self.stored: list[str] = []
        self.associations = 0
        self._answer = answer
        entity = AE("ARCHIVE")
        for sop_class in (SC, SEG):
            entity.add_supported_context(
                sop_class, [JPEGBaseline8Bit, ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            )
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._accepted)]
        self._open = contextlib.ExitStack()
        self.server = self._open.enter_context(serving(entity, port, handlers))

    def _accepted(self, _: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        status = self._answer(uid)
        if status is None:
            event.assoc.abort()
            return 0
        if status == 0:
            self.stored.append(uid)
        return status

    def stop(self) -> None:
        self._open.close()


@pytest.fixture
def archive(free_port: FreePort) -> Iterator[Callable[..., tuple[Archive, DicomDestination]]]:
    """archive(answer) -> a listening archive and its destination."""
    running: list[Archive] = []

    def start(answer: Callable[[str], int | None]) -> tuple[Archive, DicomDestination]:
        port = free_port()
        running.append(Archive(port, answer))
        return running[-1], pacs(port)

    yield start
    for archive in running:
        archive.stop()


def pacs(port: int) -> DicomDestination:
    return DicomDestination(name="pacs", ae_title="ARCHIVE", host="127.0.0.1", port=port)


def test_objects_arrive_as_they_are_over_one_association(
    node: Node, storescp: Callable[..., StoreSCP], free_port: FreePort
) -> None:
    # +xa accepts every transfer syntax.
    scp = storescp(free_port(), "+xa")
    node.owe(segmentation("2.25.10"), overlay("2.25.11"))
    node.start(pacs(scp.port))
    wait_until("both are stored", lambda: node.counts() == {"stored": 2})

    for uid, dataset in scp.received().items():
        source = dcmread(io.BytesIO(node.made[uid]))
        assert dataset == source
        assert dataset.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
    assert set(scp.received()) == {"2.25.10", "2.25.11"}


@pytest.mark.parametrize(
    ("option", "syntax"), [("+xe", ExplicitVRLittleEndian), ("+xi", ImplicitVRLittleEndian)]
)
def test_an_archive_without_jpeg_gets_decoded_pixels_under_the_same_uid(
    node: Node, storescp: Callable[..., StoreSCP], free_port: FreePort, option: str, syntax: str
) -> None:
    scp = storescp(free_port(), option)
    node.owe(overlay("2.25.11"), segmentation("2.25.10"))
    node.start(pacs(scp.port))
    wait_until("both are stored", lambda: node.counts() == {"stored": 2})

    source = dcmread(io.BytesIO(node.made["2.25.11"]))
    arrived = scp.received()["2.25.11"]
    assert arrived.file_meta.TransferSyntaxUID == syntax
    assert arrived.PhotometricInterpretation == "RGB"
    assert np.array_equal(pixel_array(arrived), pixel_array(source))
    assert arrived.LossyImageCompression == "01"
    assert arrived.LossyImageCompressionMethod == "ISO_10918_1"
    assert (
        scp.received()["2.25.10"].PixelData == dcmread(io.BytesIO(node.made["2.25.10"])).PixelData
    )


@pytest.mark.parametrize(
    ("character_set", "text"),
    [
        ("ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde\x1b$B;3ED\x1b(J"),
        ("\\ISO 2022 IR 149", b"\x1b$)C\xb1\xe8\xc8\xf1\xc1\xdf"),
        # Bytes that are invalid in their character set
        ("ISO_IR 192", b"M\xfcller"),
        ("GB18030", b"Wang\x81\x30"),
    ],
)
def test_text_stays_as_it_is_in_implicit_vr(
    tmp_path: Path, character_set: str, text: bytes
) -> None:
    """An instance has the same attributes in each transfer syntax (PS3.4 B.4)."""
    even = text + b" " * (len(text) % 2)
    header = segmentation("2.25.1")
    dataset = dcmread(io.BytesIO(header))
    dataset.SpecificCharacterSet = character_set.split("\\")
    dataset.PatientID = dataset.AccessionNumber = "X" * len(even)
    item = Dataset()
    item.CodeMeaning = "X" * len(even)
    dataset.ConceptNameCodeSequence = [item]
    dataset.save_as(tmp_path / "object.dcm")
    made = (tmp_path / "object.dcm").read_bytes()
    (tmp_path / "object.dcm").write_bytes(made.replace(b"X" * len(even), even))

    outgoing = Outgoing(tmp_path / "object.dcm", SEG, "2.25.1", ExplicitVRLittleEndian)
    sent = uncompressed(outgoing, ImplicitVRLittleEndian).read()
    assert sent.count(even) == 3
    arrived = dcmread(io.BytesIO(sent), force=True)
    assert arrived.get_item("PatientID").value == even
    assert arrived.PixelData == dcmread(io.BytesIO(header)).PixelData


def troubles(caplog: pytest.LogCaptureFixture, name: str = "pacs") -> list[str]:
    """The log messages of failed tries at a destination."""
    messages = [record.getMessage() for record in caplog.records if record.name == "pleura.deliver"]
    return [
        message
        for message in messages
        if message.startswith(f"{name}: ") and "; again in " in message
    ]


def test_an_outage_refuses_nothing_and_drains_when_it_ends(
    node: Node,
    storescp: Callable[..., StoreSCP],
    free_port: FreePort,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    node.owe(*(segmentation(f"2.25.{number}") for number in range(20)))
    node.start(pacs(port))
    wait_until("it was tried three times", lambda: len(troubles(caplog)) >= 3)
    assert all("cannot connect (Connection refused)" in trouble for trouble in troubles(caplog))
    assert node.counts() == {"owed": 20}
    assert all(row["failures"] == 0 for row in node.rows().values())

    scp = storescp(port)
    wait_until("all are stored", lambda: node.counts() == {"stored": 20})
    assert len(scp.received()) == 20


STORAGE_ONLY = """
[[TransferSyntaxes]]
[Uncompressed]
TransferSyntax1 = LittleEndianExplicit
TransferSyntax2 = LittleEndianImplicit
[[PresentationContexts]]
[StorageOnly]
PresentationContext1 = {classes[0]}\\Uncompressed
PresentationContext2 = {classes[1]}\\Uncompressed
[[Profiles]]
[Default]
PresentationContexts = StorageOnly
"""


@pytest.mark.parametrize(
    "classes",
    [
        ("SecondaryCaptureImageStorage", "SegmentationStorage"),
        # The archive takes one of the two kinds that are owed.
        ("SegmentationStorage", "RawDataStorage"),
    ],
)
def test_an_archive_that_rejects_an_echo_gets_all_after_an_outage(
    node: Node,
    peer: Program,
    free_port: FreePort,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    classes: tuple[str, str],
) -> None:
    """DCMTK's dcmrecv rejects an association without an acceptable storage context, so also a
    probe by C-ECHO.
    """
    port = free_port()
    node.owe(*(segmentation(f"2.25.{number}") for number in range(1, 4)))
    node.start(pacs(port))
    wait_until("it was tried twice", lambda: len(troubles(caplog)) >= 2)

    settings = tmp_path / "dcmrecv.cfg"
    settings.write_text(STORAGE_ONLY.format(classes=classes))
    (tmp_path / "archive").mkdir()
    command = [peer("dcmrecv"), "-xf", str(settings), "Default"]
    command += ["-od", str(tmp_path / "archive"), "-aet", "ARCHIVE", str(port)]
    dcmrecv = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until("all are stored", lambda: node.counts() == {"stored": 3})
    finally:
        dcmrecv.terminate()
        dcmrecv.wait()


QRSCP = """
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 4
HostTable BEGIN
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
ARCHIVE {folder} RW (100, 100mb) ANY
AETable END
"""


def test_an_archive_that_stores_under_its_own_rules_gets_all_after_an_outage(
    node: Node,
    peer: Program,
    free_port: FreePort,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DCMTK's dcmqrscp, which declines JPEG: the overlay arrives decoded, the SEG as it is."""
    port = free_port()
    node.owe(overlay("2.25.1"), segmentation("2.25.2"))
    node.start(pacs(port))
    wait_until("it was tried twice", lambda: len(troubles(caplog)) >= 2)

    folder = tmp_path / "qrscp"
    folder.mkdir()
    settings = tmp_path / "dcmqrscp.cfg"
    settings.write_text(QRSCP.format(port=port, folder=folder))
    # Without --single-process, with which DCMTK 3.6.7 ends at the first release.
    command = [peer("dcmqrscp"), "-c", str(settings)]
    dcmqrscp = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until("all are stored", lambda: node.counts() == {"stored": 2})
    finally:
        dcmqrscp.terminate()
        dcmqrscp.wait()
    found = {str(dcmread(path).SOPInstanceUID) for path in folder.glob("*.dcm")}
    assert found == {"2.25.1", "2.25.2"}


def test_an_archives_error_comment_is_logged_and_shown_bounded_and_escaped(
    node: Node, archive: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    comments = {
        "2.25.1": (0xA900, "Missing Type 1 attribute"),
        "2.25.2": (0xB000, "stored, coerced"),
        "2.25.3": (0x0122, "line\nbreak\x1b[31m"),
        "2.25.4": (0xA902, ""),
    }

    def answer(uid: str) -> Any:
        status, comment = comments[uid]
        dataset = Dataset()
        dataset.Status = status
        if comment:
            dataset.ErrorComment = comment
        return dataset

    _, destination = archive(answer)
    node.owe(*(segmentation(uid) for uid in comments))
    node.start(destination)
    wait_until("each is answered", lambda: node.counts() == {"stored": 1, "refused": 3})

    rows = node.rows()
    assert rows["2.25.1"]["why"] == "answered 0xA900 (Missing Type 1 attribute)"
    assert rows["2.25.3"]["why"] == "answered 0x0122 (line?break?[31m)"
    assert rows["2.25.4"]["why"] == "answered 0xA902"
    assert "answered 0xB000 (stored, coerced)" in caplog.text
    assert "answered 0xA900 (Missing Type 1 attribute)" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_result_waits_while_its_archive_rejects_associations(
    node: Node,
    storescp: Callable[..., StoreSCP],
    free_port: FreePort,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    refusing = storescp(port, "--refuse")
    node.owe(segmentation("2.25.1"))
    node.start(pacs(port))
    wait_until("it was tried three times", lambda: len(troubles(caplog)) >= 3)
    assert node.counts() == {"owed": 1}
    assert all("rejected with" in trouble for trouble in troubles(caplog))

    refusing.stop()
    storescp(port)
    wait_until("it is stored", lambda: node.counts() == {"stored": 1})


def test_each_answer_has_its_consequence(node: Node, archive: Any) -> None:
    answers = {
        "2.25.1": [0xB000],
        "2.25.2": [0xA900],
        "2.25.3": [0xA700, 0xA700, 0],
        "2.25.4": [0xC000] * 99,
        "2.25.5": [0],
    }
    archive_scp, destination = archive(lambda uid: answers[uid].pop(0))
    node.owe(*(segmentation(f"2.25.{number}") for number in range(1, 5)))
    node.start(destination)
    wait_until("more than eight answers have come", lambda: node.rows()["2.25.4"]["failures"] > 8)
    assert node.counts() == {"stored": 2, "refused": 1, "owed": 1}

    # The archive stores another object, so the fault lies in the object that it does not store.
    node.owe(segmentation("2.25.5"))
    wait_until("each has its consequence", lambda: node.counts() == {"stored": 3, "refused": 2})
    rows = node.rows()
    assert {uid: rows[uid]["status"] for uid in answers} == {
        "2.25.1": 0xB000,
        "2.25.2": 0xA900,
        "2.25.3": 0x0000,
        "2.25.4": 0xC000,
        "2.25.5": 0x0000,
    }
    assert archive_scp.stored == ["2.25.3", "2.25.5"]


def test_an_object_that_makes_the_archive_abort_delays_no_other(node: Node, archive: Any) -> None:
    aborts_left = [4]

    def answer(uid: str) -> int | None:
        if uid == "2.25.1" and aborts_left[0]:
            aborts_left[0] -= 1
            return None
        return 0

    archive_scp, destination = archive(answer)
    node.owe(*(segmentation(f"2.25.{number}") for number in range(1, 7)))
    node.start(destination)
    wait_until("all are stored", lambda: node.counts() == {"stored": 6})
    assert archive_scp.stored[-1] == "2.25.1"
    assert sorted(archive_scp.stored) == [f"2.25.{number}" for number in range(1, 7)]


def test_an_unsendable_file_does_not_end_the_association_of_the_others(
    node: Node, archive: Any
) -> None:
    archive_scp, destination = archive(lambda _: 0)
    node.owe(
        segmentation("2.25.1"), overlay("2.25.2"), segmentation("2.25.3"), segmentation("2.25.4")
    )
    names = {
        str(dcmread(node.spool.path(n)).SOPInstanceUID): n
        for n in node.spool.names()
        if n_is_dicom(node, n)
    }
    node.spool.remove(names["2.25.1"])
    node.spool.path(names["2.25.3"]).write_bytes(b"garbage")
    node.start(destination)

    wait_until(
        "each has its consequence", lambda: node.counts() == {"stored": 2, "refused": 1, "owed": 1}
    )
    assert sorted(archive_scp.stored) == ["2.25.2", "2.25.4"]
    assert archive_scp.associations == 1
    rows = node.rows()
    # The node makes the missing result again.
    assert rows["2.25.1"]["state"] == "owed"
    assert "gone" in rows["2.25.1"]["why"]
    assert rows["2.25.3"]["state"] == "refused"


def n_is_dicom(node: Node, name: str) -> bool:
    return node.spool.read(name)[128:132] == b"DICM"


@contextlib.contextmanager
def an_archive_of_overlays_alone(node: Node, port: int) -> Iterator[None]:
    """It has stored the overlay 2.25.2, and declined the segmentation 2.25.1."""
    entity = AE("ARCHIVE")
    entity.add_supported_context(SC, [JPEGBaseline8Bit])
    with serving(entity, port, [(evt.EVT_C_STORE, lambda _: 0)]):
        node.owe(segmentation("2.25.1"), overlay("2.25.2"))
        node.start(pacs(port))
        wait_until("both are answered", lambda: node.counts() == {"stored": 1, "refused": 1})
        yield


def test_a_result_of_a_class_that_the_archive_does_not_accept_is_refused_with_the_reason(
    node: Node, free_port: FreePort
) -> None:
    with an_archive_of_overlays_alone(node, free_port()):
        rows = node.rows()
    assert rows["2.25.1"]["state"] == "refused"
    assert "no presentation context" in rows["2.25.1"]["why"]
    assert rows["2.25.2"]["state"] == "stored"


def test_a_declined_result_that_is_tried_again_alone_is_refused_again_without_an_outage(
    node: Node, free_port: FreePort
) -> None:
    with an_archive_of_overlays_alone(node, free_port()):
        assert node.ledger.rearm([DeliveryState.REFUSED], [], ["pacs"]) == 1
        wait_until("it is answered", lambda: node.rows()["2.25.1"]["why"] is not None)

    assert node.counts() == {"stored": 1, "refused": 1}
    assert node.ledger.inspect.destinations().get("pacs", {}).get("down_since") is None


@contextlib.contextmanager
def declining(result: ContextResult) -> Iterator[int]:
    """The port of a peer that accepts associations and declines each context with `result`."""

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    header = connection.recv(6, socket.MSG_WAITALL)
                    length = int.from_bytes(header[2:])
                    request = read_request(connection.recv(length, socket.MSG_WAITALL))
                    syntax = str(ImplicitVRLittleEndian)
                    decisions = [Decision(each, result, syntax) for each in request.contexts]
                    user = UserInformation(16384, "1.2.3", "DECLINING")
                    connection.sendall(write_accept(request, decisions, {}, user))
                    # Wait for the release.
                    connection.recv(10)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_S)


@pytest.mark.parametrize("result", [each for each in ContextResult if each])
def test_an_archive_that_accepts_no_context_at_all_refuses_no_object(
    node: Node, archive: Any, caplog: pytest.LogCaptureFixture, result: ContextResult
) -> None:
    """An archive may do so while it starts or is read-only. The result that it gives is ignored."""
    node.owe(*(segmentation(f"2.25.{number}") for number in range(1, 4)))
    with declining(result) as port:
        node.start(pacs(port))
        wait_until("it was tried three times", lambda: len(troubles(caplog)) >= 3)
    assert node.counts() == {"owed": 3}
    assert f"(result {int(result)})" in troubles(caplog)[0]
    assert node.ledger.inspect.destinations()["pacs"]["down_since"] is not None

    _, destination = archive(lambda _: 0)
    assert node.deliverer is not None
    node.deliverer.check(Config(destinations=(destination,), ledger=node.url))()
    wait_until("all are stored", lambda: node.counts() == {"stored": 3})


def test_an_archive_that_never_answers_is_tried_again_after_the_time_out(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.owe(segmentation("2.25.1"))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        node.start(pacs(mute.getsockname()[1]), association=Limits(acse_s=0.3))
        wait_until("it was tried three times", lambda: len(troubles(caplog)) >= 3)
        assert node.counts() == {"owed": 1}


def test_an_archive_that_stops_reading_does_not_hold_the_role(node: Node, archive: Any) -> None:
    stuck = threading.Event()
    archive_scp, destination = archive(lambda _: 0)
    frozen = []

    def freeze(event: Any) -> None:
        # It blocks the thread that reads, so the archive reads nothing more.
        if isinstance(event.pdu, P_DATA_TF) and not frozen:
            frozen.append(True)
            stuck.wait(DEADLINE_S)

    archive_scp.server.bind(evt.EVT_PDU_RECV, freeze)
    node.owe(segmentation("2.25.1", size_bytes=20_000_000))
    node.start(destination, association=Limits(stalled_s=0.5, answer_s=1.0))
    try:
        wait_until("it is tried again", lambda: node.rows()["2.25.1"]["attempt"] >= 2)
    finally:
        stuck.set()
    wait_until("it is stored", lambda: node.counts() == {"stored": 1})


def test_a_corrected_destination_is_used_while_the_old_one_still_waits_for_an_answer(
    node: Node, archive: Any
) -> None:
    archive_scp, destination = archive(lambda _: 0)
    node.owe(segmentation("2.25.1"))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(DEADLINE_S)
        node.start(pacs(mute.getsockname()[1]))
        connection, _ = mute.accept()

        assert node.deliverer is not None
        node.deliverer.check(Config(destinations=(destination,), ledger=node.url))()
        node.owe(segmentation("2.25.2"))
        wait_until(
            "the corrected destination stores", lambda: node.counts() == {"owed": 1, "stored": 1}
        )
        # The association with the old settings fails only now.
        connection.close()

    wait_until("its object is stored too", lambda: node.counts() == {"stored": 2})
    assert sorted(archive_scp.stored) == ["2.25.1", "2.25.2"]
    node.deliverer.stop()
    assert node.ledger.inspect.destinations().get("pacs", {}).get("down_since") is None


def test_a_folder_gets_whole_files_once_it_can_be_made(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = tmp_path / "mounted" / "outbox"
    # A file is in the place of the parent folder.
    outbox.parent.write_bytes(b"")
    node.owe(segmentation("2.25.10"), overlay("2.25.11"), to="outbox")
    node.start(FolderDestination(name="outbox", folder=outbox))
    wait_until("it was tried three times", lambda: len(troubles(caplog, "outbox")) >= 3)
    assert node.counts() == {"owed": 2}

    outbox.parent.unlink()
    wait_until("both are stored", lambda: node.counts() == {"stored": 2})
    assert {path.name: path.read_bytes() for path in outbox.glob("*.dcm")} == {
        f"{uid}.dcm": data for uid, data in node.made.items()
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in (outbox, *outbox.iterdir()))


def test_a_write_that_went_below_a_mount_point_does_not_count(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share"
    away = tmp_path / "away"
    under = tmp_path / "under"

    destination = Folder.open(share, node.ledger)
    outgoing = Outgoing(tmp_path / "object.dcm", SEG, "2.25.1", ImplicitVRLittleEndian)
    outgoing.path.write_bytes(b"x")

    def write(path: Path, *chunks: bytes) -> None:
        written(path, *chunks)
        share.rename(under)
        away.rename(share)

    written = write_durably
    monkeypatch.setattr("daemon.deliver.folder.write_durably", write)
    share.rename(away)
    share.mkdir()
    with pytest.raises(LinkDownError, match="is it mounted"):
        destination.store(outgoing)


def test_a_file_that_cannot_be_read_while_it_is_sent_is_sent_later(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = node.spool.folder.with_name("away")

    def store(folder: Folder, outgoing: Outgoing) -> Answer:
        monkeypatch.undo()
        node.spool.folder.rename(away)
        try:
            return stored(folder, outgoing)
        finally:
            away.rename(node.spool.folder)

    stored = Folder.store
    monkeypatch.setattr(Folder, "store", store)
    node.owe(segmentation("2.25.1"), to="outbox")
    node.start(FolderDestination(name="outbox", folder=tmp_path / "outbox"))
    wait_until("it is stored", lambda: node.counts() == {"stored": 1})


@pytest.mark.parametrize("mounted", ["the folder", "its parent"])
def test_results_wait_while_their_share_is_not_mounted(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture, mounted: str
) -> None:
    share = tmp_path / "share"
    outbox = share if mounted == "the folder" else share / "outbox"
    node.owe(segmentation("2.25.1"), to="outbox")
    node.start(FolderDestination(name="outbox", folder=outbox))
    wait_until("the first is stored", lambda: node.counts() == {"stored": 1})

    # As the program that picks results up does
    (outbox / "2.25.1.dcm").unlink()
    share.rename(tmp_path / "away")
    share.mkdir()
    node.owe(segmentation("2.25.2"), to="outbox")
    wait_until("the second was tried", lambda: len(troubles(caplog, "outbox")) >= 2)
    assert node.counts() == {"stored": 1, "owed": 1}
    assert "is it mounted?" in node.rows()["2.25.2"]["why"]
    assert list(share.iterdir()) == []

    share.rmdir()
    (tmp_path / "away").rename(share)
    wait_until("the second is stored", lambda: node.counts() == {"stored": 2})
    assert (outbox / "2.25.2.dcm").read_bytes() == node.made["2.25.2"]


def test_one_dead_destination_delays_no_other(
    node: Node, tmp_path: Path, free_port: FreePort
) -> None:
    node.owe(segmentation("2.25.1"), to="pacs")
    node.owe(segmentation("2.25.2"), to="outbox")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        node.start(
            pacs(mute.getsockname()[1]),
            FolderDestination(name="outbox", folder=tmp_path / "outbox"),
        )
        wait_until(
            "the other destination has its own", lambda: node.counts() == {"stored": 1, "owed": 1}
        )
        mute.close()


def test_stopping_finishes_the_object_in_flight_and_gives_the_rest_back(
    node: Node, archive: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    entered = threading.Event()
    go = threading.Event()

    def slow(_: str) -> int:
        entered.set()
        assert go.wait(DEADLINE_S)
        return 0

    archive_scp, destination = archive(slow)
    node.owe(*(segmentation(f"2.25.{number}") for number in range(3)))

    node.start(destination)
    assert entered.wait(DEADLINE_S)
    assert node.deliverer is not None
    stopping = threading.Thread(target=node.deliverer.stop)
    stopping.start()
    go.set()
    stopping.join(DEADLINE_S)
    assert not stopping.is_alive()
    assert len(archive_scp.stored) == 1
    assert node.counts() == {"stored": 1, "owed": 2}
    # The leases are released, so another process can claim at once.
    assert len(node.ledger.claim_deliveries("pacs", "another", 10)) == 2
    assert "Geheim" not in caplog.text


def test_send_reports_the_answer_for_each_file(
    storescp: Callable[..., StoreSCP], free_port: FreePort, data: Path, tmp_path: Path
) -> None:
    scp = storescp(free_port(), "+xa")
    address = ("127.0.0.1", scp.port)
    (echo,) = send([], address, "ARCHIVE")

    assert echo.ok
    assert str(echo) == "C-ECHO: 0x0000"
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no DICOM at all")
    # This file has no file meta information.
    bare = data / "node" / "CR-MONO1-10-chest.dcm"
    files = [bare, garbage, tmp_path / "absent", *sorted((data / "node").glob("RG*.dcm"))]

    sent = {answer.file: answer for answer in send(files, address, "ARCHIVE")}
    assert set(sent) == set(files)
    failed = sorted(path.name for path, answer in sent.items() if path and not answer.ok)
    assert failed == ["absent", "garbage"]

    received = scp.received()
    for path in files[3:]:
        source = dcmread(path)
        assert received[source.SOPInstanceUID].PixelData == source.PixelData
        assert (
            received[source.SOPInstanceUID].file_meta.TransferSyntaxUID
            == source.file_meta.TransferSyntaxUID
        )
    assert (
        received[dcmread(bare, force=True).SOPInstanceUID].PixelData
        == dcmread(bare, force=True).PixelData
    )


def test_send_says_why_it_failed(
    storescp: Callable[..., StoreSCP], free_port: FreePort, data: Path
) -> None:
    file = data / "node" / "RG2_UNC.dcm"
    port = free_port()
    for files in ([], [file]):
        (unreachable,) = send(files, ("127.0.0.1", port), "ARCHIVE")
        assert not unreachable.ok
        assert "cannot connect (Connection refused)" in str(unreachable)
    storescp(port, "--refuse")
    (rejected,) = send([file], ("127.0.0.1", port), "ARCHIVE")
    assert not rejected.ok
    assert "rejected with" in str(rejected)


@pytest.mark.parametrize(
    ("called", "calling", "cure"),
    [
        ("OTHER", "XRAY1", "its AE title is not OTHER: correct --called"),
        ("ARCHIVE", "OTHER", "add the AE title OTHER, .*or correct --calling"),
    ],
)
def test_send_names_the_option_to_correct_when_it_is_rejected(
    free_port: FreePort, called: str, calling: str, cure: str
) -> None:
    """It knows no settings, whose keys the deliver role names in its place."""
    port = free_port()
    entity = AE("ARCHIVE")
    entity.add_supported_context(VERIFICATION)
    entity.require_called_aet = True
    entity.require_calling_aet = ["XRAY1"]
    with serving(entity, port):
        (rejected,) = send([], ("127.0.0.1", port), called, calling)

    assert re.search(cure, str(rejected))
    assert "destination" not in str(rejected)
