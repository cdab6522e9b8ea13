"""The images per second that one host sustains, from C-STORE to stored results.

Use the figure to plan machines. A node on loopback with the default model on the CPU and a folder
destination receives real X-rays over four associations, so fast that its queue never runs empty. It
alternates between the SQLite ledger and a separate PostgreSQL. Sender, node and database share this
machine's cores, so a dedicated host is faster.

    python -m benchmarks.throughput [--images N] [--rounds N] [--data DIR]
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurement import add_data_option, command_line, machine, xray_files
from daemon.commands.send import send
from daemon.ledger import Ledger
from tools.peers.harness import Node
from tools.peers.ports import unused_port
from tools.peers.postgres import Postgres
from tools.peers.waiting import wait_until

ASSOCIATIONS = 4


def main() -> None:
    """Print the images per second with each database."""
    parser = command_line(__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    add_data_option(parser)
    options = parser.parse_args()
    files = xray_files(options.data)[: options.images]

    with (
        tempfile.TemporaryDirectory() as name,
        Postgres(Path(name) / "postgres", unused_port()) as postgres,
    ):
        rates = _rates(files, Path(name), postgres, options.rounds)

    print(f"{len(files)} images, {machine()}, {options.rounds} rounds")
    for engine, figures in rates.items():
        median = statistics.median(figures)
        span = f"({min(figures):.2f} to {max(figures):.2f})"
        print(f"{engine:10}  median {median:5.2f} images/s  {span}")


def _rates(
    files: list[Path], folder: Path, postgres: Postgres, rounds: int
) -> Mapping[str, Sequence[float]]:
    """Ledger's database -> images per second of each round."""
    rates: dict[str, list[float]] = {"sqlite": [], "postgresql": []}

    for number, engine in itertools.product(range(rounds), rates):
        ledger = postgres.create_database(f"round_{number}") if engine == "postgresql" else None
        took_s = seconds(files, folder / f"{engine}-{number}", ledger)
        rates[engine].append(len(files) / took_s)

    return rates


def seconds(files: list[Path], folder: Path, ledger: str | None) -> float:
    """The seconds from the first C-STORE to the last result.

    `ledger`: the ledger's URL; None: the node's own SQLite.
    """
    outbox = {"name": "outbox", "folder": str(folder / "outbox"), "results": ["SEG", "SC"]}
    settings: dict[str, Any] = {"destinations": [outbox]}
    if ledger is not None:
        settings["ledger"] = ledger

    with Node(folder, unused_port(), **settings) as node:
        started = time.perf_counter()
        _send_all(files, node.port)

        watched = Ledger(str(node.settings["ledger"]))
        wait_until("all is done", lambda: done(watched.inspect.counts(), len(files)), 0.2)
        took_s = time.perf_counter() - started

        watched.close()
        return took_s


def _send_all(files: list[Path], port: int) -> None:
    """Send the files over all associations at a time."""
    senders = [
        threading.Thread(target=feed, args=(files[number::ASSOCIATIONS], port))
        for number in range(ASSOCIATIONS)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


def done(counts: dict[str, dict[str, int]], images: int) -> bool:
    """True if all images have ended and no result is owed."""
    ended = sum(counts["instances"].values()) - counts["instances"]["received"]
    return ended == images and not counts["deliveries"]["owed"]


def feed(files: list[Path], port: int) -> None:
    """Send the files over one association."""
    for answer in send(files, ("127.0.0.1", port), "PLEURA", "BENCHMARK"):
        assert answer.ok, answer


if __name__ == "__main__":
    main()
