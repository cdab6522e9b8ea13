"""systemd's watchdog is notified while every watched thread makes progress, and no longer once a
thread is stuck.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon import readiness, watchdog
from daemon.commands.send import send
from daemon.config import Config
from daemon.ledger import Ledger
from daemon.receive.intake import Intake
from daemon.receive.scp import Receiver
from daemon.spool import Spool
from training import phantom

NEVER_S = 3600.0


@pytest.fixture
def fed() -> threading.Event:
    return threading.Event()


def test_without_a_watchdog_nothing_is_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog.feeder(lambda: None, NEVER_S) is None


def test_a_watchdog_of_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    assert watchdog.period_s() is None

    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog.period_s() == 60


def test_the_watchdog_is_notified_while_threads_make_progress(fed: threading.Event) -> None:
    with watchdog.watched("at work"), watchdog.Feeder(fed.set, 0.001, NEVER_S):
        assert fed.wait(10)


def test_a_stuck_thread_stops_the_notifications_and_is_named(
    fed: threading.Event, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logged = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda _: logged.set()  # type: ignore[method-assign]
    logging.getLogger("pleura.service").addHandler(handler)
    try:
        with watchdog.watched("association from 10.0.4.11"):
            with watchdog.Feeder(fed.set, 0.001, limit_s=-1.0):
                assert logged.wait(10)
            assert not fed.is_set()
    finally:
        logging.getLogger("pleura.service").removeHandler(handler)

    assert "no progress: association from 10.0.4.11" in caplog.text
    # The dumped stacks show where each thread is.
    assert "test_watchdog.py" in capfd.readouterr().err


def test_a_beat_ends_only_the_silence_of_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    begun, end = threading.Event(), threading.Event()

    def hang() -> None:
        with watchdog.watched("hanging"):
            begun.set()
            end.wait()

    thread = threading.Thread(target=hang)
    thread.start()
    begun.wait()
    with watchdog.watched("working"):
        now = 1100.0
        watchdog.beat()
        assert watchdog.silent(60.0) == ["hanging (100 s)"]
    end.set()
    thread.join()

    # A finished thread is no longer watched.
    now = 1300.0
    assert watchdog.silent(60.0) == []


def test_a_role_notifies_systemd_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "4000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)

        feeder = watchdog.feeder(lambda: readiness.notify("WATCHDOG=1"), NEVER_S)
        assert feeder is not None
        with feeder:
            assert systemd.recv(100) == b"WATCHDOG=1"


def test_an_association_that_hangs_in_the_spool_counts_as_silent(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, release = threading.Event(), threading.Event()
    begin = Intake.begin

    def hang(intake: Intake) -> object:
        hanging.set()
        release.wait()
        return begin(intake)

    monkeypatch.setattr(Intake, "begin", hang)
    path = phantom.write(phantom.draw(1, False, 64), tmp_path / "sent.dcm")
    config = Config(host="127.0.0.1", port=free_port(), spool=tmp_path / "spool")
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    receiver = Receiver(config, ledger, Spool(config.spool))
    receiver.start()

    answers: list[object] = []
    address = ("127.0.0.1", config.port)
    sender = threading.Thread(
        target=lambda: answers.extend(send([path], address, "PLEURA", "XRAY1"))
    )
    sender.start()
    try:
        assert hanging.wait(30)
        while not (silent := [each for each in watchdog.silent(0.3) if "association" in each]):
            time.sleep(0.01)
        assert silent[0].startswith("association from 127.0.0.1")
    finally:
        release.set()
        sender.join()
        receiver.stop()
        ledger.close()
    assert [str(answer) for answer in answers] == [f"{path}: 0x0000"]
