"""`pleura backup`, and the restore that docs/backup.md describes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from daemon.commands.backup import BackupError, back_up
from daemon.commands.verify import verify
from daemon.ledger import Inspection, Ledger, LedgerError
from daemon.spool import Spool
from tests.unit.test_restored_ledger import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    folder = tmp_path / "node"
    folder.mkdir()
    return Node(folder)


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


def test_the_copy_is_one_file_that_opens_read_only(node: Node, tmp_path: Path) -> None:
    node.receive("1.2.1")
    back_up(node.url, node.spool.folder, tmp_path / "backup")
    inspect = Inspection.open(f"sqlite:///{tmp_path}/backup/ledger.db")
    assert inspect.counts()["instances"]["received"] == 1
    inspect.close()
    assert sorted(path.name for path in (tmp_path / "backup").iterdir()) == ["ledger.db", "spool"]
    node.ledger.close()
