"""Group commit: each receiver is answered once its own row is committed, and no row is committed
twice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from daemon.ledger import Arrival, Ledger
from daemon.receive.intake import Intake, NoRoomError
from daemon.spool import Spool
from tools.peers.waiting import wait_until

PATIENCE_S = 20.0


class GatedLedger(Ledger):
    """A ledger whose commits wait for the test and fail when the test wants it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.groups: list[int] = []
        self.may_go_on = threading.Semaphore(0)
        self.broken: set[int] = set()

    def receive(self, arrivals: Sequence[Arrival]) -> None:
        self.groups.append(len(arrivals))
        is_broken = len(self.groups) in self.broken
        assert self.may_go_on.acquire(timeout=PATIENCE_S)
        if is_broken:
            raise OSError("the disk failed")
        super().receive(arrivals)


@pytest.fixture
def ledger(tmp_path: Path) -> GatedLedger:
    return GatedLedger(f"sqlite:///{tmp_path}/ledger.db")


@pytest.fixture
def spool(ledger: GatedLedger, tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.claim(ledger.spool_identity)
    return spool


@pytest.fixture
def intake(ledger: GatedLedger, spool: Spool) -> Intake:
    return Intake(ledger, spool)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(12) as threads:
        yield threads


def take(intake: Intake, number: int) -> None:
    file = intake.begin()
    file.write(b"x")
    file.keep(Arrival(file.name, "1.2", f"1.2.{number}", "", "", "dimse", 1, 1))


@pytest.fixture
def waiting(
    intake: Intake, ledger: GatedLedger, spool: Spool, threads: ThreadPoolExecutor
) -> list[Future[None]]:
    """One object whose commit has begun, and six that wait behind it."""
    objects = [threads.submit(take, intake, 0)]
    wait_until("the first commit has begun", lambda: ledger.groups == [1])

    objects += [threads.submit(take, intake, number) for number in range(1, 7)]
    wait_until("all files are written", lambda: len(list(spool.names())) == 7)
    return objects


def received(ledger: GatedLedger) -> int:
    return ledger.inspect.counts()["instances"].get("received", 0)


def test_objects_that_arrive_during_a_commit_share_the_next_commit(
    waiting: list[Future[None]], ledger: GatedLedger
) -> None:
    assert not any(each.done() for each in waiting)
    ledger.may_go_on.release(7)
    for each in waiting:
        each.result(PATIENCE_S)

    assert received(ledger) == 7
    assert sum(ledger.groups) == 7
    assert len(ledger.groups) < 7


def test_a_committed_object_is_answered_while_the_next_commit_waits(
    waiting: list[Future[None]], ledger: GatedLedger
) -> None:
    ledger.may_go_on.release()
    waiting[0].result(PATIENCE_S)
    assert not any(each.done() for each in waiting[1:])

    ledger.may_go_on.release(6)
    wait(waiting, PATIENCE_S)
    assert received(ledger) == 7


def test_a_failed_commit_fails_only_its_own_group(
    waiting: list[Future[None]], ledger: GatedLedger, spool: Spool
) -> None:
    ledger.broken = {2}
    ledger.may_go_on.release(7)
    wait(waiting, PATIENCE_S)

    refused = [each for each in waiting if isinstance(each.exception(), NoRoomError)]
    assert len(refused) == ledger.groups[1]
    assert received(ledger) == 7 - len(refused) == len(list(spool.names()))


def test_stop_waits_for_running_commits(
    waiting: list[Future[None]],
    intake: Intake,
    ledger: GatedLedger,
    threads: ThreadPoolExecutor,
) -> None:
    stopped = threads.submit(intake.stop)
    ledger.may_go_on.release()
    waiting[0].result(PATIENCE_S)
    assert not stopped.done()

    ledger.may_go_on.release(6)
    stopped.result(PATIENCE_S)
    assert received(ledger) == 7


def test_many_threads_lose_nothing_and_commit_nothing_twice(
    intake: Intake, ledger: GatedLedger, threads: ThreadPoolExecutor
) -> None:
    ledger.may_go_on.release(300)
    list(threads.map(lambda number: take(intake, number), range(300)))
    assert received(ledger) == sum(ledger.groups) == 300
