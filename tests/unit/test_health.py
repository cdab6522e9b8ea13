"""What the ledger tells of the node's health: living roles, destinations, reasons, silent nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daemon.heartbeat import RoleHeartbeat
from daemon.ledger import Arrival, Completion, Ledger, LedgerLimits, StoredResult, owner_name
from daemon.ledger.digests import accession_digest


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(ledger_url: str, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url, clock=clock, limits=LedgerLimits(lease_s=60.0))
    yield ledger
    ledger.close()


def end_images(ledger: Ledger, endings: list[tuple[str, str | None]]) -> None:
    """Receive and end one image for each (state, reason)."""
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


def test_a_role_is_alive_while_it_beats(ledger: Ledger, clock: Clock) -> None:
    ledger.beat("analyse", "host:1", "model x on cpu")
    ledger.beat("deliver", "host:2", "1 destination")
    clock.now += 50.0
    ledger.beat("deliver", "host:2", "1 destination")
    clock.now += 20.0

    dead, alive = ledger.inspect.roles()
    assert (dead.role, dead.is_alive, dead.age_s) == ("analyse", False, 70.0)
    assert (alive.role, alive.is_alive, alive.age_s) == ("deliver", True, 20.0)
    assert alive.started_at == 1_000_000.0
    assert dead.detail == "model x on cpu"


def test_a_clock_set_back_does_not_keep_a_dead_role_alive(ledger: Ledger, clock: Clock) -> None:
    ledger.beat("analyse", "host:1", "")
    clock.now -= 3000.0
    (beat,) = ledger.inspect.roles()
    assert not beat.is_alive


def test_a_role_that_ends_is_forgotten_at_once_and_a_dead_one_after_a_day(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.beat("analyse", "host:1", "")
    ledger.beat("analyse", "host:2", "")
    ledger.end_role("analyse", "host:2")
    assert [beat.owner for beat in ledger.inspect.roles()] == ["host:1"]
    clock.now += 90_000.0
    ledger.beat("analyse", "host:3", "")
    assert [beat.owner for beat in ledger.inspect.roles()] == ["host:3"]


def test_a_role_beats_from_its_start_to_its_end(ledger: Ledger) -> None:
    with RoleHeartbeat(ledger, "receive", "port 104"):
        while not (beats := ledger.inspect.roles()):
            pass
        assert [(beat.role, beat.owner, beat.detail) for beat in beats] == [
            ("receive", owner_name(), "port 104")
        ]
    assert ledger.inspect.roles() == []


def test_a_destination_tells_since_when_it_is_down_and_its_present_answer(
    ledger: Ledger, clock: Clock
) -> None:
    end_images(ledger, [("analysed", None), ("analysed", None)])
    ledger.note_destination("pacs", "connection refused", is_down=True, next_try_s=5.0)
    clock.now += 100.0
    ledger.note_destination("pacs", "wrong called AE title", is_down=True, next_try_s=60.0)

    (pacs,) = ledger.inspect.destinations()
    assert (pacs.name, pacs.owed, pacs.refused) == ("pacs", 2, 0)
    assert pacs.oldest_owed_at == 1_000_000.0
    assert (pacs.down_since, pacs.answer) == (1_000_000.0, "wrong called AE title")
    assert (pacs.answered_at, pacs.next_try_at) == (1_000_100.0, 1_000_160.0)

    ledger.note_destination("pacs", "0x0000", is_down=False)
    (pacs,) = ledger.inspect.destinations()
    assert (pacs.down_since, pacs.next_try_at) == (None, None)


def test_reasons_are_counted_and_failures_are_apart(ledger: Ledger) -> None:
    end_images(ledger, [("not_analysed", "body_part")] * 3 + [("failed", "decode")])
    assert ledger.inspect.reasons() == {
        "not_analysed": {"body_part": 3},
        "failed": {"decode": 1},
    }
    assert [row["sop_instance_uid"] for row in ledger.inspect.failures()] == ["1.2.3"]
    assert ledger.inspect.oldest_waiting_at() is None
    ledger.receive([Arrival("f", "1.2", "1.2.99", "1.2.1", "XRAY1", "dimse", 1, 9)])
    assert ledger.inspect.oldest_waiting_at() == 1_000_000.0


@pytest.mark.parametrize(
    ("endings", "reason"),
    [
        ([("not_analysed", "body_part")] * 5, "body_part"),
        ([("analysed", None)] + [("not_analysed", "view")] * 5, "view"),
        ([("not_analysed", "body_part")] * 4, None),  # too few
        ([("not_analysed", "body_part")] * 4 + [("not_analysed", "view")], None),
        ([("not_analysed", "body_part")] * 5 + [("analysed", None)], None),
        ([("failed", "decode")] * 5, None),  # failures are told apart
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


def test_an_image_is_found_by_every_name_that_people_have(ledger: Ledger) -> None:
    end_images(ledger, [("analysed", None), ("not_analysed", "view")])
    assert ledger.inspect.find("1.2.0") == ["1.2.0"]
    assert ledger.inspect.find("1.3") == ["1.2.1", "1.2.0"]
    assert ledger.inspect.find("9.1") == ["1.2.1"]
    assert ledger.inspect.find("7.7") == []
    digest = accession_digest(" A1 ", "spool")
    assert ledger.inspect.find(accession_digest=digest) == ["1.2.1"]
    assert ledger.inspect.find(accession_digest=accession_digest("A1", "another")) == []


def test_no_table_holds_an_accession_number(ledger: Ledger) -> None:
    assert "A1" not in accession_digest("A1", "spool")
    assert accession_digest("  ", "spool") == ""
