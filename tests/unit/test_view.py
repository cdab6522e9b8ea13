"""The queries of the operator's page, on both database engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daemon.ledger import Alarm, Arrival, Completion, Ledger, StoredResult
from daemon.ledger.view import Count, Listing, Refused, Search, View
from tests.unit.clock import Clock

_HOUR_S = 3600.0


@pytest.fixture
def view(ledger: Ledger, clock: Clock) -> Iterator[View]:
    """A view of images an hour apart: positive and sent, failed, not analysed, refused, waiting."""
    ends = (
        Completion("analysed", "d1", probability=0.9, positive=True, accession_digest="a1",
                   study_instance_uid="1.9", results=(_result("9.1"),)),
        Completion("failed", "d2", reason="undecodable"),
        Completion("not_analysed", "d3", reason="view"),
        Completion("analysed", "d4", probability=0.1, positive=False, results=(_result("9.4"),)),
    )  # fmt: skip
    for number, end in enumerate(ends, 1):
        _receive(ledger, number)
        (job,) = ledger.claim_images("me", 1)
        clock.now += 60.0
        ledger.complete(job, end, {"pacs": ("SC",)})
        clock.now += _HOUR_S - 60.0
    first, last = ledger.claim_deliveries("pacs", "courier", 9)
    ledger.mark_stored(first, 0)
    ledger.mark_refused(last, "answered 0xA900", 0xA900)
    _receive(ledger, 5)

    view = View.open(ledger.url)
    yield view
    view.close()


def _result(uid: str) -> StoredResult:
    return StoredResult("SC", f"file {uid}", "1.2", uid, "1.2.1", 9)


def _receive(ledger: Ledger, number: int) -> None:
    sender = "XRAY1" if number < 4 else "XRAY2"
    uid = f"1.2.{number}"
    ledger.receive([Arrival(f"f{number}", "1.2", uid, "1.2.1", sender, "dimse", 1, 9)])


def _found(view: View, **search: object) -> list[str]:
    listing = view.images(Search(**search))  # type: ignore[arg-type]
    return [row["sop_instance_uid"].removeprefix("1.2.") for row in listing.rows]


def test_the_current_page_counts_received_waiting_and_problem_images(
    ledger: Ledger, view: View, clock: Clock
) -> None:
    assert view.queue().waiting == Count(1)
    assert view.queue().since == clock.now
    activity = view.activity(clock.now + 1, hours=6)
    assert activity.received == [0, 1, 1, 1, 1, 1]
    assert activity.positive == [0, 1, 0, 0, 0, 0]
    assert activity.states == {"analysed": 2, "failed": 1, "not_analysed": 1, "received": 1}
    assert activity.reasons == {"view": 1}

    (took,) = view.times_to_archive()
    assert took == 4 * _HOUR_S
    assert view.owed_to(["pacs"]) == {"pacs": {"owed": Count(0), "owed_since": None}}
    assert view.refused() == [Refused("pacs", 1, "answered 0xA900")]
    count, newest = view.failed_images(1)
    assert (count, newest[0]["reason"]) == (Count(1), "undecodable")

    ledger.note_destination("pacs", "it is away", 5.0)
    assert view.destination_notes()["pacs"]["last_answer"] == "it is away"
    ledger.alarms.note([Alarm("backlog", "backlog", "analysis", "one waits")], [], "here", 60.0)
    assert [(alarm.kind, alarm.since) for alarm in view.alarms()] == [("backlog", clock.now)]


def test_each_condition_of_a_search_finds_its_images(view: View, clock: Clock) -> None:
    assert _found(view) == ["5", "4", "3", "2", "1"]
    assert _found(view, uid="1.2.2") == ["2"]
    assert _found(view, uid="1.9") == ["1"]
    assert _found(view, uid="9.4") == ["4"]
    assert _found(view, accession_digest="a1") == ["1"]
    assert _found(view, sender="XRAY2") == ["5", "4"]
    assert _found(view, state="received") == ["5"]
    assert _found(view, state="analysed", is_positive=True) == ["1"]
    assert _found(view, reason="view", sender="XRAY1") == ["3"]
    assert _found(view, since=clock.now - 2.5 * _HOUR_S, until=clock.now - _HOUR_S / 2) == [
        "4",
        "3",
    ]

    page = view.images(Search(), limit=2)
    assert isinstance(page, Listing)
    assert [row["sop_instance_uid"] for row in view.images(Search(), page.older).rows] == [
        "1.2.3", "1.2.2", "1.2.1",
    ]  # fmt: skip
    assert view.senders() == ["XRAY1", "XRAY2"]
    assert view.reasons_seen() == ["undecodable", "view"]


def test_a_search_that_reached_its_bound_continues_from_there(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.ledger.view.MOST_SCANNED", 1)
    search = Search(sender="XRAY1", state="analysed")
    listing = view.images(search)
    second = view.images(Search(uid="1.2.2")).rows[0]
    assert (listing.rows, listing.older) == ([], second["id"])
    assert listing.searched_back_to == second["received_at"]

    listing = view.images(search, listing.older)
    assert [row["sop_instance_uid"] for row in listing.rows] == ["1.2.1"]
    assert listing.older is None


def test_one_image_has_its_results_and_their_deliveries(view: View) -> None:
    number = view.images(Search(uid="1.2.1")).rows[0]["id"]
    image = view.image(number)
    assert image is not None
    (result,) = image["results"]
    assert [row["state"] for row in result["deliveries"]] == ["stored"]
    assert image["others"] == []
    found = view.result(result["id"])
    assert found is not None
    assert found["study_instance_uid"] == "1.9"
    assert view.image(10_000) is None
    assert view.result(10_000) is None
