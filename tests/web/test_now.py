"""The page Now: the roles, and the alarms that mail, webhook and Prometheus also report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.alerts.kinds import KINDS
from daemon.ledger import Alarm
from daemon.web.runbook import entries
from tests.web.site import Site, Visitor, users


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    for role in ("receive", "analyse", "deliver", "web"):
        site.ledger.beat(role, "me")
    yield site
    site.close()


def test_every_role_is_listed_including_the_page(site: Site) -> None:
    page = Visitor(site).get("/").text
    assert "All is well" in page
    for name in ("Receive", "Analyse", "Deliver", "This page"):
        assert f"<dt>{name}</dt>" in page


def test_an_alarm_links_to_its_entry_in_the_runbook(site: Site) -> None:
    silent = Alarm("silence:XRAY1", "silence", "<b>XRAY1</b>", "no image since 08:00")
    site.ledger.alarms.note([silent], [], "here", 60)

    page = Visitor(site).get("/").text
    assert "Needs a person: 1" in page
    assert "A sender is silent: &lt;b&gt;XRAY1&lt;/b&gt;" in page
    assert "no image since 08:00" in page
    assert 'href="/runbook#silence"' in page

    runbook = Visitor(site).get("/runbook").text
    assert 'id="silence"' in runbook
    assert "<li>Is the modality on, in service, or on holiday?</li>" in runbook


def test_an_empty_mount_point_is_not_taken_for_the_spool(site: Site) -> None:
    folder = site.spool.folder
    folder.rename(folder.with_name("unmounted"))
    folder.mkdir()
    page = Visitor(site).get("/").text
    assert "Needs a person: 1" in page
    assert "The spool cannot be seen. Is its disk mounted" in page


def test_the_runbook_has_an_entry_for_each_kind_of_alarm() -> None:
    assert entries().keys() == KINDS.keys() - {"test"}
    assert all("<li>" in entry for entry in entries().values())


def test_a_button_moves_only_deliveries_of_its_own_destination(tmp_path: Path) -> None:
    site = Site(tmp_path, users=users())
    for number, name in enumerate(("pacs", "research", "research", "export")):
        site.receive(f"1.2.{number}")
        site.end("analysed", {"SC": b"result"}, owed=name)
        for job in site.ledger.claim_deliveries(name, "courier:1", 9):
            site.ledger.mark_refused(job, "answered 0xA900", 0xA900)

    actor = Visitor(site)
    actor.log_in("actor")
    token = actor.token("/")
    assert 'name="from" value="research"' in actor.get("/").text

    def refused() -> dict[str, int]:
        return dict(site.ledger.inspect.figures().refused)

    actor.post("/acts", {"token": token, "act": "retry-refused", "destination": "pacs"})
    assert refused() == {"research": 2, "export": 1}
    form = {"token": token, "act": "readdress", "destination": "pacs"}
    for name in ("", "pacs"):
        assert actor.post("/acts", form | {"from": name}).status_code == 400
    actor.post("/acts", form | {"from": "research"})
    assert refused() == {"export": 1}
    assert site.ledger.inspect.figures().owed["pacs"].results == 3
    site.close()
