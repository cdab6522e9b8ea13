"""The page Model: weekly figures of the model's answers at this site."""

from __future__ import annotations

from pathlib import Path

from daemon.config import Shadow
from daemon.ledger.weekly import week_of
from tests.web.site import Site, Visitor


def test_the_weeks_are_shown_with_their_baseline_and_the_reports(tmp_path: Path) -> None:
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


def test_a_shadow_model_is_shown_with_the_model_and_its_role_in_the_list(tmp_path: Path) -> None:
    site = Site(tmp_path)
    changed = site.settings.model_copy(update={"shadow": Shadow(model="/srv/candidate")})
    site.node.settings = changed
    for number, positive in enumerate((True, False)):
        site.receive(f"1.2.{number}")
        site.end("analysed", probability=0.9, positive=True, model="serving 1.0.0 aaaa")
        job = site.view.shadow.next(number)
        assert job is not None
        site.ledger.shadow.begin(job, "candidate 2.0.0 bbbb")
        said = 0.9 if positive else 0.1
        site.ledger.shadow.answer(job, "candidate 2.0.0 bbbb", said, positive, "")

    page = Visitor(site).get("/model").text
    assert "candidate 2.0.0 (bbbb)" in page
    assert "50.0\u202f%" in page
    assert "its answers are not sent" in page
    now = Visitor(site).get("/").text
    assert "<dt>Shadow model</dt>" in now
    assert "nothing is compared" in now
    site.close()
