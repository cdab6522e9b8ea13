"""The ledger's costs: claims in small and large ledgers, receiving by many writers, waking.

    python -m benchmarks.ledger [--rows N] [--rounds N] [--folder DIR]

- claim: a batch of 8 images is claimed and completed, then 8 deliveries are claimed and stored.
  This alternates between three ledgers: one with a few hundred rows, one with N finished images
  (each with a result and a stored delivery), and one where N images and N deliveries wait. The
  ratios of medians show whether the cost grows over the years. Wanted: at most 1.2.
- receive: the rows per second that 1, 4 and 8 writers commit through the receive role's group
  commit.
- wake: the time from the call that commits work to the return of an idle process's wait(). On
  SQLite also for a process that looks at the ledger every 10 ms, in alternate turns, and the CPU
  time of waiting.

Both databases run with full durability. PostgreSQL is a separate server on loopback with its
default settings. Absolute figures hold only for this machine, its disk and its other load.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sqlalchemy as sa

from benchmarks.measurement import add_folder_option, command_line, machine, median_ms
from daemon.ledger import Arrival, Completion, Ledger, StoredResult, bells
from daemon.receive.intake import Intake
from daemon.spool import Spool
from tools.peers.ports import unused_port
from tools.peers.postgres import Postgres, binaries

BATCH = 8
OWED = {"pacs": ["SC"]}
WRITING_S = 3.0
ASLEEP_S = 3.0
_WARM_UPS = 10

# The wait() of a ledger or of a bell, with the most seconds to wait.
Wait = Callable[[float], None]

_NUMBERS = (
    "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})"
)
_FILL = (
    "INSERT INTO instances (spool_name, sop_class_uid, sop_instance_uid, transfer_syntax_uid,"
    " calling_ae_title, origin, priority, size_bytes, received_at, state, lease_until, attempt,"
    " unfinished, unfinished_alone)"
    f" {_NUMBERS} SELECT 'old-image-' || n, '1.2.840.10008.5.1.4.1.1.1.1',"
    " '1.2.826.0.1.1000000.' || n, '1.2.840.10008.1.2.1', 'XRAY1', 'dimse', 1, 15000000, n,"
    " 'received', 0, 0, 0, 0 FROM numbers",
    "INSERT INTO results (instance_id, kind, spool_name, sop_class_uid, sop_instance_uid,"
    " transfer_syntax_uid, size_bytes) SELECT id, 'SC', 'old-result-' || id,"
    " '1.2.840.10008.5.1.4.1.1.7', '2.25.1000000' || id, '1.2.840.10008.1.2.4.50', 200000"
    " FROM instances",
    "INSERT INTO deliveries (result_id, destination, priority, state, due_at, lease_until, attempt,"
    " failures) SELECT id, 'pacs', 1, 'owed', 0, 0, 0, 0 FROM results",
)
# Rows pass through "received" and "owed" as in a node, so that the indexes of waiting rows have
# held all of them.
_FINISH = (
    "UPDATE instances SET state = 'analysed', content_digest = spool_name,"
    " completed_at = received_at, attempt = 1, unfinished = 1, result_time = received_at",
    "UPDATE deliveries SET state = 'stored', status = 0, stored_at = 1, attempt = 1",
)


def main() -> None:
    """Print the figures of SQLite, then of PostgreSQL."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="finished images in the full ledger"
    )
    parser.add_argument("--rounds", type=int, default=200)
    add_folder_option(parser)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(machine(f"SQLAlchemy {sa.__version__}"))
        measure("SQLite", lambda name: f"sqlite:///{folder}/{name}.db", folder, options)

        if binaries() is None:
            raise SystemExit("PostgreSQL's server is not installed (apt-get install postgresql)")
        with Postgres(folder / "postgres", unused_port()) as server:
            measure("PostgreSQL", server.create_database, folder, options)


def measure(
    engine: str, database: Callable[[str], str], folder: Path, options: argparse.Namespace
) -> None:
    """Print the figures of one database. `database`: name -> the URL of an empty ledger."""
    with (
        opened(database("few")) as few,
        opened(database("many")) as many,
        opened(database("queue")) as queue,
    ):
        started = time.perf_counter()
        fill(many.url, options.rows)
        fill(queue.url, options.rows, finished=False)
        took_s = time.perf_counter() - started
        print(f"\n{engine}: two ledgers of {options.rows} images filled in {took_s:.0f} s")

        ledgers = {"few": Batches(few), "finished": Batches(many), "waiting": Batches(queue)}
        _measure_claims(ledgers, options.rows, options.rounds)
        _measure_receiving(few, folder)
        _measure_waking(few, options.rounds)
        if engine == "SQLite":
            _measure_sleep(few)


def _measure_claims(ledgers: Mapping[str, Batches], rows: int, rounds: int) -> None:
    for turn in range(rounds + _WARM_UPS):
        for batches in ledgers.values():
            batches.run(is_counted=turn >= _WARM_UPS)

    for step in ("claim and complete", "claim and store"):
        medians = {name: median_ms(batches.seconds[step]) for name, batches in ledgers.items()}
        few_ms = medians.pop("few")
        print(f"  {step} {BATCH}: median {few_ms:.2f} ms in a ledger of a few hundred rows")
        for name, full_ms in medians.items():
            print(f"    with {rows} {name}: {full_ms:.2f} ms, ratio {full_ms / few_ms:.2f}")


def _measure_receiving(ledger: Ledger, folder: Path) -> None:
    for writers in (1, 4, 8):
        rate = received_per_s(ledger, folder, writers)
        print(f"  receive: {writers} writers {rate:8.0f} rows/s committed")


def _measure_waking(ledger: Ledger, rounds: int) -> None:
    for kind, seconds in wakes(ledger, rounds).items():
        median_s = statistics.median(seconds)
        late_s = sorted(seconds)[int(len(seconds) * 0.99)]
        print(f"  wake, {kind}: median {median_s * 1e3:.1f} ms, p99 {late_s * 1e3:.1f} ms")


def _measure_sleep(ledger: Ledger) -> None:
    for words, cost in asleep_costs(ledger, ASLEEP_S):
        print(f"  asleep, {words}: {cost:.2f} ms of CPU time a second")


@contextmanager
def opened(url: str) -> Iterator[Ledger]:
    """Open the ledger of a URL until the block ends."""
    ledger = Ledger(url)
    yield ledger
    ledger.close()


def fill(url: str, rows: int, finished: bool = True) -> None:
    """Insert images by SQL, each with a result and a delivery.

    No ANALYZE is run: the databases keep their statistics as they do by themselves.
    """
    engine = sa.create_engine(url)
    with engine.begin() as conn:
        for statement in (*_FILL, *(_FINISH if finished else ())):
            conn.exec_driver_sql(statement.format(rows=rows))
    engine.dispose()


# ---- claims


class Batches:
    """Runs batches in one ledger, and keeps the seconds of each step."""

    def __init__(self, ledger: Ledger) -> None:
        self.seconds: dict[str, list[float]] = {"claim and complete": [], "claim and store": []}
        self._ledger = ledger
        self._number = 0

    def run(self, is_counted: bool) -> None:
        """Run one batch from its arrival to its last delivery."""
        self._ledger.receive([self._arrival() for _ in range(BATCH)])

        began = time.perf_counter()
        self._complete_images()
        completed = time.perf_counter()
        self._store_deliveries()
        stored = time.perf_counter()

        if is_counted:
            self.seconds["claim and complete"].append(completed - began)
            self.seconds["claim and store"].append(stored - completed)

    def _arrival(self) -> Arrival:
        self._number += 1
        return arrival(f"new-{self._number}", f"1.2.3.{self._number}")

    def _complete_images(self) -> None:
        jobs = self._ledger.claim_images("benchmark", BATCH)
        assert len(jobs) == BATCH

        for job in jobs:
            uid = f"{job.sop_instance_uid}.1"
            made = StoredResult(
                "SC", f"result-{uid}", "1.2.840.10008.5.1.4.1.1.7", uid, "1.2.840.10008.1.2.1", 9
            )
            self._ledger.complete(job, Completion("analysed", "digest", results=(made,)), OWED)

    def _store_deliveries(self) -> None:
        parcels = self._ledger.claim_deliveries("pacs", "benchmark", BATCH)
        assert len(parcels) == BATCH
        for parcel in parcels:
            self._ledger.mark_stored(parcel, 0)


def arrival(spool_name: str, uid: str) -> Arrival:
    """A digital X-ray of 15 MB, as the receive role reports it to the ledger."""
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


# ---- receiving


class _NoFiles(Spool):
    """A spool without files: only rows are measured here. benchmarks.receive measures the whole."""

    def sync(self, names: Iterable[str]) -> None:
        """Nothing was written."""

    def require_whole(self, sizes: Mapping[str, int]) -> None:
        """Nothing was written."""


def received_per_s(ledger: Ledger, folder: Path, writers: int) -> float:
    """The rows committed per second.

    Each writer waits for its row's commit before it submits the next, as an association does.
    """
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


# ---- waking and sleeping


def wakes(ledger: Ledger, count: int) -> dict[str, list[float]]:
    """Seconds from the start of a commit until a waiting thread wakes, on separate connections.

    On SQLite in alternate turns: a thread that a bell wakes, and one that looks every 10 ms.
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

    # One thread for each: every thread has its own bell.
    with ExitStack() as threads:
        pools = {name: threads.enter_context(ThreadPoolExecutor(1)) for name in waits}
        for number in range(count):
            for name, wait in waits.items():
                woken = pools[name].submit(sleep, wait)
                asleep.wait()
                asleep.clear()
                # Commit at a varying time between two looks.
                time.sleep(0.05 + 0.01 * number / count)
                # Housekeeping of the database may have woken it early; then skip this measurement.
                if woken.done():
                    continue

                started = time.perf_counter()
                ledger.receive([arrival(f"wake-{name}-{number}", "1.2.3")])
                seconds[name].append(woken.result() - started)

    return seconds


@contextmanager
def _looking(ledger: Ledger) -> Iterator[bells.FileBell]:
    """A bell for the ledger's file under another name, which no process rings."""
    file = Path(str(sa.make_url(ledger.url).database))
    alias = file.with_name(f"{file.name}-by-another-name")
    alias.symlink_to(file)

    bell = bells.FileBell(str(alias), look_s=0.01)
    yield bell
    bell.close()


def asleep_costs(ledger: Ledger, seconds: float) -> Iterator[tuple[str, float]]:
    """(kind of waiting, its CPU time in milliseconds per second)."""
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
