"""The server's time for each page, with a ledger of 100 images and with one of 100,000.

    python -m benchmarks.page [--rows N] [--rounds N] [--postgresql]

Both ledgers hold images of the last hundred days from four senders; one in eight is positive, and
each has a result and a stored delivery. Each page is requested from both in alternate turns, in
this process: the figure is the server's time, without a network. The answers that browsers share
for two seconds are computed anew each time. Wanted: below 100 ms, and a ratio of medians of at most
1.5. On a machine with other load, read the ratio of processor times; with PostgreSQL it covers only
this process. A search finds more rows in the larger ledger, and a page shows up to 50.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from benchmarks.measurement import command_line, machine, median_ms
from daemon.config import Config
from daemon.ledger import Ledger
from daemon.ledger.view import View
from daemon.spool import Spool
from daemon.web.app import build
from daemon.web.visit import Node
from tools.peers.ports import unused_port
from tools.peers.postgres import Postgres

_DAYS = 100
_WARM_UPS = 5
# The answers that browsers share for a while.
_KEPT = ("now", "metrics", "ready", "senders", "reasons")
# The application, and the node that it shows.
Page = tuple[Any, Node]

_PATHS = (
    "/",
    "/live",
    "/images",
    "/images?sender=XRAY3",
    "/images?state=positive",
    "/images?state=not_analysed&sender=XRAY2",
    "/images?state=positive&sender=XRAY2",
    "/images?state=analysed&sender=XRAY9",
    "/images?reason=view",
    "/images?reason=view&sender=XRAY3",
    "/images?reason=view&sender=XRAY2",
    "/images?uid=1.2.826.0.1.77",
    "/images?since=2026-01-01T00:00",
    "/images/77",
    "/model",
    "/metrics",
    "/readyz",
)
_NUMBERS = (
    "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})"
)
_FILL = (
    "INSERT INTO instances (spool_name, sop_class_uid, sop_instance_uid, transfer_syntax_uid,"
    " study_instance_uid, calling_ae_title, calling_address, origin, priority, size_bytes,"
    " received_at, state, reason, probability, positive, model, completed_at, device,"
    " content_digest, lease_until, attempt, unfinished, unfinished_alone)"
    f" {_NUMBERS} SELECT 'image-' || n, '1.2.840.10008.5.1.4.1.1.1', '1.2.826.0.1.' || n,"
    " '1.2.840.10008.1.2.1', '1.2.826.0.2.' || (n / 2), 'XRAY' || (1 + n % 4),"
    " '10.0.4.' || (11 + n % 4), 'dimse', 1, 8000000,"
    " {now} - (({rows} - n) * {over} / {rows}) + ((n * 7919) % 97) / 100.0,"
    " CASE WHEN n % 5 = 0 THEN 'not_analysed' ELSE 'analysed' END,"
    " CASE WHEN n % 5 = 0 THEN (CASE WHEN n % 2 = 0 THEN 'view' ELSE 'body_part' END) END,"
    " CASE WHEN n % 5 = 0 THEN NULL WHEN n % 8 = 1 THEN 0.4 + ((n * 31) % 57) / 100.0"
    " ELSE ((n * 31) % 100) / 1000.0 END,"
    " CASE WHEN n % 5 = 0 THEN NULL ELSE n % 8 = 1 END, 'pleura-default 1.0.0',"
    " {now} - (({rows} - n) * {over} / {rows}) + 1.9, 'cpu', 'digest-' || n, 0, 1, 1, 0"
    " FROM numbers",
    "INSERT INTO results (instance_id, kind, spool_name, sop_class_uid, sop_instance_uid,"
    " transfer_syntax_uid, size_bytes) SELECT id, 'SC', 'result-' || id,"
    " '1.2.840.10008.5.1.4.1.1.7', '2.25.' || id, '1.2.840.10008.1.2.4.50', 200000"
    " FROM instances WHERE state = 'analysed'",
    "INSERT INTO deliveries (result_id, destination, priority, state, status, due_at, lease_until,"
    " attempt, failures, stored_at) SELECT results.id, 'pacs', 1, 'stored', 0, 0, 0, 1, 0,"
    " completed_at + 0.6 + (results.id % 9) / 4.0 FROM results"
    " JOIN instances ON instances.id = results.instance_id",
)


def main() -> None:
    """Print each page's times with both ledgers, and their ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--postgresql", action="store_true", help="use PostgreSQL for the ledgers")
    options = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as name,
        _ledgers(Path(name), options.postgresql) as url,
        _page(Path(name) / "few", url("few"), 100) as few,
        _page(Path(name) / "many", url("many"), options.rows) as many,
    ):
        print(f"{machine()}; medians of {options.rounds} rounds, ms")
        for path in _PATHS:
            elapsed, processor = asyncio.run(_measured((few, many), path, options.rounds))
            few_ms, many_ms = map(median_ms, elapsed)
            few_cpu_ms, many_cpu_ms = map(median_ms, processor)
            print(
                f"{path:42} 100 images {few_ms:6.1f}   {options.rows} images {many_ms:6.1f}"
                f"   ratio {many_ms / few_ms:.2f}"
                f"   of processor time {many_cpu_ms / few_cpu_ms:.2f}"
            )


@contextmanager
def _ledgers(folder: Path, is_postgresql: bool) -> Iterator[Callable[[str], str]]:
    """Name -> the URL of an empty ledger."""
    if not is_postgresql:
        yield lambda name: f"sqlite:///{folder}/{name}.db"
        return

    with Postgres(folder / "postgres", unused_port()) as server:
        yield server.create_database


async def _measured(
    pages: tuple[Page, Page], path: str, rounds: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Elapsed seconds and processor seconds, each for both pages."""
    elapsed: list[list[float]] = [[], []]
    processor: list[list[float]] = [[], []]
    clients = [_client(app) for app, _ in pages]

    for turn in range(rounds + _WARM_UPS):
        for place, (_, node) in enumerate(pages):
            for kept in _KEPT:
                node.forget(kept)

            began = time.perf_counter()
            processor_began = time.process_time()
            response = await clients[place].get(path)
            elapsed_s = time.perf_counter() - began
            processor_time_s = time.process_time() - processor_began

            assert response.status_code in (200, 503), (path, response.status_code)
            if turn >= _WARM_UPS:
                elapsed[place].append(elapsed_s)
                processor[place].append(processor_time_s)

    for client in clients:
        await client.aclose()
    return elapsed, processor


def _client(app: Any) -> httpx.AsyncClient:
    """An HTTP client for the page in this process."""
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


@contextmanager
def _page(folder: Path, url: str, rows: int) -> Iterator[Page]:
    """The page over a ledger of `rows` images, until the block ends."""
    folder.mkdir()
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "pacs.example", "port": 104}
    config = Config.model_validate(
        {"ledger": url, "spool": str(folder / "spool"), "web": True, "destinations": [pacs]}
    )
    assert config.web is not None

    ledger = Ledger(url)
    spool = Spool(folder / "spool")
    spool.claim(ledger.spool_identity)
    fill(url, rows)

    view = View.open(url)
    node = Node.of(config, config.web, ledger, view)
    yield (build(node, spool), node)
    view.close()
    ledger.close()


def fill(url: str, rows: int, over_s: float = _DAYS * 86_400.0, seed: int = 0) -> None:
    """Insert finished images into an empty ledger, spread over the last `over_s` seconds.

    `seed` shifts them into the past by this many seconds.
    """
    engine = sa.create_engine(url)

    with engine.begin() as conn:
        for statement in _FILL:
            text = statement.format(rows=rows, now=time.time() - 3 - seed, over=over_s)
            if url.startswith("postgres"):
                # psycopg takes a single % for a placeholder.
                text = text.replace("%", "%%")
            conn.exec_driver_sql(text)
        conn.exec_driver_sql("ANALYZE")

    engine.dispose()


if __name__ == "__main__":
    main()
