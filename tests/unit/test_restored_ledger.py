"""A ledger restored from an older backup loses no image: files that it does not know are adopted."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from daemon.adoption import adopt_strays
from daemon.commands.doctor import examine
from daemon.commands.verify import verify
from daemon.config import Config
from daemon.deliver.retention import Retention
from daemon.dicom.part10 import write_file_meta
from daemon.dicom.tables import IMPLEMENTATION_CLASS_UID
from daemon.ledger import Arrival, Completion, Inspection, Ledger, LedgerError
from daemon.ledger.copies import copy_ledger
from daemon.spool import Spool, SpoolError
from tools.peers.ports import unused_port

CR = "1.2.840.10008.5.1.4.1.1.1"
SYNTAX = "1.2.840.10008.1.2.1"
OLD_S = 7200.0


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/ledger.db"
        self.ledger = Ledger(self.url)
        self.spool = Spool(folder / "spool")
        self.spool.claim(self.ledger.spool_identity)
        self.config = Config.model_validate({"spool": folder / "spool", "ledger": self.url})

    def receive(self, uid: str, source: str = "XRAY1") -> str:
        """Receive an image as over C-STORE: first the bytes, then the row."""
        data = part10(uid, source)
        name = self.spool.write(data)
        self.ledger.receive([Arrival(name, CR, uid, SYNTAX, source, "dimse", 1, len(data))])
        return name

    def back_up(self) -> Path:
        copy = self.folder / "backup.db"
        with sqlite3.connect(self.folder / "ledger.db") as source, sqlite3.connect(copy) as target:
            source.backup(target)
        source.close()
        target.close()
        return copy

    def restore(self, copy: Path) -> None:
        self.ledger.close()
        for file in self.folder.glob("ledger.db*"):
            file.unlink()
        copy.rename(self.folder / "ledger.db")
        self.ledger = Ledger(self.url)

    def make_files_old(self) -> None:
        for names in self.spool.old_names(-10.0):
            for name in names:
                path = self.spool.path(name)
                at = path.stat().st_mtime - OLD_S
                os.utime(path, (at, at))

    def sweep(self) -> int:
        """The sweep that the deliver role makes at its start and every hour."""
        return Retention(self.config, self.ledger, self.spool).sweep()

    def states(self) -> dict[str, int]:
        return self.ledger.inspect.counts()["instances"]


def part10(uid: str, source: str = "XRAY1", made_by: str = "1.2.3") -> bytes:
    return write_file_meta((CR, uid, SYNTAX), (made_by, "TEST"), source) + b"\x08\0\x05\0CS\0\0"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.ledger.close()


def test_acknowledged_images_unknown_to_a_restored_ledger_are_analysed(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.receive("1.2.1")
    backup = node.back_up()
    files = {node.receive(uid): uid for uid in ("1.2.2", "1.2.3", "1.2.4")}
    node.restore(backup)
    node.make_files_old()
    assert verify(node.ledger.inspect, node.spool).unknown == 3

    with caplog.at_level(logging.WARNING):
        assert node.sweep() == 0

    assert node.states()["received"] == 4
    jobs = node.ledger.claim_images("worker", 9)
    adopted = {job.spool_name: job.sop_instance_uid for job in jobs[1:]}
    assert adopted == files
    assert all(len(node.spool.read(job.spool_name)) == job.size_bytes for job in jobs)
    (row,) = node.ledger.inspect.history("1.2.2")
    assert (row["origin"], row["calling_ae_title"]) == ("adopted", "XRAY1")
    assert node.ledger.inspect.adopted() == 3
    assert "1.2.3 is adopted" in caplog.text
    assert verify(node.ledger.inspect, node.spool).unknown == 0


def test_a_young_file_without_a_row_is_left_alone(node: Node) -> None:
    node.spool.write(part10("1.2.1"))
    assert node.sweep() == 0
    assert node.states()["received"] == 0
    assert len(list(node.spool.names())) == 1


def test_an_adopted_image_that_was_also_resent_is_a_duplicate(node: Node) -> None:
    node.spool.write(part10("1.2.1"))
    node.make_files_old()
    node.receive("1.2.1")
    node.sweep()
    for job in node.ledger.claim_images("worker", 9):
        node.ledger.complete(job, Completion("analysed", "digest"), {})
    states = [row["state"] for row in node.ledger.inspect.history("1.2.1")]
    assert sorted(states) == ["analysed", "duplicate"]


def test_bytes_given_up_by_retention_are_still_removed(node: Node) -> None:
    node.receive("1.2.1")
    (job,) = node.ledger.claim_images("worker", 1)
    node.ledger.complete(job, Completion("analysed", "digest"), {})
    assert len(node.ledger.give_up_bytes(-1.0, -1.0, [], 9)) == 1
    node.make_files_old()
    assert node.sweep() == 1
    assert list(node.spool.names()) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"torn", b"\0" * 5000, part10("../../etc/passwd"), part10("1.2.9")[:-8]],
    ids=["empty", "torn", "zeros", "no UID", "no data set"],
)
def test_an_unidentifiable_file_is_quarantined_with_an_error(
    node: Node, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    name = node.spool.write(data)
    node.make_files_old()
    assert node.sweep() == 0
    assert node.states()["received"] == 0
    assert (node.spool.quarantine_folder / name).read_bytes() == data
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [name in error.getMessage() for error in errors] == [True]
    report = verify(node.ledger.inspect, node.spool)
    assert [name in fault for fault in report.faults] == [True]


def test_an_uncommitted_result_is_quarantined_without_an_error(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.spool.write(part10("2.25.1", source="", made_by=IMPLEMENTATION_CLASS_UID))
    node.make_files_old()
    strays = adopt_strays(node.ledger, node.spool)
    assert (strays.adopted, strays.results, strays.quarantined) == (0, 1, 0)
    assert len(list(node.spool.quarantine_folder.iterdir())) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert verify(node.ledger.inspect, node.spool).clean


def test_an_inbox_image_is_not_taken_for_a_result_by_its_uid(node: Node) -> None:
    node.spool.write(part10("2.25.1", source=""))
    node.make_files_old()
    strays = adopt_strays(node.ledger, node.spool)
    assert (strays.adopted, strays.results, strays.quarantined) == (1, 0, 0)


def test_an_image_whose_row_arrives_during_the_sweep_is_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a file server whose clock is behind, each new file looks old."""
    data = part10("1.2.1")
    name = node.spool.write(data)
    node.make_files_old()
    monkeypatch.setattr("daemon.deliver.retention.adopt_strays", lambda *_: None)

    def known(names: Iterable[str]) -> set[str]:
        found = known_before(names)
        node.ledger.receive([Arrival(name, CR, "1.2.1", SYNTAX, "XRAY1", "dimse", 1, len(data))])
        return found

    known_before = node.ledger.inspect.known_spool_names
    monkeypatch.setattr(node.ledger.inspect, "known_spool_names", known)
    assert node.sweep() == 0
    assert node.spool.read(name) == data


def test_a_stray_with_damaged_meta_information_does_not_stop_other_adoptions(
    tmp_path: Path, ledger_url: str
) -> None:
    """PostgreSQL cannot store NUL, and one refused row would end the whole sweep."""
    ledger = Ledger(ledger_url)
    spool = Spool(tmp_path / "spool")
    implementation = ("1.2.3", "TEST")
    data = part10("1.2.1")[-8:]
    spool.write(part10("1.2.1", "XR\0Y"))
    spool.write(write_file_meta((f"{CR}\0x", "1.2.2", SYNTAX), implementation, "XRAY1") + data)
    spool.write(write_file_meta((CR, "1.2.3", "1.2\0.1"), implementation, "XRAY1") + data)
    spool.write(part10("1.2.4"))
    strays = adopt_strays(ledger, spool, -10.0)
    assert (strays.adopted, strays.quarantined) == (4, 0)
    (row,) = ledger.inspect.history("1.2.4")
    assert row["calling_ae_title"] == "XRAY1"
    ledger.close()


def test_two_processes_adopt_a_file_once(node: Node) -> None:
    name = node.spool.write(part10("1.2.1"))
    arrival = Arrival(name, CR, "1.2.1", SYNTAX, "XRAY1", "adopted", 1, 9)
    assert node.ledger.adopt([arrival]) == [arrival]
    assert node.ledger.adopt([arrival]) == []


# -- read-only commands --------------------------------------------------------------------------


def test_read_only_commands_take_no_lock_and_change_no_byte(node: Node) -> None:
    node.receive("1.2.1")
    writer = sqlite3.connect(node.folder / "ledger.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    files = ("ledger.db", "ledger.db-wal")
    before = [(node.folder / file).read_bytes() for file in files]

    inspect = Inspection.open(node.url)
    assert inspect.counts()["instances"]["received"] == 1
    inspect.troubles()
    spool = Spool.existing(node.spool.folder, inspect.spool_identity())
    assert verify(inspect, spool).clean
    inspect.close()

    assert [(node.folder / file).read_bytes() for file in files] == before
    writer.close()


def test_the_database_refuses_a_change_through_a_read_only_ledger(node: Node) -> None:
    inspect = Inspection.open(node.url)
    with (
        inspect._database.reading() as conn,
        pytest.raises(Exception, match="readonly database"),
    ):
        conn.exec_driver_sql("DELETE FROM instances")
    inspect.close()


def test_read_only_commands_never_create_or_migrate_a_ledger(node: Node, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no such file"):
        Inspection.open(f"sqlite:///{tmp_path}/mistyped.db")
    assert not (tmp_path / "mistyped.db").exists()

    connection = sqlite3.connect(node.folder / "ledger.db", isolation_level=None)
    connection.execute("UPDATE schema_version SET version = 3")
    with pytest.raises(LedgerError, match="schema version 3 found"):
        Inspection.open(node.url)
    assert connection.execute("SELECT version FROM schema_version").fetchone() == (3,)
    connection.close()


def test_doctor_changes_no_byte_of_a_restored_ledger(node: Node, tmp_path: Path) -> None:
    """The copy in a backup has no write-ahead log, but a connection that may write would create
    one.
    """
    copy_ledger(node.folder / "ledger.db", tmp_path / "restored.db")
    before = (tmp_path / "restored.db").read_bytes()
    settings = node.config.model_dump() | {
        "ledger": f"sqlite:///{tmp_path}/restored.db",
        "port": unused_port(),
        "destinations": [{"name": "outbox", "folder": tmp_path / "outbox"}],
    }
    found = [str(each) for each in examine(Config.model_validate(settings), lambda: "", {})]
    assert any("destination outbox" in line for line in found)
    assert (tmp_path / "restored.db").read_bytes() == before
    assert list(tmp_path.glob("restored.db-*")) == []


def test_read_only_commands_create_no_spool(node: Node, tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="there is no such folder"):
        Spool.existing(tmp_path / "mistyped", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpoolError, match="not the folder"):
        Spool.existing(tmp_path / "empty", node.ledger.inspect.spool_identity())
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_unreadable_folder_does_not_stop_the_sweep_of_others(node: Node) -> None:
    backup = node.back_up()
    stray = node.receive("1.2.2")
    node.restore(backup)
    node.make_files_old()
    part = node.spool.folder / "ff" / f".{'0' * 16}.part"
    part.touch()
    os.utime(part, (0, 0))

    # The folders are read in order, and the first is broken, as by a bad sector.
    node.spool.path(stray).rename(node.spool.path(f"ff{stray[2:]}"))
    (node.spool.folder / "00").rmdir()
    (node.spool.folder / "00").touch()
    with pytest.raises(NotADirectoryError):
        node.sweep()
    assert node.states()["received"] == 1
    assert not part.exists()
