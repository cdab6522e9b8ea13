"""PostgreSQL only: several hosts at once, a server that crashes, and a server with careless
settings.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from daemon.config import Config
from daemon.deliver.retention import Retention
from daemon.ledger import Arrival, Completion, ImageJob, Ledger, LedgerLimits, describe
from daemon.ledger.database import Database
from daemon.ledger.inspect import Inspection
from daemon.receive.intake import Intake, NoRoomError
from daemon.spool import Spool
from tools.peers.ports import unused_port
from tools.peers.postgres import Postgres
from tools.peers.waiting import wait_until

_DEADLINE_S = 60.0


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[Ledger]:
    ledger = Ledger(postgres_url)
    yield ledger
    ledger.close()


@pytest.fixture
def other_host(postgres_url: str) -> Iterator[sa.Engine]:
    """Another host's connection to the same database."""
    engine = sa.create_engine(postgres_url)
    yield engine
    engine.dispose()


@pytest.fixture
def server(tmp_path: Path, postgres: Postgres) -> Iterator[Postgres]:
    """A server that a test may kill. `postgres` is requested only to skip when PostgreSQL is
    absent.
    """
    with Postgres(tmp_path / "server", unused_port()) as server:
        yield server


def arrivals(*uids: str) -> list[Arrival]:
    return [
        Arrival(f"spool-{uid}", "1.2.840", uid, "1.2.1", "XRAY1", "dimse", 1, 9) for uid in uids
    ]


def waiting_for_locks(engine: sa.Engine) -> int:
    with engine.connect() as conn:
        return int(
            conn.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").scalar_one()
        )


def test_a_row_that_another_host_is_claiming_is_skipped(
    postgres_url: str, other_host: sa.Engine
) -> None:
    # With this lock timeout, a query that waits for the locked row fails.
    ledger = Ledger(f"{postgres_url}?options=-clock_timeout%3D5s")
    ledger.receive(arrivals("1.1", "1.2", "1.3"))
    with other_host.begin() as conn:
        conn.exec_driver_sql("SELECT 1 FROM instances WHERE sop_instance_uid = '1.1' FOR UPDATE")
        assert [job.sop_instance_uid for job in ledger.claim_images("me", 2)] == ["1.2", "1.3"]
    ledger.close()


def test_one_of_two_copies_completed_at_the_same_time_is_a_duplicate(
    ledger: Ledger, other_host: sa.Engine
) -> None:
    ledger.receive(arrivals("1.1", "1.1"))
    states: list[str | None] = []

    def complete(job: ImageJob) -> None:
        states.append(ledger.complete(job, Completion("analysed", "the same"), {}))

    threads = [
        threading.Thread(target=complete, args=(job,)) for job in ledger.claim_images("me", 2)
    ]
    with other_host.begin() as conn:
        # This lock holds the first copy back, and the second must wait for the first.
        conn.exec_driver_sql("SELECT 1 FROM instances WHERE id = 1 FOR UPDATE")
        for number, thread in enumerate(threads, start=1):
            thread.start()
            wait_until(
                "the copy waits for the lock",
                lambda number=number: waiting_for_locks(other_host) >= number,
            )
        assert states == []
    for thread in threads:
        thread.join()
    assert states == ["analysed", "duplicate"]


def test_times_come_from_the_servers_clock(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a host whose clock is still wrong after booting.
    monkeypatch.setattr("time.time", lambda: 0.0)
    ledger.receive(arrivals("1.1"))
    assert len(ledger.claim_images("me", 9)) == 1
    assert ledger.claim_images("other", 9) == []
    assert ledger.inspect.history("1.1")[0]["received_at"] > 1.6e9


def test_kept_files_are_streamed_from_a_view_that_cannot_write(
    ledger: Ledger, postgres_url: str
) -> None:
    ledger.receive(arrivals("1.1", "1.2"))
    view = Inspection.open(postgres_url)
    assert {file.spool_name for file in view.kept_files()} == {"spool-1.1", "spool-1.2"}
    view.close()


@pytest.mark.parametrize(
    ("default", "ours"), [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply",) * 2]
)
def test_a_commit_is_durable_whatever_the_servers_default(
    postgres_url: str, other_host: sa.Engine, default: str, ours: str
) -> None:
    with other_host.begin() as conn:
        name = conn.exec_driver_sql("SELECT current_database()").scalar_one()
        conn.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = {default}")
    database = Database(postgres_url)
    # Also check a connection that is reused from the pool.
    for _ in range(2):
        with database.transaction() as (conn, _now):
            assert conn.exec_driver_sql("SHOW synchronous_commit").scalar_one() == ours
    database.close()


def test_a_lock_that_stays_is_an_error_in_words_and_not_a_wait_without_end(
    postgres_url: str, other_host: sa.Engine
) -> None:
    """Such as a person's forgotten session: the sender gets an answer, and the log the reason."""
    for database in (Database(postgres_url), Database(postgres_url, read_only=True)):
        with database.reading() as conn:
            assert conn.exec_driver_sql("SHOW lock_timeout").scalar_one() == "30s"
        database.close()

    # The database's own limit stays. Here it shortens the test.
    ledger = Ledger(f"{postgres_url}?options=-clock_timeout%3D50ms")
    with other_host.begin() as conn:
        conn.exec_driver_sql("LOCK TABLE instances IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(OperationalError) as caught:
            ledger.receive(arrivals("1.1"))
        line = describe(caught.value)
        assert line.startswith("55P03")
        assert "another session holds a lock" in line
        with pytest.raises(OperationalError):
            ledger.inspect.counts()

    ledger.receive(arrivals("1.1"))
    with ledger._database.transaction() as (conn, _):
        assert conn.exec_driver_sql("SHOW lock_timeout").scalar_one() == "50ms"
    ledger.close()


def test_a_role_waits_for_another_that_changes_the_tables(
    postgres_url: str, other_host: sa.Engine
) -> None:
    """A migration of large tables takes longer than any lock that is an error."""
    impatient = f"{postgres_url}?options=-clock_timeout%3D50ms"
    waiters = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

    with ThreadPoolExecutor(1) as thread:
        with other_host.begin() as conn, other_host.connect() as observer:
            # The lock of the role that creates or changes the tables.
            conn.exec_driver_sql("SELECT pg_advisory_xact_lock(x'706C6575'::int)")
            opened = thread.submit(Ledger, impatient)

            def is_waiting() -> bool:
                return observer.exec_driver_sql(waiters).scalar_one() == 1

            wait_until("the role waits for the tables", is_waiting)
            with pytest.raises(TimeoutError):
                # Ten times its limit for other locks
                opened.result(0.5)
        opened.result(_DEADLINE_S).close()


def test_a_sleeper_survives_a_server_crash_and_gets_its_work(server: Postgres) -> None:
    url = server.create_database("ledger")
    ledger, other = Ledger(url), Ledger(url)
    claimed: list[str] = []
    asleep, stop = threading.Event(), threading.Event()

    # Loop as the roles do.
    def work() -> None:
        while not stop.is_set():
            try:
                claimed.extend(job.sop_instance_uid for job in ledger.claim_images("me", 9))
            except DBAPIError:
                time.sleep(0.02)
                continue
            asleep.set()
            ledger.wait(300)

    thread = threading.Thread(target=work)
    thread.start()
    assert asleep.wait(_DEADLINE_S)
    server.restart("immediate")
    # The connection from before the crash is replaced.
    other.receive(arrivals("1.1"))
    wait_until("the image is claimed", lambda: claimed == ["1.1"])
    asleep.clear()
    # The new bell also rings.
    other.receive(arrivals("1.2"))
    wait_until("the next image is claimed", lambda: claimed == ["1.1", "1.2"])
    stop.set()
    other.receive(arrivals("1.3"))
    thread.join(_DEADLINE_S)
    assert not thread.is_alive()
    ledger.close()
    other.close()


def test_images_in_work_during_a_server_crash_are_completed_once(server: Postgres) -> None:
    url = server.create_database("ledger")
    ledger = Ledger(url, limits=LedgerLimits(lease_s=1.0))
    uids = [f"1.{number}" for number in range(60)]
    ledger.receive(arrivals(*uids))
    errors = 0
    done: list[str] = []

    def work() -> None:
        nonlocal errors
        while len(done) < len(uids):
            try:
                for job in ledger.claim_images("me", 2):
                    if (
                        ledger.complete(job, Completion("analysed", job.sop_instance_uid), {})
                        is not None
                    ):
                        done.append(job.sop_instance_uid)
                if ledger.inspect.counts()["instances"]["analysed"] == len(uids):
                    # An image whose answer was lost is not in `done`.
                    return
            except DBAPIError:
                errors += 1
                time.sleep(0.02)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until("work has begun", lambda: len(done) > 5)
    server.stop("immediate")
    wait_until("a worker has seen an error", lambda: errors > 0)
    server.start()
    for thread in threads:
        thread.join(_DEADLINE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert ledger.inspect.counts()["instances"] == {
        "received": 0,
        "analysed": 60,
        "not_analysed": 0,
        "failed": 0,
    }
    assert len(done) == len(set(done))
    assert ledger.inspect.contradictions() == []
    ledger.close()


class Wire:
    """A proxy to the server that can be cut: the client sees the broken connection, and the server
    cannot answer.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._ends = list[socket.socket]()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)


def test_an_image_whose_commit_outlives_its_connection_keeps_its_bytes(
    server: Postgres, tmp_path: Path
) -> None:
    """A commit that waits for a standby is invisible, and takes effect long after its client has
    gone.
    """
    url = server.create_database("ledger")
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT").connect()
    wire = Wire(server.port)
    ledger = Ledger(url.replace(f":{server.port}/", f":{wire.port}/"))
    spool = Spool(tmp_path / "spool")
    retention = Retention(Config(spool=spool.folder, ledger=url), ledger, spool)

    def wait_for_standby(name: str) -> None:
        admin.exec_driver_sql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        admin.exec_driver_sql("SELECT pg_reload_conf()")
        wait_until(
            "the setting is in force",
            lambda: admin.exec_driver_sql("SHOW synchronous_standby_names").scalar_one() == name,
        )

    def waits() -> bool:
        return bool(
            admin.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            ).scalar_one()
        )

    def take() -> None:
        file = Intake(ledger, spool).begin()
        file.write(b"nine byte")
        file.keep(arrivals("1.1")[0]._replace(spool_name=file.name))

    wait_for_standby("one_that_is_away")
    with ThreadPoolExecutor(1) as senders:
        answer = senders.submit(take)
        wait_until("the commit waits", waits)
        wire.cut()
        # The sender gets an error and keeps the image.
        assert isinstance(answer.exception(), NoRoomError)
    (name,) = spool.names()
    assert ledger.inspect.known_spool_names([name]) == set()
    os.utime(spool.path(name), (0, 0))
    # The sweep must not decide while the commit is pending.
    with pytest.raises(OperationalError):
        retention.sweep()
    wait_for_standby("")
    wait_until("the image waits", lambda: ledger.inspect.counts()["instances"]["received"] == 1)
    assert retention.sweep() == 0
    (job,) = ledger.claim_images("me", 9)
    assert spool.read(job.spool_name) == b"nine byte"
    ledger.close()
    wire.close()
    admin.close()
    admin.engine.dispose()
