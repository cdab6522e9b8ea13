"""The inbox (watch folder), with a real ledger and spool."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from daemon.ledger import Ledger
from daemon.ledger.schema import instances
from daemon.receive import inbox
from daemon.receive.inbox import Inbox, Pace
from daemon.receive.intake import Intake
from daemon.spool import Spool
from tools.peers.waiting import wait_until

# The library watchdog warns when a folder and its subfolder appear at the same time. The roles hide
# the warnings of libraries.
pytestmark = pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")


class Node:
    """An inbox with its spool, ledger and intake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "inbox"
        self.folder.mkdir()
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
        self.spool = Spool(folder / "spool")
        self.pace = Pace(rescan_s=0.1, settled_s=0.3, stalled_s=30.0, kept_s=0.3)
        self.inbox: Inbox | None = None

    def start(self) -> None:
        self.inbox = Inbox(self.folder, Intake(self.ledger, self.spool), self.pace)
        self.inbox.start()

    def stop(self) -> None:
        if self.inbox:
            self.inbox.stop()
        self.ledger.close()

    def rows(self) -> list[Any]:
        engine = sa.create_engine(self.ledger.url)
        with engine.connect() as conn:
            found = list(conn.execute(sa.select(instances).order_by(instances.c.id)).mappings())
        engine.dispose()
        return found

    def left(self) -> list[str]:
        return sorted(
            path.name for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir()
        )


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path)
    yield one
    one.stop()


def test_files_found_closed_and_moved_in_are_received_whole_and_removed(
    node: Node, data: Path, tmp_path: Path
) -> None:
    source = (data / "node" / "RG2_UNC.dcm").read_bytes()
    (node.folder / "before.dcm").write_bytes(source)
    node.start()

    (node.folder / "closed.dcm").write_bytes(source)
    below = node.folder / "ward 3" / "today"
    below.mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(b"no DICOM at all")
    (tmp_path / "elsewhere").rename(below / "moved")
    wait_until("all is taken", lambda: node.left() == [])

    rows = sorted(node.rows(), key=lambda row: row["size_bytes"])
    assert [node.spool.read(row["spool_name"]) for row in rows] == [
        b"no DICOM at all",
        source,
        source,
    ]

    assert [row["size_bytes"] for row in rows] == [15, len(source), len(source)]
    assert {row["origin"] for row in rows} == {"inbox"}
    assert (
        rows[0]["sop_instance_uid"]
        == rows[0]["sop_class_uid"]
        == rows[0]["transfer_syntax_uid"]
        == ""
    )
    assert rows[1]["sop_class_uid"] == "1.2.840.10008.5.1.4.1.1.1"
    assert rows[1]["transfer_syntax_uid"] == "1.2.840.10008.1.2.1"


def test_a_file_is_not_taken_before_its_writer_has_finished(node: Node, tmp_path: Path) -> None:
    node.start()
    with (node.folder / "growing.dcm").open("wb") as file:
        # Write for longer than the settling time, but never pause for that long.
        for number in range(10):
            file.write(b"%d" % number)
            file.flush()
            time.sleep(0.1)
            assert node.left() == ["growing.dcm"]
    wait_until("all is taken", lambda: node.left() == [])
    assert [node.spool.read(row["spool_name"]) for row in node.rows()] == [b"0123456789"]


def test_the_inbox_waits_for_a_stalled_writer(node: Node) -> None:
    node.start()
    half, empty = node.folder / "half.dcm", node.folder / "empty.dcm"
    with half.open("wb") as upload, empty.open("wb") as other:
        upload.write(b"the first half, ")
        upload.flush()
        time.sleep(1.0)
        assert node.rows() == []
        upload.write(b"the second half")
        other.write(b"all of it")

    wait_until("both are taken", lambda: node.left() == [])
    found = {node.spool.read(row["spool_name"]) for row in node.rows()}
    assert found == {b"the first half, the second half", b"all of it"}


def test_the_inbox_stops_waiting_for_a_writer_that_never_continues(node: Node) -> None:
    node.pace = replace(node.pace, stalled_s=0.6)
    (node.folder / "empty.dcm").touch()
    node.start()
    with (node.folder / "half.dcm").open("wb") as upload:
        upload.write(b"the first half")
        upload.flush()
        wait_until("both are taken", lambda: node.left() == [])
    found = {node.spool.read(row["spool_name"]) for row in node.rows()}
    assert found == {b"the first half", b""}


def test_a_file_without_a_close_event_is_kept_and_received_again_if_it_changes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Simulate another host that writes to a share and stalls: no close event arrives.
    monkeypatch.setattr(inbox, "_on_network", lambda _: True)
    node.pace = replace(node.pace, kept_s=1.0)
    node.start()
    path = node.folder / "image.dcm"
    with path.open("wb") as upload:
        upload.write(b"the first half, ")
        upload.flush()
        wait_until("the half is taken", lambda: len(node.rows()) == 1)
        assert path.exists()
        upload.write(b"the second half")

    wait_until("the file is removed", lambda: node.left() == [])
    found = [node.spool.read(row["spool_name"]) for row in node.rows()]
    assert found == [b"the first half, ", b"the first half, the second half"]


def test_a_folder_that_becomes_a_link_leads_to_no_file_outside(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the inbox could have the node remove its own ledger."""
    below, outside, away = node.folder / "ward", tmp_path / "outside", tmp_path / "away"
    for folder in (below, outside):
        folder.mkdir()
        (folder / "file").write_bytes(folder.name.encode())

    def replaced_after_the_folder_is_read(name: str) -> bool:
        if below.exists() and not below.is_symlink():
            below.rename(away)
            below.symlink_to(outside)
        swaps.append(name)
        return True

    swaps: list[str] = []
    monkeypatch.setattr(inbox, "_may_be_taken", replaced_after_the_folder_is_read)
    node.pace = replace(node.pace, settled_s=0.0, kept_s=0.0)
    node.start()
    wait_until("the folder is walked", lambda: swaps)
    node.inbox.stop()  # type: ignore[union-attr]

    assert (outside / "file").read_bytes() == b"outside"
    assert [node.spool.read(row["spool_name"]) for row in node.rows()] == [b"ward"]
    assert list(away.iterdir()) == []


def test_a_closed_file_is_removed_at_once(node: Node, tmp_path: Path) -> None:
    # Only events can trigger this, also if the settings name a symbolic link to the folder.
    node.pace = Pace(rescan_s=600.0, settled_s=600.0, stalled_s=600.0, kept_s=600.0)
    (tmp_path / "link").symlink_to(node.folder)
    node.folder = tmp_path / "link"
    node.start()
    path = node.folder / "image.dcm"
    path.write_bytes(b"whole")
    path.chmod(0o644)
    wait_until("the file is removed", lambda: node.left() == [])


def test_a_file_that_cannot_be_read_into_memory_delays_no_other(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def identity(data: bytes) -> tuple[str, str, str]:
        if data == b"huge":
            raise MemoryError
        return "", "", ""

    monkeypatch.setattr(inbox, "_identity", identity)
    for number in range(9):
        (node.folder / f"{number}.dcm").write_bytes(b"huge" if number % 2 else b"small")
    node.start()
    wait_until("the other files are removed", lambda: len(node.left()) == 4)
    assert "inbox: a file stays (MemoryError)" in caplog.text
    assert len(node.rows()) == 5


def test_a_file_that_is_too_large_is_not_read(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inbox, "_LIMIT_BYTES", 10)
    (node.folder / "long.dcm").write_bytes(b"eleven byte")
    (node.folder / "short.dcm").write_bytes(b"ten bytes.")
    node.start()
    wait_until("the other file is removed", lambda: node.left() == ["long.dcm"])
    wait_until("the size is logged", lambda: "longer than 10 bytes" in caplog.text)
    assert len(node.rows()) == 1


def test_unfinished_hidden_and_linked_files_are_left_alone(node: Node, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"not for the node")
    (node.folder / "link.dcm").symlink_to(secret)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside.dcm").write_bytes(b"neither")
    (node.folder / "linked-folder").symlink_to(tmp_path / "folder")
    os.mkfifo(node.folder / "pipe")
    for name in (".hidden.dcm", "a.part", "b.TMP", "c~"):
        (node.folder / name).write_bytes(b"unfinished")

    node.start()
    (node.folder / "a.part").rename(node.folder / "a.dcm")
    wait_until("a.dcm is taken", lambda: "a.dcm" not in node.left())

    # A file that is wrongly taken would have settled by now.
    time.sleep(0.6)
    assert node.left() == [".hidden.dcm", "b.TMP", "c~", "link.dcm", "linked-folder", "pipe"]
    assert [node.spool.read(row["spool_name"]) for row in node.rows()] == [b"unfinished"]
    assert secret.exists()


def test_files_stay_while_the_ledger_is_away_and_are_retried_with_back_off(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pace = replace(node.pace, first_pause_s=0.4)
    receive = node.ledger.receive
    tries = []

    def away(arrivals: Any) -> list[int]:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise RuntimeError("ledger away")
        return receive(arrivals)

    monkeypatch.setattr(node.ledger, "receive", away)
    (node.folder / "kept.dcm").write_bytes(b"kept")
    node.start()
    wait_until("all is taken", lambda: node.left() == [])
    assert len(tries) == 3
    assert tries[1] - tries[0] >= 0.4
    assert tries[2] - tries[1] >= 0.8
    assert len(node.rows()) == 1
    assert list(node.spool.names()) == [node.rows()[0]["spool_name"]]


def test_an_unreadable_folder_is_logged_once_and_delays_no_other(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    locked, open_folder = node.folder / "locked", node.folder / "open"
    locked.mkdir()
    open_folder.mkdir()

    def scandir(folder: Any) -> Any:
        if os.fspath(folder) == str(locked):
            raise PermissionError(errno.EACCES, "Permission denied", str(locked))
        return scanned(folder)

    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= 30]

    scanned = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    (locked / "stays.dcm").write_bytes(b"x")
    (open_folder / "goes.dcm").write_bytes(b"x")
    node.start()
    wait_until("the other is taken", lambda: not (open_folder / "goes.dcm").exists())
    wait_until("the unreadable folder is logged", logged)
    assert len(logged()) == 1
    assert "Permission denied" in logged()[0]


def test_a_missing_inbox_is_logged(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.start()
    node.folder.rename(node.folder.with_name("away"))
    wait_until("the missing inbox is logged", lambda: "inbox: the folder" in caplog.text)
    node.folder.with_name("away").rename(node.folder)
    (node.folder / "goes.dcm").write_bytes(b"x")
    wait_until("its file is taken", lambda: node.left() == [])


def test_an_inbox_that_cannot_be_created_is_logged_and_retried(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    # As when the role starts before the share is mounted.
    node.folder.rmdir()
    node.folder.write_bytes(b"no folder")
    node.folder = node.folder / "inbox"
    node.start()
    wait_until(
        "the error is logged", lambda: "inbox: the folder: NotADirectoryError" in caplog.text
    )
    node.folder.parent.unlink()
    wait_until("the folder is created", node.folder.is_dir)
    (node.folder / "goes.dcm").write_bytes(b"x")
    wait_until("its file is taken", lambda: node.left() == [])


def test_a_lasting_trouble_is_in_the_facts_without_a_file_name(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pace = replace(node.pace, first_pause_s=0.05)

    def refused(self: Inbox, data: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "DOE^JANE.dcm")

    keep = Inbox._keep
    monkeypatch.setattr(Inbox, "_keep", refused)
    (node.folder / "DOE^JANE.dcm").write_bytes(b"x")
    node.start()
    running = node.inbox
    assert running is not None
    wait_until("the file is counted", lambda: running.facts()["inbox_stuck_files"] == 1)
    stuck = "files that cannot be taken and removed: 1; the last try: Permission denied"
    assert running.facts()["inbox_trouble"] == stuck

    monkeypatch.setattr(Inbox, "_keep", keep)
    wait_until("the trouble has ended", lambda: running.facts()["inbox_trouble"] == "")
    node.folder.rename(node.folder.with_name("away"))
    wait_until("the trouble is reported", lambda: running.facts()["inbox_trouble"] != "")
    gone = "the folder, or one below it, cannot be used: No such file or directory"
    assert running.facts() == {"inbox_trouble": gone, "inbox_stuck_files": 0}
    node.folder.with_name("away").rename(node.folder)
    wait_until("the trouble has ended", lambda: running.facts()["inbox_trouble"] == "")


def test_a_hanging_share_is_in_the_facts(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.pace = replace(node.pace, hanging_s=0.3)
    may_answer = threading.Event()
    scandir = os.scandir

    def hanging(folder: Any) -> Any:
        if Path(folder) == node.folder:
            may_answer.wait(20)
        return scandir(folder)

    node.start()
    running = node.inbox
    assert running is not None
    monkeypatch.setattr(os, "scandir", hanging)
    wait_until(
        "the hang is reported", lambda: "does not answer" in running.facts()["inbox_trouble"]
    )
    may_answer.set()
    wait_until("the share answers", lambda: running.facts()["inbox_trouble"] == "")


def test_a_file_that_cannot_be_removed_is_received_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pace = replace(node.pace, first_pause_s=0.1)
    unlink = os.unlink
    tries = []

    def refused(path: Any, *, dir_fd: int | None = None) -> None:
        if path == "stuck.dcm":
            tries.append(path)
            if len(tries) < 4:
                raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refused)
    (node.folder / "stuck.dcm").write_bytes(b"stuck")
    node.start()
    wait_until("all is taken", lambda: node.left() == [])
    assert len(tries) == 4
    assert len(node.rows()) == 1


@pytest.mark.parametrize("lost", ["inbox", "folder", "file"])
def test_a_file_that_cannot_be_seen_for_a_while_is_received_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A share that stops answering between taking a file and removing it."""
    node.pace = replace(node.pace, settled_s=0.0, kept_s=600.0)
    below = node.folder / "ward"
    below.mkdir()
    (below / "kept.dcm").write_bytes(b"kept")
    (node.folder / "other.dcm").write_bytes(b"other")
    node.start()
    wait_until("both are taken", lambda: len(node.rows()) == 2)

    broken = {"inbox": str(node.folder), "folder": "ward", "file": "kept.dcm"}[lost]
    seen: list[str] = []
    scandir, opened, status = os.scandir, os.open, os.stat

    def fail(name: Any) -> None:
        if str(name) == broken:
            seen.append(broken)
            raise OSError(errno.EIO, "Input/output error", str(name))

    def failing(real: Any) -> Any:
        def call(name: Any, *more: Any, **keywords: Any) -> Any:
            fail(name)
            return real(name, *more, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing(scandir))
        patch.setattr(os, "open", failing(opened))
        patch.setattr(os, "stat", failing(status))
        wait_until("it fails twice", lambda: len(seen) > 2)
        if lost == "file":
            (below / "later.dcm").write_bytes(b"later")
            wait_until("it keeps no other", lambda: len(node.rows()) == 3)

    (node.folder / "last.dcm").write_bytes(b"last")
    wait_until(
        "the folder is read again",
        lambda: node.spool.read(node.rows()[-1]["spool_name"]) == b"last",
    )
    taken = [node.spool.read(row["spool_name"]) for row in node.rows()]
    assert taken.count(b"kept") == taken.count(b"other") == 1


@pytest.mark.parametrize(
    ("kind", "network"),
    [("ext4", False), ("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ceph", True)],
)
def test_network_mounts_are_recognised_by_their_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, network: bool
) -> None:
    shared = tmp_path / "with blank"
    shared.mkdir()
    mounts = f"/dev/vda / ext4 rw 0 0\nserver:/x {str(shared).replace(' ', chr(92) + '040')} {kind} rw 0 0\n"
    read_text = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *a, **k: mounts if str(self) == "/proc/mounts" else read_text(self, *a, **k),
    )
    assert inbox._on_network(shared) is network
    assert inbox._on_network(tmp_path) is False
