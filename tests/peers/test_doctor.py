"""`pleura doctor`: its findings about a healthy node, and about each kind of fault."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import SecondaryCaptureImageStorage, Verification

from daemon import ownership
from daemon.commands.doctor import analysing_device, examine
from daemon.config import Audit, Config, DicomDestination, FolderDestination
from daemon.ledger import Ledger, owner_name, this_machine
from tests.commands import pleura
from tools.peers.archive import serving
from tools.peers.harness import Node, Orthanc


def doctor(node: Node) -> tuple[int, dict[str, str]]:
    """The exit status, and the finding for each subject."""
    answer = pleura("doctor", "-c", node.path)
    said = {}
    for line in answer.stdout.splitlines():
        verdict, _, rest = line.partition(" ")
        what, _, text = rest.strip().partition(": ")
        said[what] = f"{verdict} {text}"
    return answer.returncode, said


def test_a_running_node_and_its_archive_are_ok(
    peer: Callable[[str], str], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    with Orthanc(peer("Orthanc"), tmp_path / "orthanc", (free_port(), free_port())) as archive:
        outbox = tmp_path / "outbox"
        outbox.mkdir()
        places = [archive.destination(commitment=True), {"name": "outbox", "folder": str(outbox)}]
        with Node(tmp_path / "node", free_port(), destinations=places) as node:
            status, said = doctor(node)
    # Tests may run as root, and doctor warns about that.
    said.pop("user", "")
    assert all(text.startswith("ok") for text in said.values()), said
    assert status == 0
    assert said["destination pacs"].endswith("accepts SEG, SC, storage commitment")
    assert "pleura-default" in said["model"]


def test_each_trouble_is_named_and_no_file_is_created(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    entity = AE("ARCHIVE")
    for sop_class in (Verification, SecondaryCaptureImageStorage):
        entity.add_supported_context(sop_class)
    entity.require_called_aet = True
    port = free_port()
    unused = free_port()
    here = {"host": "127.0.0.1", "port": port}
    places = [
        {"name": "half", "ae_title": "ARCHIVE", **here},
        {"name": "wrong-name", "ae_title": "OTHER", **here},
        {"name": "away", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": unused},
        {"name": "unmounted", "folder": str(tmp_path / "nowhere")},
    ]
    node = Node(
        tmp_path / "node", free_port(), destinations=places, model=str(tmp_path / "no-model")
    )
    node.write_settings()
    with serving(entity, port):
        status, said = doctor(node)

    assert status == 1
    assert not any(text.startswith("ok") for text in said.values()), said
    assert "does not accept SEG" in said["destination half"]
    assert "its AE title is not OTHER" in said["destination wrong-name"]
    assert "cannot connect" in said["destination away"]
    assert "no such folder" in said["destination unmounted"]
    assert "not run with these settings yet" in said["ledger"]
    assert [path.name for path in (tmp_path / "node").iterdir()] == ["pleura.yaml"]


# -- in this process, without a model --------------------------------------------------------


def test_archives_are_asked_at_the_same_time(tmp_path: Path) -> None:
    """One archive that does not answer must not delay the check of the next."""
    # Each archive answers after both have been asked.
    asked = threading.Barrier(2)
    with answering_at(asked) as first, answering_at(asked) as second:
        archives = [
            DicomDestination(
                name=f"pacs{port}", ae_title="PACS", host="127.0.0.1", port=port, results=("SC",)
            )
            for port in (first, second)
        ]
        said_of(f"destination pacs{first}", tmp_path, 1, destinations=archives)
    assert not asked.broken


@contextmanager
def answering_at(barrier: threading.Barrier) -> Iterator[int]:
    """A port that closes its first connection when the barrier is full, or after 20 s."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30.0)

    def serve() -> None:
        with suppress(TimeoutError, threading.BrokenBarrierError):
            connection, _ = listener.accept()
            with connection:
                barrier.wait(20.0)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        thread.join()
        listener.close()


def test_an_analyse_role_that_runs_here_answers_for_its_model(tmp_path: Path) -> None:
    config = Config(spool=tmp_path / "spool", ledger=f"sqlite:///{tmp_path}/ledger.db")
    assert analysing_device(config, "d") == ""

    ledger = Ledger(config.ledger)
    facts = {"digest": "d", "device": "cpu"}
    ledger.beat("analyse", f"{this_machine()}:{2**22 + 1}", facts)
    ledger.beat("analyse", "elsewhere/0/0:1", facts)
    assert analysing_device(config, "d") == "", "one role is dead, the other on another machine"

    ledger.beat("analyse", owner_name(), facts)
    ledger.close()
    assert analysing_device(config, "d") == "cpu"
    assert analysing_device(config, "another package") == ""
    assert analysing_device(config.model_copy(update={"device": "cuda:0"}), "d") == ""


SC = "1.2.840.10008.5.1.4.1.1.7"
KINDS = {"SC": (SC, "1.2.840.10008.1.2.4.50")}


def said_of(subject: str, folder: Path, port: int, **places: Any) -> str:
    """Doctor's finding about one subject, for a node at `port`."""
    config = Config(
        host="127.0.0.1",
        port=port,
        spool=folder / "spool",
        ledger=f"sqlite:///{folder}/ledger.db",
        **places,
    )
    findings = examine(config, lambda: "a model", KINDS)
    (found,) = [str(finding) for finding in findings if finding.subject == subject]
    return found


@contextmanager
def speaking(answer: bytes) -> Iterator[int]:
    """A port that answers the first bytes of every connection with `answer`, then closes it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                if connection.recv(1 << 16):
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


OTHER_SERVERS = [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "an HTTP server answers so"),
    (b"<!DOCTYPE HTML>\n<html>", "an HTTP server answers so"),
    (b"\x15\x03\x03\x00\x02\x02\x46", "a TLS server answers so"),
    (b"SSH-2.0-OpenSSH_9.2p1\r\n", "an SSH server answers so"),
    (b"220 mail ESMTP\r\n", "type 0x32"),
    (b"", "is this the port of a DICOM node"),
]


@pytest.mark.parametrize(("answer", "advice"), OTHER_SERVERS)
def test_an_archives_port_that_speaks_something_else_is_recognised(
    tmp_path: Path, free_port: Callable[[], int], answer: bytes, advice: str
) -> None:
    with speaking(answer) as port:
        place = DicomDestination(
            name="pacs", ae_title="PACS", host="127.0.0.1", port=port, results=("SC",)
        )
        said = said_of("destination pacs", tmp_path, free_port(), destinations=(place,))
    assert said.startswith("TROUBLE")
    assert advice in said


@pytest.mark.parametrize(("answer", "advice"), OTHER_SERVERS)
def test_the_nodes_port_held_by_another_program_is_recognised(
    tmp_path: Path, answer: bytes, advice: str
) -> None:
    with speaking(answer) as port:
        said = said_of(f"port {port}", tmp_path, port)
    assert said.startswith("TROUBLE")
    assert advice in said
    assert "another program holds the port" in said


@pytest.mark.parametrize(
    ("ae_title", "advice"),
    [("OTHER", "whose AE title is not PLEURA"), ("PLEURA", "that is not Pleura")],
)
def test_the_nodes_port_held_by_another_dicom_node_is_recognised(
    tmp_path: Path, free_port: Callable[[], int], ae_title: str, advice: str
) -> None:
    port = free_port()
    entity = AE(ae_title)
    entity.add_supported_context(Verification)
    entity.require_called_aet = True
    with serving(entity, port):
        said = said_of(f"port {port}", tmp_path, port)
    assert said.startswith("TROUBLE")
    assert advice in said
    assert "another program holds the port" in said


def test_an_archive_without_verification_is_ok(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Doctor proposes what a delivery proposes: each kind of result in its own transfer syntax and
    uncompressed.
    """
    port = free_port()
    entity = AE("PACS")
    entity.add_supported_context(SC, [KINDS["SC"][1]])
    place = DicomDestination(
        name="pacs", ae_title="PACS", host="127.0.0.1", port=port, results=("SC",)
    )
    with serving(entity, port):
        said = said_of("destination pacs", tmp_path, free_port(), destinations=(place,))
    assert said.startswith("ok")


def test_a_destination_that_answers_and_stores_nothing_is_not_ok(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Neither an association nor a look at a folder shows that no room is left."""
    (tmp_path / "out").mkdir()
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.note_destination("out", "/out: No space left on device", 60.0)
    place = FolderDestination(name="out", folder=tmp_path / "out", results=("SC",))

    said = said_of("destination out", tmp_path, free_port(), destinations=(place,))
    assert said.startswith("WARNING  destination out: writable")
    assert "its last answer: /out: No space left on device" in said
    assert "pleura retry --to out --now" in said

    ledger.note_destination("out", None)
    ledger.close()
    said = said_of("destination out", tmp_path, free_port(), destinations=(place,))
    assert said.startswith("ok")


def test_an_audit_trail_that_cannot_be_written_is_named(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    file = tmp_path / "new" / "audit.log"
    subject = f"audit file {file}"
    assert said_of(subject, tmp_path, free_port(), audit=Audit(file=file)).startswith("ok")
    assert not file.parent.exists()

    file.mkdir(parents=True)
    said = said_of(subject, tmp_path, free_port(), audit=Audit(file=file))
    assert said.startswith("TROUBLE")
    assert "a folder has this path" in said

    repository = f"tls://127.0.0.1:{free_port()}"
    subject = f"audit repository {repository}"
    said = said_of(subject, tmp_path, free_port(), audit=Audit(repository=repository))
    assert said.startswith("TROUBLE")
    assert "messages wait in the ledger" in said


def test_a_disk_that_is_mounted_read_only_is_not_taken_for_a_wrong_owner(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    place = FolderDestination(name="out", folder=tmp_path / "out", results=("SC",))
    monkeypatch.setattr("daemon.commands.doctor.os.access", lambda *_: False)
    monkeypatch.setattr(ownership, "is_mounted_read_only", lambda _: True)

    said = said_of("destination out", tmp_path, free_port(), destinations=(place,))
    assert "mounted read-only" in said
    assert "owner" not in said
