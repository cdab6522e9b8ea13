"""A role that dies on order: it patches one named point, then runs the real command, which is
unaware of it.

`python -m tests.chaos.victim serve|receive|analyse|deliver -c F`; PLEURA_CHAOS names the plan's
folder, which holds

    orders/ROLE    "NUMBER PASS" for the next process of that role: the index in points.POINTS, and
                   on which pass of the point to die
    deaths         a line for each death at a point, written by the victim: process id and point
    ready/PID      exists when that process is ready
    clock          by how many seconds the ledger's clock is off
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from daemon import cli, config, readiness
from daemon.backoff import Backoff
from daemon.deliver.deliverer import Deliverer
from daemon.deliver.limits import DeliverLimits
from daemon.dicom.requestor import Limits as AssociationLimits
from daemon.ledger import Ledger, LedgerLimits
from tests.chaos.points import POINTS, Point, resolve

PLAN = "PLEURA_CHAOS"
LEDGER_LIMITS = LedgerLimits(lease_s=2.0, remake_s=0.5, forgetful_s=0.5)
_PR_SET_PDEATHSIG = 1

# Shorter times, so that no test waits a minute for the work of a dead process.
QUICKER: dict[str, Any] = {
    "daemon.deliver.retention:_EVERY_S": 0.5,
}
DELIVER_LIMITS = DeliverLimits(
    association=AssociationLimits(acse_s=5.0, answer_s=10.0),
    backoff=Backoff(0.05, 0.5),
    ledger_pause_s=0.3,
    first_report_s=2.0,
    same_association_s=0.1,
)
# The originals: a victim may patch those of os.
_kill = os.kill
_write = os.write
_open = os.open
_readlink = os.readlink


class Plan:
    """The folder that the test and its victims share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._orders = folder / "orders"
        self._orders.mkdir(parents=True, exist_ok=True)
        self._ready = folder / "ready"
        self._ready.mkdir(exist_ok=True)
        self.deaths = folder / "deaths"
        self._clock = folder / "clock"

    def order(self, role: str, number: int, on_pass: int) -> None:
        """Order the next process of `role` to die at this point. Replaces an order not yet taken."""
        part = self._orders / f".{role}"
        part.write_text(f"{number} {on_pass}")
        part.rename(self._orders / role)

    def cancel(self) -> None:
        """Remove all orders: processes that start from now on live."""
        for path in self._orders.iterdir():
            path.unlink(missing_ok=True)

    def take(self, role: str) -> tuple[int, int] | None:
        """The order for a process of `role` that starts now, or None. Removes the order."""
        path = self._orders / role
        try:
            number, on_pass = map(int, path.read_text().split())
            path.unlink()
        except FileNotFoundError:
            return None
        return number, on_pass

    def say_ready(self) -> None:
        """Note that this process is ready."""
        (self._ready / str(os.getpid())).touch()

    def is_ready(self, pid: int | None) -> bool:
        return (self._ready / str(pid)).exists()

    def set_clock(self, offset_s: float) -> None:
        part = self._clock.with_suffix(".part")
        part.write_text(str(offset_s))
        part.rename(self._clock)

    def now(self) -> float:
        """The ledger's clock of all roles, in seconds since the epoch."""
        with contextlib.suppress(FileNotFoundError):
            return time.time() + float(self._clock.read_text())
        return time.time()

    def died(self) -> dict[int, str]:
        """Process id -> the point at which the process died."""
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads(line) for line in self.deaths.read_text().splitlines())
        return {}


def main() -> int:
    """Run the command of sys.argv as a victim."""
    role = sys.argv[1]
    plan = Plan(Path(os.environ[PLAN]))
    return live(sys.argv[1:], plan, plan.take(role))


def live(arguments: list[str], plan: Plan, order: tuple[int, int] | None) -> int:
    """Patch the ordered point, then run daemon.cli with `arguments` in this process."""
    settings = config.load(Path(arguments[arguments.index("-c") + 1]))
    _quicken(plan)
    if arguments[0] == "serve":
        _make_children_victims()
    if order is not None:
        folders = {"spool": settings.spool}
        for destination in settings.destinations:
            if hasattr(destination, "folder"):
                folders["outbox"] = destination.folder
        arm(POINTS[order[0]], order[1], plan, folders)
    return cli.main(arguments)


def arm(point: Point, on_pass: int, plan: Plan, folders: dict[str, Path]) -> None:
    """Wrap the point's calls so that this process dies on the `on_pass`th pass."""
    passes = 0
    lock = threading.Lock()
    inside = threading.local()
    real = {name: str(folder.resolve()) for name, folder in folders.items()}

    def due(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
        nonlocal passes
        if point.during and not getattr(inside, "transition", 0):
            return False
        if point.where and _kind_of_path(arguments, keywords, real) != point.where:
            return False
        with lock:
            passes += 1
            return passes == on_pass

    def die() -> None:
        line = json.dumps([os.getpid(), str(point)]) + "\n"
        _write(_open(plan.deaths, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), line.encode())
        _kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(1)

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def before(*arguments: Any, **keywords: Any) -> Any:
            if due(arguments, keywords):
                die()
            return original(*arguments, **keywords)

        def after(*arguments: Any, **keywords: Any) -> Any:
            # Asked before the call, because a rename's source is gone after it.
            is_due = due(arguments, keywords)
            answer = original(*arguments, **keywords)
            if is_due:
                die()
            return answer

        def half(*arguments: Any, **keywords: Any) -> Any:
            if due(arguments, keywords):
                # The second argument of os.write and socket.send is the bytes.
                original(arguments[0], _half(arguments[1]), *arguments[2:], **keywords)
                die()
            return original(*arguments, **keywords)

        return {"before": before, "after": after, "half": half}[point.moment]

    def note(original: Callable[..., Any]) -> Callable[..., Any]:
        def transition(*arguments: Any, **keywords: Any) -> Any:
            inside.transition = getattr(inside, "transition", 0) + 1
            try:
                return original(*arguments, **keywords)
            finally:
                inside.transition -= 1

        return transition

    for target in point.targets:
        _patch(target, wrap)
    if point.during:
        _patch(f"daemon.ledger.ledger:Ledger.{point.during}", note)


def _patch(target: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    holder, name = resolve(target)
    _replace(target, wrap(getattr(holder, name)))


def _kind_of_path(
    arguments: tuple[Any, ...], keywords: dict[str, Any], folders: dict[str, str]
) -> str:
    """The kind of the path or descriptor in a call of os: "spool file", "outbox folder", "spool new
    file" and so on; "" for any other.
    """
    first = arguments[0]
    path = _readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fsdecode(first)

    name = next(
        (
            name
            for name, folder in folders.items()
            if path == folder or path.startswith(folder + "/")
        ),
        None,
    )

    if name is None:
        return ""
    # Only os.open has a path and flags.
    if len(arguments) > 1 and isinstance(first, (str, Path)) and isinstance(arguments[1], int):
        return f"{name} new file" if arguments[1] & os.O_CREAT else ""
    return f"{name} folder" if Path(path).is_dir() else f"{name} file"


def _half(data: Any) -> Any:
    # os.writev takes a list.
    if isinstance(data, list):
        return [memoryview(data[0]).cast("B")[: len(data[0]) // 2]]
    return memoryview(data).cast("B")[: len(data) // 2]


def _quicken(plan: Plan) -> None:
    """Set short leases and pauses, and a ledger clock that the test controls."""
    for target, value in QUICKER.items():
        _replace(target, value)
    _replace("daemon.service:Ledger", partial(Ledger, clock=plan.now, limits=LEDGER_LIMITS))
    from daemon.analyse.worker import Worker, WorkerLimits

    quick_worker = partial(Worker, limits=WorkerLimits(pause_s=0.3))
    _replace("daemon.analyse.worker:Worker", quick_worker)
    _replace("daemon.deliver.deliverer:Deliverer", partial(Deliverer, limits=DELIVER_LIMITS))

    def told(message: str) -> None:
        if message == "READY=1":
            plan.say_ready()
        readiness.notify(message)

    _replace("daemon.service:notify", told)


def _replace(target: str, value: Any) -> None:
    holder, name = resolve(target)
    setattr(holder, name, value)


def _make_children_victims() -> None:
    """Make `serve`, which starts `python -m daemon.cli ROLE`, start this module instead."""
    original = subprocess.Popen.__init__

    def start(self: Any, command: Any, *arguments: Any, **keywords: Any) -> None:
        command = ["tests.chaos.victim" if part == "daemon.cli" else part for part in command]
        original(self, command, *arguments, **keywords)

    _replace("subprocess:Popen.__init__", start)


def forked(
    role: str, config: Path, plan_folder: Path, log: Path, order: tuple[int, int] | None
) -> None:
    """Run one role in a forked process. It starts in a tenth of a second, because the parent has
    imported torch and pydicom.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w")

    import torch

    torch.set_num_threads(1)
    # This check takes a third of a second, and no round is about it.
    _replace("daemon.installed:conflicting_distribution", lambda: "")

    status = live([role, "-c", str(config)], Plan(plan_folder), order)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
