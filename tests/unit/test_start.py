"""A role that cannot start: it waits if the cause may pass, and otherwise says what to do."""

from __future__ import annotations

import errno
import gc
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from daemon import cli, ownership, preflight, service
from daemon.commands import doctor
from daemon.config import Config, load, missing_extras
from daemon.exits import CannotStartError
from daemon.ledger import Ledger
from daemon.live import LiveSettings

ADDRESS = "10.0.4.2:104"


def settings(folder: Path, **changes: object) -> Path:
    path = folder / "pleura.yaml"
    values: dict[str, object] = {
        "host": "127.0.0.1",
        "spool": str(folder / "spool"),
        "ledger": f"sqlite:///{folder / 'ledger.db'}",
    }
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(settings(tmp_path))


class Refused:
    """A receiver whose first attempts to listen fail."""

    def __init__(self, *errors: int) -> None:
        self.errors = [*errors]

    def start(self) -> None:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("is_emptied", [False, True])
def test_a_ledger_that_lost_its_tables_is_told_where_the_spool_has_been_in_use(
    config: Config, caplog: pytest.LogCaptureFixture, is_emptied: bool
) -> None:
    """A file cut to nothing, or a mistyped name: the node begins anew, and says so."""
    ledger, spool = service.open_stores(config)
    spool.claim(ledger.spool_identity)
    ledger.close()
    file = config.spool.parent / "ledger.db"
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    if is_emptied:
        file.write_bytes(b"")
    caplog.clear()

    service.open_stores(config)[0].close()
    warned = [record.getMessage() for record in caplog.records if "had no tables" in record.msg]
    assert len(warned) == is_emptied


def test_a_role_waits_for_a_port_and_an_address_with_one_log_line_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "_PORT_PAUSE_S", 0.0)
    caplog.set_level(logging.INFO)
    receiver: Any = Refused(*[errno.EADDRNOTAVAIL] * 3, *[errno.EADDRINUSE] * 2)
    assert service.listen(receiver, ADDRESS, threading.Event())

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert "is not yet an address of this machine" in lines[0]
    assert "held by another program" in lines[1]
    assert lines[2].endswith("is available now")


def test_a_privileged_port_ends_the_start_with_advice() -> None:
    receiver: Any = Refused(errno.EACCES)
    with pytest.raises(CannotStartError, match="CAP_NET_BIND_SERVICE"):
        service.listen(receiver, ADDRESS, threading.Event())


def test_a_stop_signal_ends_the_wait_for_a_port() -> None:
    stop = threading.Event()
    stop.set()
    receiver: Any = Refused(errno.EADDRINUSE)
    assert not service.listen(receiver, ADDRESS, stop)


def test_a_start_names_a_missing_extra_as_config_check_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    config = load(settings(tmp_path, ledger="postgresql+psycopg://db/pleura"))
    (words,) = missing_extras(config)
    with pytest.raises(CannotStartError) as caught:
        service.open_stores(config)
    assert str(caught.value) == words


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_disk_error_that_may_pass_is_retryable(
    config: Config, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(service, "Spool", full)
    with pytest.raises(OSError, match=os.strerror(number)):
        service.open_stores(config)


def test_serve_reports_a_damaged_ledger_in_one_line(config: Config, tmp_path: Path) -> None:
    Ledger(config.ledger).close()
    os.truncate(tmp_path / "ledger.db", 20_000)
    with pytest.raises(CannotStartError, match=r"restore it from a backup \(docs/backup.md\)"):
        preflight.check_stores(config)


def test_serve_reports_a_database_user_without_rights(config: Config, postgres_url: str) -> None:
    weak = f"weak_{secrets.token_hex(4)}"
    owner = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with owner.connect() as conn:
        conn.exec_driver_sql(f"CREATE ROLE {weak} LOGIN")
    url = sa.make_url(postgres_url).set(username=weak).render_as_string()
    theirs = config.model_copy(update={"ledger": url})
    with pytest.raises(CannotStartError, match="denied for schema public; make the user"):
        preflight.check_stores(theirs)

    # As after a dump restored by another user.
    Ledger(postgres_url).close()
    with pytest.raises(CannotStartError, match="denied for table schema_version; make the user"):
        preflight.check_stores(theirs)
    with owner.connect() as conn:
        conn.exec_driver_sql(f"DROP ROLE {weak}")
    owner.dispose()


def test_a_role_starts_once_its_port_is_free_and_survives_a_full_standard_output(
    tmp_path: Path,
) -> None:
    """`pleura receive >/dev/full` while another program holds the port for some time."""
    log = tmp_path / "log.txt"

    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        path = settings(tmp_path, port=port)
        with log.open("w") as stderr, Path("/dev/full").open("w") as stdout:
            command = [sys.executable, "-P", "-m", "daemon.cli", "receive", "-c", str(path)]
            role = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        try:
            wait_for("held by another program", log)
            holder.close()
            wait_for("receive: ready", log)
        finally:
            role.send_signal(signal.SIGTERM)
            assert role.wait(30) == 0

    assert "Traceback" not in log.read_text()


def wait_for(words: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_a_closed_pipe_causes_no_traceback(tmp_path: Path) -> None:
    """As with `pleura config show | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable, "-P", "-m", "daemon.cli", "config", "show", "-c", str(settings(tmp_path)),
    ]  # fmt: skip
    with os.fdopen(writer, "w") as stdout:
        ended = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.stderr == ""
    assert ended.returncode == 141


# ---- files of another user


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int, *unusable: Path) -> None:
    """Pretend to be this user, without access to these files; a test as root could use every file."""
    monkeypatch.setattr(ownership.os, "geteuid", lambda: uid)
    monkeypatch.setattr(ownership.os, "access", lambda path, *_, **__: Path(path) not in unusable)


@pytest.mark.parametrize("what", ["spool/0a", "spool/0a/" + "f" * 32, "ledger.db"])
def test_a_file_of_another_user_stops_the_start_with_the_command_that_corrects_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    ledger, _ = service.open_stores(config)
    ledger.close()
    path = tmp_path / what
    if not path.exists():
        path.write_bytes(b"x")
    owner = ownership.owner_of(path)
    as_user(monkeypatch, 54321, path)

    with pytest.raises(CannotStartError) as caught:
        service.open_stores(config)
    words = str(caught.value)
    assert f"{path} belongs to {owner}, and 54321 cannot use it" in words
    assert "sudo chown -R 54321:" in words
    assert str(config.spool) in words
    assert str(tmp_path / "ledger.db") in words
    told_by_doctor = {finding.subject: finding for finding in doctor.examine(config, str, {})}
    assert told_by_doctor["owner of the files"].trouble.startswith(words[: words.index("sudo")])


def test_usable_files_of_another_user_are_accepted(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, _ = service.open_stores(config)
    ledger.close()
    as_user(monkeypatch, 54321)
    assert ownership.trouble(config) == ""


def test_doctor_warns_root_and_nobody_else(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)
    first = next(iter(doctor.examine(config, str, {})))
    assert str(first).startswith("WARNING  user: this is root")
    as_user(monkeypatch, 54321)
    first = next(iter(doctor.examine(config, str, {})))
    assert first.subject == "ledger"


def test_creating_a_spool_or_a_ledger_is_logged(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service.os, "geteuid", lambda: 0)
    caplog.set_level(logging.INFO)
    for _ in range(2):
        ledger, _ = service.open_stores(config)
        ledger.close()
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines == [
        ("WARNING", f"spool {config.spool} was not there and is new; is its path right?"),
        (
            "WARNING",
            f"ledger {config.spool.parent / 'ledger.db'} was not there and is new; "
            "is its path right?",
        ),
    ]


def test_a_role_collects_garbage_seldom_until_it_is_ready(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = gc.get_threshold()
    while_starting: list[int] = []

    def start(role: str, *_: object) -> int:
        while_starting.append(gc.get_threshold()[0])
        ledger, spool = service.open_stores(config)
        stop = threading.Event()
        stop.set()
        live = LiveSettings(role, config, lambda: config, ledger, lambda _: None)
        service.ROLES[role](config, ledger, spool, stop, live)
        ledger.close()
        return 0

    monkeypatch.setattr(service, "run_role", start)
    try:
        cli.main(["deliver", "-c", str(tmp_path / "pleura.yaml")])
        assert while_starting[0] > usual[0]
        assert gc.get_threshold() == usual
    finally:
        gc.set_threshold(*usual)
