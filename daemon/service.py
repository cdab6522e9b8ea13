"""Roles that run until SIGTERM, and `serve`, which runs all three as processes and keeps them running."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import OperationalError

from daemon.config import Config
from daemon.ledger import Ledger, LedgerError, this_machine
from daemon.spool import Spool, SpoolError

if TYPE_CHECKING:
    from daemon.inbox import Inbox

log = logging.getLogger("pleura.service")

ROLES = ("receive", "analyse", "deliver")
READY = "READY"
_EXIT_CANNOT_START = 2
_EXIT_AGAIN = 1  # who watches starts the role again: time may heal it
_RESTART_S = (0.5, 30.0)  # the first and the longest pause before a dead role is started again
_SETTLED_S = 60.0  # a role that ran this long starts from the first pause again
_NOTICE_S = 0.5  # how late a SIGTERM may be noticed
_DRAIN_S = 60.0  # what a role in the middle of its work gets to end it after SIGTERM
_PARENT = "PLEURA_PARENT"
_PR_SET_PDEATHSIG = 1  # prctl(2)
_M_ARENA_MAX = -8  # mallopt(3)


class CannotStartError(Exception):
    """A role cannot do its job with these settings; trying again changes nothing. The message says what to do."""


def run_role(role: str, config: Config) -> int:
    """Run one role until SIGTERM or SIGINT, then finish what is in hand. Says READY when it can do its job.

    Raises:
        CannotStartError: a wrong model, device, port or folder.
    """
    _die_with_parent()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # analyse has a use for it; a terminal that is gone ends no role
    ledger, spool = _open(config)
    try:
        spool.claim(ledger.spool_identity)
    except SpoolError as error:
        log.error("%s", error)
        return _EXIT_AGAIN
    _bury(ledger)
    try:
        _ROLES[role](config, ledger, spool, stop)
    except CannotStartError:
        raise
    except Exception:  # said by our own log: what Python prints of it may quote a header
        log.exception("the %s role ends", role)
        return _EXIT_AGAIN
    ledger.close()
    return 0


def _open(config: Config) -> tuple[Ledger, Spool]:
    try:
        return Ledger(config.ledger), Spool(config.spool)
    except LedgerError as error:
        raise CannotStartError(str(error)) from error
    except ModuleNotFoundError as error:
        raise CannotStartError(f"ledger: {error}; for PostgreSQL: pip install 'pleura[postgresql]'") from error
    except OSError as error:
        raise CannotStartError(f"spool or ledger: {error}; this user must be able to write there") from error


def _bury(ledger: Ledger) -> None:
    """End the leases of processes of this host that are no more; those of others run out by themselves."""
    for owner in ledger.owners():
        machine, _, pid = owner.rpartition(":")
        if machine == this_machine() and not Path(f"/proc/{pid}").exists():
            log.info("the leases of %s, which is no more, are over", owner)
            ledger.expire(owner)


def _receive(config: Config, ledger: Ledger, spool: Spool, stop: threading.Event) -> None:
    from daemon.scp import Receiver

    receiver = Receiver(config, ledger, spool)
    try:
        receiver.start()
    except OSError as error:
        what = "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error})"
        raise CannotStartError(f"host, port: {config.host}:{config.port} {what}") from error
    inbox = _inbox(config, ledger, spool)
    if inbox:
        inbox.start()
    gc.freeze()  # what is loaded stays: the collector need not go through it again for every few dozen associations
    _say_ready("receive", f"listening on {config.host}:{config.port} as {config.ae_title}")
    _wait(stop)
    if inbox:
        inbox.stop()
    receiver.stop()


def _inbox(config: Config, ledger: Ledger, spool: Spool) -> Inbox | None:
    from daemon.inbox import Inbox

    if config.inbox is None:
        return None
    try:
        return Inbox(config.inbox, ledger, spool, config.spool_reserve_mb * 1024 * 1024)
    except OSError as error:
        raise CannotStartError(f"inbox: {error}; this user must be able to read and write there") from error


def _analyse(config: Config, ledger: Ledger, spool: Spool, stop: threading.Event) -> None:
    # OpenMP's threads would spin while they wait for one another: beside threads that decode and encode, each forward
    # pass then takes seven times as long. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)  # glibc keeps free memory apart for each thread: pictures' worth of it
    began = time.monotonic()
    from daemon.worker import Worker, build_pipeline
    from inference.package import PackageError

    imported = time.monotonic()
    try:
        pipeline = build_pipeline(config, ledger)
        loaded = time.monotonic()
        pipeline.warm_up()
    except (PackageError, ValueError) as error:
        raise CannotStartError(f"model, device: {error}") from error
    worker = Worker(pipeline, ledger, spool, config)
    signal.signal(signal.SIGHUP, lambda *_: worker.succession.ask())
    times = (imported - began, loaded - imported, time.monotonic() - loaded)
    log.info("analyse: imports {:.1f} s, package and golden replay {:.1f} s, warm-up {:.1f} s".format(*times))
    _say_ready("analyse", f"model {pipeline.engine.identity.id} on {pipeline.engine.device}")
    del pipeline  # the worker's to let go of, when another takes its place
    worker.run(stop)


def _deliver(config: Config, ledger: Ledger, spool: Spool, stop: threading.Event) -> None:
    from daemon.scu import Deliverer

    deliverer = Deliverer(config, ledger, spool)
    deliverer.start()
    _say_ready("deliver", f"{len(config.destinations)} destination(s)")
    _wait(stop)
    deliverer.stop()


def _wait(stop: threading.Event) -> None:
    """Until SIGTERM, never in one endless wait: with other threads at work, a signal does not always end that."""
    while not stop.wait(_NOTICE_S):
        pass


_ROLES: dict[str, Callable[[Config, Ledger, Spool, threading.Event], None]] = {
    "receive": _receive,
    "analyse": _analyse,
    "deliver": _deliver,
}


def _say_ready(role: str, what: str) -> None:
    log.info("%s: ready, %s", role, what)
    print(READY, flush=True)  # noqa: T201 - the contract: READY on stdout
    notify("READY=1")


def notify(message: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens where no one listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sock.send(message.encode())


def _die_with_parent() -> None:
    """Under `serve`, this process must not outlive it: an orphan would hold the port and the leases."""
    parent = os.environ.pop(_PARENT, None)
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(1)


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
        with contextlib.suppress(OperationalError):  # a database server that is away: the roles wait for it
            _open(config)[0].close()  # a wrong ledger or spool is one clear error, not three
        self._command = [sys.executable, "-m", "daemon.cli"]
        self._path = path
        self._children = [_Child(role) for role in ROLES]
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
            notify("STOPPING=1")
            self._end()
        return 0

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _reload(self, *_: object) -> None:
        self._reloading = True

    def _pass_on_reload(self) -> None:
        """SIGHUP is for the model, and that is analyse's; one that is still starting gets it when it is ready."""
        for child in self._children:
            if self._reloading and child.role == "analyse" and child.process is not None and child.ready:
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
        if status == _EXIT_CANNOT_START and not self._said_ready:  # later, a file half edited must not end the others
            log.error("%s cannot start; see its message above", child.role)
            child.start_again_at = float("inf")
            return
        if now - child.started > _SETTLED_S:
            child.pause_s = _RESTART_S[0]
        log.error("%s ended with status %d; starting it again in %.1f s", child.role, status, child.pause_s)
        child.start_again_at = now + child.pause_s
        child.pause_s = min(2 * child.pause_s, _RESTART_S[1])

    def _start(self, child: _Child) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        environment[_PARENT] = str(os.getpid())
        # From the main thread, which lives as long as this process: PR_SET_PDEATHSIG watches the thread.
        child.process = subprocess.Popen(
            [*self._command, child.role, "-c", str(self._path)], env=environment, stdout=subprocess.PIPE, text=True
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
            if line.strip() == READY:
                child.ready = True
            elif not line:
                assert child.process is not None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout_s)
        if not self._said_ready and all(child.ready for child in self._children):
            self._said_ready = True
            print(READY, flush=True)  # noqa: T201 - the contract: READY on stdout
            notify("READY=1")

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
