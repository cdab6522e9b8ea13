"""The Storage SCP against DCMTK, pynetdicom and raw sockets: it keeps every object that it
acknowledges, and no peer brings it down.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from daemon.commands.send import send
from daemon.config import Peer, Retention
from daemon.dicom.acceptor import Association as Acceptor
from daemon.dicom.acceptor import Limits, Rejection
from daemon.dicom.leniency import lenient_headers
from daemon.dicom.negotiation import Rejected, Supported
from daemon.dicom.pdu import PduType
from daemon.dicom.tables import STORAGE_COMMITMENT, VERIFICATION
from daemon.receive.access import AccessList, Caller
from daemon.receive.connections import PlainConnection
from daemon.receive.scp import Receiver
from daemon.spool import SpoolError
from tests.peers.receiving import (
    BODY,
    COMMAND,
    CR,
    DATA,
    DEADLINE_S,
    JPEG,
    JPEG_LS,
    LAST,
    SC,
    Node,
    Program,
    RawSender,
    associate_rq,
    c_store,
    image,
    p_data,
    siim,
    storescu,
)
from tools.peers.waiting import wait_until

# A node's threads without associations: the listener's.
OF_A_NODE = 1


@pytest.fixture(autouse=True)
def _quiet_sender() -> Iterator[None]:
    """Silences pydicom, which warns of each hostile value that pynetdicom sends in a test."""
    with lenient_headers():
        yield


def store(node: Node, *datasets: Dataset, priority: int = 0) -> list[int | None]:
    """C-STORE each data set on one association. A status is None if no response came."""
    association = node.associate()
    assert association.is_established
    statuses = [
        association.send_c_store(dataset, priority=priority).get("Status") for dataset in datasets
    ]
    association.release()
    return statuses


def rejection(
    node: Node, calling: bytes = b"TESTER", called: bytes = b"PLEURA"
) -> tuple[int, int, int]:
    """Result, source and reason of the A-ASSOCIATE-RJ (PS3.8 9.3.4).

    It is read from the socket: pynetdicom's requestor sometimes overlooks a rejection whose
    connection is closed at once.
    """
    with node.connect() as peer:
        peer.sendall(associate_rq(calling, called=called))
        answer = peer.recv(10, socket.MSG_WAITALL)
    assert answer[0] == PduType.ASSOCIATE_RJ
    return answer[7], answer[8], answer[9]


def test_real_images_from_dcmtk_are_stored_as_they_were_sent(
    start: Callable[..., Node], peer: Program, data: Path
) -> None:
    node = start()
    echo = subprocess.run(
        [peer("echoscu"), "-aec", "PLEURA", "127.0.0.1", str(node.port)], timeout=60
    )
    assert echo.returncode == 0

    files = siim(data, 2)
    for syntax, option in ((JPEG, "-xy"), (JPEG_LS, "-xt")):
        sent = storescu(peer, node, files[syntax], option)
        assert sent.returncode == 0, sent.stderr
        assert (sent.stdout + sent.stderr).count("Received Store Response (Success)") == 2

    rows = node.rows()
    assert len(rows) == 4
    for row, path in zip(rows, [*files[JPEG], *files[JPEG_LS]], strict=True):
        source = dcmread(path)
        kept = dcmread(node.spool.path(row["spool_name"]))
        assert kept == source
        assert (
            kept.file_meta.TransferSyntaxUID
            == source.file_meta.TransferSyntaxUID
            == row["transfer_syntax_uid"]
        )
        assert (
            kept.file_meta.MediaStorageSOPInstanceUID
            == source.SOPInstanceUID
            == row["sop_instance_uid"]
        )
        assert kept.file_meta.MediaStorageSOPClassUID == SC == row["sop_class_uid"]
        assert kept.file_meta.SourceApplicationEntityTitle == row["calling_ae_title"] == "XRAY1"
        assert (row["origin"], row["state"], row["priority"]) == ("dimse", "received", 1)
        assert row["size_bytes"] == node.spool.path(row["spool_name"]).stat().st_size


def test_every_sample_file_is_stored_byte_for_byte(start: Callable[..., Node], data: Path) -> None:
    node = start()
    files = sorted((data / "node").glob("*.dcm"))
    sent = list(send(files, ("127.0.0.1", node.port), "PLEURA", "MODALITY"))
    assert [str(answer) for answer in sent if not answer.ok and answer.status != 0x0117] == []

    kept = [node.spool.read(row["spool_name"]) for row in node.rows()]
    whole = [answer.file.read_bytes() for answer in sent if answer.ok and answer.file]
    for source, copy in zip(whole, kept, strict=True):
        if source[128:132] == b"DICM":
            assert copy.endswith(source[144 + int.from_bytes(source[140:144], "little") :])
    assert len(kept) == len([answer for answer in sent if answer.ok])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_one_port_takes_ipv6_and_ipv4(start: Callable[..., Node], data: Path) -> None:
    node = start(
        host="::", peers=(Peer(ae_title="V6", host="::1"), Peer(ae_title="V4", host="127.0.0.1"))
    )
    (file, *_) = siim(data, 1)[JPEG]

    def answer(host: str, calling: str) -> int | None:
        (sent,) = send([file], (host, node.port), "PLEURA", calling)
        return sent.status

    assert (answer("::1", "V6"), answer("127.0.0.1", "V4")) == (0x0000, 0x0000)
    assert (answer("::1", "V4"), answer("127.0.0.1", "V6")) == (None, None)
    assert [row["calling_address"] for row in node.rows()] == ["::1", "127.0.0.1"]


def test_an_unknown_peer_is_rejected_with_the_reason_that_fits(start: Callable[..., Node]) -> None:
    node = start(
        peers=(
            Peer(ae_title="TESTER", host="localhost"),
            Peer(ae_title="ELSEWHERE", host="192.0.2.7"),
        )
    )
    assert rejection(node, called=b"SOMEONE") == (1, 1, 7)
    assert rejection(node, calling=b"STRANGER") == (1, 1, 3)
    assert rejection(node, calling=b"ELSEWHERE") == (1, 1, 1)
    assert store(node, image()) == [0x0000]


def test_a_peer_whose_name_does_not_resolve_is_rejected_for_now_and_tried_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name service may start after the node. Such a peer was once rejected as unknown, for a
    minute.
    """
    now = [1000.0]
    monkeypatch.setattr("daemon.receive.access.time.monotonic", lambda: now[0])
    is_down = [True]

    def getaddrinfo(host: str, port: None) -> list[Any]:
        if is_down[0]:
            raise socket.gaierror(socket.EAI_AGAIN, "temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]

    monkeypatch.setattr("daemon.receive.access.socket.getaddrinfo", getaddrinfo)
    access = AccessList("PLEURA", (Peer(ae_title="XRAY1", host="xray1.example"),))

    found = access.admit("PLEURA", "XRAY1", "192.0.2.7")
    assert isinstance(found, Rejection)
    assert found.answer == Rejected(2, 1, 1)
    assert "xray1.example, which the name service does not resolve" in found.why

    is_down[0] = False
    now[0] += 6
    assert isinstance(access.admit("PLEURA", "XRAY1", "192.0.2.7"), Caller)

    # A known address holds while the name service is down.
    is_down[0] = True
    now[0] += 100
    assert isinstance(access.admit("PLEURA", "XRAY1", "192.0.2.7"), Caller)


def test_without_peers_only_this_machine_may_associate() -> None:
    def rejected(access: AccessList, calling: str, address: str) -> Rejected:
        found = access.admit("PLEURA", calling, address)
        assert isinstance(found, Rejection)
        assert f"{{ae_title: {calling}, host: {address}}}" in found.why
        return found.answer

    empty = AccessList("PLEURA", ())
    assert isinstance(empty.admit("PLEURA", "ANY", "127.0.0.1"), Caller)
    assert isinstance(empty.admit("PLEURA", "ANY", "::ffff:127.0.0.1"), Caller)
    assert rejected(empty, "ANY", "192.0.2.7") == Rejected(1, 1, 1)

    named = AccessList(
        "PLEURA",
        (Peer(ae_title="A", host="192.0.2.7"), Peer(ae_title="B"), Peer(ae_title="A", host="::1")),
    )
    assert isinstance(named.admit("PLEURA", "A", "::ffff:192.0.2.7"), Caller)
    assert isinstance(named.admit("PLEURA", "A", "::1"), Caller)
    assert isinstance(named.admit("PLEURA", "B", "198.51.100.1"), Caller)
    assert rejected(named, "A", "127.0.0.1") == Rejected(1, 1, 1)


def test_doctor_verifies_the_node_without_an_entry_and_stores_nothing() -> None:
    """doctor calls with the node's own AE title. Rejecting it would put a security alert into the
    log and the audit trail.
    """
    named = AccessList("PLEURA", (Peer(ae_title="A", host="192.0.2.7"),))
    own = named.admit("PLEURA", "PLEURA", "127.0.0.1")
    assert isinstance(own, Caller)
    assert not own.stores
    assert isinstance(named.admit("PLEURA", "PLEURA", "192.0.2.9"), Rejection)

    tied = AccessList("PLEURA", (Peer(ae_title="PLEURA", host="192.0.2.7"),))
    assert isinstance(tied.admit("PLEURA", "PLEURA", "127.0.0.1"), Rejection)


def test_a_message_of_medium_priority_takes_its_peers_priority(start: Callable[..., Node]) -> None:
    node = start(
        peers=(Peer(ae_title="TESTER", priority="routine"), Peer(ae_title="ER", priority="stat"))
    )
    for priority in (0, 1, 2):
        assert store(node, image(), priority=priority) == [0x0000]
    association = node.associate(calling="ER")
    association.send_c_store(image(), priority=0)
    association.release()
    assert [row["priority"] for row in node.rows()] == [1, 0, 2, 0]


@pytest.mark.parametrize(
    "uid", ["../../etc/cron.d/x", "1." * 33 + "1", "1.2\n2026 ERROR forged", "ID_44e8b2bbe"]
)
def test_a_hostile_instance_uid_is_refused_and_forges_nothing(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture, uid: str
) -> None:
    caplog.set_level(logging.DEBUG)
    node = start()
    with RawSender(node) as sender:
        for sent, status in ((uid, 0x0117), ("1.2.3", 0x0000)):
            sender.send(
                p_data((COMMAND | LAST, c_store(sent))), p_data((DATA | LAST, b"Verraeter^Geheim"))
            )
            assert sender.status() == status
    assert len(node.rows()) == len(list(node.spool.names())) == 1
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert "Geheim" not in caplog.text


def test_a_class_that_is_not_the_context_s_is_refused(start: Callable[..., Node]) -> None:
    node = start()
    association = node.associate()
    dataset = image(sop_class_uid=SC)
    by_class = {context.abstract_syntax: context for context in association.accepted_contexts}
    # Make pynetdicom send on the other class's context.
    by_class[CR].abstract_syntax = UID(SC)
    by_class[SC].abstract_syntax = UID(CR)
    assert association.send_c_store(dataset).Status == 0x0122
    association.release()
    assert list(node.spool.names()) == []


@pytest.mark.parametrize("calling", [b"TESTER", b"PLEURA"])
@pytest.mark.parametrize("sop_class_uid", [VERIFICATION, STORAGE_COMMITMENT])
def test_nothing_is_stored_on_a_context_that_is_not_for_storage(
    start: Callable[..., Node], calling: bytes, sop_class_uid: str
) -> None:
    # Called as `pleura doctor` calls, a peer may not store at all.
    node = start(peers=(Peer(ae_title="TESTER", host="127.0.0.1"),))
    with RawSender(node, calling=calling, sop_class_uid=sop_class_uid) as sender:
        command = c_store(sop_class_uid=sop_class_uid)
        sender.send(p_data((COMMAND | LAST, command)), p_data((DATA | LAST, BODY)))
        assert sender.status() == 0x0122
    assert node.rows() == list(node.spool.names()) == []


def test_a_full_disk_is_answered_0xa700_until_there_is_room(
    start: Callable[..., Node], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this environment forbids mounting")

    try:
        node = start(spool=small / "spool")
        big = image("1.2.3", size_bytes=1_200_000)
        assert store(node, big, big, image("1.2.5")) == [0x0000, 0xA700, 0x0000]
        assert len(list(node.spool.names())) == len(node.rows()) == 2
        # No partial file is left either.
        assert sum(path.is_file() for path in small.rglob("*")) == 2
        node.spool.remove(node.rows()[0]["spool_name"])
        assert store(node, big) == [0x0000]
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_disk_that_fills_up_during_a_write_is_answered_0xa700(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    writev = os.writev
    room = [False]

    def full(descriptor: int, chunks: list[bytes]) -> int:
        if not room[0] and sum(map(len, chunks)) > 10_000:
            raise OSError(28, "No space left on device")
        return writev(descriptor, chunks)

    monkeypatch.setattr(os, "writev", full)
    big = image(size_bytes=20_000)
    assert store(node, big) == [0xA700]
    room[0] = True
    assert store(node, big) == [0x0000]
    assert len(node.rows()) == len(list(node.spool.names())) == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_is_named_in_one_line(
    start: Callable[..., Node],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    node = start()

    def failing() -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(node.spool, "begin", failing)
    assert store(node, image("1.2.1")) == [0x0110]
    (line,) = (record for record in caplog.records if "1.2.1" in record.getMessage())
    assert f"with 0x0110: spool: {os.strerror(code)}; " in line.getMessage()
    assert not any(record.exc_info for record in caplog.records)
    assert node.rows() == []


def test_a_spool_that_is_gone_is_not_called_a_fault_of_the_ledger(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = start()

    def gone(sizes: object) -> None:
        raise SpoolError("spool /mnt/spool: no longer there; is it mounted?")

    monkeypatch.setattr(node.spool, "require_whole", gone)
    assert store(node, image("1.2.1")) == [0xA700]
    (line,) = (record for record in caplog.records if "refused 1.2.1" in record.getMessage())
    assert "no longer there; is it mounted?" in line.getMessage()
    assert "ledger" not in line.getMessage()


def test_the_reserve_is_kept_free(start: Callable[..., Node]) -> None:
    node = start(spool_reserve_mb=10**9, retention=Retention(free_mb=0))
    assert store(node, image()) == [0xA700]
    assert node.rows() == []


def test_without_a_commit_there_is_no_success_and_no_file(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = start()
    receive = node.ledger.receive

    def failing(_: Any) -> list[int]:
        raise RuntimeError("Geheim")

    def committed_but_unheard(arrivals: Any) -> list[int]:
        receive(arrivals)
        raise ConnectionError

    monkeypatch.setattr(node.ledger, "receive", failing)
    assert store(node, image("1.2.1")) == [0xA700]
    assert list(node.spool.names()) == []

    monkeypatch.setattr(node.ledger, "receive", committed_but_unheard)
    assert store(node, image("1.2.2")) == [0x0000]
    monkeypatch.setattr(node.ledger, "receive", receive)
    assert store(node, image("1.2.3")) == [0x0000]

    rows = node.rows()
    assert [row["sop_instance_uid"] for row in rows] == ["1.2.2", "1.2.3"]
    assert {row["spool_name"] for row in rows} == set(node.spool.names())
    assert "Geheim" not in caplog.text


def test_arrivals_that_wait_together_share_a_commit(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    receive = node.ledger.receive
    groups = []
    go = threading.Event()

    def slow(arrivals: Any) -> list[int]:
        groups.append(len(arrivals))
        assert go.wait(DEADLINE_S)
        return receive(arrivals)

    monkeypatch.setattr(node.ledger, "receive", slow)
    with ThreadPoolExecutor(6) as senders:
        answers = [senders.submit(store, node, image(f"1.2.{number}")) for number in range(6)]
        wait_until(
            "all six wait for a commit", lambda: len(list(node.spool.names())) == 6 and groups
        )
        time.sleep(0.1)
        # Durable bytes without a committed row are not answered with success.
        assert not any(answer.done() for answer in answers)
        go.set()
        assert [answer.result() for answer in answers] == [[0x0000]] * 6
    assert sum(groups) == 6
    assert len(groups) <= 3


def test_stopping_finishes_what_is_being_received_and_takes_nothing_new(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    receive = node.ledger.receive
    entered = threading.Event()
    go = threading.Event()

    def slow(arrivals: Any) -> list[int]:
        entered.set()
        assert go.wait(DEADLINE_S)
        return receive(arrivals)

    monkeypatch.setattr(node.ledger, "receive", slow)
    idle = node.associate()
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(lambda: node.associate().send_c_store(image()).Status)
        assert entered.wait(DEADLINE_S)
        stopped = threads.submit(node.stop)
        wait_until("the idle association is ended", lambda: idle.is_aborted)
        with pytest.raises(ConnectionRefusedError):
            node.connect()
        # Time in which the node would abort the busy association too, if it did.
        time.sleep(0.3)
        assert not stopped.done()
        go.set()
        assert answer.result() == 0x0000
        stopped.result()
    assert len(node.rows()) == 1


class Resources:
    """The threads and file descriptors of this process while no association is open."""

    def __init__(self, node: Node, threads: int) -> None:
        # It opens the ledger's connections, which stay open.
        assert store(node, image("1.2.1")) == [0x0000]
        self.threads = threads
        wait_until("threads end", lambda: threading.active_count() <= threads)
        self.descriptors = self._open()

    def are_back(self) -> bool:
        return threading.active_count() <= self.threads and self._open() <= self.descriptors

    def _open(self) -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))


WHOLE = {
    "one PDU": [p_data((COMMAND | LAST, c_store()), (DATA | LAST, BODY))],
    "many PDUs": [
        p_data((COMMAND | LAST, c_store())),
        *(p_data((DATA, BODY[at : at + 4])) for at in range(0, len(BODY) - 4, 4)),
        p_data((DATA | LAST, BODY[-4:])),
    ],
    "two fragments in a PDU": [
        p_data((COMMAND | LAST, c_store()), (DATA, BODY[:1000])),
        p_data((DATA, BODY[1000:3001]), (DATA, BODY[3001:5000])),
        p_data((DATA | LAST, BODY[5000:])),
    ],
    "an empty last fragment": [
        p_data((COMMAND | LAST, c_store()), (DATA, BODY)),
        p_data((DATA | LAST, b"")),
    ],
    "empty PDUs": [
        p_data(),
        p_data((COMMAND | LAST, c_store())),
        p_data(),
        p_data((DATA | LAST, BODY)),
    ],
    "a command in two fragments": [
        p_data((COMMAND, c_store()[:50])),
        p_data((COMMAND | LAST, c_store()[50:])),
        p_data((DATA | LAST, BODY)),
    ],
    "a command in two fragments of a PDU": [
        p_data((COMMAND, c_store()[:50]), (COMMAND | LAST, c_store()[50:]), (DATA, BODY[:99])),
        p_data((DATA | LAST, BODY[99:])),
    ],
    "a command in many fragments": [
        *(p_data((COMMAND, c_store()[at : at + 1])) for at in range(len(c_store()))),
        p_data(),
        p_data((COMMAND | LAST, b""), (DATA | LAST, BODY)),
    ],
}


@pytest.mark.parametrize("how", WHOLE)
def test_a_message_is_stored_however_it_is_fragmented(start: Callable[..., Node], how: str) -> None:
    node = start()
    with RawSender(node) as sender:
        for _ in range(2):
            sender.send(*WHOLE[how])
            assert sender.status() == 0x0000

    for row in node.rows():
        kept = node.spool.read(row["spool_name"])
        assert kept.endswith(BODY)
        assert row["size_bytes"] == len(kept)
        meta = dcmread(BytesIO(kept), stop_before_pixels=True, force=True).file_meta
        assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (CR, "1.2.3.40")
        assert (meta.TransferSyntaxUID, meta.SourceApplicationEntityTitle) == (
            "1.2.840.10008.1.2",
            "TESTER",
        )
        assert meta.FileMetaInformationVersion == b"\0\1"
        assert meta.ImplementationVersionName.startswith("PLEURA")
        assert len(kept) == 144 + meta.FileMetaInformationGroupLength + len(BODY)

    assert len(node.rows()) == 2


def test_messages_that_come_together_are_answered_one_after_another(
    start: Callable[..., Node],
) -> None:
    """A header is read with what has come behind it: nothing of that is lost, or read twice."""
    node = start()
    with RawSender(node) as sender:
        sender.send(*WHOLE["one PDU"], *WHOLE["a command in many fragments"], *WHOLE["one PDU"])
        assert [sender.status() for _ in range(3)] == [0x0000] * 3
        for byte in b"".join(WHOLE["one PDU"])[:200]:
            sender.send(bytes([byte]))
        sender.send(b"".join(WHOLE["one PDU"])[200:] + b"\x05\0\0\0\0\x04\0\0\0\0")
        assert sender.status() == 0x0000
        assert sender.answer()[0] == 0x06
    kept = [node.spool.read(row["spool_name"]) for row in node.rows()]
    assert [each.endswith(BODY) for each in kept] == [True] * 4


def test_the_next_objects_file_lies_ready_and_goes_with_its_association(
    start: Callable[..., Node], tmp_path: Path
) -> None:
    node = start()

    def ready() -> list[Path]:
        return list(tmp_path.rglob("*.part"))

    with RawSender(node) as sender:
        sender.send(*WHOLE["one PDU"])
        assert sender.status() == 0x0000
        time.sleep(0.1)
        assert ready() == []  # many associations bring one object

        sender.send(*WHOLE["one PDU"])
        assert sender.status() == 0x0000
        wait_until("a file lies ready", ready)
        (first,) = ready()

        time.sleep(1.1)
        sender.send(*WHOLE["one PDU"])
        assert sender.status() == 0x0000
        wait_until("another lies ready", lambda: ready() and first not in ready())
    wait_until("nothing of it is left", lambda: not ready())
    assert len(list(node.spool.names())) == len(node.rows()) == 3


def test_a_ready_file_that_is_gone_refuses_one_object_at_most(
    start: Callable[..., Node], tmp_path: Path
) -> None:
    node = start()
    with RawSender(node) as sender:
        for _ in range(2):
            sender.send(*WHOLE["one PDU"])
            assert sender.status() == 0x0000
        wait_until("a file lies ready", lambda: list(tmp_path.rglob("*.part")))
        for path in tmp_path.rglob("*.part"):
            path.unlink()
        sender.send(*WHOLE["one PDU"], *WHOLE["one PDU"])
        assert sender.status() != 0x0000
        assert sender.status() == 0x0000
    assert len(list(node.spool.names())) == len(node.rows()) == 3


COMMANDS = {
    "in one PDU": [p_data((COMMAND | LAST, c_store()))],
    "in two fragments": [
        p_data((COMMAND, c_store()[:50])),
        p_data((COMMAND | LAST, c_store()[50:])),
    ],
    "in two fragments of a PDU": [
        p_data((COMMAND, c_store()[:50]), (COMMAND | LAST, c_store()[50:]))
    ],
    "in many fragments": [
        *(p_data((COMMAND, c_store()[at : at + 1])) for at in range(len(c_store()))),
        p_data(),
        p_data((COMMAND | LAST, b"")),
    ],
    "beside its first data": [p_data((COMMAND | LAST, c_store()), (DATA, BODY))],
}


@pytest.mark.parametrize("how", COMMANDS)
def test_a_data_set_is_written_as_it_arrives_however_its_command_is_fragmented(
    start: Callable[..., Node], tmp_path: Path, how: str
) -> None:
    node = start()

    def written_bytes() -> int:
        return sum(path.stat().st_size for path in tmp_path.rglob("*.part"))

    with RawSender(node) as sender:
        for _ in range(2):
            sender.send(*COMMANDS[how], *[p_data((DATA, bytes(500_000)))] * 6)
            wait_until("most of it is in the file", lambda: written_bytes() > 1_500_000)
            sender.send(p_data((DATA | LAST, BODY)))
            assert sender.status() == 0x0000


@pytest.mark.parametrize("pieces", [2, 7, 1000])
def test_a_message_without_priority_is_stored_however_its_command_is_fragmented(
    start: Callable[..., Node], pieces: int
) -> None:
    """Priority is mandatory (PS3.7 9.3.1.1), but some senders leave it out."""
    node = start()
    odd = c_store().replace(struct.pack("<HHLH", 0, 0x0700, 2, 0), b"")
    parts = [
        odd[at : at + max(1, len(odd) // pieces)]
        for at in range(0, len(odd), max(1, len(odd) // pieces))
    ]

    with RawSender(node) as sender:
        for _ in range(2):
            sender.send(
                *(p_data((COMMAND, part)) for part in parts[:-1]),
                p_data((COMMAND | LAST, parts[-1])),
            )
            sender.send(p_data((DATA | LAST, BODY)))
            assert sender.status() == 0x0000
            sender.send(*WHOLE["one PDU"])
            assert sender.status() == 0x0000
        # A release in the middle of a message.
        sender.send(p_data((COMMAND, c_store()[:50])), b"\x05\0\0\0\0\x04\0\0\0\0")
        assert sender.answer()[0] in (0x06, 0x07)

    assert len(node.rows()) == 4
    assert all(node.spool.read(row["spool_name"]).endswith(BODY) for row in node.rows())


UNBOUNDED = {
    "a command set without an end": [p_data((COMMAND, bytes(1000)))] * 100,
    "a command set of nothing": [p_data((COMMAND, b""))] * 10_000,
    "a data set inside a command set": [p_data((COMMAND, c_store()[:50]), (DATA, b""))],
    "a command set on two contexts": [
        p_data((COMMAND, c_store()[:50])),
        p_data((COMMAND, b""), context_id=3),
    ],
    "a data set before its command set": [p_data((DATA, b""))],
}


@pytest.mark.parametrize("how", UNBOUNDED)
def test_a_command_set_without_bound_ends_the_association(
    start: Callable[..., Node], how: str
) -> None:
    node = start()
    with RawSender(node) as sender:
        # The node may end the association before everything is sent.
        with contextlib.suppress(ConnectionError):
            sender.send(*UNBOUNDED[how])
        assert sender.answer()[0] in (0x07, 0x00)
    assert store(node, image()) == [0x0000]


def test_a_peer_with_a_tiny_maximum_pdu_length_is_served(start: Callable[..., Node]) -> None:
    node = start()
    with RawSender(node, maximum_pdu_bytes=64) as sender:
        sender.send(*WHOLE["one PDU"])
        kind, body = sender.answer()
        assert kind == 0x04
        assert len(body) <= 64
    assert len(node.rows()) == 1


HALF = [p_data((COMMAND | LAST, c_store())), p_data((DATA, BODY))]
BROKEN = {
    "nothing more": [],
    "half a PDU": [p_data((DATA | LAST, BODY))[:-1]],
    "an abort": [b"\x07\0\0\0\0\x04\0\0\0\0"],
    "a release": [b"\x05\0\0\0\0\x04\0\0\0\0"],
    "another command": [p_data((COMMAND | LAST, c_store()))],
    "another context": [p_data((DATA | LAST, BODY), context_id=3)],
    "a fragment longer than its PDU": [b"\x04\0\0\0\0\x08" + b"\0\0\x10\0\x01\x02ab"],
    "a fragment header cut off": [b"\x04\0\0\0\0\x03" + b"\0\0\0"],
    "no PDU": [b"GET / HTTP/1.1\r\n"],
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_incomplete_message_leaves_no_file(
    start: Callable[..., Node], tmp_path: Path, how: str
) -> None:
    node = start()
    big = p_data((DATA, b"\0" * 500_000))

    with RawSender(node) as sender:
        # Enough data that the node has begun to write the file.
        sender.send(*HALF, big, big, big)
        wait_until("it is being written", lambda: list(tmp_path.rglob("*.part")))
        sender.send(*BROKEN[how])
        # The node may have ended the connection already.
        with contextlib.suppress(OSError):
            sender.socket.shutdown(socket.SHUT_WR)
        while sender.answer()[0]:
            pass

    wait_until("nothing of it is left", lambda: not list(tmp_path.rglob("*.part")))
    assert list(node.spool.names()) == node.rows() == []
    assert store(node, image()) == [0x0000]


def test_messages_of_all_kinds_follow_one_another_on_an_association(
    start: Callable[..., Node],
) -> None:
    node = start()
    entity = AE("TESTER")
    entity.add_requested_context(CR, ExplicitVRLittleEndian)
    entity.add_requested_context("1.2.840.10008.1.1")
    keep = [(evt.EVT_CONN_OPEN, lambda event: node.sockets.append(event.assoc.dul.socket.socket))]
    association = entity.associate("127.0.0.1", node.port, ae_title="PLEURA", evt_handlers=keep)
    by_class = {context.abstract_syntax: context for context in association.accepted_contexts}

    for _ in range(2):
        assert association.send_c_store(image(size_bytes=3_000_000)).Status == 0x0000
        assert association.send_c_echo().Status == 0x0000

        # Make pynetdicom send another class than the context's.
        by_class[CR].abstract_syntax = UID(SC)
        assert association.send_c_store(image(sop_class_uid=SC)).Status == 0x0122
        by_class[CR].abstract_syntax = UID(CR)

    association.release()
    assert association.is_released
    assert len(node.rows()) == len(list(node.spool.names())) == 2


def test_a_peer_that_falls_silent_after_sending_is_ended(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node = start(limits=Limits(idle_s=0.5))
    with RawSender(node) as silent, RawSender(node) as halfway:
        silent.send(*WHOLE["one PDU"])
        assert silent.status() == 0x0000
        halfway.send(*HALF)
        assert halfway.answer()[0] == silent.answer()[0] == 0x07
    assert len(node.rows()) == len(list(node.spool.names())) == 1
    wait_until("both ends are logged", lambda: caplog.text.count("limits.idle_s") == 2)
    assert "0.5 s without a message (limits.idle_s); 1 stored, 0 refused" in caplog.text
    assert "0.5 s without the rest of a message (limits.idle_s)" in caplog.text


def test_stopping_ends_an_association_that_has_sent_and_waits(start: Callable[..., Node]) -> None:
    node = start()
    with RawSender(node) as sender:
        sender.send(*WHOLE["one PDU"])
        assert sender.status() == 0x0000
        began = time.monotonic()
        node.stop()
        assert sender.answer()[0] == 0x07
        assert time.monotonic() < began + node.receiver.limits.drain_s


def test_the_answer_comes_after_bytes_name_and_row(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, disk_steps: list[str]
) -> None:
    node = start()
    receive = node.ledger.receive

    def noted_receive(arrivals: Any) -> None:
        receive(arrivals)
        disk_steps.append("committed")

    with RawSender(node) as sender, monkeypatch.context() as patched:
        patched.setattr(node.ledger, "receive", noted_receive)
        disk_steps.clear()
        sender.send(*HALF, p_data((DATA | LAST, BODY)))
        assert sender.status() == 0x0000
        assert disk_steps == ["named", "bytes synced", "folder synced", "committed"]


def test_the_answer_does_not_wait_for_its_log_line(start: Callable[..., Node]) -> None:
    answered = threading.Event()
    came_first = SimpleQueue[bool]()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("stored "):
                came_first.put(answered.wait(3))

    logger = logging.getLogger("pleura.receive")
    slow = Slow()
    level = logger.level
    logger.addHandler(slow)
    logger.setLevel(logging.INFO)
    try:
        with RawSender(start()) as sender:
            sender.send(*HALF, p_data((DATA | LAST, BODY)))
            assert sender.status() == 0x0000
            answered.set()
            assert came_first.get(timeout=10)
    finally:
        logger.removeHandler(slow)
        logger.setLevel(level)


def test_a_disk_that_fills_up_during_a_message_gets_its_space_back(
    start: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    free = node.spool.free_bytes()
    big = p_data((DATA, b"\0" * 600_000))

    with RawSender(node) as sender:
        sender.send(*HALF, big, big)
        wait_until("it is being written", lambda: list(tmp_path.rglob("*.part")))
        monkeypatch.setattr(node.spool, "free_bytes", lambda: 1000)
        # Longer than the node relies on its last look at the free space.
        time.sleep(0.2)
        sender.send(big, big)
        wait_until("nothing of it is left", lambda: not list(tmp_path.rglob("*.part")))
        sender.send(big, p_data((DATA | LAST, BODY)))
        assert sender.status() == 0xA700
        monkeypatch.setattr(node.spool, "free_bytes", lambda: free)
        sender.send(*WHOLE["one PDU"])
        assert sender.status() == 0x0000

    assert len(node.rows()) == len(list(node.spool.names())) == 1


HOSTILE = {
    "nothing": b"",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "noise": bytes(range(256)) * 8,
    "half a header": b"\x01\x00\x00",
    "endless associate": b"\x01\x00\xff\xff\xff\xff" + b"\0" * 5000,
    "endless data": associate_rq(b"TESTER") + b"\x04\x00\xff\xff\xff\xff" + b"\0" * 5000,
    "data first": b"\x04\x00\x00\x00\x00\x0a" + b"\x00\x00\x00\x06\x01\x03abcd",
    "forged line": associate_rq(b"X\n2026 ERROR me"),
    "foreign letters": associate_rq("Müller".encode()),
    "empty command": associate_rq(b"TESTER")
    + b"\x04\x00\x00\x00\x00\x06"
    + b"\x00\x00\x00\x02\x01\x03",
    "unknown context": associate_rq(b"TESTER")
    + b"\x04\x00\x00\x00\x00\x08"
    + b"\x00\x00\x00\x04\xff\x00\0\0",
    "released twice": associate_rq(b"TESTER") + b"\x05\x00\x00\x00\x00\x04\0\0\0\0" * 2,
}


def test_whatever_bytes_come_honest_senders_get_through_and_nothing_leaks(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    threads = threading.active_count()
    node = start(limits=Limits(request_s=1.0, pdu_s=1.0, idle_s=2.0))
    resources = Resources(node, threads + OF_A_NODE)
    for closes_first in (False, True):
        connections = []
        for said in HOSTILE.values():
            connection = node.connect()
            # The node may end the connection before everything is sent.
            with contextlib.suppress(ConnectionError):
                connection.sendall(said)
            connections.append(connection)

        assert store(node, image("1.2.2")) == [0x0000]
        for connection in connections:
            # In the second round we close first; in the first we wait until the node closes.
            if not closes_first:
                connection.settimeout(DEADLINE_S)
                # A reset is an end too.
                with connection, contextlib.suppress(ConnectionError):
                    while connection.recv(4096):
                        pass
            connection.close()

    wait_until("threads and descriptors are back", resources.are_back)
    assert store(node, image("1.2.3")) == [0x0000]
    assert "a PDU of 4294967295 bytes" in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_bare_connects_cost_no_threads_and_do_not_lock_out_honest_senders(
    start: Callable[..., Node],
) -> None:
    threads = threading.active_count() + OF_A_NODE
    node = start()
    resources = Resources(node, threads)

    # A load balancer's probes, then connections that stay open and send nothing.
    for _ in range(500):
        node.connect().close()
    held = [node.connect() for _ in range(300)]
    assert threading.active_count() <= threads
    assert store(node, image("1.2.2")) == [0x0000]
    for connection in held:
        connection.close()
    wait_until("threads and descriptors are back", resources.are_back)
    assert len(node.rows()) == 2


def large_request() -> bytes:
    """An association request larger than any toolkit's: 128 contexts, the most that odd IDs allow
    (PS3.8 9.3.2.2), with 45 transfer syntaxes each.
    """

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    syntaxes = b"".join(
        item(0x40, f"1.2.840.10008.1.2.4.{number}".encode()) for number in range(45)
    )
    context = item(0x30, CR.encode()) + syntaxes
    contexts = b"".join(
        item(0x20, bytes([number, 0, 0, 0]) + context) for number in range(1, 256, 2)
    )
    usual = associate_rq(b"TESTER")
    head = usual[6:99]
    user = usual[usual.index(b"\x50\0\0") :]
    body = head + contexts + user
    return struct.pack(">BBL", 1, 0, len(body)) + body


@pytest.mark.parametrize("said", [associate_rq(b"TESTER"), large_request()], ids=["usual", "large"])
def test_a_request_takes_no_thread_until_it_is_complete(
    start: Callable[..., Node], said: bytes
) -> None:
    threads = threading.active_count() + OF_A_NODE
    node = start()
    with node.connect() as connection:
        for piece in (said[:1], said[1:4], said[4:100], said[100:-1]):
            connection.sendall(piece)
            time.sleep(0.1)
            assert threading.active_count() <= threads
        connection.sendall(said[-1:])
        assert connection.recv(1) == b"\x02"

    # A connection that closes within its request
    with node.connect() as connection:
        connection.sendall(said[:-1])
    wait_until("no connection is waiting", lambda: node.receiver.waiting_connections == 0)


ENDED_AT_ONCE = {
    "a rejected request and half a PDU": associate_rq(b"TESTER").replace(b"PLEURA", b"NOBODY")
    + b"\x04",
    "no valid request and half a PDU": b"\x01\0\0\0\0\x04abcd\x04",
    "no valid request": b"\x01\0\0\0\0\x04abcd",
    "no request": b"GET / HTTP/1.1\r\n",
    "too large a request": b"\x01\0\x01\0\0\0",
}


@pytest.mark.parametrize("how", ENDED_AT_ONCE)
def test_a_rejected_peer_keeps_no_slot(start: Callable[..., Node], how: str) -> None:
    threads = threading.active_count() + OF_A_NODE
    node = start()
    with node.connect() as connection:
        connection.settimeout(node.receiver.limits.pdu_s / 2)
        connection.sendall(ENDED_AT_ONCE[how])
        with contextlib.suppress(ConnectionError):
            while connection.recv(100):
                pass
        wait_until("threads end", lambda: threading.active_count() <= threads)


def test_peers_that_are_rejected_and_never_close_lock_nobody_out(
    start: Callable[..., Node],
) -> None:
    """Each of them keeps a thread until close_s is over."""
    node = start(
        limits=Limits(associations=2, close_s=60.0), peers=[Peer(ae_title="TESTER", host=None)]
    )
    with contextlib.ExitStack() as open_connections:
        for _ in range(12):
            stranger = open_connections.enter_context(node.connect("127.0.0.9"))
            stranger.sendall(associate_rq(b"STRANGER"))
            # PS3.8 9.3.4: rejected-permanent, by the service user, calling AE title.
            assert stranger.recv(10) == bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 3))
        assert store(node, image()) == [0x0000]


def test_a_rejected_peer_closes_first(start: Callable[..., Node]) -> None:
    """The node waits for the peer to close (PS3.8 9.2, Sta13): some toolkits take a connection that
    the acceptor closes for an abort.
    """
    node = start(limits=Limits(close_s=60.0))
    with node.connect() as connection:
        connection.sendall(associate_rq(b"TESTER").replace(b"PLEURA", b"NOBODY"))
        assert connection.recv(10)[0] == PduType.ASSOCIATE_RJ
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_a_connection_that_cannot_be_watched_ends_and_others_are_served(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(selectors.DefaultSelector):
        is_full = False

        def register(self, *arguments: Any, **more: Any) -> Any:
            if Full.is_full:
                Full.is_full = False
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().register(*arguments, **more)

    monkeypatch.setattr(selectors, "DefaultSelector", Full)
    node = start()
    Full.is_full = True
    with node.connect() as connection:
        assert connection.recv(1) == b""
    assert node.receiver.waiting_connections == 0
    assert store(node, image()) == [0x0000]


def test_silent_connections_from_one_address_evict_only_each_other(
    start: Callable[..., Node],
) -> None:
    node = start()
    held = [node.connect("127.0.0.2")]
    held += [node.connect() for _ in range(node.receiver.limits.connections + 20)]
    held[0].sendall(associate_rq(b"TESTER"))
    assert held[0].recv(1) == b"\x02"
    for connection in held:
        connection.close()


class Echoed:
    """A session that answers only C-ECHO (daemon.dicom.acceptor.Session)."""

    supported = MappingProxyType({"1.2.840.10008.1.1": Supported(("1.2.840.10008.1.2",))})

    def negotiated(self, decisions: Any) -> None:
        pass

    def echo(self, context: Any) -> int:
        return 0x0000

    def answered(self) -> None:
        pass


def test_requests_whose_answers_are_not_read_stay_with_their_sender() -> None:
    """Back-pressure: if the node read requests before it can answer, any number would fill its
    memory.
    """
    command = b"".join(
        struct.pack("<HHL", 0, number, len(value)) + value
        for number, value in (
            (2, b"1.2.840.10008.1.1\0"),
            (0x100, b"\x30\0"),
            (0x110, b"\1\0"),
            (0x800, b"\1\1"),
        )
    )
    echo = p_data((COMMAND | LAST, command))
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = PlainConnection(ours)
    association = Acceptor(connection, "here", Limits(), lambda *_: Echoed())  # type: ignore[arg-type]

    with contextlib.closing(association), ThreadPoolExecutor(2) as threads, theirs:
        ended = threads.submit(association.run)
        theirs.sendall(associate_rq(b"TESTER"))
        assert theirs.recv(4096)[:1] == b"\x02"

        theirs.settimeout(1.0)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 1_000_000:
                sent += theirs.send((echo * 100)[sent % len(echo) :])
        assert sent < 100_000

        # When the answers are read, each request that was sent is answered.
        theirs.settimeout(DEADLINE_S)
        unsent = -sent % len(echo)
        rest = echo[len(echo) - unsent :]
        threads.submit(theirs.sendall, rest + b"\x05\0\0\0\0\x04\0\0\0\0")
        heard = b""
        while part := theirs.recv(65536):
            heard += part
            if heard[-10:] == b"\x06\0\0\0\0\x04\0\0\0\0":
                break
        assert heard.count(b"\x30\x80") == -(-sent // len(echo))
        assert ended.result().why == "the peer released it"


def test_a_message_that_never_ends_is_cut_off(start: Callable[..., Node]) -> None:
    node = start(limits=Limits(store_bytes=1_000_000))
    # The limit is for one message, not for the association.
    assert store(node, *[image("1.2.1", size_bytes=600_000)] * 3) == [0x0000] * 3
    assert store(node, image("1.2.2", size_bytes=3_000_000)) == [None]
    assert {row["sop_instance_uid"] for row in node.rows()} == {"1.2.1"}
    assert store(node, image("1.2.3")) == [0x0000]


# A C-STORE-RQ without priority.
ODD = c_store().replace(struct.pack("<HHLH", 0, 0x0700, 2, 0), b"")
# An N-EVENT-REPORT-RQ (PS3.7 E.1-1).
REPORT = c_store(E0100=b"\x00\x01", E1002=b"\1\0")
MEGABYTE = p_data((DATA, bytes(1_000_000)))


def test_only_a_c_store_may_be_large(start: Callable[..., Node]) -> None:
    """The node reads every other message into memory, so it limits their size."""
    node = start()
    for command in (c_store(), ODD):
        with RawSender(node) as sender:
            sender.send(
                p_data((COMMAND | LAST, command)), *[MEGABYTE] * 6, p_data((DATA | LAST, BODY))
            )
            assert sender.status() == 0x0000
    for begun in (p_data((COMMAND | LAST, REPORT)), p_data((COMMAND, REPORT))):
        with RawSender(node) as sender:
            # The node may end the association before everything is sent.
            with contextlib.suppress(ConnectionError):
                sender.send(
                    begun,
                    *[MEGABYTE if begun[11] & LAST else p_data((COMMAND, bytes(1_000_000)))] * 6,
                )
            assert sender.answer()[0] in (0x07, 0x00)


def test_an_unproductive_association_of_the_busiest_sender_ends_for_another_sender(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    node = start(limits=Limits(associations=4, unproductive_s=3.0))

    def is_accepted(address: str) -> bool:
        with node.connect(address) as connection:
            connection.sendall(associate_rq(b"TESTER", CR))
            return connection.recv(1) == b"\x02"

    with contextlib.ExitStack() as places:
        crowd = [places.enter_context(RawSender(node, address="127.0.0.2")) for _ in range(3)]
        other = places.enter_context(RawSender(node, address="127.0.0.3"))
        for sender in (*crowd, other):
            sender.send(*HALF)
        # Their associations have only just begun.
        assert not is_accepted("127.0.0.1")

        time.sleep(3.1)
        for sender in crowd[1:]:
            sender.send(p_data((DATA | LAST, BODY)), *HALF)
            assert sender.status() == 0x0000
        # The sender that holds most slots gets no more of them; another sender does.
        assert not is_accepted("127.0.0.2")
        assert is_accepted("127.0.0.1")
        assert crowd[0].answer()[0] in (0x07, 0x00)
        wait_until("a slot is free", lambda: node.receiver.associations == 3)

        crowd[0] = places.enter_context(RawSender(node, address="127.0.0.1"))
        time.sleep(3.1)
        # No sender holds more than half of the slots.
        assert not is_accepted("127.0.0.4")
        for sender in (*crowd[1:], other):
            sender.send(p_data((DATA | LAST, BODY)))
            assert sender.status() == 0x0000
    assert caplog.text.count("this AE holds most of them") == 1


def test_starting_on_a_port_in_use_says_so(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start()
    with pytest.raises(OSError, match="in use"):
        Receiver(node.config, node.ledger, node.spool).start()
