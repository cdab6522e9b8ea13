"""The cost of a start: memory of receive, deliver and the supervisor, time of roles and commands.

    python -m benchmarks.start [--beside CHECKOUT] [--rounds N] [--only TEXT]

Memory is the resident set in MB: of a role that is READY, and of `serve` when it has started a
role. Time is the median CPU time of the process in milliseconds: of a role until it is READY, and
of a whole command. On a quiet machine elapsed time is little longer. `doctor` checks a node of
which only analyse runs.

`--beside`: another checkout of Pleura, measured with the same Python in alternate turns. `--only`:
only the measures whose name contains TEXT.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from benchmarks.measurement import REPOSITORY, command_line, processor_s
from tools.peers.ports import unused_port
from tools.peers.waiting import wait_until

_COMMANDS = (("config", "check"), ("status",), ("retry",), ("trace", "1.2.3"), ("verify",))
_MEASURES = ("receive", "deliver", "supervisor", "analyse", *map(" ".join, _COMMANDS), "doctor")


class Checkout:
    """One version of Pleura with its own settings, spool and ledger."""

    def __init__(self, code: Path, folder: Path) -> None:
        folder.mkdir()
        self._settings = folder / "pleura.yaml"
        self._settings.write_text(
            f"host: 127.0.0.1\nport: {unused_port()}\nspool: {folder / 'spool'}\n"
            f"ledger: sqlite:///{folder / 'ledger.db'}\n"
        )
        self._environment = os.environ | {"PYTHONPATH": str(code)}
        # An installation has byte code: prepare() makes it here.
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.figures: dict[str, list[float]] = {}

    def prepare(self) -> None:
        """Create its ledger and spool, and the byte code of its modules."""
        for role in ("receive", "analyse"):
            process = self._start(role)
            assert process.stdout is not None
            assert process.stdout.readline() == "READY\n"
            _end(process)
        for words in _COMMANDS:
            self._measure_command(*words)
        self.figures.clear()

    def measure(self, wanted: Collection[str]) -> None:
        """One round of these _MEASURES."""
        for role in ("receive", "deliver", "analyse"):
            if role in wanted:
                process = self._ready(role)
                self._note(f"{role}, MB", _resident_mb(process.pid))
                _end(process)

        if "supervisor" in wanted:
            self._measure_supervisor()
        for words in _COMMANDS:
            if " ".join(words) in wanted:
                self._measure_command(*words)
        if "doctor" in wanted:
            self._measure_doctor()

    def _ready(self, role: str) -> subprocess.Popen[str]:
        """Start a role, and wait until it is READY."""
        process = self._start(role)
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        self._note(f"{role} until READY, ms", processor_s(process.pid) * 1e3)
        return process

    def _measure_supervisor(self) -> None:
        process = self._start("serve")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        # When it starts the first role, all its modules are loaded. A slow machine may take long.
        wait_until("serve has started a role", lambda: children.read_text().split())
        self._note("supervisor, MB", _resident_mb(process.pid))
        _end(process)

    def _measure_doctor(self) -> None:
        process = self._ready("analyse")
        # Wait for the role's first heartbeat, which doctor looks for.
        time.sleep(1.0)
        self._measure_command("doctor")
        _end(process)

    def _measure_command(self, *words: str) -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(self._command(*words), env=self._environment, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)

        user_s = after.ru_utime - before.ru_utime
        system_s = after.ru_stime - before.ru_stime
        self._note(f"pleura {' '.join(words)}, ms", (user_s + system_s) * 1e3)

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "daemon.cli", *words, "-c", str(self._settings)]

    def _start(self, role: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(role),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)


def main() -> None:
    """Print the costs of starts, with `--beside` also those of another checkout."""
    parser = command_line(__doc__)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="TEXT")
    options = parser.parse_args()
    wanted = [measure for measure in _MEASURES if options.only in measure]

    with tempfile.TemporaryDirectory() as folder:
        ours = Checkout(REPOSITORY, Path(folder) / "ours")
        other = Checkout(options.beside, Path(folder) / "other") if options.beside else None
        checkouts = [ours] if other is None else [other, ours]

        # Leave the checkout, because `python -m` imports from the working directory.
        os.chdir(folder)
        for checkout in checkouts:
            checkout.prepare()
        for _ in range(options.rounds):
            for checkout in checkouts:
                checkout.measure(wanted)

    _print(ours, other)


def _print(ours: Checkout, other: Checkout | None) -> None:
    """Medians of each figure, and the ratio of the other checkout's to ours."""
    for name, values in ours.figures.items():
        median = statistics.median(values)
        line = f"{name:28} {median:7.1f}"

        if other is not None:
            beside = statistics.median(other.figures[name])
            line += f"  beside {beside:7.1f}, ratio {beside / median:.2f}"
        print(line)


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (resident,) = (line for line in lines if line.startswith("VmRSS"))
    return int(resident.split()[1]) / 1024


def _end(process: subprocess.Popen[str]) -> None:
    # SIGKILL, because a starting role handles SIGTERM only after a moment, and no data matter here.
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    time.sleep(0.2)


if __name__ == "__main__":
    main()
