"""A ledger behind PgBouncer in transaction mode: it starts, loses nothing, and commits durably."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from daemon.ledger import Arrival, Completion, Inspection, Ledger
from tests.conftest import missing
from tools.peers.pgbouncer import PgBouncer, program
from tools.peers.postgres import Postgres


@pytest.fixture
def pooled(postgres: Postgres, postgres_url: str) -> Iterator[str]:
    """The URL of an empty database behind PgBouncer, whose server commits asynchronously by
    default.
    """
    if program() is None:
        missing("PgBouncer is not installed (apt-get install pgbouncer)")
    engine = sa.create_engine(postgres_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        name = conn.exec_driver_sql("SELECT current_database()").scalar_one()
        conn.exec_driver_sql(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    engine.dispose()
    with PgBouncer(postgres_url) as bouncer:
        yield bouncer.url


def arrival(number: int) -> Arrival:
    return Arrival(f"file-{number}", "1.2", f"1.2.{number}", "1.2.1", "XRAY1", "dimse", 1, 9)


def test_many_writers_lose_nothing(pooled: str) -> None:
    ledgers = [Ledger(pooled) for _ in range(2)]

    def write(worker: int) -> None:
        for number in range(10):
            ledgers[worker % 2].receive([arrival(100 * worker + number)])

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ledgers[0].inspect.counts()["instances"]["received"] == 60
    jobs = ledgers[1].claim_images("me", 99)
    for job in jobs:
        ledgers[0].complete(job, Completion("analysed", job.sop_instance_uid), {})
    assert ledgers[0].inspect.counts()["instances"]["analysed"] == 60
    for ledger in ledgers:
        ledger.close()


def test_every_commit_is_durable_despite_the_databases_default(pooled: str) -> None:
    ledger = Ledger(pooled)
    with ledger._database.transaction() as (conn, _):
        assert conn.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    # The setting ends with the transaction, so the next client of the server session sees the
    # default.
    with ledger._database.reading() as conn:
        assert conn.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "off"
    ledger.close()


def test_a_sleeper_finds_new_work_soon(pooled: str) -> None:
    ledger = Ledger(pooled)
    ledger.wait(0.0)
    ledger.receive([arrival(1)])
    began = time.monotonic()
    ledger.wait(60.0)
    # Without notifications the sleeper polls, long before its timeout.
    assert time.monotonic() - began < 30.0
    ledger.close()


def test_a_read_only_ledger_cannot_write(pooled: str) -> None:
    Ledger(pooled).close()
    inspect = Inspection.open(pooled)
    assert inspect.counts()["instances"]["received"] == 0
    with (
        inspect._database.reading() as conn,
        pytest.raises(sa.exc.InternalError, match="read-only transaction"),
    ):
        conn.exec_driver_sql("DELETE FROM instances")
    inspect.close()
