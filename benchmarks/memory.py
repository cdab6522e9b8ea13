"""The memory of a running node: each role when idle, at work, and idle again.

    python -m benchmarks.memory [--images N] [--engine E]

`pleura serve` with the default model and a folder as its destination receives phantoms of
2500 x 2048 one after another. Prints for serve and for each role, in MB: resident memory (Rss), and
resident memory in which shared memory is divided among its processes (Pss), 10 seconds after READY
and 10 seconds after the last image (/proc/PID/smaps_rollup); and the peak of resident memory
(VmHWM).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.measurement import command_line, load, machine
from benchmarks.pipeline import large, renamed
from tools.peers.harness import Node, storescu
from tools.peers.ports import unused_port

_ROLES = ("receive", "analyse", "deliver")
_REST_S = 10.0


def main() -> None:
    """Print the memory of each process before and after the images, and its peak."""
    parser = command_line(__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    pictures = large()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outbox = {"name": "outbox", "folder": str(folder / "outbox"), "results": ["SEG", "SC"]}
        node = Node(folder / "node", unused_port(), destinations=[outbox], engine=options.engine)

        with node:
            time.sleep(_REST_S)
            before = _of_all(node)

            for number in range(options.images):
                path = folder / "image.dcm"
                path.write_bytes(renamed(pictures[number % len(pictures)], number + 1))
                sent = storescu("storescu", node, [path])
                assert sent.returncode == 0, sent.stderr
                node.wait_done(number + 1)

            time.sleep(_REST_S)
            after = _of_all(node)

    print(f"{options.images} images, {machine()}, {load()}")
    for process, figures in after.items():
        rss, pss, _ = before[process]
        print(
            f"{process:8} ready: Rss {rss:6.1f} Pss {pss:6.1f}   "
            f"after: Rss {figures[0]:6.1f} Pss {figures[1]:6.1f}   most: {figures[2]:6.1f} MB"
        )


def _of_all(node: Node) -> dict[str, tuple[float, float, float]]:
    """(Rss, Pss, peak Rss) in MB of serve and of each role."""
    assert node.process is not None
    processes = {"serve": node.process.pid}
    for role in _ROLES:
        pid = node.role_pid(role)
        assert pid is not None, f"{role} does not run"
        processes[role] = pid
    return {name: _memory_mb(pid) for name, pid in processes.items()}


def _memory_mb(pid: int) -> tuple[float, float, float]:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    stated = dict(line.split(":", 1) for line in (*status, *rollup))
    rss, pss, most = (int(stated[key].split()[0]) / 1024 for key in ("Rss", "Pss", "VmHWM"))
    return rss, pss, most


if __name__ == "__main__":
    main()
