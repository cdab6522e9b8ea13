"""A folder destination is created once, and recognised later by its mark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.commands.doctor import examine
from daemon.config import Config, FolderDestination
from daemon.deliver.folder import MARK, Folder
from daemon.dicom.link import LinkDownError
from daemon.dicom.outgoing import Outgoing
from daemon.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield ledger
    ledger.close()


def outgoing(folder: Path) -> Outgoing:
    path = folder / "object"
    path.write_bytes(b"bytes")
    return Outgoing(path, "1.2", "1.2.3", "1.2.1")


def doctor_line(tmp_path: Path, outbox: Path) -> str:
    places = (FolderDestination(name="outbox", folder=outbox),)
    config = Config(
        spool=tmp_path / "spool", ledger=f"sqlite:///{tmp_path}/ledger.db", destinations=places
    )
    (found,) = [
        str(one)
        for one in examine(config, lambda: "a model", {})
        if one.subject == "destination outbox"
    ]
    return found


def test_a_new_folder_is_created(tmp_path: Path, ledger: Ledger) -> None:
    outbox = tmp_path / "not" / "there" / "yet"
    assert "no such folder" in doctor_line(tmp_path, outbox)
    for _ in range(2):
        Folder.open(outbox, ledger).store(outgoing(tmp_path))
    assert [path.name for path in outbox.glob("*.dcm")] == ["1.2.3.dcm"]
    assert doctor_line(tmp_path, outbox).startswith("ok")


def test_a_folder_from_a_version_without_marks_gets_a_mark(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "1.dcm").touch()
    Folder.open(tmp_path, ledger)
    assert (tmp_path / MARK).is_dir()


def test_a_lost_folder_is_recreated_only_by_a_person(tmp_path: Path, ledger: Ledger) -> None:
    outbox = tmp_path / "outbox"
    Folder.open(outbox, ledger)
    outbox.rename(tmp_path / "away")

    # The folder is missing in the first round and empty in the second.
    for _ in range(2):
        with pytest.raises(LinkDownError, match="is it mounted"):
            Folder.open(outbox, ledger)
        line = doctor_line(tmp_path, outbox)
        assert line.startswith("TROUBLE")
        assert line.endswith(f"mkdir -p {outbox / MARK}")
        outbox.mkdir(exist_ok=True)

    assert list(outbox.iterdir()) == []
    (outbox / MARK).mkdir(parents=True)
    assert Folder.open(outbox, ledger).store(outgoing(tmp_path)).status == 0

    # A folder that the settings name for the first time is still created.
    Folder.open(tmp_path / "other", ledger)


def test_a_write_to_a_folder_that_was_replaced_is_not_acknowledged(
    tmp_path: Path, ledger: Ledger
) -> None:
    outbox = tmp_path / "outbox"
    folder = Folder.open(outbox, ledger)
    outbox.rename(tmp_path / "away")
    outbox.mkdir()
    with pytest.raises(LinkDownError, match="is it mounted"):
        folder.store(outgoing(tmp_path))


def test_opening_a_folder_examines_no_results_in_it(tmp_path: Path, ledger: Ledger) -> None:
    # Each image opens the folder, and it may hold many results that nobody fetches.
    outbox = tmp_path / "outbox"
    Folder.open(outbox, ledger).store(outgoing(tmp_path))
    part = outbox / f".{'0' * 16}.part"
    part.touch()
    os.utime(part, (0, 0))
    Folder.open(outbox, ledger)
    assert not part.exists()

    os.utime(outbox, (0, 0))
    Folder.open(outbox, ledger)
    assert outbox.stat().st_mtime == 0
