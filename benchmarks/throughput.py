"""Images per second that one host sustains, from C-STORE to stored results: what to plan machines
by.

A node on loopback with the default model on the CPU and a folder destination, fed over four
associations with real X-rays until its queue never runs empty; once with the SQLite ledger, once
with its own PostgreSQL, alternating. Sender, node and database share this machine's cores, so
a dedicated host does better.

    python -m benchmarks.throughput [--images N] [--rounds N] [--data DIR]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

from daemon.commands.send import send
from daemon.ledger import Ledger
from tools.peers.harness import Node
from tools.peers.ports import unused_port
from tools.peers.postgres import Postgres
from tools.peers.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
ASSOCIATIONS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("PLEURA_DATA", REPOSITORY.parent / "shared/data")),
    )
    options = parser.parse_args()
    files = sorted((options.data / "siim" / "dicom").glob("*.dcm"))[: options.images]
    rates: dict[str, list[float]] = {"sqlite": [], "postgresql": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        Postgres(Path(folder) / "postgres", unused_port()) as postgres,
    ):
        for number, engine in itertools.product(range(options.rounds), rates):
            ledger = postgres.create_database(f"round_{number}") if engine == "postgresql" else None
            rates[engine].append(
                len(files) / seconds(files, Path(folder) / f"{engine}-{number}", ledger)
            )
    print(f"{len(files)} images, {os.cpu_count()} cores, {options.rounds} rounds")
    for engine, found in rates.items():
        print(
            f"{engine:10}  median {statistics.median(found):5.2f} images/s  ({min(found):.2f} to {max(found):.2f})"
        )


def seconds(files: list[Path], folder: Path, ledger: str | None) -> float:
    """From the first C-STORE to the last result."""
    settings = {
        "destinations": [
            {"name": "outbox", "folder": str(folder / "outbox"), "results": ["SEG", "SC"]}
        ]
    }
    with Node(folder, unused_port(), **settings | ({"ledger": ledger} if ledger else {})) as node:
        started = time.perf_counter()
        senders = [
            threading.Thread(target=feed, args=(files[n::ASSOCIATIONS], node.port))
            for n in range(ASSOCIATIONS)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        watched = Ledger(str(node.settings["ledger"]))
        wait_until("all is done", lambda: done(watched.inspect.counts(), len(files)), 0.2)
        took = time.perf_counter() - started
        watched.close()
        return took


def done(counts: dict[str, dict[str, int]], images: int) -> bool:
    """All have ended, and nothing is owed."""
    ended = sum(counts["instances"].values()) - counts["instances"]["received"]
    return ended == images and not counts["deliveries"]["owed"]


def feed(files: list[Path], port: int) -> None:
    for answer in send(files, ("127.0.0.1", port), "PLEURA", "BENCHMARK"):
        assert answer.ok, answer


if __name__ == "__main__":
    main()
