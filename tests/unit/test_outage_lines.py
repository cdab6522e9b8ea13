"""A database outage is logged with one line that names the cause, and one line at its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from daemon.audit.alerts import Alerts as RefusalAlerts
from daemon.commands import doctor
from daemon.config import Config, DicomDestination
from daemon.deliver.commitment import Asker
from daemon.deliver.courier import Courier
from daemon.deliver.limits import DeliverLimits
from daemon.deliver.retention import Retention
from daemon.dicom.commitment import Report
from daemon.dicom.requestor import EventReport
from daemon.dicom.tables import Status
from daemon.ledger import Arrival, Ledger, Outage, describe, owner_name
from daemon.receive.intake import Intake, NotCommittedError
from daemon.service import _wait_for_stores
from daemon.spool import Spool
from tools.peers.postgres import Postgres

log = logging.getLogger("test")


class Refusal(Exception):
    """An error as psycopg raises it: no SQLSTATE, several lines."""

    sqlstate = None


def refused(text: str) -> OperationalError:
    return OperationalError("SELECT 'Doe^Jane'", {"name": "Doe^Jane"}, Refusal(text))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (
            'connection failed: port 5432 failed: FATAL:  password authentication failed for user "x"\n'
            'FATAL:  password authentication failed for user "x"',
            "28P01",
            "wrong password",
        ),
        ('connection failed: FATAL:  database "pleura" does not exist', "3D000", "create the"),
        ("connection failed: FATAL:  the database system is starting up", "57P03", "starts"),
        ("connection failed: FATAL:  sorry, too many clients already", "53300", "max_connections"),
        ("connection failed: 127.0.0.1, port 1 failed: Connection refused", "08001", "no server"),
        ("connection timeout expired", "08001", "does not answer"),
        ("server closed the connection unexpectedly", "08006", "the server went"),
    ],
)
def test_the_cause_is_one_line_with_its_code(text: str, code: str, words: str) -> None:
    line = describe(refused(text))
    assert line.startswith(code)
    assert words in line
    assert "\n" not in line
    assert "Doe" not in line


def test_no_password_is_shown() -> None:
    line = describe(refused("could not parse postgresql://pleura:secret@db/pleura"))
    assert "secret" not in line
    assert "secret" not in describe(refused("invalid dsn: password=secret host=db"))


def test_an_outage_has_two_log_lines_however_many_retries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage(log, "the ledger")
    for _ in range(1000):
        outage.failed(refused("Connection refused"))
    for _ in range(1000):
        outage.failed(refused('FATAL:  password authentication failed for user "x"'))
    outage.over()
    outage.over()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert "08001" in lines[0]
    assert "28P01" in lines[1]
    assert "answers again" in lines[2]


def test_an_internal_error_is_logged_with_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(log, "the ledger")
    for _ in range(3):
        outage.failed(KeyError("state"))
    outage.failed(refused("Connection refused"))
    assert [record.exc_info is not None for record in caplog.records] == [True, False]


class Impatient(threading.Event):
    """An event whose wait returns at once."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


class Away:
    """A ledger whose server is unreachable; the sixth query sets `stop`."""

    def __init__(self, stop: threading.Event) -> None:
        self.questions = 0
        self._stop = stop

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._refuse

    def _refuse(self, *_: object, **__: object) -> None:
        self.questions += 1
        if self.questions >= 6:
            self._stop.set()
        raise refused("Connection refused")


@pytest.mark.parametrize("loop", ["courier", "asker", "retention"])
def test_each_loop_of_deliver_logs_one_line_for_an_outage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    destination = DicomDestination(name="pacs", host="127.0.0.1", port=1, ae_title="ARCHIVE")
    config = Config(spool=tmp_path / "spool", destinations=(destination,))
    spool = Spool(config.spool)
    stop = Impatient()
    ledger: Any = Away(stop)
    limits = DeliverLimits(ledger_pause_s=0.0)
    run = {
        "courier": Courier(destination, config, ledger, spool, limits).run,
        "asker": Asker(destination, config, ledger, limits).run,
        "retention": Retention(config, ledger, spool).run,
    }[loop]

    run(stop)

    assert ledger.questions >= 6
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "08001" in line.getMessage()
    assert line.exc_info is None


def test_a_refused_object_says_how_the_ledger_fails(tmp_path: Path) -> None:
    """Its sender's line in the log; "OperationalError" and advice about the disk told nothing."""
    ledger: Any = Away(threading.Event())
    ledger.inspect = ledger
    intake = Intake(ledger, Spool(tmp_path / "spool"))
    file = intake.begin()
    file.write(b"bytes")
    with pytest.raises(NotCommittedError, match=r"ledger: 08001 .*no server listens there"):
        file.keep(Arrival(file.name, "1.2", "1.3", "", "", "dimse", 1, 5))


def test_an_object_that_a_lock_keeps_out_is_refused_with_the_lock_and_leaves_no_bytes(
    tmp_path: Path, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that stayed would be adopted and analysed later, though their sender keeps them."""
    monkeypatch.setattr("daemon.ledger.database._LOCK_S", 0.1)
    options = "" if "sqlite" in ledger_url else "?options=-clock_timeout%3D50ms"
    ledger, other = Ledger(ledger_url + options), Ledger(ledger_url)
    spool = Spool(tmp_path / "spool")
    file = Intake(ledger, spool).begin()
    file.write(b"bytes")

    with other._database.transaction() as (conn, _):
        if not other._database.is_sqlite:
            conn.exec_driver_sql("LOCK TABLE instances IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(NotCommittedError, match=r"ledger: (SQLITE_BUSY|55P03) .*: end it"):
            file.keep(Arrival(file.name, "1.2", "1.3", "", "", "dimse", 1, 5))
    assert list(spool.names()) == []
    ledger.close()
    other.close()


@pytest.mark.parametrize("what", ["state", "report", "refusal"])
def test_a_record_that_an_outage_prevents_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Not a traceback of fifty lines, once for each record."""
    destination = DicomDestination(name="pacs", host="127.0.0.1", port=1, ae_title="ARCHIVE")
    config = Config(spool=tmp_path / "spool", destinations=(destination,))
    ledger: Any = Away(threading.Event())
    report = Report("2.25.1", frozenset({"2.25.2"}), {})
    monkeypatch.setattr("daemon.deliver.commitment.read_report", lambda *_: report)

    if what == "state":
        Courier(destination, config, ledger, Spool(config.spool))._note(None)
    elif what == "report":
        event = EventReport("1.2", "1.3", 1, b"", "1.2")
        assert Asker(destination, config, ledger)._take_report(event) == Status.PROCESSING_FAILURE
    else:
        RefusalAlerts(ledger)._record({"address": "10.0.0.1", "why": "unknown"})

    (line,) = caplog.records
    assert "08001" in line.getMessage()
    assert line.exc_info is None


def test_a_sqlite_error_is_described_with_its_code(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with pytest.raises(OperationalError) as caught, ledger._database.reading() as conn:
        conn.exec_driver_sql("SELECT * FROM nowhere")
    assert describe(caught.value).startswith("SQLITE_ERROR OperationalError: no such table")
    ledger.close()


def test_doctor_finds_that_another_program_keeps_the_roles_from_writing(
    tmp_path: Path, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's readers get through such a lock, so that all else looked well."""
    monkeypatch.setattr(doctor, "_LOCK_S", 0.1)
    config = Config.model_validate({"spool": tmp_path / "spool", "ledger": ledger_url})
    ledger = Ledger(ledger_url)
    ledger.beat("receive", owner_name())
    assert doctor._ledger(config) == "0 images wait, 0 deliveries are owed"

    with ledger._database.transaction() as (conn, _):
        if not ledger._database.is_sqlite:
            conn.exec_driver_sql("LOCK TABLE deliveries IN SHARE MODE")
        with pytest.raises(doctor.Trouble, match=r"no role can write: .*: end it"):
            doctor._ledger(config)

    assert doctor._ledger(config) == "0 images wait, 0 deliveries are owed"
    ledger.close()


def test_a_role_waits_for_its_database_server_and_then_starts(
    tmp_path: Path, postgres: Postgres, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is unreachable when the role starts: one log line, no traceback, and the role
    starts later.
    """
    caplog.set_level(logging.INFO)
    away = postgres_url.replace(f":{postgres.port}/", ":1/")
    config = Config.model_validate({"spool": tmp_path / "spool", "ledger": away})

    class Stop:
        tries = 0

        def is_set(self) -> bool:
            return self.tries >= 3

        def wait(self, seconds: float) -> bool:
            self.tries += 1
            return self.is_set()

    stop = Stop()
    assert _wait_for_stores(config, stop) is None  # type: ignore[arg-type]
    assert stop.tries == 3
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "08001" in lines[0]
    assert all(record.exc_info is None for record in caplog.records)

    config = Config.model_validate({"spool": tmp_path / "spool", "ledger": postgres_url})
    stores = _wait_for_stores(config, Stop())  # type: ignore[arg-type]
    assert stores is not None
    stores[0].close()
