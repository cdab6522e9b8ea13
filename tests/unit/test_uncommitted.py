"""An archive that stores but never commits: its results keep their bytes, and an alarm is raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.alerts.watch import Watch
from daemon.commands import status
from daemon.config import Config
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.metrics.exposition import exposition
from tests.unit.clock import Clock

HOUR_S = 3600.0
PACS = {"name": "pacs", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": 1, "results": ["SC"]}
METRIC = 'pleura_commitment_oldest_seconds{destination="pacs"}'


def config(folder: Path, commitment: bool = True) -> Config:
    return Config.model_validate(
        {"spool": str(folder), "destinations": [PACS | {"commitment": commitment}]}
    )


def alarms(ledger: Ledger, settings: Config) -> dict[str, str]:
    Watch(settings, ledger).look()
    lasting: list[Any] = ledger.alarms.lasting()
    return {row["kind"]: row["words"] for row in lasting if row["subject"] == "pacs"}


def line(ledger: Ledger, folder: Path) -> str:
    lines = status.lines(ledger.inspect, ["pacs"], folder)
    return next(each for each in lines if each.startswith("destination pacs"))


@pytest.fixture
def stored(ledger: Ledger) -> Ledger:
    """A ledger with one result that is stored and awaits its storage commitment."""
    ledger.receive([Arrival("f", "1.2", "1.2.3", "1.2.1", "XRAY1", "dimse", 1, 9)])
    (job,) = ledger.claim_images("me", 1)
    made = StoredResult("SC", "made", "1.2", "9.9", "1.2.1", 9)
    ledger.complete(job, Completion("analysed", "d", results=(made,)), {"pacs": ("SC",)})
    (delivery,) = ledger.claim_deliveries("pacs", "me", 1)
    ledger.mark_stored(delivery, 0, commitment=True)
    return ledger


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_result_that_is_never_committed_raises_an_alarm(
    stored: Ledger, clock: Clock, tmp_path: Path, is_taken: bool
) -> None:
    settings = config(tmp_path)
    for _ in range(23):
        request = stored.ask_commitment("pacs", 9, 60.0)
        if request is not None and not is_taken:
            stored.postpone_commitment("pacs", request, "storage commitment: rejected", 300.0)
        clock.now += HOUR_S
    assert "1 asked for commitment without a report" in line(stored, tmp_path)
    assert ("storage commitment: rejected" in line(stored, tmp_path)) is not is_taken
    assert "commitment" not in alarms(stored, settings)

    clock.now += HOUR_S
    words = alarms(stored, settings)["commitment"]
    assert ("taken, and no report came" if is_taken else "rejected") in words
    assert f"{METRIC} 86400.0" in exposition(settings, stored.inspect).decode()

    # For an archive that cannot commit, a setting ends the alarm.
    silent = config(tmp_path, commitment=False)
    assert METRIC not in exposition(silent, stored.inspect).decode()
    Watch(silent, stored).look()
    clock.now += 61
    assert "commitment" not in alarms(stored, silent)


def test_a_committed_result_raises_no_alarm(stored: Ledger, clock: Clock, tmp_path: Path) -> None:
    request = stored.ask_commitment("pacs", 9, 60.0)
    assert request is not None
    assert stored.record_commitment_report("pacs", request.transaction_uid, ["9.9"], {}, {})
    clock.now += 1000 * HOUR_S
    assert "commitment" not in alarms(stored, config(tmp_path))
    assert f"{METRIC} 0.0" in exposition(config(tmp_path), stored.inspect).decode()
