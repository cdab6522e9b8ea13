"""Deliveries that are owed: under a clock that jumps, after a rename of the destination, after data
loss in the archive; and their status output.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from daemon.backoff import Backoff
from daemon.commands import status
from daemon.commands.doctor import examine
from daemon.commands.retry import Wanted, retry
from daemon.config import Config, FolderDestination
from daemon.deliver.courier import Courier
from daemon.deliver.limits import DeliverLimits
from daemon.deliver.retention import Retention
from daemon.heartbeat import SignsOfLife
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.ledger.digests import accession_digest
from daemon.spool import Spool
from tests import commands
from tools.peers.waiting import wait_until

HOUR_S = 3600.0
BOTH = ("failed", "refused")


def taking(*names: str) -> dict[str, tuple[str, ...]]:
    """Destination name -> the kinds it takes, which include every kind that a Bench makes."""
    return dict.fromkeys(names, ("SC",))


class Bench:
    """A ledger whose clock the test sets, and completed images."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_700_000_000.0
        self.url = f"sqlite:///{folder}/ledger.db"
        self.ledger = Ledger(self.url, clock=lambda: self.now)
        self.spool = Spool(folder / "spool")
        self.ledger.spool_identity("identity")
        (self.spool.folder / "spool.id").write_text("identity")
        self.number = 0

    def owe(self, *destinations: str, accession_number: str = "") -> str:
        """Analyse an image with one result. Returns the result's UID."""
        self.number += 1
        number = self.number
        arrival = Arrival(self.spool.write(b"x"), "1.2", f"1.2.{number}", "", "", "dimse", 1, 9)
        self.ledger.receive([arrival])

        (job,) = self.ledger.claim_images("test", 1)
        made = StoredResult(
            "SC", self.spool.write(b"x"), "1.2", f"9.{number}", "1.2.840.10008.1.2.1", 1
        )
        completion = Completion(
            "analysed",
            str(number),
            study_instance_uid=f"5.{number}",
            accession_digest=accession_digest(accession_number, "identity"),
            results=(made,),
        )

        owed = dict.fromkeys(destinations, ("SC",))
        self.ledger.complete(job, completion, owed)
        return made.sop_instance_uid

    def claim(self, destination: str) -> list[str]:
        jobs = self.ledger.claim_deliveries(destination, "test", 99)
        return [job.result.sop_instance_uid for job in jobs]

    def store(self, destination: str) -> None:
        for job in self.ledger.claim_deliveries(destination, "test", 99):
            self.ledger.mark_stored(job, 0)

    def refuse(self, destination: str) -> None:
        for job in self.ledger.claim_deliveries(destination, "test", 99):
            self.ledger.mark_refused(job, "answered 0xA900", 0xA900)

    def deliveries(self) -> dict[str, int]:
        counts = self.ledger.inspect.counts()["deliveries"]
        return {state: number for state, number in counts.items() if number}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.ledger.close()


# -- a clock that is set back ----------------------------------------------------------------


@pytest.mark.parametrize("back_s", [20 * 60.0, 50 * 60.0, 3 * HOUR_S, 365 * 24 * HOUR_S])
def test_a_clock_set_back_delays_a_delivery_by_ten_minutes_at_most(
    bench: Bench, back_s: float
) -> None:
    uid = bench.owe("pacs")
    (job,) = bench.ledger.claim_deliveries("pacs", "test", 1)
    bench.ledger.retry_later(job, "answered 0xA700", 300.0)
    bench.now += 1.0 - back_s
    bench.now += 600.0
    assert bench.claim("pacs") == [uid]


@pytest.mark.parametrize("back_s", [5 * 60.0, 50 * 60.0, 24 * HOUR_S])
def test_a_clock_set_back_does_not_prolong_a_dead_owners_lease(bench: Bench, back_s: float) -> None:
    uid = bench.owe("pacs")
    assert bench.claim("pacs") == [uid]
    bench.now -= back_s
    bench.now += 600.0
    assert bench.claim("pacs") == [uid]


def test_a_pause_of_ten_minutes_is_kept(bench: Bench) -> None:
    bench.owe("pacs")
    (job,) = bench.ledger.claim_deliveries("pacs", "test", 1)
    bench.ledger.retry_later(job, "answered 0xA700", 600.0)
    bench.now += 599.0
    assert bench.claim("pacs") == []


def test_a_repeatedly_lost_object_waits_ten_minutes_at_most(bench: Bench) -> None:
    uid = bench.owe("pacs")
    for _ in range(12):
        (job,) = bench.ledger.claim_deliveries("pacs", "test", 1)
        bench.ledger.mark_stored(job, 0, commitment=True)
        request = bench.ledger.ask_commitment("pacs", 9, 60.0)
        assert request is not None
        lost = {uid: "not committed to"}
        assert bench.ledger.record_commitment_report("pacs", request.transaction_uid, [], lost, {})
        bench.now += 600.0


# -- retry and resend ------------------------------------------------------------------------


def test_retry_now_makes_owed_deliveries_due(bench: Bench) -> None:
    uids = [bench.owe("pacs"), bench.owe("pacs", "other")]
    for name in ("pacs", "other"):
        for job in bench.ledger.claim_deliveries(name, "test", 9):
            bench.ledger.retry_later(job, "answered 0xA700", 500.0)
    assert bench.claim("pacs") == bench.claim("other") == []

    done = retry(
        bench.ledger, Wanted(BOTH, now=True, to_destination="pacs"), taking("pacs", "other")
    )
    assert done.hastened == 2
    assert bench.claim("pacs") == uids
    assert bench.claim("other") == []
    assert retry(bench.ledger, Wanted(BOTH, now=True), taking("pacs", "other")).hastened == 3
    assert bench.claim("other") == uids[1:]


def test_retry_after_a_destinations_rename_addresses_the_new_name(bench: Bench) -> None:
    refused = bench.owe("old")
    bench.refuse("old")
    owed = bench.owe("old")
    twice = bench.owe("old", "older", "new")
    both = bench.owe("old", "older")

    plain = retry(bench.ledger, Wanted(BOTH), taking("new"))
    assert plain.rearmed == 0
    assert "old stay: not in the settings" in str(plain)

    done = retry(
        bench.ledger, Wanted((), to_destination="new", from_destination="old"), taking("new")
    )
    assert (done.readdressed, done.rearmed) == (3, 0)
    assert bench.claim("new") == [refused, owed, twice, both]
    assert bench.claim("older") == [twice, both]
    assert bench.ledger.inspect.contradictions() == []

    again = retry(
        bench.ledger, Wanted((), to_destination="new", from_destination="old"), taking("new")
    )
    assert (again.count, again.already_there) == (0, 1)
    assert "1 stay: the same results are addressed to the destination already" in str(again)

    mistyped = Wanted((), to_destination="new", from_destination="odl")
    assert "nothing is owed to odl" in str(retry(bench.ledger, mistyped, taking("new")))


def test_a_new_name_gets_the_kinds_it_takes_and_starts_without_history(bench: Bench) -> None:
    uid = bench.owe("old")
    for asks in (1, 2):
        (job,) = bench.ledger.claim_deliveries("old", "test", 9)
        bench.ledger.mark_stored(job, 0, commitment=True)
        request = bench.ledger.ask_commitment("old", 9, 60.0)
        assert request is not None
        lost = {uid: "not committed to"}
        bench.ledger.record_commitment_report("old", request.transaction_uid, [], lost, {})
        bench.now += HOUR_S
        assert bench.deliveries() == {"owed": 1}, asks

    wanted = Wanted((), to_destination="new", from_destination="old")
    done = retry(bench.ledger, wanted, {"new": ("SEG", "SR")})
    assert (done.readdressed, done.not_taken) == (0, 1)
    assert "1 stay: their kind is not in the destination's `results`" in str(done)
    done = retry(bench.ledger, wanted, taking("new"))
    assert (done.readdressed, done.not_taken) == (1, 0)

    (job,) = bench.ledger.claim_deliveries("new", "test", 9)
    bench.ledger.mark_stored(job, 0, commitment=True)
    request = bench.ledger.ask_commitment("new", 9, 60.0)
    assert request is not None
    assert request.asked_before == 0


def test_nothing_goes_to_another_destination_unless_its_name_is_given(bench: Bench) -> None:
    uid = bench.owe("pacs")
    exported = [bench.owe("research"), bench.owe("research")]
    for name in ("pacs", "research"):
        bench.refuse(name)

    done = retry(bench.ledger, Wanted(BOTH, to_destination="pacs", now=True), taking("pacs"))
    assert (done.rearmed, done.hastened, done.readdressed) == (1, 1, 0)
    assert bench.claim("pacs") == [uid]
    assert retry(bench.ledger, Wanted(BOTH, exported[:1], "pacs"), taking("pacs")).count == 0

    wanted = Wanted((), exported[1:], "pacs", from_destination="research")
    assert str(retry(bench.ledger, wanted, taking("pacs"))).startswith(
        "0 re-armed; 1 re-addressed; "
    )
    assert bench.claim("pacs") == exported[1:]
    assert bench.ledger.inspect.refused_destinations() == {"research"}


def test_retry_to_one_destination_leaves_the_others(bench: Bench) -> None:
    bench.owe("pacs", "other")
    bench.refuse("pacs")
    bench.refuse("other")
    assert (
        retry(bench.ledger, Wanted(BOTH, to_destination="pacs"), taking("pacs", "other")).rearmed
        == 1
    )
    assert bench.deliveries() == {"owed": 1, "refused": 1}


def test_results_stored_in_a_lost_night_are_resent(bench: Bench) -> None:
    bench.owe("pacs")
    bench.store("pacs")
    bench.now += HOUR_S
    night = bench.now
    lost = [bench.owe("pacs", "other"), bench.owe("pacs")]
    bench.store("pacs")
    bench.store("other")
    assert bench.deliveries() == {"stored": 4}

    assert bench.ledger.resend("pacs", since=night) == (2, 0)
    assert bench.claim("pacs") == lost
    assert bench.claim("other") == []
    assert bench.ledger.resend("pacs", since=night) == (0, 0)


@pytest.mark.parametrize("named", ["1.2.2", "9.2", "5.2"])
def test_resend_accepts_the_uid_of_an_image_a_study_or_a_result(bench: Bench, named: str) -> None:
    uids = [bench.owe("pacs"), bench.owe("pacs")]
    bench.store("pacs")
    assert bench.ledger.resend("pacs", uids=[named]) == (1, 0)
    assert bench.claim("pacs") == uids[1:]


def test_results_removed_by_retention_are_not_resent(bench: Bench) -> None:
    bench.owe("pacs")
    bench.store("pacs")
    bench.now += 1.0
    bench.ledger.give_up_bytes(0.0, 0.0, [], 9)
    assert bench.ledger.resend("pacs", since=0.0) == (0, 1)


def test_retry_now_ends_a_couriers_back_off(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    spool = Spool(tmp_path / "spool")
    name = spool.write(b"x")
    ledger.receive([Arrival(name, "1.2", "1.2.1", "", "", "dimse", 1, 1)])
    (job,) = ledger.claim_images("test", 1)
    made = StoredResult("SC", name, "1.2", "9.1", "1.2.840.10008.1.2.1", 1)
    ledger.complete(job, Completion("analysed", "1", results=(made,)), {"outbox": ("SC",)})

    outbox = FolderDestination(name="outbox", folder=tmp_path / "away" / "outbox")
    # Put a file where the folder should be.
    outbox.folder.parent.write_bytes(b"")
    limits = DeliverLimits(backoff=Backoff(3000.0, 3000.0), idle_s=0.02)
    courier = Courier(outbox, Config(destinations=(outbox,)), ledger, spool, limits)
    stop = threading.Event()
    thread = threading.Thread(target=courier.run, args=(stop,))
    thread.start()
    try:
        wait_until(
            "the destination is down",
            lambda: ledger.inspect.destinations().get("outbox", {}).get("down_since"),
        )
        outbox.folder.parent.unlink()
        retry(ledger, Wanted(BOTH, now=True), taking("outbox"))
        wait_until(
            "the result is stored", lambda: ledger.inspect.counts()["deliveries"]["stored"] == 1
        )
        wait_until(
            "the destination is up",
            lambda: ledger.inspect.destinations()["outbox"]["down_since"] is None,
        )
    finally:
        stop.set()
        thread.join()
        ledger.close()


def test_a_result_on_a_bad_sector_is_remade_without_blaming_the_destination(
    tmp_path: Path,
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    spool = Spool(tmp_path / "spool")
    names = [spool.write(b""), spool.write(b"")]
    for number, name in enumerate(names):
        ledger.receive([Arrival(name, "1.2", f"1.2.{number}", "", "", "dimse", 1, 0)])
        (job,) = ledger.claim_images("test", 1)
        made = StoredResult("SC", name, "1.2", f"9.{number}", "1.2.840.10008.1.2.1", 0)
        done = Completion("analysed", f"{number}", results=(made,))
        ledger.complete(job, done, {"outbox": ("SC",)})
    # Replace the file by one whose read at offset 0 fails with EIO.
    spool.path(names[0]).unlink()
    spool.path(names[0]).symlink_to("/proc/self/mem")

    outbox = FolderDestination(name="outbox", folder=tmp_path / "outbox")
    limits = DeliverLimits(backoff=Backoff(0.02, 0.02), idle_s=0.02)
    courier = Courier(outbox, Config(destinations=(outbox,)), ledger, spool, limits)
    stop = threading.Event()
    thread = threading.Thread(target=courier.run, args=(stop,))
    thread.start()
    try:
        wait_until("the result is remade", lambda: ledger.inspect.counts()["instances"]["received"])
    finally:
        stop.set()
        thread.join()

    assert ledger.inspect.counts()["deliveries"] == {
        "owed": 1,
        "stored": 1,
        "committed": 0,
        "refused": 0,
    }
    state = ledger.inspect.destinations().get("outbox", {})
    assert state.get("down_since") is None
    ledger.close()


# -- status ----------------------------------------------------------------------------------


def test_status_shows_the_state_of_each_destination(bench: Bench) -> None:
    bench.owe("pacs", "left")
    bench.ledger.note_destination("pacs", "cannot connect (Connection refused)", 100.0)
    bench.now += 600.0
    bench.ledger.note_destination("pacs", "association rejected with 1/1/3", 250.0)
    bench.now += 50.0

    summary = status.summary(bench.ledger.inspect, ["pacs", "quiet"], bench.spool.folder)
    pacs = summary["destinations"]["pacs"]
    assert pacs["last_answer"] == "association rejected with 1/1/3"
    assert pacs["owed"] == 1
    assert pacs["down_since"].startswith("2023-11-1")
    assert summary["destinations"]["left"]["configured"] is False
    assert summary["deliveries"]["owed"] == 2

    text = "\n".join(status.lines(bench.ledger.inspect, ["pacs", "quiet"], bench.spool.folder))
    assert "destination pacs: DOWN since 2023-11-1" in text
    assert "(11 min); last answer" in text
    assert "next try in 200 s; 1 owed since" in text
    assert "destination left: NOT IN THE SETTINGS, 1 owed; pleura retry --from left --to" in text
    assert "destination quiet: 0 owed" in text

    bench.ledger.note_destination("pacs", None)
    text = "\n".join(status.lines(bench.ledger.inspect, ["pacs"], bench.spool.folder))
    assert "destination pacs: 1 owed since" in text


def test_status_separates_failures_from_excluded_images(bench: Bench) -> None:
    for number in range(30):
        bench.ledger.receive([Arrival(f"n{number}", "1.2", f"3.{number}", "", "", "dimse", 1, 1)])
        (job,) = bench.ledger.claim_images("test", 1)
        state, reason = ("failed", "undecodable") if number == 0 else ("not_analysed", "lateral")
        bench.ledger.complete(job, Completion(state, str(number), reason=reason), {})
    bench.ledger.receive([Arrival("w", "1.2", "4.1", "", "", "dimse", 1, 1)])
    bench.now += 1800.0

    text = "\n".join(status.lines(bench.ledger.inspect, [], bench.spool.folder))
    assert "  image 3.0 failed undecodable 2023-11-1" in text
    assert "not analysed: 29 lateral, the last 2023-11-1" in text
    assert "3.7" not in text
    assert "waiting: the oldest image since" in text
    assert "(30 min)" in text
    assert list(status.failure_lines(bench.ledger.inspect)) == [
        line for line in text.splitlines() if line.startswith("  image")
    ]


@pytest.mark.parametrize("asked", ["1.2.2", "9.2", "5.2", "ACC-2"])
def test_status_finds_an_image_by_each_of_its_names(bench: Bench, asked: str) -> None:
    bench.owe("pacs", accession_number="ACC-1")
    bench.owe("pacs", accession_number="ACC-2")
    histories = status.histories(bench.ledger.inspect, [asked, "nothing"])
    assert [row["sop_instance_uid"] for row in histories[asked]] == ["1.2.2"]
    assert histories[asked][0]["received_at"].startswith("2023-11-1")
    assert histories[asked][0]["results"][0]["state"] == "owed"
    assert histories["nothing"] == []


def test_a_commitment_report_that_never_comes_is_shown(bench: Bench) -> None:
    bench.owe("pacs")
    for job in bench.ledger.claim_deliveries("pacs", "test", 9):
        bench.ledger.mark_stored(job, 0, commitment=True)

    first = bench.ledger.ask_commitment("pacs", 9, 60.0)
    assert first is not None
    assert first.asked_before == 0
    assert "commitment" not in "\n".join(
        status.lines(bench.ledger.inspect, ["pacs"], bench.spool.folder)
    )

    bench.now += 61.0
    second = bench.ledger.ask_commitment("pacs", 9, 60.0)
    assert second is not None
    assert second.asked_before == 1

    text = "\n".join(status.lines(bench.ledger.inspect, ["pacs"], bench.spool.folder))
    assert "1 asked for commitment without a report" in text


def test_results_owed_to_a_name_outside_the_settings_are_reported(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench.owe("left", "pacs")
    pacs = {"name": "pacs", "folder": tmp_path / "pacs"}
    config = Config.model_validate(
        {"spool": tmp_path / "spool", "ledger": bench.url, "destinations": [pacs]}
    )

    findings = [str(each) for each in examine(config, lambda: "a model", {})]
    (line,) = [each for each in findings if "destination left" in each]
    assert line.startswith("WARNING  destination left: not in the settings, and 1 results are owed")
    assert "pleura retry --from left --to NAME" in line

    tidy = Retention(config, bench.ledger, bench.spool)
    tidy.refuse_unknown_destinations()
    assert not caplog.messages
    bench.now += 601.0
    tidy.refuse_unknown_destinations()
    (line,) = caplog.messages
    assert line.startswith("left has not been in the settings for ten minutes: 1 results owed")
    assert bench.deliveries() == {"owed": 1, "refused": 1}


def test_a_role_that_does_not_run_is_reported(bench: Bench, tmp_path: Path) -> None:
    config = Config(spool=tmp_path / "spool", ledger=bench.url)

    def line() -> str:
        findings = examine(config, lambda: "a model", {})
        (found,) = [str(finding) for finding in findings if finding.subject == "roles"]
        return found

    assert line().startswith("TROUBLE")
    now = Ledger(bench.url)
    for role in ("receive", "deliver"):
        now.beat(role, f"host:{role}")
    assert "no process of analyse sent a heartbeat" in line()
    now.beat("analyse", "host:analyse")
    assert line() == "ok       roles: receive, analyse, deliver run"
    now.end_beat("analyse", "host:analyse")
    assert "no process of analyse" in line()
    now.close()


def test_a_role_sends_heartbeats_from_ready_until_its_end(bench: Bench) -> None:
    ready = threading.Event()
    with SignsOfLife(bench.ledger, "analyse", ready, every_s=0.01):
        assert bench.ledger.inspect.roles() == []
        ready.set()
        wait_until("the first heartbeat", bench.ledger.inspect.roles)
        bench.now += 100.0
        wait_until(
            "the next heartbeat", lambda: bench.ledger.inspect.roles()[0]["beat_at"] == bench.now
        )
        assert "role analyse: 1 running" in list(
            status.lines(bench.ledger.inspect, [], bench.spool.folder)
        )
    assert "role analyse: NOT RUNNING" in list(
        status.lines(bench.ledger.inspect, [], bench.spool.folder)
    )


def test_status_retry_and_resend_work_as_commands(bench: Bench, tmp_path: Path) -> None:
    """As an operator calls them."""
    bench.now = time.time()
    uid = bench.owe("old")
    settings = tmp_path / "pleura.yaml"
    outbox = {"name": "new", "folder": str(tmp_path / "outbox")}
    settings.write_text(
        yaml.safe_dump(
            {"spool": str(tmp_path / "spool"), "ledger": bench.url, "destinations": [outbox]}
        )
    )

    def pleura(*arguments: str) -> tuple[int, str]:
        answer = commands.pleura(*arguments, "-c", settings)
        return answer.returncode, answer.stdout + answer.stderr

    assert pleura("retry", "--now", "--to", "nobody")[0] == 2
    assert pleura("retry", "--from", "new", "--to", "new")[0] == 2
    code, output = pleura("retry", "--from", "old", "--to", "new")
    assert (code, output) == (0, "0 re-armed; 1 re-addressed\n")
    assert json.loads(pleura("status", "--json")[1])["destinations"]["new"]["owed"] == 1
    bench.now = time.time()
    assert bench.claim("new") == [uid]
    assert pleura("resend", "--to", "new")[0] == 2
    code, output = pleura("resend", "--to", "new", "--since", "2020-01-01")
    assert (code, output[:6]) == (1, "0 owed")
