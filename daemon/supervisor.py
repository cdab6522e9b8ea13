"""`pleura serve`: starts the roles as processes, restarts them, and ends them with itself.

service.py is one role. This process imports only the standard library, because it runs for months
beside the roles.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon import log as lines
from daemon import output
from daemon.backoff import doubled_s
from daemon.exits import EXIT_CANNOT_START, EXIT_DONE
from daemon.readiness import PARENT, READY, notify

log = logging.getLogger("pleura.service")

# The first and the longest pause before a dead role is started again.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0

# After a role has run this long, its back-off starts again from the first pause.
_SETTLED_S = 60.0

# How long a role may finish its work after SIGTERM.
_DRAIN_S = 60.0

_PYTHON = (sys.executable, "-P", "-m")

# How often to look at the children while no signal and no READY arrives.
_LOOK_S = 0.2


@dataclass(eq=False)
class _Child:
    """One role's process under supervision."""

    role: str
    # False: the node can do without it.
    is_needed: bool = True
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    # Consecutive deaths, each soon after a start.
    deaths: int = 0
    start_again_at: float = 0.0
    ready: bool = False
    cannot_start: bool = False


def serve(path: Path) -> int:
    """Run the roles as processes; a dead role is restarted with back-off.

    Says READY once receive, analyse and deliver are ready. Returns 0 after SIGTERM or SIGINT, 2 if
    one of these cannot start. The web and shadow roles are restarted for ever: no image depends on
    them.
    """
    found = subprocess.run(
        [*_PYTHON, "daemon.preflight", str(path)], stdout=subprocess.PIPE, text=True, check=False
    )
    if found.returncode != EXIT_DONE:
        return found.returncode

    plan = json.loads(found.stdout)
    lines.use(plan["log_format"])
    return _Supervisor(path, plan["roles"]).run()


class _Supervisor:
    def __init__(self, path: Path, roles: Mapping[str, bool]) -> None:
        """`roles`: each role's name, and whether the node needs it to do its job."""
        self._command = [*_PYTHON, "daemon.cli"]
        self._path = path
        self._children = [_Child(role, is_needed) for role, is_needed in roles.items()]
        self._selector = selectors.DefaultSelector()

        self._stopping = False
        self._reloading = False
        self._said_ready = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reload)

        with _child_signals(self._selector):
            while not self._stopping:
                for child in self._children:
                    self._tend(child)
                if any(child.cannot_start for child in self._children):
                    self._end()
                    return EXIT_CANNOT_START

                self._pass_on_reload()
                self._listen(_LOOK_S)

            notify("STOPPING=1")
            self._end()
        return EXIT_DONE

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _reload(self, *_: object) -> None:
        self._reloading = True

    def _pass_on_reload(self) -> None:
        """Pass SIGHUP (new settings) on to one ready role, which asks the others."""
        if not self._reloading:
            return

        for child in self._children:
            if child.process is not None and child.ready:
                self._reloading = False
                child.process.send_signal(signal.SIGHUP)
                return

    def _tend(self, child: _Child) -> None:
        """Start the child when it is due, or note its death and when to start it again."""
        if child.process is None:
            if time.monotonic() >= child.start_again_at:
                self._start(child)
            return

        status = child.process.poll()
        if status is None:
            return
        self._forget(child)

        # After READY, half-edited settings must not stop the running roles.
        is_fatal = child.is_needed and not self._said_ready
        if status == EXIT_CANNOT_START and is_fatal:
            log.error("%s cannot start; its message above says why", child.role)
            child.cannot_start = True
        else:
            _schedule_restart(child, f"ended with status {status}")

    def _start(self, child: _Child) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        environment[PARENT] = str(os.getpid())

        # From the main thread: PR_SET_PDEATHSIG fires when the thread that forked ends, and the
        # main thread lives as long as this process.
        child.started = time.monotonic()
        child.ready = False
        try:
            child.process = subprocess.Popen(
                [*self._command, child.role, "-c", str(self._path)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            # For example, no memory for another process: the running roles must go on.
            _schedule_restart(child, f"cannot be started ({error.strerror})")
            return

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
        """Wait for a READY, a child's end (its pipe closes) or a signal, at most `timeout_s`."""
        for key, _ in self._selector.select(timeout_s):
            child = key.data
            if child is None:
                _drain(key.fileobj)  # type: ignore[arg-type]
                continue

            line = key.fileobj.readline()  # type: ignore[union-attr]
            if line.strip() == READY:
                child.ready = True
            elif not line:
                assert child.process is not None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout_s)

        needed = [child for child in self._children if child.is_needed]
        if not self._said_ready and all(child.ready for child in needed):
            self._said_ready = True
            output.say(READY)
            notify("READY=1")

    def _end(self) -> None:
        """Send SIGTERM to every role, let it finish its work, then send SIGKILL."""
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


def _schedule_restart(child: _Child, trouble: str) -> None:
    """Back off: each death soon after a start doubles the pause before the next start."""
    now = time.monotonic()
    if now - child.started > _SETTLED_S:
        child.deaths = 0

    pause_s = doubled_s(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, child.deaths)
    child.deaths += 1
    child.start_again_at = now + pause_s
    log.error("%s %s; starting it again in %.1f s", child.role, trouble, pause_s)


@contextmanager
def _child_signals(selector: selectors.BaseSelector) -> Iterator[None]:
    """Make a signal end a select at once: it writes to a socket that the selector watches."""
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
