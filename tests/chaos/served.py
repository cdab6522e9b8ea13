"""The real `pleura serve`, whose children are victims."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.chaos.invariant import Account
from tests.chaos.site import REST_S, Site, wait
from tests.chaos.victim import PLAN


class Served:
    """`python -m tests.chaos.victim serve`, restarted when it is dead."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._process: subprocess.Popen[bytes] | None = None
        # Its children when it was last seen alive
        self._last: list[int] = []
        self._violations: list[str] = []

    def __enter__(self) -> Served:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def kill(self, role: str) -> None:
        """Send SIGKILL to serve or to one child."""
        self.keep()
        assert self._process is not None
        if role == "serve":
            self._process.kill()
            self._process.wait()
            self.keep()
            return
        for pid in self._children():
            with contextlib.suppress(OSError):
                if role in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                    os.kill(pid, signal.SIGKILL)

    def keep(self) -> None:
        """Restart serve if it is dead; its children must have died with it."""
        assert self._process is not None
        if self._process.poll() is None:
            self._last = self._children() or self._last
            return
        wait("the roles die with serve", lambda: not any(map(_runs, self._last)), REST_S)
        self._start()

    def restart(self) -> None:
        """Stop serve with SIGTERM, upon which it must end with status 0, and start it again."""
        assert self._process is not None
        self.keep()
        self._process.terminate()
        if status := self._process.wait(90):
            self._violations.append(f"serve ended with status {status} after SIGTERM")
        self._start()

    def settle(self) -> Account:
        """Let the node come to rest, end it, and return the account."""
        self._site.hush()
        self._site.rest()
        assert self._process is not None
        self._process.terminate()
        status = self._process.wait(90)
        account = self._site.check()
        account.violations += self._violations + (
            [f"serve ended with status {status}"] if status else []
        )
        return self._site.chaos.settle(account)

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.victim", "serve", "-c", str(self._site.path)]
        environment = os.environ | {PLAN: str(self._site.plan.folder), "OMP_NUM_THREADS": "1"}
        with (self._site.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._last = []

    def _children(self) -> list[int]:
        assert self._process is not None
        with contextlib.suppress(OSError):
            path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            return [int(pid) for pid in path.read_text().split()]
        return []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
