"""A clock that jumps loses nothing, and once it is correct again nothing waits for long."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from daemon.alerts.silence import missing_images
from daemon.alerts.watch import Watch
from daemon.config import Config
from daemon.deliver.retention import Retention
from daemon.ledger import Alarm, Arrival, Completion, Ledger, StoredResult
from daemon.metrics.health import age_of_sign
from daemon.spool import ORPHAN_AGE_S, Spool
from tests.unit.clock import Clock

DAY_S = 86400.0
YEAR_S = 365 * DAY_S
# A time in the present, far from 1970.
TODAY = 1.8e9
LEAPS = {"ahead": 10 * YEAR_S, "1970": -TODAY + 60.0}


class Node:
    """A ledger and a spool whose time the test advances."""

    def __init__(self, folder: Path, url: str, clock: Clock) -> None:
        self.clock = clock
        self.clock.now = TODAY

        self.config = Config.model_validate(
            {
                "spool": folder / "spool",
                "ledger": url,
                "spool_reserve_mb": 0,
                "destinations": [
                    {"name": "pacs", "ae_title": "A", "host": "h", "port": 1, "results": ["SC"]}
                ],
                "retention": {"keep_days": 14, "keep_failed_days": 60, "free_mb": 0},
                "alerts": {
                    "webhook": {"url": "https://h/"},
                    "silence": {"limits": [{"ae_title": "XRAY", "minutes": 60}]},
                },
            }
        )

        self.ledger = Ledger(url, clock=clock)
        self.spool = Spool(self.config.spool)
        self._retention = Retention(self.config, self.ledger, self.spool)
        self._watch = Watch(self.config, self.ledger, settle_s=0.0)
        self.look()

    def look(self) -> None:
        """The checks that the deliver role makes each minute."""
        self._watch.look()
        self._retention.remove_what_is_done(threading.Event())

    def pass_days(self, days: float) -> None:
        """Let days pass, with at least one look a day."""
        until = self.clock.now + days * DAY_S
        while self.clock.now < until:
            self.clock.now = min(until, self.clock.now + DAY_S)
            self._retention.remove_what_is_done(threading.Event())
        self._watch.look()

    def leap(self, seconds: float) -> None:
        self.clock.now += seconds
        self.look()

    def image(self, uid: str, state: str = "failed") -> None:
        """Receive and finish an image of two bytes."""
        name = self.spool.write(b"12")
        self.ledger.receive([Arrival(name, "1.2", uid, "", "XRAY", "dimse", 1, 2)])
        (job,) = self.ledger.claim_images("me", 1)
        made = StoredResult("SC", self.spool.write(b"34"), "1.2", f"9.{uid}", "1.2", 2)
        results = (made,) if state == "analysed" else ()
        self.ledger.complete(job, Completion(state, uid, results=results), self.config.owed())

    def kept(self) -> set[str]:
        """The UIDs of the images whose bytes are still in the spool."""
        return {
            file.what.split()[1]
            for file in self.ledger.inspect.kept_files()
            if file.what.startswith("image") and self.spool.path(file.spool_name).exists()
        }

    def troubles(self) -> set[str]:
        return {row["key"].partition(":")[0] for row in self.ledger.alarms.lasting()}


@pytest.fixture
def node(tmp_path: Path, ledger_url: str, clock: Clock) -> Iterator[Node]:
    node = Node(tmp_path, ledger_url, clock)
    yield node
    node.ledger.close()


@pytest.mark.parametrize("leap", LEAPS)
def test_a_clock_that_jumps_and_returns_removes_nothing(
    node: Node, leap: str, caplog: pytest.LogCaptureFixture
) -> None:
    node.image("1.1")
    node.pass_days(1)
    node.leap(LEAPS[leap])
    node.image("1.2")
    node.pass_days(1)
    assert "the ledger's clock moved by" in caplog.text

    node.leap(-LEAPS[leap])
    node.image("1.3")
    node.pass_days(50)
    assert node.kept() == {"1.1", "1.2", "1.3"}

    node.pass_days(15)
    assert node.kept() == set()


def test_a_node_that_was_off_for_weeks_removes_after_three_days(node: Node) -> None:
    node.image("1.1")
    node.pass_days(10)
    node.leap(90 * DAY_S)
    node.pass_days(2.5)
    assert node.kept() == {"1.1"}

    node.pass_days(0.5)
    assert node.kept() == set()


@pytest.mark.parametrize("off_days", [1.5, 4.6])
def test_a_node_that_is_often_off_removes_by_age_and_raises_no_alarm(
    node: Node, off_days: float
) -> None:
    """As in a practice that opens only some days a week."""
    node.image("1.1")
    for _ in range(45):
        node.pass_days(0.5)
        node.leap(off_days * DAY_S)
        assert "clock" not in node.troubles()
    assert node.kept() == set()


def test_a_day_without_a_look_restarts_the_hours_of_a_failing_delivery(node: Node) -> None:
    node.image("1.1", "analysed")
    (job,) = node.ledger.claim_deliveries("pacs", "me", 9)
    node.ledger.retry_later(job, "0xC000", 1.0, 0xC000)

    node.leap(2.6 * DAY_S)
    (job,) = node.ledger.claim_deliveries("pacs", "me", 9)
    assert job.failing_s == 0.0


def test_bytes_are_removed_for_lack_of_room_whatever_the_clock(node: Node, tmp_path: Path) -> None:
    """Bytes that need not be kept are removed even if they seem to come from the future."""
    node.leap(10 * YEAR_S)
    node.image("1.1", "not_analysed")
    node.pass_days(4)
    node.leap(-10 * YEAR_S)
    assert len(node.ledger.give_up_bytes(0.0, 60 * DAY_S, [], 9)) == 1


def test_a_clock_jump_is_a_trouble_until_ages_count_again(node: Node) -> None:
    node.pass_days(4)
    node.leap(10 * YEAR_S)
    node.look()
    assert "clock" in node.troubles()
    node.pass_days(4)
    assert "clock" not in node.troubles()


def test_the_trouble_of_a_clock_jump_is_written_once(node: Node) -> None:
    """The trouble lasts for days, and the watch looks every ten seconds."""
    node.leap(10 * YEAR_S)
    node.look()
    (first,) = [row["words"] for row in node.ledger.alarms.lasting() if row["kind"] == "clock"]
    node.clock.now += 10.0
    node.look()
    assert first in [row["words"] for row in node.ledger.alarms.lasting()]


def test_a_sender_last_seen_under_a_wrong_clock_is_found_silent(node: Node) -> None:
    node.leap(10 * YEAR_S)
    node.image("1.1", "not_analysed")
    node.look()
    node.leap(-10 * YEAR_S)
    node.clock.now += 2 * 3600.0
    node.look()
    assert "silence" in node.troubles()


def test_a_clock_jump_causes_no_refusal(node: Node) -> None:
    """Neither of an object that fails for hours, nor of results owed to a name that left the
    settings.
    """
    node.image("1.1", "analysed")
    (job,) = node.ledger.claim_deliveries("pacs", "me", 9)
    node.ledger.retry_later(job, "0xC000", 1.0, 0xC000)
    assert node.ledger.refuse_unknown_destinations([], 600.0) == {}

    node.clock.now += YEAR_S
    assert node.ledger.refuse_unknown_destinations([], 600.0) == {}
    for _ in range(2):
        (job,) = node.ledger.claim_deliveries("pacs", "me", 9)
        assert job.failing_s == 0.0
        node.ledger.give_back_delivery(job)
        node.look()
        assert node.ledger.refuse_unknown_destinations([], 600.0) == {}

    node.clock.now += 601.0
    assert node.ledger.refuse_unknown_destinations([], 600.0) == {"pacs": 1}


def test_a_result_owed_since_a_future_time_is_found_late(node: Node) -> None:
    node.leap(10 * YEAR_S)
    node.image("1.1", "analysed")
    node.leap(-10 * YEAR_S)
    node.clock.now += 0.9 * DAY_S
    node.look()
    assert "owed" in node.troubles()


def test_a_new_result_does_not_wait_for_a_clock_that_was_set_back(node: Node) -> None:
    node.image("1.1", "analysed")
    node.clock.now -= 300.0
    (job,) = node.ledger.claim_deliveries("pacs", "me", 10)

    # A postponed result waits.
    node.ledger.retry_later(job, "busy", 100.0)
    assert not node.ledger.claim_deliveries("pacs", "me", 10)
    node.clock.now += 100.0
    assert node.ledger.claim_deliveries("pacs", "me", 10)


def test_a_destination_that_failed_under_a_wrong_clock_is_found_down(node: Node) -> None:
    node.leap(3600.0)
    node.ledger.note_destination("pacs", "no listener", 1.0)
    node.clock.now -= 3600.0
    node.ledger.note_destination("pacs", "no listener", 1.0)
    node.clock.now += 1800.0
    node.look()
    assert "outage" in node.troubles()


def test_after_a_power_cut_the_roles_have_time_to_start(node: Node) -> None:
    """The deliver role may start first. A role that stays silent is still a trouble."""
    for role in ("receive", "analyse", "deliver"):
        node.ledger.beat(role, f"{role}:1")
    node.clock.now += 13 * 3600.0
    node.ledger.beat("deliver", "deliver:2")
    watch = Watch(node.config, node.ledger, settle_s=0.0)
    watch.look()
    assert node.troubles() == set()

    node.clock.now += 181.0
    for role in ("receive", "deliver"):
        node.ledger.beat(role, f"{role}:2")
    watch.look()
    assert [row["key"] for row in node.ledger.alarms.lasting()] == ["role:analyse"]

    # A new deliver process does not restart the count.
    Watch(node.config, node.ledger, settle_s=0.0).look()
    assert [row["key"] for row in node.ledger.alarms.lasting()] == ["role:analyse"]


def test_a_role_that_died_under_a_wrong_clock_is_found_dead(node: Node) -> None:
    node.leap(YEAR_S)
    node.ledger.beat("analyse", "gone:1")
    node.leap(-YEAR_S)
    node.ledger.beat("receive", "alive:2")
    node.clock.now += 600.0
    assert age_of_sign(node.ledger.inspect.figures(), "analyse") == 600.0


@pytest.mark.parametrize("leap_s", [-YEAR_S, YEAR_S])
def test_heartbeats_after_a_clock_jump_do_not_wait_for_each_other(
    node: Node, leap_s: float
) -> None:
    """Each process finds the rows of all others wrong while its own row is locked."""
    owners = [f"machine:{number}" for number in range(8)]
    for owner in owners:
        node.ledger.beat("analyse", owner)

    with ThreadPoolExecutor(len(owners)) as pool:
        for _ in range(4):
            node.clock.now += leap_s
            list(pool.map(partial(node.ledger.beat, "analyse"), owners))
    assert {row["owner"] for row in node.ledger.inspect.roles()} <= set(owners)


def test_a_trouble_that_ended_under_a_wrong_clock_is_over(ledger: Ledger, clock: Clock) -> None:
    trouble = Alarm("disk:a", "disk", "a", "little room")
    ledger.alarms.note([trouble], [], "a", 60.0)
    clock.now += YEAR_S
    ledger.alarms.note([], [], "a", 60.0)
    clock.now -= YEAR_S
    ledger.alarms.note([], [], "a", 60.0)
    clock.now += 61.0
    assert ledger.alarms.note([], [], "a", 60.0) == ([], ["disk:a"])


def test_a_clock_jump_drops_no_message_of_another_host(node: Node) -> None:
    trouble = Alarm("disk:a", "disk", "a", "little room")
    node.ledger.alarms.note([trouble], ["mail of a"], "a", 60.0)
    owed = node.ledger.alarms.owed()
    node.clock.now += 10 * YEAR_S
    node.ledger.alarms.claim("b", ["mail of b"], 60.0)
    assert node.ledger.alarms.owed() == owed


def test_the_usual_sending_hours_survive_a_clock_jump(node: Node) -> None:
    node.image("1.1", "not_analysed")
    node.clock.now += 600.0
    node.look()
    hours = node.ledger.inspect.sending_hours()["XRAY"]
    node.clock.now += 10 * YEAR_S
    node.image("1.2", "not_analysed")
    node.clock.now += 600.0
    node.look()
    assert hours.items() <= node.ledger.inspect.sending_hours()["XRAY"].items()


def test_a_silence_of_decades_is_computed_quickly() -> None:
    """The watch looks at each sender every ten seconds."""
    hours = dict.fromkeys(range(9 * 168), 10)
    began = time.process_time()
    assert missing_images(hours, 8 * 168 * 3600.0, 60 * YEAR_S) > 1000
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize("name", [".0123456789abcdef.part", "ab" * 16])
def test_files_with_a_future_time_are_swept_like_old_files(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path)
    file = tmp_path / "ab" / name
    file.write_bytes(b"left by a crash")
    ahead = time.time() + YEAR_S
    os.utime(file, (ahead, ahead))
    assert spool.sweep(lambda _: set(), ORPHAN_AGE_S) == 1


def test_the_log_reports_a_clock_jump_once(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pleura.ledger"):
        node.leap(10 * YEAR_S)
        node.pass_days(4)
    moved = "the ledger's clock moved by +3650.0 days between two looks"
    assert caplog.text.count(moved) == 1
    assert caplog.text.count("the ledger's clock is steady") == 1
