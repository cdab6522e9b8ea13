"""`pleura report`: the figures of a period on one self-contained page."""

from __future__ import annotations

import re
from datetime import date, datetime
from pathlib import Path

import pytest

from daemon.cli import main
from daemon.drift import weeks_between
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.ledger.period import DeliveryTimes, ImageTimes
from daemon.ledger.weekly import WEEK_S
from daemon.report import page, read
from daemon.report.figures import OutageTime, outages, quantile
from tests.unit.clock import Clock

NOON = datetime(2026, 11, 2, 12).astimezone().timestamp()
HOSTILE = '<img src="//x">'


def month(folder: Path) -> Ledger:
    """A ledger with three images: a positive, delivered after an outage of an hour; an excluded
    image; and an image that waits.
    """
    clock = Clock()
    clock.now = NOON
    ledger = Ledger(f"sqlite:///{folder}/ledger.db", clock=clock)
    for number, ae_title in enumerate(("XRAY1", HOSTILE, "XRAY1")):
        arrival = Arrival(f"f{number}", "1.2", f"1.2.{number}", "1.2", ae_title, "dimse", 1, 1)
        ledger.receive([arrival])
    clock.now += 4.0
    jobs = ledger.claim_images("me", 2)
    overlay = StoredResult("SC", "r", "1.2", "2.25.1", "1.2")
    ends = (
        Completion("analysed", "a", probability=0.9, positive=True, results=(overlay,)),
        Completion("not_analysed", "b", reason="view"),
    )
    for job, end in zip(jobs, ends, strict=True):
        assert ledger.complete(job, end, {"pacs": ("SC",)}) == end.state

    clock.now += 3600.0
    (delivery,) = ledger.claim_deliveries("pacs", "me", 1)
    ledger.mark_stored(delivery, 0)
    return ledger


def test_the_page_shows_the_month_and_is_self_contained(tmp_path: Path) -> None:
    ledger = month(tmp_path)
    report = read(ledger.inspect, "PLEURA", date(2026, 11, 1), date(2026, 11, 3))
    html = page(report)
    ledger.close()

    assert [day.images for day in report.days] == [0, 3, 0]
    assert [(each.name, each.median_s) for each in report.times] == [
        ("from receipt to the answer", 4.0),
        ("from receipt to pacs", 3604.0),
    ]
    assert [(each.what, each.is_over) for each in report.outages] == [
        ("analysis", False),
        ("pacs", True),
    ]
    for words in ("1 (100.0%)", "<td>XRAY1</td>", "<td>pacs</td>", ">view<", "60 min"):
        assert words in html
    assert HOSTILE not in html
    assert re.findall(r"(?i)<(?:script|link|img|iframe)|(?:src|href)=|url\(|@import", html) == [
        "src="
    ], "only the hostile AE title, escaped"


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    month(tmp_path).close()
    settings = tmp_path / "pleura.yaml"
    settings.write_text(f"ledger: sqlite:///{tmp_path}/ledger.db\nspool: {tmp_path}/spool\n")
    out = tmp_path / "report.html"
    call = ["report", "-c", str(settings), "--since", "2026-11-01", "--until", "2026-11-30"]
    assert main([*call, "--out", str(out)]) == 0
    assert "3 images" in capsys.readouterr().out
    assert out.read_text().startswith("<!doctype html>")


def test_overlapping_waits_count_as_one_outage() -> None:
    waits = [(0.0, 900.0), (800.0, 2000.0), (2100.0, 2101.0), (5000.0, 5700.0)]
    deliveries = [DeliveryTimes("pacs", began, began, ended, "stored") for began, ended in waits]
    images = [ImageTimes("X", 0.0, 5.0, "analysed", None, False)]
    assert outages(images, deliveries, 9000.0) == [
        OutageTime("pacs", 0.0, 2000.0, 2, True),
        OutageTime("pacs", 5000.0, 5700.0, 1, True),
    ]


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([5.0, 1.0, 3.0], 0.5) == 3.0
    assert quantile([*map(float, range(1, 101))], 0.95) == 95.0


def test_the_page_has_the_alarms_and_reports_of_exactly_its_weeks(
    tmp_path: Path,
) -> None:
    clock = Clock()
    clock.now = NOON
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", clock=clock)
    this_week, _ = weeks_between(date(2026, 11, 2), date(2026, 11, 2))
    ledger.drift.set_baseline(this_week - 1, this_week - 1, "alice")
    numbers = iter(range(1000))

    def end(probability: float) -> str:
        uid = f"1.2.{next(numbers)}"
        ledger.receive([Arrival(uid, "1.2", uid, "1.2", "XRAY1", "dimse", 1, 1)])
        (job,) = ledger.claim_images("me", 1)
        done = Completion("analysed", uid, probability=probability, positive=probability > 0.5)
        assert ledger.complete(job, done, {}) == "analysed"
        return uid

    clock.now = NOON - WEEK_S
    for number in range(60):
        end(0.9 if number % 10 == 0 else 0.004)
    clock.now = NOON
    reported = end(0.9)
    for _ in range(59):
        end(0.9)
    clock.now = NOON + 6 * WEEK_S
    ledger.drift.tell_reports({reported: True, end(0.9): False})

    html = page(read(ledger.inspect, "PLEURA", date(2026, 11, 1), date(2026, 11, 30)))
    ledger.close()
    assert "Week of 2026-11-02, XRAY1: positives" in html
    assert "No figure differs" not in html
    assert '<td>reports with an analysed image</td><td class="number">1</td>' in html
