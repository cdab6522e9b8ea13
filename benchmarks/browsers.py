"""How much open pages slow down the analysis.

    python -m benchmarks.browsers [--browsers N] [--images N] [--rounds N] [--data DIR]

`pleura analyse` and `pleura web` share one ledger. The same real X-rays are analysed in alternate
turns without an open page, and with the page Now open in N browsers. Each browser requests /live
every five seconds, as the page itself does. Prints images per second, the ratio of medians, and the
processor time of the web role. Absolute figures hold only for this machine and its other load.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.measurement import add_data_option, by_turns, command_line, machine, processor_s
from benchmarks.pipeline import Role, renamed, xrays
from tools.peers.ports import unused_port
from tools.peers.waiting import wait_until

# The interval in the template of the page Now.
_EVERY_S = 5.0


def main() -> None:
    """Print the rates without and with open pages, and the processor time of the web role."""
    parser = command_line(__doc__)
    parser.add_argument("--browsers", type=int, default=10)
    parser.add_argument("--images", type=int, default=40, help="analysed in each turn")
    parser.add_argument("--rounds", type=int, default=5)
    add_data_option(parser)
    options = parser.parse_args()

    port = unused_port()
    originals = xrays(options.data, options.images)

    with tempfile.TemporaryDirectory() as folder:
        role = Role(Path(folder), "default", "auto", web={"port": port})
        with role.running(), page(role, port) as web:
            before_s = processor_s(web)
            rates = _rates(role, originals, port, options.browsers, options.rounds)
            used_s = processor_s(web) - before_s
        role.check()

    print(machine(f"{options.rounds} rounds of {len(originals)} images"))
    _print(rates, options.browsers)
    print(f"processor time of the web role: {used_s:.1f} s")


def _rates(
    role: Role, originals: Sequence[bytes], port: int, count: int, rounds: int
) -> Mapping[str, Sequence[float]]:
    """Images per second in each round, `alone` and `beside` `count` browsers."""
    serials = itertools.count(1)

    def rate(open_pages: int) -> float:
        files = [renamed(original, next(serials)) for original in originals]
        with browsers(open_pages, port):
            return len(files) / role.seconds(files)

    return by_turns({"alone": lambda: rate(0), "beside": lambda: rate(count)}, rounds)


def _print(rates: Mapping[str, Sequence[float]], count: int) -> None:
    alone = statistics.median(rates["alone"])
    beside = statistics.median(rates["beside"])
    pairs = zip(rates["alone"], rates["beside"], strict=True)

    print(
        f"images/s  no page {alone:.2f}  {count} pages {beside:.2f}  ratio {beside / alone:.2f}\n"
        f"by round: {' '.join(f'{with_pages / without:.2f}' for without, with_pages in pairs)}"
    )


@contextmanager
def page(role: Role, port: int) -> Iterator[int]:
    """Run `pleura web` beside the role; yields its process ID."""
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
    """Open `count` pages, whose requests are spread evenly over the interval."""
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


if __name__ == "__main__":
    main()
