"""Drift figures: counted as images are completed, compared with a baseline, and with radiology
reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from daemon.commands import drift as command
from daemon.drift import (
    EVERY_AE,
    INBOX,
    ReportsError,
    agreement,
    auc,
    compare,
    difference,
    drift,
    monday_of,
    psi,
    psi_limit,
    read_reports,
    summed,
    weeks_between,
    wilson,
)
from daemon.ledger import Arrival, Completion, Ledger, WeeklyCount, accession_digest
from daemon.ledger.weekly import NOT_DETECTED, POSITIVE, WEEK_S
from tests.unit.clock import Clock


class Node:
    """A ledger whose clock stands still, and images that are completed in it."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.clock.now = 1_700_000_000.0
        self.ledger = Ledger(f"sqlite:///{folder}/ledger.db", clock=self.clock)
        self._images = 0

    def end(
        self,
        probability: float | None,
        reason: str | None = None,
        accession: str = "",
        ae_title: str = "XRAY1",
    ) -> str:
        """Receive and complete one image. Returns its SOP Instance UID."""
        self._images += 1
        uid = f"1.2.840.10008.4711.{self._images}"

        self.ledger.receive([Arrival(uid, "1.2", uid, "1.2", ae_title, "dimse", 1, 1)])
        (job,) = self.ledger.claim_images("me", 1)

        done = Completion(
            "analysed" if reason is None else "not_analysed",
            f"digest of {uid}",
            reason=reason,
            probability=probability,
            positive=None if probability is None else probability >= 0.5,
            accession_digest=accession_digest(accession, "") or None,
        )

        assert self.ledger.complete(job, done, {}) == done.state
        return uid


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path)
    yield one
    one.ledger.close()


def week(
    number: int, positive: int, negative: int, lateral: int = 0, bin: int = 3
) -> list[WeeklyCount]:
    return [
        WeeklyCount(number, "XRAY1", POSITIVE, 15, positive),
        WeeklyCount(number, "XRAY1", NOT_DETECTED, bin, negative),
        WeeklyCount(number, "XRAY1", "not_analysed: view", -1, lateral),
    ]


def test_a_week_is_counted_as_its_images_are_completed(node: Node) -> None:
    for probability in (0.9, 0.004, 0.004):
        node.end(probability)
    node.end(None, "view")

    found = drift(node.ledger.inspect, weeks=2)
    assert found.baseline is None
    assert not found.alarms

    (mine,) = found.of("XRAY1")
    assert (mine.images, mine.analysed, mine.positive) == (4, 3, 1)
    assert mine.unanswered == {"not_analysed: view": 1}
    assert [number for number in mine.histogram if number] == [2, 1]
    assert found.of(EVERY_AE)[0].images == 4
    assert str(mine.monday) == "2023-11-13"

    assert any(
        "1 of 3 positive" in line for line in command.lines(command.look(node.ledger.inspect, 2))
    )


def test_an_image_of_the_inbox_counts_once(node: Node) -> None:
    node.end(0.9, ae_title="")
    node.end(0.004)
    weeks = drift(node.ledger.inspect, weeks=1).weeks
    assert {week.ae_title: week.images for week in weeks} == {EVERY_AE: 2, INBOX: 1, "XRAY1": 1}


def test_a_week_unlike_the_baseline_raises_an_alarm(node: Node) -> None:
    for number in range(60):
        node.end(0.9 if number % 10 == 0 else 0.004)
    monday = date(2023, 11, 13)
    node.ledger.drift.set_baseline(*weeks_between(monday, monday), "alice")
    node.clock.now += WEEK_S
    for number in range(60):
        node.end(0.9 if number % 2 == 0 else 0.2)
    found = drift(node.ledger.inspect)
    assert {alarm.what for alarm in found.alarms} == {"positives", "scores"}
    assert {alarm.week for alarm in found.alarms} == {found.weeks[-1].number}
    assert "30 of 60 images (50.0%); baseline 6 of 60 (10.0%)" in found.alarms[0].words


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        (week(1, 12, 188), set()),
        (week(1, 40, 160), {"positives", "scores"}),
        (week(1, 10, 190, bin=9), {"scores"}),
        (week(1, 10, 190, lateral=60), {"not_analysed: view"}),
        # Too few images; then a significant difference that is too small to matter.
        (week(1, 20, 20), set()),
        (week(1, 1500, 22500), set()),
    ],
)
def test_alarms_need_images_and_a_difference(counts: list[WeeklyCount], what: set[str]) -> None:
    (baseline, _) = summed(week(0, 100, 1900))
    (now, _) = summed(counts)
    assert {alarm.what for alarm in compare(now, baseline)} == what


def test_the_intervals_match_the_published_examples() -> None:
    # Newcombe 1998, table II, methods 3 and 10: 15 of 148; 56 of 70 minus 48 of 80.
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert difference(56, 70, 48, 80, 1.959964) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert psi([5, 5], [5, 5]) == 0
    assert psi([45, 5], [25, 25]) > psi_limit([45, 5], [25, 25]) > 0.25
    assert psi_limit([9_000_000] * 20, [9_000_000] * 20) == 0.25
    assert psi_limit([0], [1]) == math.inf
    assert auc([(0.1, False), (0.4, True), (0.4, False), (0.9, True)]) == 0.875


def test_answers_are_compared_with_reports_by_uid_and_by_accession_number(node: Node) -> None:
    uids = [node.end(probability) for probability in (0.9, 0.9, 0.1)]
    for probability in (0.1, 0.8):
        node.end(probability, accession="A4711")
    text = f"image,finding\n{uids[0]},yes\n{uids[1]},NO\n{uids[2]},0\nA4711,1\n1.9.9,yes\n"
    findings = read_reports(text, "")
    assert "A4711" not in findings
    node.ledger.drift.tell_reports(findings)
    node.ledger.drift.tell_reports(findings)

    found = agreement(node.ledger.inspect)
    assert found is not None
    assert (found.true_positive, found.false_positive) == (2, 1)
    assert (found.false_negative, found.true_negative) == (0, 1)
    share, interval = found.sensitivity
    assert share == 1.0
    assert interval == pytest.approx((0.342, 1.0), abs=1e-3)


def test_a_wrong_report_line_is_named_and_no_line_is_taken() -> None:
    with pytest.raises(ReportsError, match="line 3, 4: ") as caught:
        read_reports("image,finding\n1.2.3,yes\nDOE^JANE,maybe\nalone\n", "")
    assert "DOE" not in str(caught.value)


def test_an_accession_number_that_looks_like_a_uid_is_kept_only_as_a_digest() -> None:
    uid = "1.2.840.113619.2.5.1762583153"
    assert len(uid) > 16
    findings = read_reports(f"2024.00123,yes\n{uid},no\n{uid},no\n", "spool")
    assert findings == {accession_digest("2024.00123", "spool"): True, uid: False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.2.3,unclear\n", "line 1: wanted"),
        ("\nA4711,unclear\nA4712,no\n", "line 2: wanted"),
        ("image,finding\nA4711,yes\nA4711 ,no\n", "line 3: an earlier line has the other"),
    ],
)
def test_no_report_is_dropped_silently(text: str, words: str) -> None:
    with pytest.raises(ReportsError, match=words):
        read_reports(text, "")


def test_weeks_begin_on_mondays() -> None:
    assert monday_of(0) == date(1970, 1, 5)
    first, last = weeks_between(date(2026, 11, 1), date(2026, 11, 2))
    assert last == first + 1
    assert monday_of(last) == date(2026, 11, 2)


def test_drift_and_agreement_cover_exactly_the_requested_weeks(node: Node) -> None:
    for number in range(60):
        node.end(0.9 if number % 10 == 0 else 0.004)
    monday = date(2023, 11, 13)
    first, _ = weeks_between(monday, monday)
    node.ledger.drift.set_baseline(first, first, "alice")
    node.clock.now += WEEK_S
    uids = [node.end(0.9 if number % 2 == 0 else 0.2) for number in range(60)]
    node.clock.now += 4 * WEEK_S
    later = node.end(0.9)
    node.ledger.drift.tell_reports({uids[0]: True, later: False})

    # The whole month counts, not only its last two weeks, and nothing after it counts.
    found = drift(node.ledger.inspect, 4, first + 4, alarming=4)
    assert {alarm.week for alarm in found.alarms} == {first + 1}
    assert not drift(node.ledger.inspect, 4, first + 4).alarms
    of_month = agreement(node.ledger.inspect, first + 1, first + 4)
    assert of_month is not None
    assert (of_month.true_positive, of_month.false_positive) == (1, 0)
