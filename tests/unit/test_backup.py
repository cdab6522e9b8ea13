"""`pleura backup`, and the restore procedure of docs/backup.md."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from daemon.commands.backup import BackupError, back_up
from daemon.commands.verify import verify
from daemon.ledger import Inspection, Ledger, LedgerError
from daemon.ledger.copies import copy_ledger
from daemon.spool import Spool, SpoolError
from tests.unit.test_restored_ledger import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    folder = tmp_path / "node"
    folder.mkdir()
    return Node(folder)


def make_unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make every later read of this spool file fail, as on a bad sector."""
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_bytes(path)

    def copy(source: Path, target: Path) -> None:
        Path(target).write_bytes(read(Path(source)))

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(shutil, "copyfile", copy)


def test_a_backup_of_a_running_node_is_complete_and_restorable(node: Node, tmp_path: Path) -> None:
    for number in range(5):
        node.receive(f"1.2.{number}")
    out = tmp_path / "backup"
    backup = back_up(node.url, node.spool.folder, out)
    assert (backup.files, backup.copied, backup.missing) == (5, 5, 0)
    node.ledger.close()

    # Lose the disk, then follow the procedure of docs/backup.md.
    shutil.rmtree(node.folder)
    shutil.copytree(out, node.folder)
    node.ledger = Ledger(node.url)
    node.spool = Spool(node.folder / "spool")
    node.spool.claim(node.ledger.spool_identity)

    report = verify(node.ledger.inspect, node.spool)
    assert (report.files, report.faults, report.unknown) == (5, [], 0)
    assert node.states()["received"] == 5
    node.ledger.close()


def test_a_second_backup_copies_only_new_files_and_drops_old_files(
    node: Node, tmp_path: Path
) -> None:
    first = node.receive("1.2.1")
    out = tmp_path / "backup"
    back_up(node.url, node.spool.folder, out)
    second = node.receive("1.2.2")
    backup = back_up(node.url, node.spool.folder, out)
    assert (backup.files, backup.copied, backup.removed) == (2, 1, 0)
    assert {path.name for path in (out / "spool").glob("??/*")} == {first, second}
    node.ledger.close()


def test_a_missing_file_is_counted(node: Node, tmp_path: Path) -> None:
    node.spool.remove(node.receive("1.2.1"))
    backup = back_up(node.url, node.spool.folder, tmp_path / "backup")
    assert (backup.files, backup.copied, backup.missing) == (1, 0, 1)
    assert ["image 1.2.1" in fault and "is gone" in fault for fault in backup.faults] == [True]
    node.ledger.close()


def test_one_bad_sector_does_not_keep_other_files_out_of_the_backup(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = node.receive("1.2.1"), node.receive("1.2.2")
    make_unreadable(monkeypatch, bad)
    backup = back_up(node.url, node.spool.folder, tmp_path / "backup")
    assert (backup.files, backup.copied, backup.missing) == (2, 1, 1)
    assert ["Input/output error" in fault for fault in backup.faults] == [True]
    assert [path.name for path in (tmp_path / "backup" / "spool").glob("??/*")] == [good]
    node.ledger.close()


def test_the_copy_in_the_backup_survives_the_loss_of_its_file(node: Node, tmp_path: Path) -> None:
    name = node.receive("1.2.1")
    back_up(node.url, node.spool.folder, tmp_path / "backup")
    node.spool.remove(name)
    backup = back_up(node.url, node.spool.folder, tmp_path / "backup")
    assert (backup.files, backup.copied, backup.missing, backup.removed) == (1, 0, 0, 0)
    assert (tmp_path / "backup" / "spool" / name[:2] / name).is_file()
    node.ledger.close()


def test_a_reinitialised_node_does_not_replace_its_earlier_backup(
    node: Node, tmp_path: Path
) -> None:
    name = node.receive("1.2.1")
    out = tmp_path / "backup"
    back_up(node.url, node.spool.folder, out)
    before = (out / "ledger.db").read_bytes()

    # Lose the ledger. The node still starts, with the remaining spool.
    node.ledger.close()
    for file in node.folder.glob("ledger.db*"):
        file.unlink()
    node.ledger = Ledger(node.url)
    node.spool.claim(node.ledger.spool_identity)
    with pytest.raises(BackupError, match="knows images that this ledger does not know"):
        back_up(node.url, node.spool.folder, out)

    node.receive("1.2.2")
    with pytest.raises(BackupError, match="name a new folder"):
        back_up(node.url, node.spool.folder, out)
    assert (out / "ledger.db").read_bytes() == before
    assert (out / "spool" / name[:2] / name).is_file()
    assert sorted(path.name for path in out.iterdir()) == ["ledger.db", "spool"]
    node.ledger.close()


def test_the_backup_of_another_node_is_not_replaced(node: Node, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Node(tmp_path / "other")
    back_up(other.url, other.spool.folder, tmp_path / "backup")
    with pytest.raises(BackupError, match="the copy of another ledger"):
        back_up(node.url, node.spool.folder, tmp_path / "backup")
    other.ledger.close()
    node.ledger.close()


def test_a_backup_continues_after_its_own_restore(node: Node, tmp_path: Path) -> None:
    node.receive("1.2.1")
    out = tmp_path / "backup"
    back_up(node.url, node.spool.folder, out)
    node.receive("1.2.2")
    shutil.copy(out / "ledger.db", tmp_path / "copy.db")
    node.restore(tmp_path / "copy.db")
    node.receive("1.2.3")
    assert back_up(node.url, node.spool.folder, out).files == 2
    node.ledger.close()


def test_a_damaged_copy_is_not_replaced_and_the_error_says_what_to_do(
    node: Node, tmp_path: Path
) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "ledger.db").write_bytes(b"no database" * 100)
    with pytest.raises(BackupError, match=r"file is not a database.*name a new folder"):
        back_up(node.url, node.spool.folder, tmp_path / "backup")
    node.ledger.close()


def test_a_backup_that_is_not_possible_is_refused_with_advice(node: Node, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="point-in-time"):
        back_up("postgresql+psycopg://db/pleura", node.spool.folder, tmp_path / "out")
    with pytest.raises(BackupError, match="inside the spool"):
        back_up(node.url, node.spool.folder, node.spool.folder / "out")
    with pytest.raises(LedgerError, match="no such file"):
        back_up(f"sqlite:///{tmp_path}/none.db", node.spool.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    node.ledger.close()


def test_a_full_disk_removes_the_unfinished_copy(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger, ledger:
        ledger.execute("CREATE TABLE large AS SELECT zeroblob(1000000)")
    (tmp_path / "copy.db").write_bytes(b"of before")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(sqlite3.OperationalError):
            copy_ledger(tmp_path / "ledger.db", tmp_path / "copy.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.db", "ledger.db"]
    assert (tmp_path / "copy.db").read_bytes() == b"of before"


def test_the_copy_is_one_file_that_opens_read_only(node: Node, tmp_path: Path) -> None:
    node.receive("1.2.1")
    back_up(node.url, node.spool.folder, tmp_path / "backup")
    inspect = Inspection.open(f"sqlite:///{tmp_path}/backup/ledger.db")
    assert inspect.counts()["instances"]["received"] == 1
    inspect.close()
    assert sorted(path.name for path in (tmp_path / "backup").iterdir()) == ["ledger.db", "spool"]
    node.ledger.close()


def test_a_ledger_whose_spool_is_lost_accepts_a_new_folder_with_its_identity(node: Node) -> None:
    """The procedure of docs/backup.md for a node without any copy of spool.id."""
    node.receive("1.2.1")
    shutil.rmtree(node.spool.folder)
    spool = Spool(node.spool.folder)
    with pytest.raises(SpoolError, match="not the folder"):
        spool.claim(node.ledger.spool_identity)
    (spool.folder / "spool.id").write_text(f"{node.ledger.inspect.spool_identity()}\n")
    spool.claim(node.ledger.spool_identity)
    assert ["is gone" in fault for fault in verify(node.ledger.inspect, spool).faults] == [True]
    node.ledger.close()
