"""The output of `pleura status` for people and for scripts."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from daemon.commands import doctor, status
from daemon.config import Config, load
from daemon.ledger import (
    Alarm,
    Arrival,
    Completion,
    Inspection,
    Ledger,
    LedgerError,
    StoredResult,
    describe,
)
from daemon.ledger.overview import FileOverview
from daemon.ledger.processes import this_machine
from daemon.spool import Spool

STRAY = "ab" + "0" * 30


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "pleura.yaml"
    path.write_text(f"spool: {tmp_path / 'spool'}\nledger: sqlite:///{tmp_path / 'ledger.db'}\n")
    return load(path)


@pytest.fixture
def ledger(config: Config) -> Iterator[Ledger]:
    ledger = Ledger(config.ledger)
    Spool(config.spool).claim(ledger.spool_identity)
    yield ledger
    ledger.close()


@pytest.fixture
def inspect(config: Config, ledger: Ledger) -> Iterator[Inspection]:
    inspect = Inspection.open(config.ledger)
    yield inspect
    inspect.close()


def arrival(number: int, origin: str = "dimse") -> Arrival:
    return Arrival(f"{number:032x}", "1.2", f"1.2.{number}", "1.2.1", "XRAY1", origin, 1, 9)


def exclude(ledger: Ledger, images: int, reason: str) -> None:
    for number in range(images):
        ledger.receive([arrival(number)])
        (job,) = ledger.claim_images("me", 1)
        ledger.complete(job, Completion("not_analysed", str(number), reason=reason), {})


def test_the_overview_of_the_file_equals_that_of_the_ledger(
    ledger: Ledger, inspect: Inspection, config: Config
) -> None:
    """`pleura status` reads SQLite's file without SQLAlchemy."""
    exclude(ledger, 21, "body_part")
    ledger.receive([arrival(90, "adopted"), arrival(91)])
    job, _ = ledger.claim_images("me", 2)
    made = StoredResult("SC", "made", "1.2", "9.1", "1.2.1", 9)
    ledger.complete(job, Completion("analysed", "d", results=(made,)), {"pacs": ["SC"]})
    (parcel,) = ledger.claim_deliveries("pacs", "me", 1)
    ledger.mark_refused(parcel, "no", 0xA900)
    ledger.beat("receive", "here:1")

    alone = FileOverview.open(Path(config.ledger.removeprefix("sqlite:///")))
    assert alone.counts()["deliveries"]["refused"] == 1
    found, wanted = (status.summary(each, ["pacs"], config.spool) for each in (alone, inspect))
    assert found == wanted
    found, wanted = (
        [line.partition(" (")[0] for line in status.lines(each, ["pacs"], config.spool)]
        for each in (alone, inspect)
    )
    assert found == wanted


@pytest.mark.parametrize("damage", ["absent", "text", "no tables", "earlier", "later"])
def test_a_damaged_file_gives_the_same_error_in_both(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "ledger.db"
    if damage == "text":
        path.write_text("no database, but long enough to be taken for the header of one " * 9)
    elif damage == "no tables":
        sqlite3.connect(path).close()
        path.touch()
    elif damage != "absent":
        Ledger(f"sqlite:///{path}").close()
        with sqlite3.connect(path) as connection:
            step = -1 if damage == "earlier" else 1
            connection.execute("UPDATE schema_version SET version = version + ?", (step,))
        connection.close()

    with pytest.raises(LedgerError) as alone:
        FileOverview.open(path)
    with pytest.raises(LedgerError) as wanted:
        Inspection.open(f"sqlite:///{path}")
    assert str(alone.value) == str(wanted.value)


def test_an_error_of_the_file_is_raised_as_a_ledger_error(ledger: Ledger, config: Config) -> None:
    """So its callers handle one type of error."""
    path = Path(config.ledger.removeprefix("sqlite:///"))
    alone = FileOverview.open(path)
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE roles RENAME TO lost")
    connection.close()

    with pytest.raises(SQLAlchemyError) as caught:
        alone.roles()
    assert describe(caught.value) == "SQLITE_ERROR OperationalError: no such table: roles"


def test_every_role_that_runs_is_listed(
    ledger: Ledger, inspect: Inspection, config: Config
) -> None:
    for role in ("web", "receive"):
        ledger.beat(role, f"here:{role}")
    shown = [line for line in status.lines(inspect, [], config.spool) if line.startswith("role ")]
    assert shown == [
        "role receive: 1 running",
        "role analyse: NOT RUNNING",
        "role deliver: NOT RUNNING",
        "role web: 1 running",
    ]


def test_a_killed_role_is_not_reported_as_running(
    ledger: Ledger, inspect: Inspection, config: Config
) -> None:
    """Its last heartbeat is still young."""
    killed = subprocess.Popen(["true"])
    killed.wait()
    ledger.beat("analyse", f"{this_machine()}:{killed.pid}")
    ledger.beat("deliver", f"{this_machine()}:{os.getpid()}")

    shown = [line for line in status.lines(inspect, [], config.spool) if line.startswith("role ")]
    assert shown[1].startswith("role analyse: NOT RUNNING; its process ended after ")
    assert shown[2] == "role deliver: 1 running"


@pytest.mark.parametrize("asked", [["status"], ["status", "1.2.3"], ["trace", "1.2.3"]])
def test_a_database_server_that_hangs_ends_the_command(tmp_path: Path, asked: list[str]) -> None:
    """It admits the command, and answers nothing more."""
    pytest.importorskip("psycopg")
    server = socket.create_server(("127.0.0.1", 0))
    admitted = threading.Thread(target=_admit, args=(server,), daemon=True)
    admitted.start()

    path = tmp_path / "pleura.yaml"
    ledger = f"postgresql://pleura@127.0.0.1:{server.getsockname()[1]}/pleura?sslmode=disable"
    path.write_text(f"spool: {tmp_path / 'spool'}\nledger: {ledger}\n")
    command = "from daemon import cli, opening; opening._ANSWER_S = 2; cli.main()"
    words = [sys.executable, "-c", command, *asked, "-c", str(path)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)

    server.close()
    assert ended.returncode == 1
    assert ended.stderr == (
        "ledger: the database server gave no answer in 2 s; it, or the server behind its "
        "PgBouncer, hangs\n"
    )


def _admit(server: socket.socket) -> None:
    """Answer one start-up message of PostgreSQL's protocol: admitted, and ready for a query."""
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I")
        while connection.recv(4096):
            continue


def test_a_node_without_strays_reports_none(inspect: Inspection, config: Config) -> None:
    text = "\n".join(status.lines(inspect, [], config.spool))
    assert "adopted" not in text
    assert "QUARANTINE" not in text
    assert "NOBODY" not in text
    summary = status.summary(inspect, [], config.spool)
    strays = (summary["adopted"], summary["quarantined"], summary["all_excluded_for"])
    assert strays == (0, [], None)
    assert summary["spool_trouble"] is None


def test_adopted_images_and_quarantined_files_are_reported(
    ledger: Ledger, inspect: Inspection, config: Config
) -> None:
    ledger.receive([arrival(1, origin="adopted"), arrival(2)])
    spool = Spool(config.spool)
    spool.quarantine_folder.mkdir()
    (spool.quarantine_folder / STRAY).write_bytes(b"x")
    # A quarantined result that was remade needs no attention.
    (spool.quarantine_folder / f"{STRAY}.result").write_bytes(b"x")

    text = "\n".join(status.lines(inspect, [], config.spool))
    assert "adopted: 1 images" in text
    assert f"QUARANTINE: 1 files in {spool.quarantine_folder}" in text
    assert STRAY in text
    summary = status.summary(inspect, [], config.spool)
    assert summary["adopted"] == 1
    assert summary["quarantined"] == [STRAY]


def test_an_unreachable_spool_is_reported_and_hides_nothing_else(
    inspect: Inspection, config: Config, tmp_path: Path
) -> None:
    config.spool.rename(tmp_path / "elsewhere")
    lines = list(status.lines(inspect, [], config.spool))
    assert any(line.startswith("SPOOL: ") for line in lines)
    assert any(line.startswith("instances: ") for line in lines)
    assert status.summary(inspect, [], config.spool)["spool_trouble"]


@pytest.mark.parametrize(("images", "is_reported"), [(20, True), (19, False)])
def test_status_and_doctor_report_a_node_that_excludes_every_image(
    ledger: Ledger, inspect: Inspection, config: Config, images: int, is_reported: bool
) -> None:
    exclude(ledger, images, "body_part")
    text = "\n".join(status.lines(inspect, [], config.spool))
    assert ("same reason, body_part; check `admission`" in text) is is_reported
    summary = status.summary(inspect, [], config.spool)["all_excluded_for"]
    assert summary == ("body_part" if is_reported else None)

    findings = {finding.subject: finding for finding in doctor.examine(config, str, {})}
    assert ("answers" in findings) is is_reported
    if is_reported:
        assert "body_part: check `admission`" in findings["answers"].warning


def test_a_model_that_was_refused_at_a_reload_is_shown_while_its_role_lives(
    config: Config, ledger: Ledger, inspect: Inspection
) -> None:
    """The roles run and the reload succeeded: only this line says which model serves."""
    facts = {"model": "quick", "version": "1.0.0", "model_trouble": "model.yaml: id: absent"}
    ledger.beat("analyse", "here:1", facts)
    ledger.beat("analyse", "here:2", facts | {"model_trouble": ""})
    ledger.beat("receive", "here:3")

    lines = status.lines(inspect, [], config.spool)
    (line,) = [line for line in lines if line.startswith("MODEL: ")]
    assert "model.yaml: id: absent; quick 1.0.0 goes on serving" in line


def test_alerts_that_no_server_takes_are_reported_until_it_takes_them(
    ledger: Ledger, inspect: Inspection, config: Config
) -> None:
    """A person who waits for a mail would take silence for health."""
    troubles = [Alarm(f"outage:{name}", "outage", name, "x") for name in ("one", "other")]
    ledger.alarms.note(troubles, ["mail"], "a", 60)
    first, second = ledger.alarms.claim("sender", ["mail"], 300.0)
    assert "ALERTS" not in "\n".join(status.lines(inspect, [], config.spool)), "they are on the way"

    # The second waits behind the first.
    ledger.alarms.retry_later(first, 60.0)
    ledger.alarms.retry_later(second, 60.0, is_failure=False)
    said = "\n".join(status.lines(inspect, [], config.spool))
    assert "ALERTS: 2 messages wait for mail, the oldest since" in said
    (waiting,) = status.summary(inspect, [], config.spool)["alerts"]
    assert (waiting["route"], waiting["waiting"]) == ("mail", 2)

    ledger.alarms.mark_sent(first)
    ledger.alarms.mark_sent(second)
    assert "ALERTS" not in "\n".join(status.lines(inspect, [], config.spool))
