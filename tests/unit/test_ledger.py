"""The ledger's guarantees on each engine: one state per row, leases that end with their owner, and
no work done twice.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from daemon.ledger import (
    Arrival,
    Completion,
    DeliveryJob,
    ImageJob,
    Ledger,
    LedgerError,
    StoredResult,
)
from daemon.ledger.bells import FileBell
from tests.unit.clock import START, Clock

OWED = {"pacs": ("SEG", "SC"), "outbox": ("SC",)}


def arrival(uid: str = "1.2.3", priority: int = 1) -> Arrival:
    return Arrival(
        f"spool-{uid}",
        "1.2.840.10008.5.1.4.1.1.1",
        uid,
        "1.2.840.10008.1.2.1",
        "XRAY1",
        "dimse",
        priority,
        9,
    )


def completion(uid: str, digest: str = "d", kinds: tuple[str, ...] = ("SEG", "SC")) -> Completion:
    results = tuple(
        StoredResult(kind, f"file-{uid}-{kind}", "1.2", f"{uid}.{i}", "1.2.1")
        for i, kind in enumerate(kinds)
    )
    return Completion(
        "analysed", digest, "1.2", probability=0.9, positive=True, model="m", results=results
    )


def claim_one(ledger: Ledger) -> ImageJob:
    (job,) = ledger.claim_images("me", 1)
    return job


def instances(ledger: Ledger) -> dict[str, int]:
    return ledger.inspect.counts()["instances"]


def deliveries(ledger: Ledger) -> dict[str, int]:
    return ledger.inspect.counts()["deliveries"]


def test_stat_comes_first_then_the_oldest(ledger: Ledger) -> None:
    ledger.receive([arrival("1.1"), arrival("1.2", priority=0), arrival("1.3")])
    assert [job.sop_instance_uid for job in ledger.claim_images("me", 3)] == ["1.2", "1.1", "1.3"]


def test_a_leased_image_is_not_claimed_again_until_the_lease_expires(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.receive([arrival()])
    job = claim_one(ledger)
    assert ledger.claim_images("other", 9) == []
    clock.now += 59
    ledger.renew([job])
    clock.now += 59
    assert ledger.claim_images("other", 9) == []
    clock.now += 2
    assert [other.id for other in ledger.claim_images("other", 9)] == [job.id]


def test_an_owner_whose_lease_expired_changes_nothing(ledger: Ledger, clock: Clock) -> None:
    ledger.receive([arrival()])
    late = claim_one(ledger)
    clock.now += 61
    current = claim_one(ledger)
    assert ledger.complete(late, completion("1.9"), OWED) is None
    ledger.give_back(late)
    ledger.abandon(late)
    assert ledger.claim_images("third", 9) == []
    assert ledger.complete(current, completion("1.9"), OWED) == "analysed"
    assert ledger.complete(current, completion("1.9"), OWED) is None
    assert deliveries(ledger)["owed"] == 3


def test_an_unfinished_image_is_claimed_alone(ledger: Ledger) -> None:
    ledger.receive([arrival("1.1"), arrival("1.2"), arrival("1.3")])
    for job in ledger.claim_images("me", 2):
        ledger.abandon(job)
    # 1.1 and 1.2 are now suspects, and each is claimed without neighbours.
    assert [job.sop_instance_uid for job in ledger.claim_images("me", 9)] == ["1.1"]
    assert [job.sop_instance_uid for job in ledger.claim_images("me", 9)] == ["1.2"]
    assert [job.sop_instance_uid for job in ledger.claim_images("me", 9)] == ["1.3"]


def test_only_solitary_attempts_count_against_an_image(ledger: Ledger) -> None:
    ledger.receive([arrival("1.1"), arrival("1.2")])
    for job in ledger.claim_images("me", 9):
        ledger.abandon(job)
    seen = []
    for _ in range(3):
        job = claim_one(ledger)
        seen.append(job.unfinished_alone)
        ledger.abandon(job)
    assert seen == [0, 1, 2]
    job = claim_one(ledger)
    # A full disk does not count against the image.
    ledger.give_back(job)
    assert claim_one(ledger).unfinished_alone == 3


def test_giving_back_twice_is_idempotent(ledger: Ledger) -> None:
    ledger.receive([arrival()])
    job = claim_one(ledger)
    ledger.give_back(job)
    ledger.give_back(job)
    ledger.receive([arrival("1.9")])
    # The image is not a suspect, so it is claimed with its neighbour.
    assert len(ledger.claim_images("me", 9)) == 2


def test_equal_content_is_a_duplicate_and_other_content_is_new_work(ledger: Ledger) -> None:
    ledger.receive([arrival(), arrival(), arrival()])
    states = [
        ledger.complete(job, completion(f"9.{job.id}", digest), OWED)
        for job, digest in zip(ledger.claim_images("me", 3), ("a", "a", "b"), strict=True)
    ]
    assert states == ["analysed", "duplicate", "analysed"]
    assert instances(ledger) == {"received": 0, "analysed": 2, "not_analysed": 0, "failed": 0}
    assert deliveries(ledger)["owed"] == 6


def test_a_failed_image_is_retried_when_it_is_sent_again(ledger: Ledger) -> None:
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), Completion("failed", "a", reason="analysis_error"), OWED)
    ledger.receive([arrival()])
    assert ledger.complete(claim_one(ledger), completion("9", "a"), OWED) == "analysed"


def test_every_delivery_is_in_exactly_one_count(ledger: Ledger, clock: Clock) -> None:
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), completion("9"), OWED)
    first, second = ledger.claim_deliveries("pacs", "me", 9)
    assert ledger.claim_deliveries("pacs", "other", 9) == []
    assert len(ledger.claim_deliveries("outbox", "other", 9)) == 1
    ledger.mark_stored(first, 0)
    ledger.mark_refused(second, "0x0122", 0x0122)
    assert deliveries(ledger) == {"owed": 1, "stored": 1, "committed": 0, "refused": 1}
    ledger.retry_later(first, "late", 1)
    assert deliveries(ledger)["stored"] == 1
    assert ledger.rearm(["refused"], [second.result.sop_instance_uid]) == 1
    assert deliveries(ledger) == {"owed": 2, "stored": 1, "committed": 0, "refused": 0}


def test_only_answers_count_as_failed_attempts_of_an_object(ledger: Ledger, clock: Clock) -> None:
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), completion("9", kinds=("SEG",)), OWED)

    def once(status: int | None) -> DeliveryJob:
        (job,) = ledger.claim_deliveries("pacs", "me", 9)
        ledger.retry_later(job, "trouble", 10, status)
        assert ledger.claim_deliveries("pacs", "me", 9) == []
        clock.now += 11
        return job

    assert [once(status).failures for status in (None, None, 0xC000, 0xC000)] == [0, 0, 0, 1]


def test_a_destination_removed_from_the_settings_stays_visible(ledger: Ledger) -> None:
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), completion("9"), OWED)
    assert ledger.refuse_unknown_destinations(["pacs"]) == {"outbox": 1}
    assert deliveries(ledger) == {"owed": 2, "stored": 0, "committed": 0, "refused": 1}


def test_results_of_a_removed_destination_are_refused_after_ten_minutes(
    ledger: Ledger, clock: Clock
) -> None:
    """As after a typing error in a reload while the archive is away."""
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), completion("9"), {"pacs": ("SEG", "SC")})
    clock.now += 1800
    assert ledger.refuse_unknown_destinations(["pcas"], 600.0) == {}
    clock.now += 599
    assert ledger.refuse_unknown_destinations(["pcas"], 600.0) == {}
    assert ledger.refuse_unknown_destinations(["pacs"], 600.0) == {}

    # The ten minutes start again.
    assert ledger.refuse_unknown_destinations(["pcas"], 600.0) == {}
    clock.now += 599
    assert ledger.refuse_unknown_destinations(["pcas"], 600.0) == {}
    # A delivery in progress is allowed to finish.
    (job, *_) = ledger.claim_deliveries("pacs", "me", 1)
    clock.now += 2
    assert ledger.refuse_unknown_destinations(["pcas"], 600.0) == {"pacs": 1}
    ledger.mark_stored(job, 0)
    assert deliveries(ledger) == {"owed": 0, "stored": 1, "committed": 0, "refused": 1}
    tallies = {tally.labels: tally.value for tally in ledger.inspect.figures().tallies}
    assert tallies["pacs", "refused"] == 1


def test_results_are_kept_while_any_host_knows_the_destination(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), completion("9"), {"pacs": ("SEG", "SC")})
    for _ in range(30):
        clock.now += 60
        assert ledger.refuse_unknown_destinations(["archive"], 600.0) == {}
        assert ledger.refuse_unknown_destinations(["pacs"], 600.0) == {}


def test_our_own_results_are_recognised(ledger: Ledger) -> None:
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), completion("9"), OWED)
    assert ledger.inspect.is_own_result("9.0")
    assert not ledger.inspect.is_own_result("1.2.3")


def test_a_retried_failure_waits_again(ledger: Ledger) -> None:
    ledger.receive([arrival("1.1"), arrival("1.2")])
    for job in ledger.claim_images("me", 9):
        ledger.complete(job, Completion("failed", "a", reason="analysis_error"), OWED)
    assert ledger.rearm(["failed"], ["1.2"]) == 1
    assert instances(ledger) == {"received": 1, "analysed": 0, "not_analysed": 0, "failed": 1}
    assert claim_one(ledger).sop_instance_uid == "1.2"


def test_several_owners_never_hold_the_same_image(ledger: Ledger, ledger_url: str) -> None:
    ledger.receive([arrival(f"1.{n}") for n in range(60)])
    taken: list[int] = []

    def work() -> None:
        ledger = Ledger(ledger_url)
        while jobs := ledger.claim_images(threading.current_thread().name, 3):
            for job in jobs:
                taken.append(job.id)
                ledger.complete(job, completion(f"9.{job.id}"), OWED)
        ledger.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 61))


def test_the_bell_wakes_a_sleeper_only_for_new_work(ledger: Ledger, ledger_url: str) -> None:
    woken = threading.Event()

    def sleep() -> None:
        # The first wait creates this thread's bell.
        ledger.wait(0)
        ledger.wait(300)
        woken.set()

    thread = threading.Thread(target=sleep)
    thread.start()
    assert not woken.wait(0.3)
    other = Ledger(ledger_url)
    other.receive([arrival()])
    other.close()
    # The thread wakes long before its own timeout.
    assert woken.wait(60)
    thread.join()


def test_a_commit_before_the_sleep_wakes_the_sleeper(ledger: Ledger) -> None:
    ledger.wait(0)
    ledger.receive([arrival()])
    started = threading.Event()

    def sleep() -> None:
        ledger.wait(300)
        started.set()

    thread = threading.Thread(target=sleep)
    thread.start()
    # A thread looks for work before its first sleep.
    assert started.wait(60)
    thread.join()


def asleep(wait: Callable[[float], None]) -> threading.Event:
    """Start a thread that waits for up to five minutes. The event is set once it has woken."""
    woken = threading.Event()

    def sleep() -> None:
        wait(300)
        woken.set()

    threading.Thread(target=sleep, daemon=True).start()
    return woken


@pytest.mark.skipif(sys.platform != "linux", reason="inotify")
def test_only_a_commit_that_makes_work_rings_the_bell(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{file}")
    bell = FileBell(str(file), look_s=3600)
    bell.wait(0)
    woken = asleep(bell.wait)
    # This commit makes no work.
    ledger.note_destination("pacs", None)
    assert not woken.wait(0.3)

    ledger.receive([arrival()])
    assert woken.wait(60)

    (job,) = ledger.claim_images("worker", 1)
    ledger.complete(job, completion("9.1"), OWED)
    # The bell was rung before the sleeper slept.
    assert asleep(bell.wait).wait(60)
    bell.close()
    ledger.close()


@pytest.mark.skipif(sys.platform != "linux", reason="inotify")
def test_a_thread_that_ended_leaves_no_bell(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.wait(0)
    before = inotify_instances()
    for _ in range(4):
        thread = threading.Thread(target=ledger.wait, args=(0,))
        thread.start()
        thread.join()
    assert inotify_instances() <= before + 1
    ledger.close()


def inotify_instances() -> int:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        # The descriptor of the folder listing itself is closed by now.
        with contextlib.suppress(FileNotFoundError):
            links.append(descriptor.readlink())
    return sum("inotify" in link.name for link in links)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify")
@pytest.mark.parametrize("move", ["remove", "rename", "replace"])
def test_a_removed_bell_file_is_created_again(tmp_path: Path, move: str) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    file = tmp_path / "ledger.db-bell"
    bell = FileBell(f"{tmp_path}/ledger.db", look_s=3600)
    bell.wait(0)
    ledger.wait(0)
    if move == "remove":
        file.unlink()
    elif move == "rename":
        file.rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "another").touch()
        (tmp_path / "another").rename(file)

    with pytest.raises(OSError, match="removed or renamed"):
        bell.wait(3)
    bell.close()
    # This sleep ends early, and the next sleep hears of commits again.
    ledger.wait(3)
    ledger.wait(0)
    assert file.is_file()
    ledger.close()


@pytest.mark.parametrize("can_ring", [True, False])
def test_a_commit_without_a_ring_also_wakes_a_sleeper(tmp_path: Path, can_ring: bool) -> None:
    file = tmp_path / "ledger.db"
    if not can_ring:
        (tmp_path / "ledger.db-bell").mkdir()
    ledger = Ledger(f"sqlite:///{file}")
    bell = FileBell(str(file))
    bell.wait(0)
    woken = asleep(bell.wait)
    assert not woken.wait(0.3)

    # Commit as another program does, or a process that is killed between commit and ring.
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE anything (number INTEGER)")
        other.commit()
    assert woken.wait(60)
    bell.close()
    ledger.close()


def test_a_sleeper_whose_ledger_is_closed_wakes_without_an_error(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    raised: list[BaseException] = []
    asleep = threading.Event()

    def sleep() -> None:
        try:
            ledger.wait(0)
            asleep.set()
            ledger.wait(1)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    assert asleep.wait(60)
    ledger.close()
    thread.join(60)
    assert not thread.is_alive()
    assert raised == []
    ledger.close()


def test_a_copy_is_analysed_once_its_image_was_excluded_by_mistake(ledger: Ledger) -> None:
    """The cure in docs/faults.md, NO IMAGE IS ANALYSED: correct the settings and send the images
    again.
    """
    ledger.receive([arrival(), arrival(), arrival(), arrival()])
    excluded = Completion("not_analysed", "d", "1.2", reason="age_unknown")
    states = [
        ledger.complete(job, ended, OWED)
        for job, ended in zip(
            ledger.claim_images("me", 4),
            (excluded, excluded, completion("9"), excluded),
            strict=True,
        )
    ]
    assert states == ["not_analysed", "duplicate", "analysed", "duplicate"]


def test_a_history_has_the_steps_of_one_image(ledger: Ledger) -> None:
    ledger.receive([arrival(), arrival()])
    first, second = ledger.claim_images("me", 9)
    ledger.complete(first, completion("9"), OWED)
    ledger.complete(second, completion("9"), OWED)
    ledger.mark_stored(ledger.claim_deliveries("outbox", "me", 1)[0], 0)
    original, again = ledger.inspect.history("1.2.3")
    assert (original["state"], again["state"]) == ("analysed", "duplicate")
    assert {(one["kind"], one["destination"], one["state"]) for one in original["results"]} == {
        ("SEG", "pacs", "owed"),
        ("SC", "pacs", "owed"),
        ("SC", "outbox", "stored"),
    }
    assert again["results"] == []
    assert ledger.inspect.history("4.5.6") == []


def test_a_mistyped_path_creates_no_new_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no such file"):
        Ledger.existing(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_cannot_be_opened_raises_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path}/folder.db")


def test_a_ledger_of_another_version_is_refused(ledger_url: str) -> None:
    Ledger(ledger_url).close()
    engine = sa.create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE schema_version SET version = 99"))
    engine.dispose()
    with pytest.raises(LedgerError, match="schema version 99 found"):
        Ledger(ledger_url)


@pytest.mark.parametrize("back_s", [3000.0, 700.0, 90_000.0])
def test_a_clock_set_back_delays_no_retry_beyond_the_longest_back_off(
    ledger: Ledger, clock: Clock, back_s: float
) -> None:
    """Each kind of wait has its own bound: no delivery and no lease waits for 50 minutes."""
    ledger.receive([arrival("1.1")])
    ledger.complete(claim_one(ledger), completion("9"), OWED)
    (parcel, *others) = ledger.claim_deliveries("pacs", "me", 9)
    ledger.retry_later(parcel, "connection refused", 300.0)
    ledger.receive([arrival("1.2")])
    assert len(ledger.claim_images("dead", 1)) == 1

    clock.now -= back_s

    assert len(ledger.claim_deliveries("pacs", "me", 9)) == 1 + len(others)
    assert len(ledger.claim_images("me", 1)) == 1


def test_a_small_step_of_the_clock_takes_no_work_from_a_live_owner(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.receive([arrival("1.1")])
    assert len(ledger.claim_images("me", 1)) == 1
    clock.now -= 100.0
    assert ledger.claim_images("another", 1) == []


def test_a_clock_that_was_set_back_stops_nothing(ledger: Ledger, clock: Clock) -> None:
    # The node booted with its clock far ahead.
    clock.now = 1e9
    ledger.receive([arrival("1.1"), arrival("1.2")])
    first, _ = ledger.claim_images("me", 9)
    ledger.complete(first, completion("9"), OWED)
    clock.now = START
    assert [job.sop_instance_uid for job in ledger.claim_images("other", 9)] == ["1.2"]
    assert len(ledger.claim_deliveries("pacs", "me", 9)) == 2


def stored_at_pacs(ledger: Ledger, commitment: bool = True) -> str:
    """Analyse an image, then send and store its result. Returns the result's UID."""
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), completion("9", kinds=("SEG",)), OWED)
    (job,) = ledger.claim_deliveries("pacs", "me", 9)
    ledger.mark_stored(job, 0, commitment)
    return job.result.sop_instance_uid


def test_remade_results_do_not_count_as_attempts_of_their_image(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.receive([arrival()])
    first = claim_one(ledger)
    ledger.complete(first, completion("9", kinds=("SEG",)), OWED)

    for _ in range(3):
        clock.now += 31
        (job,) = ledger.claim_deliveries("pacs", "me", 9)
        assert ledger.remake(job, "its file is lost")
        clock.now += 31
        again = claim_one(ledger)
        # Otherwise a third loss would mark the image as poisonous.
        assert again.unfinished_alone == 0
        assert again.result_time == first.result_time
        assert ledger.complete(again, completion("9", kinds=("SEG",)), OWED) == "analysed"

    (job,) = ledger.claim_deliveries("pacs", "me", 9)
    # The limit of remakes is reached.
    assert not ledger.remake(job, "its file is lost")


def test_an_owner_whose_lease_expired_has_nothing_remade(ledger: Ledger, clock: Clock) -> None:
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), completion("9", kinds=("SEG",)), OWED)
    (late,) = ledger.claim_deliveries("pacs", "me", 9)
    clock.now += 61
    (job,) = ledger.claim_deliveries("pacs", "other", 9)
    assert not ledger.remake(late, "its file is lost")
    ledger.mark_stored(job, 0)
    assert not ledger.remake(job, "its file is lost")
    assert instances(ledger)["received"] == 0


def test_an_attempt_is_stale_once_another_begins(ledger: Ledger) -> None:
    ledger.receive([arrival()])
    ended = claim_one(ledger)
    ledger.complete(ended, Completion("failed", "a", reason="analysis_error"), OWED)
    ledger.rearm(["failed"], [])
    assert ledger.complete(ended, completion("9"), OWED) is None
    ledger.complete(claim_one(ledger), completion("9", kinds=("SEG",)), OWED)
    (refused,) = ledger.claim_deliveries("pacs", "me", 9)
    ledger.mark_refused(refused, "0x0122", 0x0122)
    ledger.rearm(["refused"], [])
    ledger.mark_stored(refused, 0)
    assert deliveries(ledger)["owed"] == 1


def test_results_whose_bytes_were_removed_are_not_owed_again(ledger: Ledger, clock: Clock) -> None:
    ledger.receive([arrival()])
    ledger.complete(claim_one(ledger), completion("9", kinds=("SEG",)), OWED)
    (job,) = ledger.claim_deliveries("pacs", "me", 9)
    ledger.mark_refused(job, "0x0122", 0x0122)
    clock.now += 100
    # A person may still want to retry the refused result.
    assert ledger.give_up_bytes(10, 1000, [], 9) == []
    assert sorted(ledger.give_up_bytes(10, 100, [], 9)) == ["file-9-SEG", "spool-1.2.3"]
    assert ledger.rearm(["refused"], []) == 0
    assert ledger.inspect.contradictions() == []


def test_bytes_stay_until_the_archive_has_committed(ledger: Ledger, clock: Clock) -> None:
    uid = stored_at_pacs(ledger)
    clock.now += 1e6
    assert ledger.give_up_bytes(0, 0, ["pacs"], 9) == []
    request = ledger.ask_commitment("pacs", 9, 60)
    assert request is not None
    assert request.references == (("1.2", uid),)
    assert ledger.record_commitment_report("pacs", request.transaction_uid, [uid], {}, {})
    assert len(ledger.give_up_bytes(0, 0, ["pacs"], 9)) == 2


def test_objects_that_an_archive_lost_are_resent_with_growing_back_off(
    ledger: Ledger, clock: Clock
) -> None:
    uid = stored_at_pacs(ledger)
    pauses = []
    for _ in range(4):
        request = ledger.ask_commitment("pacs", 9, 60)
        assert request is not None
        ledger.record_commitment_report("pacs", request.transaction_uid, [], {uid: "0x0112"}, {})
        lost_at = clock.now
        while not (jobs := ledger.claim_deliveries("pacs", "me", 9)):
            clock.now += 30
        pauses.append(clock.now - lost_at)
        ledger.mark_stored(jobs[0], 0, commitment=True)
    assert pauses == [0, 60, 120, 240]


def test_a_report_under_an_unknown_transaction_changes_nothing(ledger: Ledger) -> None:
    uid = stored_at_pacs(ledger)
    request = ledger.ask_commitment("pacs", 9, 60)
    assert request is not None
    assert not ledger.record_commitment_report("pacs", "2.25.1", [uid], {}, {})
    assert not ledger.record_commitment_report("outbox", request.transaction_uid, [uid], {}, {})
    assert deliveries(ledger)["stored"] == 1


def test_an_unanswered_commitment_request_is_repeated_after_doubling_waits(
    ledger: Ledger, clock: Clock
) -> None:
    stored_at_pacs(ledger)
    asked_at = []
    for _ in range(4):
        while ledger.ask_commitment("pacs", 9, 60) is None:
            clock.now += 30
        asked_at.append(clock.now)
    assert [later - earlier for earlier, later in itertools.pairwise(asked_at)] == [60, 120, 240]


def test_objects_that_share_a_commit_stand_together_or_not_at_all(ledger: Ledger) -> None:
    broken = arrival("2")._replace(origin=None)  # type: ignore[arg-type]
    with pytest.raises((sqlite3.IntegrityError, sa.exc.IntegrityError)):
        ledger.receive([arrival("1"), broken])
    assert instances(ledger)["received"] == 0
    ledger.receive([arrival("3"), arrival("4"), arrival("5")])
    assert [job.sop_instance_uid for job in ledger.claim_images("me", 4)] == ["3", "4", "5"]


def test_receiving_waits_for_another_writer(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.receive([arrival("1")])
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE instances SET priority = 0")
    timer = threading.Timer(0.3, writer.commit)
    timer.start()
    ledger.receive([arrival("2")])
    timer.join()
    assert [job.sop_instance_uid for job in ledger.claim_images("me", 2)] == ["1", "2"]
    writer.close()
    ledger.close()


def test_an_image_is_not_written_to_a_removed_ledger_file(tmp_path: Path) -> None:
    """SQLite itself keeps writing to a removed file without an error."""
    path, away = tmp_path / "ledger.db", tmp_path / "away.db"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.receive([arrival("1")])

    path.rename(away)
    with pytest.raises(LedgerError, match="put it back"):
        ledger.receive([arrival("2")])
    # Another file in its place, such as a copy from a backup.
    shutil.copyfile(away, path)
    with pytest.raises(LedgerError, match="put it back"):
        ledger.receive([arrival("3")])

    away.replace(path)
    ledger.receive([arrival("4")])
    assert instances(ledger)["received"] == 2
    ledger.close()


def test_the_ledger_recovers_from_a_full_disk(small_disk: Path) -> None:
    ledger = Ledger(f"sqlite:///{small_disk}/ledger.db")
    filler = small_disk / "filler"
    ledger.receive([arrival("1")])
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(sa.exc.OperationalError, match="full"):
        ledger.receive([arrival(f"2.{number}") for number in range(10_000)])
    filler.unlink()
    ledger.receive([arrival("3")])
    assert instances(ledger)["received"] == 2
    ledger.close()


def test_a_failed_commit_leaves_nothing_behind(ledger: Ledger) -> None:
    """Neither a row nor an open transaction that the next commit would complete."""
    with pytest.raises(Exception, match=r"(?i)not.null"):
        ledger.receive([arrival("1"), arrival("2")._replace(sop_class_uid=None)])  # type: ignore[arg-type]
    assert instances(ledger)["received"] == 0
    ledger.receive([arrival("3")])
    assert instances(ledger)["received"] == 1
