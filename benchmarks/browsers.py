"""What open pages cost the analysis.

    python -m benchmarks.browsers [--browsers N] [--images N] [--rounds N] [--data DIR]

`pleura analyse` and `pleura web` work on one ledger. By turns the same real X-rays are analysed with
no page open, and with the page Now open in so many browsers: each asks for /live every five seconds,
as the page itself does. Prints images per second, the ratio of medians, and the processor time of
the web role. Absolute figures are of this machine and its noise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.pipeline import REPOSITORY, Role, cpu_s, renamed, xrays
from tools.peers.ports import unused_port
from tools.peers.waiting import wait_until

# As the template of the page Now says.
_EVERY_S = 5.0


@contextmanager
def page(role: Role, port: int) -> Iterator[int]:
    """`pleura web` beside the role. Gives its process ID."""
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon.cli", "web", "-c", str(role.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until("the page answers", lambda: _answers(port))
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/live").is_success
    except httpx.TransportError:
        return False


@contextmanager
def browsers(count: int, port: int) -> Iterator[None]:
    """So many pages that are open, and renew themselves evenly spread over their interval."""
    closed = threading.Event()

    def look(first_s: float) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_s = first_s
            while not closed.wait(wait_s):
                client.get("/live").raise_for_status()
                wait_s = _EVERY_S

    threads = [
        threading.Thread(target=look, args=(_EVERY_S * number / count,)) for number in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        closed.set()
        for thread in threads:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browsers", type=int, default=10)
    parser.add_argument("--images", type=int, default=40, help="analysed in each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("PLEURA_DATA", REPOSITORY.parent / "shared/data")),
    )
    options = parser.parse_args()

    port = unused_port()
    originals = xrays(options.data, options.images)
    rates: dict[int, list[float]] = {0: [], options.browsers: []}
    serial = 0

    with tempfile.TemporaryDirectory() as folder:
        role = Role(Path(folder), "default", "auto", web={"port": port})
        with role.running(), page(role, port) as web:
            before_s = cpu_s(web)

            # The first turn warms up.
            for turn in range(options.rounds + 1):
                for count, found in rates.items():
                    files = []
                    for original in originals:
                        serial += 1
                        files.append(renamed(original, serial))

                    with browsers(count, port):
                        took_s = role.seconds(files)
                    if turn:
                        found.append(len(files) / took_s)

            used_s = cpu_s(web) - before_s
        role.check()

    alone, beside = (statistics.median(found) for found in rates.values())
    print(
        f"{os.cpu_count()} cores, {options.rounds} rounds of {len(originals)} images\n"
        f"images/s  no page {alone:.2f}  {options.browsers} pages {beside:.2f}  "
        f"ratio {beside / alone:.2f}\n"
        f"by round: {' '.join(f'{b / a:.2f}' for a, b in zip(*rates.values(), strict=True))}\n"
        f"processor time of the web role in all: {used_s:.1f} s"
    )


if __name__ == "__main__":
    main()
