"""The page Model: what the model's answers came to at this site."""

from __future__ import annotations

from pathlib import Path

from daemon.ledger.weekly import week_of
from tests.web.site import Site, Visitor


def test_the_weeks_stand_beside_their_baseline_and_the_reports(tmp_path: Path) -> None:
    site = Site(tmp_path)
    page = Visitor(site).get("/model").text
    assert "No image has ended in these weeks" in page
    assert "No baseline is set" in page
    site.close()

    (tmp_path / "busy").mkdir()
    site = Site(tmp_path / "busy")
    for number in range(4):
        site.receive(f"1.2.{number}")
        site.end("analysed", probability=0.9 if number == 0 else 0.1, positive=number == 0)
    this_week = week_of(site.ledger.inspect.now())
    site.ledger.drift.set_baseline(this_week, this_week, "ada")
    site.ledger.drift.tell_reports({"1.2.0": True, "1.2.1": True})

    page = Visitor(site).get("/model").text
    assert page.count("25.0\u202f%") == 2
    assert "Baseline" in page
    assert "Against 2 reports" in page
    assert "50.0\u202f%" in page
    site.close()
