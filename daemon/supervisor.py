"""`pleura serve`: the three roles as processes that are kept running, and end with this one."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import OperationalError

from daemon import service
from daemon.config import Config

log = logging.getLogger("pleura.service")

_EXIT_CANNOT_START = 2
_RESTART_S = (0.5, 30.0)  # the first and the longest pause before a dead role is started again
_SETTLED_S = 60.0  # a role that ran this long starts from the first pause again
_DRAIN_S = 60.0  # what a role in the middle of its work gets to end it after SIGTERM


@dataclass(eq=False)
class _Child:
    """One role's process under supervision."""

    role: str
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    pause_s: float = _RESTART_S[0]
    start_again_at: float = 0.0
    ready: bool = False


def serve(config: Config, path: Path) -> int:
    """Run the three roles as processes; a role that dies is restarted with back-off while the others go on.

    Says READY once all three are. Returns 0 after SIGTERM or SIGINT, 2 where a role cannot start.
    """
    return _Supervisor(config, path).run()


class _Supervisor:
    def __init__(self, config: Config, path: Path) -> None:
        with contextlib.suppress(
            OperationalError
        ):  # a database server that is away: the roles wait for it
            service.open_stores(config)[
                0
            ].close()  # a wrong ledger or spool is one clear error, not three
        self._command = [sys.executable, "-m", "daemon.cli"]
        self._path = path
        self._children = [_Child(role) for role in service.ROLES]
        self._stopping = False
        self._reloading = False
        self._said_ready = False
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reload)
        with _child_signals(self._selector):
            while not self._stopping:
                for child in self._children:
                    self._keep(child)
                    if child.process is None and child.start_again_at == float("inf"):
                        self._end()
                        return _EXIT_CANNOT_START
                self._pass_on_reload()
                self._listen(0.2)
            service.notify("STOPPING=1")
            self._end()
        return 0

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _reload(self, *_: object) -> None:
        self._reloading = True

    def _pass_on_reload(self) -> None:
        """SIGHUP is for the model, and that is analyse's; one that is still starting gets it when it is ready."""
        for child in self._children:
            if (
                self._reloading
                and child.role == "analyse"
                and child.process is not None
                and child.ready
            ):
                self._reloading = False
                child.process.send_signal(signal.SIGHUP)

    def _keep(self, child: _Child) -> None:
        """Start the child, or note its death and when it is to be started again."""
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_again_at:
                self._start(child)
            return
        status = child.process.poll()
        if status is None:
            return
        self._forget(child)
        if (
            status == _EXIT_CANNOT_START and not self._said_ready
        ):  # later, a file half edited must not end the others
            log.error("%s cannot start; see its message above", child.role)
            child.start_again_at = float("inf")
            return
        if now - child.started > _SETTLED_S:
            child.pause_s = _RESTART_S[0]
        log.error(
            "%s ended with status %d; starting it again in %.1f s",
            child.role,
            status,
            child.pause_s,
        )
        child.start_again_at = now + child.pause_s
        child.pause_s = min(2 * child.pause_s, _RESTART_S[1])

    def _start(self, child: _Child) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        environment[service.PARENT] = str(os.getpid())
        # From the main thread, which lives as long as this process: PR_SET_PDEATHSIG watches the thread.
        child.process = subprocess.Popen(
            [*self._command, child.role, "-c", str(self._path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        child.started = time.monotonic()
        child.ready = False
        assert child.process.stdout is not None
        self._selector.register(child.process.stdout, selectors.EVENT_READ, child)

    def _forget(self, child: _Child) -> None:
        assert child.process is not None
        assert child.process.stdout is not None
        self._selector.unregister(child.process.stdout)
        child.process.stdout.close()
        child.process = None
        child.ready = False

    def _listen(self, timeout_s: float) -> None:
        """Wait for a READY, for a child's end (its pipe closes) or for a signal, at most `timeout_s`."""
        for key, _ in self._selector.select(timeout_s):
            child = key.data
            if child is None:
                _drain(key.fileobj)  # type: ignore[arg-type]
                continue
            line = key.fileobj.readline()  # type: ignore[union-attr]
            if line.strip() == service.READY:
                child.ready = True
            elif not line:
                assert child.process is not None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout_s)
        if not self._said_ready and all(child.ready for child in self._children):
            self._said_ready = True
            print(service.READY, flush=True)  # noqa: T201 - the contract: READY on stdout
            service.notify("READY=1")

    def _end(self) -> None:
        """SIGTERM to all, time to finish what is in hand, then SIGKILL."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _DRAIN_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _child_signals(selector: selectors.BaseSelector) -> Iterator[None]:
    """Make signals end a select at once: they write to a socket that it watches."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        receiver.setblocking(False)
        sender.setblocking(False)
        selector.register(receiver, selectors.EVENT_READ, None)
        old = signal.set_wakeup_fd(sender.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)
            selector.unregister(receiver)


def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        sock.recv(4096)
