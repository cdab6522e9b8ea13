"""Retention: bytes are removed when nothing is owed on them, and not before; `pleura verify`
reports missing bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.commands.verify import verify
from daemon.config import Config
from daemon.deliver.retention import Retention
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.spool import Spool, SpoolError
from tests.commands import pleura

DAY_S = 86400.0
PACS = {"name": "pacs", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": 1, "results": ["SC"]}


class Bench:
    """A ledger and a spool with images in any state, whose time the test advances."""

    def __init__(self, folder: Path, commitment: bool = False, **keep: Any) -> None:
        self.now = 1_000_000.0
        self.config = Config.model_validate(
            {
                "spool": folder / "spool",
                "ledger": f"sqlite:///{folder}/ledger.db",
                "spool_reserve_mb": 0,
                "destinations": [PACS | {"commitment": commitment}],
                "retention": {"keep_days": 14, "keep_failed_days": 60, "free_mb": 0} | keep,
            }
        )
        self.ledger = Ledger(self.config.ledger, clock=lambda: self.now)
        self.spool = Spool(self.config.spool)
        self.retention = Retention(self.config, self.ledger, self.spool)
        self.number = 0

    def image(self, state: str = "analysed", size_bytes: int = 10) -> str:
        """Receive and complete one image; an analysed image has a result that is owed."""
        self.number += 1
        uid = f"1.2.{self.number}"
        data = bytes(size_bytes)

        self.ledger.receive(
            [Arrival(self.spool.write(data), "1.2", uid, "", "", "dimse", 1, len(data))]
        )

        if state == "received":
            return uid
        (job,) = self.ledger.claim_images("test", 1)

        results: tuple[StoredResult, ...] = ()
        if state == "analysed":
            results = (
                StoredResult("SC", self.spool.write(data), "1.2", f"9.{uid}", "1.2", len(data)),
            )

        self.ledger.complete(job, Completion(state, uid, results=results), self.config.owed())
        return uid

    def deliver(self, commitment: bool = False) -> None:
        for job in self.ledger.claim_deliveries("pacs", "test", 999):
            self.ledger.mark_stored(job, 0, commitment)

    def pass_days(self, days: int) -> None:
        """Advance the time with a look at the clock each day; a running node looks each minute."""
        for _ in range(days):
            self.turn()
            self.now += DAY_S

    def turn(self) -> int:
        return self.retention.remove_what_is_done(threading.Event())

    def files(self) -> int:
        return len(list(self.spool.names()))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(folder: Path = tmp_path, **settings: Any) -> Bench:
        benches.append(Bench(folder, **settings))
        return benches[-1]

    yield make
    for one in benches:
        one.ledger.close()


def test_completed_bytes_are_removed_by_age_and_their_rows_stay(
    bench: Callable[..., Bench],
) -> None:
    node = bench()
    node.image()
    node.deliver()

    node.pass_days(13)
    assert (node.turn(), node.files()) == (0, 2)
    node.now += DAY_S
    assert (node.turn(), node.files()) == (2, 0)
    assert node.ledger.inspect.counts()["deliveries"]["stored"] == 1
    assert verify(node.ledger.inspect, node.spool).clean

    # The same image sent again is still a duplicate.
    node.ledger.receive([Arrival(node.spool.write(b"x"), "1.2", "1.2.1", "", "", "dimse", 1, 1)])
    (job,) = node.ledger.claim_images("test", 1)
    assert (
        node.ledger.complete(job, Completion("analysed", "1.2.1"), node.config.owed())
        == "duplicate"
    )


def test_a_file_that_cannot_be_removed_blocks_no_other(bench: Callable[..., Bench]) -> None:
    node = bench()
    shards = node.config.spool
    # Choose a folder that the files of this second do not use.
    broken = f"{(int(time.time()) + 128) % 256:02x}"
    node.ledger.receive([Arrival(broken * 16, "1.2", "1.2.0", "", "", "dimse", 1, 10)])
    (job,) = node.ledger.claim_images("test", 1)
    node.ledger.complete(job, Completion("not_analysed", "1.2.0"), {})
    node.image()
    node.deliver()
    left = [path for path in shards.glob("*/*") if path.is_file()]
    assert len(left) == 2

    (shards / broken).rmdir()
    (shards / broken).touch()
    node.now += 15 * DAY_S
    with pytest.raises(NotADirectoryError):
        node.turn()
    assert not any(path.exists() for path in left)


def test_waiting_and_owed_bytes_are_kept_however_old(bench: Callable[..., Bench]) -> None:
    node = bench()
    node.image()
    node.image("received")
    node.now += 1000 * DAY_S
    assert (node.turn(), node.files()) == (0, 3)


def test_failed_and_refused_bytes_are_kept_longer_for_a_person(bench: Callable[..., Bench]) -> None:
    node = bench()
    node.image("failed")
    node.image()
    for job in node.ledger.claim_deliveries("pacs", "test", 9):
        node.ledger.mark_refused(job, "test")
    node.pass_days(59)
    assert (node.turn(), node.files()) == (0, 3)
    node.now += DAY_S
    assert (node.turn(), node.files()) == (3, 0)
    # Nothing is left to retry.
    assert node.ledger.rearm(["failed", "refused"], []) == 0


def test_nothing_is_removed_before_the_archive_has_committed(bench: Callable[..., Bench]) -> None:
    node = bench(commitment=True)
    node.image()
    node.deliver(commitment=True)
    node.now += 1000 * DAY_S
    assert (node.turn(), node.files()) == (0, 2)
    question = node.ledger.ask_commitment("pacs", 9, 60)
    assert question is not None
    assert node.ledger.record_commitment_report(
        "pacs", question.transaction_uid, ["9.1.2.1"], {}, {}
    )
    assert (node.turn(), node.files()) == (2, 0)


def test_nothing_is_removed_for_lack_of_room_while_the_spool_is_not_mounted(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    node = bench(free_mb=1_000_000_000)
    node.spool.claim(node.ledger.spool_identity)
    node.image()
    node.deliver()

    # Leave an empty mount point, as an unmounted spool does.
    node.config.spool.rename(tmp_path / "away")
    node.config.spool.mkdir()
    with pytest.raises(SpoolError, match="is it mounted"):
        node.turn()

    node.config.spool.rmdir()
    (tmp_path / "away").rename(node.config.spool)
    assert verify(node.ledger.inspect, node.spool).files == 2


def test_completed_bytes_are_removed_early_for_lack_of_room_oldest_first(
    bench: Callable[..., Bench], small_disk: Path
) -> None:
    # The disk has 16 MB.
    node = bench(folder=small_disk, free_mb=4)
    done = []
    # Write 24 files of half a megabyte.
    for _ in range(12):
        done.append(node.image(size_bytes=500_000))
        node.deliver()
        node.now += 1
    owed = node.image(size_bytes=500_000)
    assert node.spool.free_bytes() < 4 << 20
    assert node.turn() > 0
    assert node.spool.free_bytes() >= 4 << 20
    kept = {file.what.split()[1] for file in node.ledger.inspect.kept_files()}
    assert {owed, f"9.{owed}"} <= kept
    assert verify(node.ledger.inspect, node.spool).clean


def test_files_left_by_a_crash_between_the_two_steps_are_swept(
    bench: Callable[..., Bench],
) -> None:
    node = bench()
    node.image()
    node.deliver()
    node.now += 15 * DAY_S
    assert len(node.ledger.give_up_bytes(14 * DAY_S, 60 * DAY_S, [], 9)) == 2
    report = verify(node.ledger.inspect, node.spool)
    assert (report.clean, report.unowned) == (True, 2)
    assert node.spool.sweep(node.ledger.inspect.known_spool_names, age_s=-1) == 2


def test_verify_reports_missing_and_damaged_bytes(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    node = bench()
    for _ in range(3):
        node.image()

    files = {
        file.what: node.spool.path(file.spool_name) for file in node.ledger.inspect.kept_files()
    }
    files["image 1.2.1"].unlink()
    files["SC 9.1.2.2"].write_bytes(b"short")
    node.spool.write(b"of nobody")

    report = verify(node.ledger.inspect, node.spool)
    assert len(report.faults) == 2
    assert "1.2.1" in report.faults[0]
    assert "has 5 of 10 bytes" in report.faults[1]
    assert (report.files, report.unowned, report.unknown) == (6, 0, 1)

    settings = tmp_path / "pleura.yaml"
    settings.write_text(
        yaml.safe_dump({"spool": str(node.spool.folder), "ledger": node.config.ledger})
    )
    answer = pleura("verify", "-c", settings)
    assert answer.returncode == 1
    assert "2 faults" in answer.stdout
