"""`pleura backup`, and the restore that docs/backup.md describes."""

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


def fails_to_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on the disk answers each read of this spool file with an error."""
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_bytes(path)

    def copy(source: Path, target: Path) -> None:
        Path(target).write_bytes(read(Path(source)))

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(shutil, "copyfile", copy)


def test_a_backup_of_a_running_node_is_whole_and_can_be_restored(
    node: Node, tmp_path: Path
) -> None:
    for number in range(5):
        node.receive(f"1.2.{number}")
    out = tmp_path / "backup"
    backup = back_up(node.url, node.spool.folder, out)
    assert (backup.files, backup.copied, backup.missing) == (5, 5, 0)
    node.ledger.close()

    # The disk is lost; the procedure of docs/backup.md.
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


def test_a_file_that_is_gone_is_counted(node: Node, tmp_path: Path) -> None:
    node.spool.remove(node.receive("1.2.1"))
    backup = back_up(node.url, node.spool.folder, tmp_path / "backup")
    assert (backup.files, backup.copied, backup.missing) == (1, 0, 1)
    assert ["image 1.2.1" in fault and "is gone" in fault for fault in backup.faults] == [True]
    node.ledger.close()


def test_one_bad_sector_keeps_no_other_file_out_of_the_backup(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = node.receive("1.2.1"), node.receive("1.2.2")
    fails_to_read(monkeypatch, bad)
    backup = back_up(node.url, node.spool.folder, tmp_path / "backup")
    assert (backup.files, backup.copied, backup.missing) == (2, 1, 1)
    assert ["Input/output error" in fault for fault in backup.faults] == [True]
    assert [path.name for path in (tmp_path / "backup" / "spool").glob("??/*")] == [good]
    node.ledger.close()


def test_a_good_copy_outlives_the_loss_of_its_file(node: Node, tmp_path: Path) -> None:
    name = node.receive("1.2.1")
    back_up(node.url, node.spool.folder, tmp_path / "backup")
    node.spool.remove(name)
    backup = back_up(node.url, node.spool.folder, tmp_path / "backup")
    assert (backup.files, backup.copied, backup.missing, backup.removed) == (1, 0, 0, 0)
    assert (tmp_path / "backup" / "spool" / name[:2] / name).is_file()
    node.ledger.close()


def test_a_node_that_began_anew_does_not_replace_the_backup_of_what_it_lost(
    node: Node, tmp_path: Path
) -> None:
    name = node.receive("1.2.1")
    out = tmp_path / "backup"
    back_up(node.url, node.spool.folder, out)
    before = (out / "ledger.db").read_bytes()

    # The ledger is lost. The node starts all the same, over the spool that is left.
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


def test_the_backup_goes_on_after_its_own_restore(node: Node, tmp_path: Path) -> None:
    node.receive("1.2.1")
    out = tmp_path / "backup"
    back_up(node.url, node.spool.folder, out)
    node.receive("1.2.2")
    shutil.copy(out / "ledger.db", tmp_path / "copy.db")
    node.restore(tmp_path / "copy.db")
    node.receive("1.2.3")
    assert back_up(node.url, node.spool.folder, out).files == 2
    node.ledger.close()


def test_a_copy_that_is_damaged_is_not_replaced_and_is_told_what_to_do(
    node: Node, tmp_path: Path
) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "ledger.db").write_bytes(b"no database" * 100)
    with pytest.raises(BackupError, match=r"file is not a database.*name a new folder"):
        back_up(node.url, node.spool.folder, tmp_path / "backup")
    node.ledger.close()


def test_what_cannot_be_backed_up_is_refused_with_advice(node: Node, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="point-in-time"):
        back_up("postgresql+psycopg://db/pleura", node.spool.folder, tmp_path / "out")
    with pytest.raises(BackupError, match="inside the spool"):
        back_up(node.url, node.spool.folder, node.spool.folder / "out")
    with pytest.raises(LedgerError, match="no such file"):
        back_up(f"sqlite:///{tmp_path}/none.db", node.spool.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    node.ledger.close()


def test_a_full_disk_gets_the_unfinished_copy_back(tmp_path: Path) -> None:
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


def test_a_ledger_whose_spool_is_lost_takes_a_new_folder_by_its_identity(node: Node) -> None:
    """The procedure of docs/backup.md where no copy of spool.id is left."""
    node.receive("1.2.1")
    shutil.rmtree(node.spool.folder)
    spool = Spool(node.spool.folder)
    with pytest.raises(SpoolError, match="not the folder"):
        spool.claim(node.ledger.spool_identity)
    (spool.folder / "spool.id").write_text(f"{node.ledger.inspect.spool_identity()}\n")
    spool.claim(node.ledger.spool_identity)
    assert ["is gone" in fault for fault in verify(node.ledger.inspect, spool).faults] == [True]
    node.ledger.close()
