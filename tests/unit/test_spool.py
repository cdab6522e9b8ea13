"""The spool's guarantee: a visible name is always a complete file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import daemon.spool as spool_module
from daemon.ledger import Arrival, Ledger
from daemon.receive.intake import Intake, NoRoomError
from daemon.spool import Spool, SpoolError, write_durably


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_written_file_is_complete_private_and_under_our_own_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    name = spool.write(b"head", memoryview(b"body"), bytearray(b"tail"))
    assert spool.read(name) == b"headbodytail"
    with spool.open(name) as file:
        assert file.read(4) == b"head"
    assert list(Spool(tmp_path / "spool").names()) == [name]
    for path in (tmp_path / "spool").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
    spool.remove(name)
    spool.remove(name)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "", "1.2.840.10008", "A" * 32, "0" * 31, "0" * 32 + "\n", "/etc/passwd"],
)
def test_only_our_own_names_are_accepted(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path)
    for use in (spool.path, spool.read, spool.open, spool.remove):
        with pytest.raises(ValueError, match="only our own names"):
            use(name)


def test_bytes_and_name_are_durable_before_the_return(
    tmp_path: Path, disk_steps: list[str]
) -> None:
    spool = Spool(tmp_path)
    disk_steps.clear()
    spool.write(b"x")
    assert disk_steps == ["named", "bytes synced", "folder synced"]
    disk_steps.clear()
    # Other processes look for this name, so the file must be complete as soon as it is visible.
    write_durably(tmp_path / "1.2.3.dcm", b"x")
    assert disk_steps == ["bytes synced", "named", "folder synced"]


KILLED = """
import os, signal, sys
from pathlib import Path
from daemon.spool import Spool
spool = Spool(Path(sys.argv[1]))
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
point = sys.argv[2]
if point == "while writing":
    write = os.writev
    os.writev = lambda descriptor, data: die() if len(data[0]) < 100_000 else write(descriptor, [data[0][:60_000]])
if point == "before syncing":
    os.fsync = die
if point == "before naming":
    os.rename = die
spool.write(b"x" * 200_000)
"""


@pytest.mark.parametrize("point", ["while writing", "before syncing", "before naming"])
def test_after_a_kill_a_named_file_is_complete_and_can_be_swept(tmp_path: Path, point: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), point])
    assert ended.returncode == -signal.SIGKILL
    spool = Spool(tmp_path)
    assert [len(spool.read(name)) for name in spool.names()] == (
        [200_000] if point == "before syncing" else []
    )
    # The kill left exactly one file.
    assert len(files(tmp_path)) == 1
    # A young file may belong to a running process, so it is not swept.
    assert spool.sweep(lambda _: set(), age_s=3600) == 0
    assert spool.sweep(lambda _: set(), age_s=-1) == 1
    assert files(tmp_path) == []


def take(intake: Intake, sop_instance_uid: str) -> None:
    file = intake.begin()
    file.write(b"x")
    file.keep(Arrival(file.name, "1.2", sop_instance_uid, "", "", "dimse", 1, 1))


def test_nothing_is_acknowledged_in_an_unmounted_spool(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    folder = tmp_path / "spool"
    # A start before the mount creates folders in the mount point.
    Spool(folder)
    folder.rename(tmp_path / "mount point")
    spool = Spool(folder)
    spool.claim(ledger.spool_identity)

    intake = Intake(ledger, spool)
    take(intake, "1.3")

    folder.rename(tmp_path / "away")
    (tmp_path / "mount point").rename(folder)
    with pytest.raises(NoRoomError):
        take(intake, "1.4")
    assert ledger.inspect.counts()["instances"]["received"] == 1
    assert files(folder) == []


@pytest.mark.parametrize(
    ("look", "found"),
    [
        (lambda spool, name: spool.read(name), b"image"),
        (lambda spool, name: spool.damage(name, 5), None),
    ],
    ids=["read", "damage"],
)
def test_a_file_is_not_lost_when_the_spool_is_remounted_during_the_look(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    look: Callable[[Spool, str], object],
    found: object,
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    folder = tmp_path / "spool"
    spool = Spool(folder)
    spool.claim(ledger.spool_identity)
    name = spool.write(b"image")

    def remount() -> None:
        if not folder.exists():
            (tmp_path / "away").rename(folder)

    folder.rename(tmp_path / "away")
    monkeypatch.setattr(spool, "require", remount)
    assert look(spool, name) == found


def test_no_file_hidden_under_the_remounted_spool_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written to the mount point, and the spool is mounted again before the row is
    committed.
    """
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    folder = tmp_path / "spool"
    Spool(folder)
    folder.rename(tmp_path / "mount point")
    spool = Spool(folder)
    spool.claim(ledger.spool_identity)
    intake = Intake(ledger, spool)

    def swap(away: str, here: str) -> None:
        folder.rename(tmp_path / away)
        (tmp_path / here).rename(folder)

    def sync(names: Iterable[str]) -> None:
        swap("mount point", "mounted")
        synced(names)

    synced = spool.sync
    monkeypatch.setattr(spool, "sync", sync)
    swap("mounted", "mount point")
    with pytest.raises(NoRoomError):
        take(intake, "1.3")
    assert ledger.inspect.counts()["instances"]["received"] == 0


def test_another_nodes_spool_in_place_of_ours_loses_no_file(tmp_path: Path) -> None:
    spools = []
    for name in ("ours", "theirs"):
        ledger = Ledger(f"sqlite:///{tmp_path}/{name}.db")
        spools.append(Spool(tmp_path / name))
        spools[-1].claim(ledger.spool_identity)
    ours, _ = spools
    name = ours.write(b"image")
    assert ours.read(name) == b"image"

    (tmp_path / "ours").rename(tmp_path / "away")
    (tmp_path / "theirs").rename(tmp_path / "ours")
    for look in (ours.require, lambda: ours.read(name), lambda: ours.damage(name, 5)):
        with pytest.raises(SpoolError, match="not the folder whose files this ledger knows"):
            look()


def test_a_new_file_is_not_old_on_a_file_server_whose_clock_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.write(b"image")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    assert list(spool.old_names(3600)) == []


@pytest.mark.parametrize("failing", ["writev", "fsync"])
def test_a_full_disk_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    spool = Spool(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, full)
        with pytest.raises(OSError, match="No space left"):
            spool.write(b"x" * 1000)
    assert files(tmp_path) == []
    assert spool.read(spool.write(b"there is room again")) == b"there is room again"


def test_a_file_written_in_pieces_is_visible_only_once_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    writev = os.writev
    # Simulate short writes.
    monkeypatch.setattr(os, "writev", lambda descriptor, data: writev(descriptor, [data[0][:7]]))
    # More pieces than one system call accepts.
    pieces = [bytes([number % 251]) * (number % 5) for number in range(2500)]

    file = spool.begin()
    file.write(*pieces[:1200])
    file.write(*pieces[1200:])
    assert list(spool.names()) == []

    file.finish()
    spool.sync([file.name])
    # Dropping a finished file has no effect.
    file.drop()
    assert spool.read(file.name) == b"".join(pieces)

    dropped = spool.begin()
    dropped.write(b"x")
    dropped.drop()
    dropped.drop()
    assert list(spool.names()) == [file.name]
    assert len(files(tmp_path)) == 1


def test_a_large_file_is_flushed_to_disk_while_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    megabyte = 1 << 20
    begun: list[tuple[int, int]] = []

    def begin_writing(descriptor: int, offset: int, size_bytes: int) -> None:
        begin(descriptor, offset, size_bytes)
        assert os.fstat(descriptor).st_size >= offset + size_bytes
        begun.append((offset, size_bytes))

    begin = spool_module.begin_writing
    monkeypatch.setattr(spool_module, "begin_writing", begin_writing)
    spool = Spool(tmp_path)
    file = spool.begin()
    pieces = [os.urandom(megabyte + 1) for _ in range(9)]
    for piece in pieces:
        file.write(piece)
    assert begun == [(0, 4 * megabyte), (4 * megabyte, 4 * megabyte)]
    file.finish()
    assert spool.read(file.name) == b"".join(pieces)


def test_a_sweep_spares_young_files_and_files_known_to_the_ledger(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    owned, orphan, young = spool.write(b"owned"), spool.write(b"orphan"), spool.write(b"young")
    hour_ago = time.time() - 3600
    for name in (owned, orphan):
        os.utime(spool.path(name), (hour_ago, hour_ago))
    assert spool.sweep(lambda names: {owned} & set(names), age_s=1800) == 1
    assert set(spool.names()) == {owned, young}
    assert not spool.path(orphan).exists()


def test_a_file_is_replaced_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "1.2.3.dcm"
    write_durably(target, b"first")

    def failed(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failed)
        with pytest.raises(OSError, match="Input/output"):
            write_durably(target, b"second")
    assert target.read_bytes() == b"first"
    assert files(tmp_path) == [target]


def test_a_folder_of_another_ledger_is_refused(tmp_path: Path) -> None:
    """As with the mount point of an unmounted share, which is an empty, writable folder."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    # The first claim marks the folder, the second recognises it.
    for _ in range(2):
        Spool(tmp_path / "spool").claim(ledger.spool_identity)
    with pytest.raises(SpoolError, match="mounted"):
        Spool(tmp_path / "mount-point").claim(ledger.spool_identity)
    other = Ledger(f"sqlite:///{tmp_path}/other.db")
    Spool(tmp_path / "other").claim(other.spool_identity)
    with pytest.raises(SpoolError):
        Spool(tmp_path / "other").claim(ledger.spool_identity)
    ledger.close()
    other.close()


def test_an_unmounted_folder_is_an_error_and_no_loss(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    spool = Spool(tmp_path / "spool")
    spool.claim(ledger.spool_identity)
    spool.require()
    (tmp_path / "spool").rename(tmp_path / "elsewhere")
    with pytest.raises(SpoolError, match="no longer there"):
        spool.require()
    ledger.close()
