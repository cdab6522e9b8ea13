"""The roles of one node, each in a separate process that is restarted as soon as it dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.chaos.points import POINTS, missing
from tests.chaos.victim import Plan, forked

ROLES = ("receive", "analyse", "analyse", "deliver")
AT_RANDOM = "at a random time"
# The share of kills that come at a random time.
_AT_RANDOM_SHARE = 0.2
# The share of these that come before READY.
_STARTING_SHARE = 0.2
# A process that has not reached its point by then is killed anyway.
_HURRY_S = 4.0
# A role that has been ready for this long counts as working.
_SETTLED_S = 0.5


def forkserver() -> ForkServerContext:
    """A context that forks victims from a process that has already imported what they need."""
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.preload"])
    return context


@dataclass
class Kills:
    """How many kills are wanted, and how many have happened by role and point."""

    wanted: int = 0
    counted: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        return self.counted.total()


class Orders:
    """Chooses the point at which a role dies next: each of its points once, in a random order, then
    again in a new order.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._bags: dict[str, list[int]] = {}
        self._usable = [number for number, point in enumerate(POINTS) if not missing(point)]

    def draw(self, role: str) -> tuple[int, int]:
        """A point's number, and on which pass of the point to die."""
        bag = self._bags.setdefault(role, [])
        if not bag:
            bag += [number for number in self._usable if POINTS[number].role == role]
            self._rng.shuffle(bag)
        number = bag.pop()
        return number, self._rng.randint(1, POINTS[number].passes)


@dataclass(eq=False)
class _Slot:
    role: str
    process: BaseProcess | None = None
    # Monotonic times: of READY, and when the process is to be killed.
    ready_at: float | None = None
    kill_at: float | None = None
    # True if the process is to be killed.
    doomed: bool = False
    # From READY until the kill. The process may reach its point earlier.
    kill_after_s: float = 0.0
    # True after SIGTERM.
    drains: bool = False


class Crew:
    """Restarts the roles, and kills them as often as wanted.

    `unexpected` lists the processes that ended otherwise than by SIGKILL. `tolerated`: exit
    statuses with which a role may end itself, to be restarted.
    """

    def __init__(
        self,
        context: ForkServerContext,
        config: Path,
        plan: Plan,
        kills: Kills,
        rng: random.Random,
        roles: Sequence[str] = ROLES,
        tolerated: Sequence[int] = (),
    ) -> None:
        self._context = context
        self._config = config
        self._plan = plan
        self._kills = kills
        self._rng = rng
        self._orders = Orders(rng)
        self._slots = [_Slot(role) for role in roles]
        self._tolerated = tolerated
        self.unexpected: list[str] = []
        # How many processes ended with a tolerated status
        self.gave_up = 0
        self._over = threading.Event()
        self._deadly = True
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def spare(self) -> None:
        """Stop killing: processes that start from now on live; processes that are to die are
        replaced.
        """
        self._deadly = False

    def stop(self, number: int = signal.SIGTERM) -> list[int | None]:
        """End all roles with a signal; returns their exit statuses."""
        self._over.set()
        self._thread.join()
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)
        for process in processes:
            process.join(90)
        return [process.exitcode for process in processes]

    @property
    def at_ease(self) -> bool:
        """True if all roles are ready and none of them is to be killed."""
        return all(slot.ready_at is not None and not slot.doomed for slot in self._slots)

    def drain(self) -> tuple[str, int, int | None] | None:
        """Send SIGTERM to one working role, as an update does. The role is restarted.

        Returns its name, process id and exit status; None if no role is working.
        """
        now = time.monotonic()
        settled = [
            slot
            for slot in self._slots
            if not slot.doomed and slot.ready_at and now - slot.ready_at > _SETTLED_S
        ]
        if not settled:
            return None
        slot = self._rng.choice(settled)
        slot.drains = True

        process = slot.process
        assert process is not None
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(90)
        return slot.role, process.pid, process.exitcode

    def _keep(self) -> None:
        while not self._over.is_set():
            now = time.monotonic()
            for slot in self._slots:
                self._look_after(slot, now)
            self._over.wait(0.02)

    def _look_after(self, slot: _Slot, now: float) -> None:
        if slot.process is not None and slot.process.is_alive():
            if slot.ready_at is None and self._plan.is_ready(slot.process.pid):
                slot.ready_at = now
                slot.kill_at = slot.kill_at or (now + slot.kill_after_s)
            if slot.doomed and (
                not self._deadly or (slot.kill_at is not None and now >= slot.kill_at)
            ):
                slot.process.kill()
                slot.process.join()
            else:
                return
        if slot.process is not None:
            self._count(slot)
        self._begin(slot, now)

    def _count(self, slot: _Slot) -> None:
        assert slot.process is not None
        status = slot.process.exitcode
        # drain() returns its status to the caller, who judges it.
        if slot.drains:
            return
        if status in self._tolerated:
            self.gave_up += 1
            return
        if status != -signal.SIGKILL:
            self.unexpected.append(f"{slot.role} ended with status {status}")
            self._over.wait(0.5)
            return

        point = self._plan.died().get(slot.process.pid or 0, f"{slot.role}: {AT_RANDOM}")
        self._kills.counted[point] += 1

    def _begin(self, slot: _Slot, now: float) -> None:
        order = None
        slot.ready_at = None
        slot.kill_at = None
        slot.drains = False
        slot.doomed = self._deadly and self._kills.done < self._kills.wanted
        if slot.doomed and self._rng.random() < _AT_RANDOM_SHARE:
            slot.kill_after_s = self._rng.expovariate(1.0)
            if self._rng.random() < _STARTING_SHARE:
                slot.kill_at = now + self._rng.uniform(0.0, 0.5)
        elif slot.doomed:
            order = self._orders.draw(slot.role)
            slot.kill_after_s = _HURRY_S

        log = self._config.parent / "log.txt"
        slot.process = self._context.Process(
            target=forked, args=(slot.role, self._config, self._plan.folder, log, order)
        )
        slot.process.start()
