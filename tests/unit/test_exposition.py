"""/metrics, /healthz and /readyz: correct figures from a ledger with known contents, at a cost that
does not grow with the ledger.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from httpx import ASGITransport, AsyncClient, Response
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from daemon.config import Config
from daemon.ledger import (
    Alarm,
    Arrival,
    Completion,
    Ledger,
    ShadowJob,
    StoredResult,
    senders,
    tallies,
)
from daemon.metrics.exposition import exposition
from daemon.metrics.health import health, ready
from daemon.metrics.host import valid_until
from daemon.metrics.probes import Probes
from daemon.spool import Spool
from tests.unit.clock import Clock
from tools.peers.certificates import Authority

# The tables that grow with every image.
_LARGE = ("instances", "results", "deliveries")
_HOSTILE = 'X"\n\\{}\x01\x1b'


def arrival(number: int, ae_title: str = "XRAY1") -> Arrival:
    return Arrival(f"f{number}", "1.2", f"1.2.{number}", "1.2.1", ae_title, "dimse", 1, 9)


def answered(number: int, positive: bool = False, system: str = "ACME DX") -> Completion:
    made = StoredResult("SC", f"made-{number}", "1.2", f"9.{number}", "1.2.1", 9)
    return Completion(
        "analysed", f"d{number}", positive=positive, device_model=system, results=(made,)
    )


def settings(tmp_path: Path) -> Config:
    folder = {"name": "pacs", "folder": str(tmp_path / "outbox"), "results": ["SC"]}
    return Config.model_validate({"spool": str(tmp_path), "destinations": [folder]})


def samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by metric name and label values, in the order of the label names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """Use SQLite only; one test requests PostgreSQL by name."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def filled_ledger(ledger: Ledger, clock: Clock) -> Ledger:
    return fill(ledger, clock)


def fill(ledger: Ledger, clock: Clock) -> Ledger:
    """Add three images: a stored positive, a failed image, and an image that has waited for 30 s."""
    began = clock.now
    ledger.receive([arrival(1), arrival(2, _HOSTILE)])
    clock.now = began + 3
    first, second = ledger.claim_images("me", 2)
    clock.now = began + 4
    ledger.complete(first, answered(1, positive=True), {"pacs": ["SC"]})
    ledger.complete(second, Completion("failed", "x", reason="not_dicom"), {})
    clock.now = began + 14
    (delivery,) = ledger.claim_deliveries("pacs", "me", 1)
    ledger.mark_stored(delivery, 0)
    ledger.receive([arrival(3)])
    clock.now = began + 44
    return ledger


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_each_figure_of_a_known_ledger(
    engine: str, request: pytest.FixtureRequest, clock: Clock, tmp_path: Path
) -> None:
    name = "ledger_url" if engine == "sqlite" else "postgres_url"
    filled_ledger = fill(Ledger(request.getfixturevalue(name), clock=clock), clock)
    request.addfinalizer(filled_ledger.close)
    filled_ledger.beat(
        "analyse", "me:1", {"model": "m", "version": "1", "digest": "d", "device": "cpu"}
    )
    filled_ledger.note_destination("pacs", "it is away", 5.0)
    found = samples(exposition(settings(tmp_path), filled_ledger.inspect))

    source = ("XRAY1", "ACME DX")
    assert found["pleura_images_received_total", ("XRAY1",)] == 2
    assert found["pleura_images_ended_total", (*source, "analysed")] == 1
    assert found["pleura_images_positive_total", source] == 1
    assert found["pleura_image_reasons_total", ("not_dicom", "failed")] == 1
    assert found["pleura_queue_images", ()] == 1
    assert found["pleura_queue_oldest_seconds", ()] == 30
    assert found["pleura_images_failed", ()] == 1
    assert found["pleura_deliveries_total", ("pacs", "stored")] == 1
    assert found["pleura_destination_up", ("pacs",)] == 0
    assert found["pleura_role_up", ("analyse",)] == 1
    assert found["pleura_role_up", ("receive",)] == 0
    assert found["pleura_model_info", ("cpu", "d", "m", "1")] == 1
    assert found["pleura_spool_free_bytes", ()] > 0
    for stage, seconds, bound in (("waiting", 6, "5.0"), ("analysis", 2, "1.0")):
        assert found["pleura_stage_seconds_sum", ("", stage)] == seconds
        assert found["pleura_stage_seconds_bucket", ("", bound, stage)] == 2
    assert found["pleura_stage_seconds_sum", ("pacs", "whole")] == 14

    clock.now += 3600
    assert filled_ledger.count_arrivals() == 3
    again = samples(exposition(settings(tmp_path), filled_ledger.inspect))
    assert again["pleura_images_received_total", ("XRAY1",)] == 2


def test_a_hostile_ae_title_becomes_one_bounded_label(
    filled_ledger: Ledger, tmp_path: Path
) -> None:
    text = exposition(settings(tmp_path), filled_ledger.inspect)
    assert b"\x01" not in text
    assert b"\x1b" not in text
    titles = {labels[0] for name, labels in samples(text) if name == "pleura_images_received_total"}
    assert titles == {"XRAY1", 'X"\\x0a\\{}\\x01\\x1b'}


def test_labels_that_peers_choose_are_bounded_in_number(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "MOST_SENDERS", 20)
    monkeypatch.setattr(tallies, "MOST_SOURCES", 10)
    ledger.receive([arrival(n, f"AE{n}") for n in range(25)])
    for job in ledger.claim_images("me", 13):
        ledger.complete(job, answered(job.id), {})

    found = samples(exposition(settings(tmp_path), ledger.inspect))
    received = [labels for name, labels in found if name == "pleura_images_received_total"]
    assert len(received) == 21
    assert found["pleura_images_received_total", ("other",)] == 5
    assert found["pleura_images_ended_total", ("other", "other", "analysed")] == 3


def test_arrivals_are_counted_once_and_the_current_hour_later(
    ledger: Ledger, clock: Clock, tmp_path: Path
) -> None:
    ledger.receive([arrival(1), arrival(2)])
    assert ledger.count_arrivals() == 0
    clock.now += 3600
    ledger.receive([arrival(3)])
    assert ledger.count_arrivals() == 2

    found = samples(exposition(settings(tmp_path), ledger.inspect))
    assert found["pleura_images_received_total", ("XRAY1",)] == 3
    assert ledger.inspect.figures().senders["XRAY1"].last_at == clock.now
    assert sum(ledger.inspect.sending_hours()["XRAY1"].values()) == 2


def test_a_scrape_never_scans_a_whole_table(
    filled_ledger: Ledger, tmp_path: Path, clock: Clock
) -> None:
    clock.now += 3600
    filled_ledger.count_arrivals()
    engine = filled_ledger._database.engine
    asked: list[tuple[str, Any]] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
    exposition(settings(tmp_path), filled_ledger.inspect)

    with engine.connect() as conn:
        for text, values in list(asked):
            plan = conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)
            steps = [row[3] for row in plan.all()]
            whole = [step for step in steps if step in {f"SCAN {table}" for table in _LARGE}]
            assert not whole, (text, steps)


def test_healthz_checks_the_ledger_and_readyz_the_roles(
    filled_ledger: Ledger, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    assert health(filled_ledger.inspect).is_well
    assert ready(config, filled_ledger.inspect).checks["receive"] == "no process is ready"
    filled_ledger.beat("receive", "me:1")
    filled_ledger.beat("analyse", "me:2")
    assert ready(config, filled_ledger.inspect).is_well


@pytest.mark.parametrize("folder", ["absent", "empty mount point", "another ledger's"])
def test_an_unreachable_spool_is_not_ready_and_reports_no_free_space(
    filled_ledger: Ledger, tmp_path: Path, folder: str
) -> None:
    filled_ledger.beat("receive", "me:1")
    filled_ledger.beat("analyse", "me:2")
    place = tmp_path / "spool"
    Spool(place).claim(filled_ledger.spool_identity)
    config = settings(tmp_path).model_copy(update={"spool": place})
    assert ready(config, filled_ledger.inspect).checks["disk"] == "ok"
    assert ("pleura_spool_free_bytes", ()) in samples(exposition(config, filled_ledger.inspect))

    place.rename(tmp_path / "unmounted")
    if folder == "empty mount point":
        place.mkdir()
    elif folder == "another ledger's":
        Spool(place).claim(lambda here: here)

    found = ready(config, filled_ledger.inspect)
    assert not found.is_well
    assert "cannot be seen" in found.checks["disk"]
    assert ("pleura_spool_free_bytes", ()) not in samples(exposition(config, filled_ledger.inspect))


def test_readyz_reports_a_full_disk(filled_ledger: Ledger, tmp_path: Path) -> None:
    filled_ledger.beat("receive", "me:1")
    filled_ledger.beat("analyse", "me:2")
    full = settings(tmp_path).model_copy(update={"spool_reserve_mb": 10**9})
    found = ready(full, filled_ledger.inspect)
    assert not found.is_well
    assert "MB free beside the spool" in found.checks["disk"]


def test_a_certificates_expiry_equals_openssls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("node")
    printed = subprocess.run(
        ["openssl", "x509", "-in", str(pair.certificate), "-noout", "-enddate"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert valid_until(pair.certificate) == ssl.cert_time_to_seconds(printed.strip().split("=")[1])
    assert valid_until(tmp_path / "absent.pem") is None


def test_promtool_accepts_the_exposition(
    filled_ledger: Ledger, tmp_path: Path, peer: Callable[[str], str]
) -> None:
    pair = Authority(tmp_path / "ca").issue("node").settings()
    shown = settings(tmp_path).model_dump(mode="json") | {"tls": {**pair, "client": "none"}}
    facts = {"gpu_used_bytes": 1, "gpu_total_bytes": 2, "memory_bytes": 3}
    filled_ledger.beat("analyse", "me:1", facts)
    shadowed = ShadowJob(1, "f1", "m 1 d")
    filled_ledger.shadow.begin(shadowed, "candidate 2 e")
    filled_ledger.shadow.answer(shadowed, "candidate 2 e", 0.9, True, "")
    filled_ledger.alarms.note([Alarm("outage:pacs", "outage", "pacs", "x")], [], "here", 60)

    text = exposition(Config.model_validate(shown), filled_ledger.inspect)
    for name in (
        "certificate_left_seconds",
        "gpu_memory_used_bytes",
        "trouble",
        "shadow_images_total",
    ):
        assert f"\npleura_{name}{{".encode() in text
    command = [peer("promtool"), "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def asked(probes: Probes, path: str, **headers: str) -> Response:
    async def ask() -> Response:
        transport = ASGITransport(Starlette(routes=probes.routes()))
        async with AsyncClient(transport=transport, base_url="http://node") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def test_the_three_endpoints_answer_and_metrics_need_the_token(
    filled_ledger: Ledger, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    token = tmp_path / "token"
    here = Probes(lambda: config, filled_ledger.inspect, is_local=True, token_file=None)
    assert asked(here, "/healthz").json() == {"ok": True, "ledger": "ok"}
    assert asked(here, "/readyz").status_code == 503
    assert "pleura_queue_images 1.0" in asked(here, "/metrics").text

    anywhere = Probes(lambda: config, filled_ledger.inspect, is_local=False, token_file=None)
    assert asked(anywhere, "/metrics").status_code == 401

    token.write_text("hush\n")
    named = Probes(lambda: config, filled_ledger.inspect, is_local=True, token_file=token)
    for header in ("", "Bearer ", "Bearer hus", "Basic hush"):
        assert asked(named, "/metrics", authorization=header).status_code == 401
    assert asked(named, "/metrics", authorization="Bearer hush").status_code == 200


def test_the_endpoints_report_an_unreachable_ledger(
    filled_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise sa.exc.OperationalError("", {}, Exception("no server listens"))

    monkeypatch.setattr(type(filled_ledger.inspect), "now", away)
    monkeypatch.setattr(type(filled_ledger.inspect), "figures", away)
    probes = Probes(
        lambda: settings(tmp_path), filled_ledger.inspect, is_local=True, token_file=None
    )
    assert [asked(probes, path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [
        503, 503, 503,
    ]  # fmt: skip
