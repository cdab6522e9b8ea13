"""The node's health in the ledger: live roles, destinations, reasons for exclusion, and nodes that
answer no image.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from daemon.heartbeat import SignsOfLife
from daemon.ledger import Arrival, Completion, Ledger, StoredResult, owner_name
from daemon.ledger.digests import accession_digest
from tests.unit.clock import Clock
from tools.peers.waiting import wait_until


def end_images(ledger: Ledger, endings: list[tuple[str, str | None]]) -> None:
    """Receive and complete an image for each (state, reason)."""
    for number, (state, reason) in enumerate(endings):
        uid = f"1.2.{number}"
        ledger.receive([Arrival(uid, "1.2", uid, "1.2.1", "XRAY1", "dimse", 1, 9)])
        (job,) = ledger.claim_images("me", 1)
        made = StoredResult("SC", f"r{number}", "1.2", f"9.{number}", "1.2.1", 9)
        digest = accession_digest(f"A{number}", "spool")
        ending = Completion(
            state, uid, "1.3", reason, device="cpu", accession_digest=digest, results=(made,)
        )
        ledger.complete(job, ending, {"pacs": ["SC"]} if state == "analysed" else {})


def test_each_process_of_a_role_records_its_last_heartbeat(ledger: Ledger, clock: Clock) -> None:
    ledger.beat("analyse", "host:1")
    ledger.beat("deliver", "host:2")
    clock.now += 50.0
    ledger.beat("deliver", "host:2")
    beats = {row["role"]: (row["owner"], row["beat_at"]) for row in ledger.inspect.roles()}
    assert beats == {"analyse": ("host:1", 1_000_000.0), "deliver": ("host:2", 1_000_050.0)}


def test_a_role_that_ends_is_forgotten_at_once_and_a_dead_role_after_days(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.beat("analyse", "host:1")
    ledger.beat("analyse", "host:2")
    ledger.end_beat("analyse", "host:2")
    assert [row["owner"] for row in ledger.inspect.roles()] == ["host:1"]
    clock.now += 8 * 86_400.0
    ledger.beat("analyse", "host:3")
    assert [row["owner"] for row in ledger.inspect.roles()] == ["host:3"]


def test_a_role_sends_heartbeats_from_ready_until_its_end(ledger: Ledger) -> None:
    ready = threading.Event()
    with SignsOfLife(ledger, "receive", ready):
        assert ledger.inspect.roles() == []
        ready.set()
        while not (rows := ledger.inspect.roles()):
            pass
        assert [(row["role"], row["owner"]) for row in rows] == [("receive", owner_name())]
    assert ledger.inspect.roles() == []


def test_a_ledger_that_gives_no_answer_is_told_and_does_not_delay_the_end_of_the_role(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose disk or machine hangs: no call fails, and none returns."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("daemon.heartbeat._PATIENCE_S", 0.05)
    ready, thaws = threading.Event(), threading.Event()
    ready.set()
    beat = ledger.beat

    def hangs(*arguments: Any) -> None:
        thaws.wait()
        beat(*arguments)

    def frozen(*_: Any) -> None:
        pytest.fail("the role's end waits for the ledger")

    def lines() -> str:
        return "\n".join(record.getMessage() for record in caplog.records)

    monkeypatch.setattr(ledger, "beat", hangs)
    monkeypatch.setattr(ledger, "end_beat", frozen)
    with SignsOfLife(ledger, "receive", ready, answer_s=0.05):
        wait_until("it is told", lambda: "receive: heartbeat: the ledger: Timeout" in lines())
    assert "the end of the receive role is not recorded" in lines()

    thaws.set()
    wait_until("its end is told", lambda: "the ledger answers again" in lines())


def test_a_destination_records_the_start_of_its_outage_and_its_latest_answer(
    ledger: Ledger, clock: Clock
) -> None:
    end_images(ledger, [("analysed", None), ("analysed", None)])
    ledger.note_destination("pacs", "connection refused", 5.0)
    clock.now += 100.0
    ledger.note_destination("pacs", "wrong called AE title", 60.0)

    pacs = ledger.inspect.destinations()["pacs"]
    assert (pacs["owed"], pacs["owed_since"]) == (2, 1_000_000.0)
    assert (pacs["down_since"], pacs["last_answer"]) == (1_000_000.0, "wrong called AE title")
    assert (pacs["answered_at"], pacs["next_try_at"]) == (1_000_100.0, 1_000_160.0)

    ledger.note_destination("pacs", None)
    pacs = ledger.inspect.destinations()["pacs"]
    assert (pacs["down_since"], pacs["next_try_at"]) == (None, None)


def test_reasons_are_counted_and_failures_separately(ledger: Ledger) -> None:
    end_images(ledger, [("not_analysed", "body_part")] * 3 + [("failed", "decode")])
    (reason,) = ledger.inspect.reasons()
    assert (reason["reason"], reason["number"]) == ("body_part", 3)
    failed = ledger.inspect.failed(9)["instances"]
    assert [row["sop_instance_uid"] for row in failed] == ["1.2.3"]
    assert ledger.inspect.waiting_since() is None
    ledger.receive([Arrival("f", "1.2", "1.2.99", "1.2.1", "XRAY1", "dimse", 1, 9)])
    assert ledger.inspect.waiting_since() == 1_000_000.0


@pytest.mark.parametrize(
    ("endings", "reason"),
    [
        ([("not_analysed", "body_part")] * 5, "body_part"),
        ([("analysed", None)] + [("not_analysed", "view")] * 5, "view"),
        # Too few images.
        ([("not_analysed", "body_part")] * 4, None),
        ([("not_analysed", "body_part")] * 4 + [("not_analysed", "view")], None),
        ([("not_analysed", "body_part")] * 5 + [("analysed", None)], None),
        # Failures are reported separately.
        ([("failed", "decode")] * 5, None),
    ],
)
def test_a_node_that_excludes_every_image_for_one_reason_is_noticed(
    ledger: Ledger, clock: Clock, endings: list[tuple[str, str | None]], reason: str | None
) -> None:
    for number, ending in enumerate(endings):
        clock.now += 1.0
        uid = f"1.2.{number}"
        ledger.receive([Arrival(uid, "1.2", uid, "1.2.1", "XRAY1", "dimse", 1, 9)])
        (job,) = ledger.claim_images("me", 1)
        ledger.complete(job, Completion(ending[0], uid, reason=ending[1]), {})
    found = ledger.inspect.same_reason(5)
    assert (found.reason if found else None) == reason


def test_an_image_is_found_by_each_of_its_identifiers(ledger: Ledger) -> None:
    end_images(ledger, [("analysed", None), ("not_analysed", "view")])
    assert ledger.inspect.images_of("1.2.0") == ["1.2.0"]
    assert ledger.inspect.images_of("1.3") == ["1.2.0", "1.2.1"]
    assert ledger.inspect.images_of("9.1") == ["1.2.1"]
    assert ledger.inspect.images_of("7.7") == []
    of_accession = ledger.inspect.images_of_accession
    assert of_accession(accession_digest(" A1 ", "spool")) == ["1.2.1"]
    assert of_accession(accession_digest("A1", "another")) == []


def test_no_table_holds_an_accession_number(ledger: Ledger) -> None:
    assert "A1" not in accession_digest("A1", "spool")
    assert accession_digest("  ", "spool") == ""
