"""What the ledger costs: claims at an empty ledger and at a full one, receiving by many writers,
waking a sleeper.

    python -m benchmarks.ledger [--rows N] [--rounds N] [--folder DIR]

- claim: one batch of 8 images claimed and completed, and 8 deliveries claimed and stored, in a
  ledger of a few hundred rows, in one with N finished images (a result and a stored delivery each)
  and in one where N images and N deliveries wait, alternating; the ratios of medians say whether
  the cost grows with the years. Wanted: at most 1.2.
- receive: rows per second that 1, 4 and 8 writers get committed through the receive role's group
  commit.
- wake: from the call that commits work to the return of an idle waiter's wait(); on SQLite also of
  a waiter that looks at the ledger every 10 ms, in turn, and the CPU time that waiting takes.

Both engines with full durability; PostgreSQL is a separate server on loopback with its default
settings. Absolute figures are of this machine, its disk and its noise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sqlalchemy as sa

from daemon.ledger import Arrival, Completion, Ledger, StoredResult, bells
from daemon.receive.intake import Intake
from daemon.spool import Spool
from tools.peers.ports import unused_port
from tools.peers.postgres import Postgres, binaries

BATCH = 8
OWED = {"pacs": ["SC"]}
WRITING_S = 3.0
ASLEEP_S = 3.0

# Of a ledger, or of one bell: at most so many seconds.
Wait = Callable[[float], None]

_NUMBERS = (
    "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})"
)
_FILL = (
    "INSERT INTO instances (spool_name, sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae_title, origin,"
    " priority, size_bytes, received_at, state, lease_until, attempt, unfinished, unfinished_alone)"
    f" {_NUMBERS} SELECT 'old-image-' || n, '1.2.840.10008.5.1.4.1.1.1.1', '1.2.826.0.1.1000000.' || n,"
    " '1.2.840.10008.1.2.1', 'XRAY1', 'dimse', 1, 15000000, n, 'received', 0, 0, 0, 0 FROM numbers",
    "INSERT INTO results (instance_id, kind, spool_name, sop_class_uid, sop_instance_uid, transfer_syntax_uid,"
    " size_bytes) SELECT id, 'SC', 'old-result-' || id, '1.2.840.10008.5.1.4.1.1.7', '2.25.1000000' || id,"
    " '1.2.840.10008.1.2.4.50', 200000 FROM instances",
    "INSERT INTO deliveries (result_id, destination, priority, state, due_at, lease_until, attempt, failures)"
    " SELECT id, 'pacs', 1, 'owed', 0, 0, 0, 0 FROM results",
)
# Through "received" and "owed", as rows come, so that the indexes of what waits have seen them all.
_FINISH = (
    "UPDATE instances SET state = 'analysed', content_digest = spool_name, completed_at = received_at, attempt = 1,"
    " unfinished = 1, result_time = received_at",
    "UPDATE deliveries SET state = 'stored', status = 0, stored_at = 1, attempt = 1",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="finished images in the full ledger"
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the databases lie while it runs (default: the temporary one)",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(f"{os.cpu_count()} cores, SQLAlchemy {sa.__version__}")
        measure("SQLite", lambda name: f"sqlite:///{folder}/{name}.db", folder, options)
        if binaries() is None:
            raise SystemExit("PostgreSQL's server is not installed (apt-get install postgresql)")
        with Postgres(folder / "postgres", unused_port()) as server:
            measure("PostgreSQL", server.create_database, folder, options)


def measure(
    engine: str, database: Callable[[str], str], folder: Path, options: argparse.Namespace
) -> None:
    """Print one engine's figures."""
    with (
        opened(database("few")) as few,
        opened(database("many")) as many,
        opened(database("queue")) as queue,
    ):
        started = time.perf_counter()
        fill(many.url, options.rows)
        fill(queue.url, options.rows, finished=False)
        print(
            f"\n{engine}: two ledgers of {options.rows} images filled in {time.perf_counter() - started:.0f} s"
        )
        ledgers = {"few": Rounds(few), "finished": Rounds(many), "waiting": Rounds(queue)}
        for turn in range(options.rounds + 10):
            for rounds in ledgers.values():
                rounds.once(keep=turn >= 10)  # the first turns warm up
        for what in ("claim and complete", "claim and store"):
            medians = {
                name: statistics.median(rounds.seconds[what]) * 1e3
                for name, rounds in ledgers.items()
            }
            print(
                f"  {what} {BATCH}: median {medians['few']:.2f} ms in a ledger of a few hundred rows"
            )
            for name in ("finished", "waiting"):
                ratio = medians[name] / medians["few"]
                print(f"    with {options.rows} {name}: {medians[name]:.2f} ms, ratio {ratio:.2f}")
        for writers in (1, 4, 8):
            print(
                f"  receive: {writers} writers {received_per_s(few, folder, writers):8.0f} rows/s committed"
            )
        for kind, taken in wakes(few, options.rounds).items():
            waits = sorted(taken)
            median, late = statistics.median(waits), waits[int(len(waits) * 0.99)]
            print(f"  wake, {kind}: median {median * 1e3:.1f} ms, p99 {late * 1e3:.1f} ms")
        if engine == "SQLite":
            for words, cost in asleep_costs(few, ASLEEP_S):
                print(f"  asleep, {words}: {cost:.2f} ms of CPU time a second")


@contextmanager
def opened(url: str) -> Iterator[Ledger]:
    ledger = Ledger(url)
    yield ledger
    ledger.close()


def fill(url: str, rows: int, finished: bool = True) -> None:
    """Images by SQL, a result and a delivery each; statistics as the databases keep them by
    themselves.
    """
    engine = sa.create_engine(url)
    with engine.begin() as conn:
        for statement in (*_FILL, *(_FINISH if finished else ())):
            conn.exec_driver_sql(statement.format(rows=rows))
    engine.dispose()


class Rounds:
    """One ledger's batches, timed."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.seconds: dict[str, list[float]] = {"claim and complete": [], "claim and store": []}
        self._number = 0

    def once(self, keep: bool) -> None:
        self.ledger.receive([self._arrival() for _ in range(BATCH)])
        started = time.perf_counter()
        jobs = self.ledger.claim_images("benchmark", BATCH)
        assert len(jobs) == BATCH
        for job in jobs:
            uid = f"{job.sop_instance_uid}.1"
            made = StoredResult(
                "SC", f"result-{uid}", "1.2.840.10008.5.1.4.1.1.7", uid, "1.2.840.10008.1.2.1", 9
            )
            self.ledger.complete(job, Completion("analysed", "digest", results=(made,)), OWED)
        analysed = time.perf_counter()
        parcels = self.ledger.claim_deliveries("pacs", "benchmark", BATCH)
        assert len(parcels) == BATCH
        for parcel in parcels:
            self.ledger.mark_stored(parcel, 0)
        if keep:
            self.seconds["claim and complete"].append(analysed - started)
            self.seconds["claim and store"].append(time.perf_counter() - analysed)

    def _arrival(self) -> Arrival:
        self._number += 1
        return arrival(f"new-{self._number}", f"1.2.3.{self._number}")


def arrival(spool_name: str, uid: str) -> Arrival:
    return Arrival(
        spool_name,
        "1.2.840.10008.5.1.4.1.1.1.1",
        uid,
        "1.2.840.10008.1.2.1",
        "XRAY1",
        "dimse",
        1,
        15_000_000,
    )


class _NoFiles(Spool):
    """Rows alone are measured here; benchmarks.receive measures what modalities see."""

    def sync(self, names: Iterable[str]) -> None:
        pass


def received_per_s(ledger: Ledger, folder: Path, writers: int) -> float:
    """Each writer waits for its row's commit before it hands over the next, as an association does."""
    intake = Intake(ledger, _NoFiles(folder / "spool"))
    counts = [0] * writers
    until = time.perf_counter() + WRITING_S

    def write(writer: int) -> None:
        while time.perf_counter() < until:
            intake.commit(arrival(f"{writers}-{writer}-{counts[writer]}", "1.2.3"))
            counts[writer] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / WRITING_S


def wakes(ledger: Ledger, count: int) -> dict[str, list[float]]:
    """Seconds from the start of a commit to a sleeper's waking, on separate connections.

    On SQLite in turn: a sleeper that is rung for, and a sleeper that looks every 10 ms.
    """
    with ExitStack() as opened_here:
        sleeper = opened_here.enter_context(opened(ledger.url))
        waits: dict[str, Wait] = {"rung": sleeper.wait}
        if ledger.url.startswith("sqlite"):
            waits["looked every 10 ms"] = opened_here.enter_context(_looking(ledger)).wait
        return _wakes(ledger, waits, count)


def _wakes(ledger: Ledger, waits: Mapping[str, Wait], count: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in waits}
    asleep = threading.Event()

    def sleep(wait: Wait) -> float:
        wait(0)
        asleep.set()
        wait(60)
        return time.perf_counter()

    # A thread each: every thread has a bell of its own.
    with ExitStack() as threads:
        pools = {name: threads.enter_context(ThreadPoolExecutor(1)) for name in waits}
        for number in range(count):
            for name, wait in waits.items():
                woken = pools[name].submit(sleep, wait)
                asleep.wait()
                asleep.clear()
                # At any point between two looks.
                time.sleep(0.05 + 0.01 * number / count)
                # By housekeeping of the database: allowed, and no measurement.
                if woken.done():
                    continue
                started = time.perf_counter()
                ledger.receive([arrival(f"wake-{name}-{number}", "1.2.3")])
                seconds[name].append(woken.result() - started)
    return seconds


@contextmanager
def _looking(ledger: Ledger) -> Iterator[bells.FileBell]:
    """A bell of a ledger under another name, at which nobody rings."""
    file = Path(str(sa.make_url(ledger.url).database))
    other = file.with_name(f"{file.name}-by-another-name")
    other.symlink_to(file)
    bell = bells.FileBell(str(other), look_s=0.01)
    yield bell
    bell.close()


def asleep_costs(ledger: Ledger, seconds: float) -> Iterator[tuple[str, float]]:
    """How a sleeper sleeps, and the CPU time that it costs: milliseconds a second."""
    file = str(sa.make_url(ledger.url).database)
    for words, look_s in (("rung", None), ("looks every 10 ms", 0.01), ("every 2 ms", 0.002)):
        bell = bells.FileBell(file) if look_s is None else bells.FileBell(file, look_s)
        bell.wait(0)
        began = time.process_time()
        bell.wait(seconds)
        yield words, (time.process_time() - began) / seconds * 1e3
        bell.close()


if __name__ == "__main__":
    main()
