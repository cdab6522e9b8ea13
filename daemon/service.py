"""One role that runs until SIGTERM: what it opens, when it is ready, and how it ends. supervisor.py runs all three."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.config import Config
from daemon.ledger import Ledger, LedgerError, this_machine
from daemon.spool import Spool, SpoolError

if TYPE_CHECKING:
    from daemon.receive.inbox import Inbox

log = logging.getLogger("pleura.service")

READY = "READY"
PARENT = (
    "PLEURA_PARENT"  # in a role's environment, the process ID of the `serve` that has started it
)
_EXIT_AGAIN = 1  # who watches starts the role again: time may heal it
_NOTICE_S = 0.5  # how late a SIGTERM may be noticed
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
    signal.signal(
        signal.SIGHUP, signal.SIG_IGN
    )  # analyse has a use for it; a terminal that is gone ends no role
    ledger, spool = open_stores(config)
    try:
        spool.claim(ledger.spool_identity)
    except SpoolError as error:
        log.error("%s", error)
        return _EXIT_AGAIN
    _bury(ledger)
    try:
        ROLES[role](config, ledger, spool, stop)
    except CannotStartError:
        raise
    except Exception:  # said by our own log: what Python prints of it may quote a header
        log.exception("the %s role ends", role)
        return _EXIT_AGAIN
    ledger.close()
    return 0


def open_stores(config: Config) -> tuple[Ledger, Spool]:
    """Where the roles meet.

    Raises:
        CannotStartError: one of them cannot be opened.
        OperationalError: the database server is away.
    """
    try:
        return Ledger(config.ledger), Spool(config.spool)
    except LedgerError as error:
        raise CannotStartError(str(error)) from error
    except ModuleNotFoundError as error:
        raise CannotStartError(
            f"ledger: {error}; for PostgreSQL: pip install 'pleura[postgresql]'"
        ) from error
    except OSError as error:
        raise CannotStartError(
            f"spool or ledger: {error}; this user must be able to write there"
        ) from error


def _bury(ledger: Ledger) -> None:
    """End the leases of processes of this host that are no more; those of others run out by themselves."""
    for owner in ledger.owners():
        machine, _, pid = owner.rpartition(":")
        if machine == this_machine() and not Path(f"/proc/{pid}").exists():
            log.info("the leases of %s, which is no more, are over", owner)
            ledger.expire(owner)


def _receive(config: Config, ledger: Ledger, spool: Spool, stop: threading.Event) -> None:
    from daemon.receive.scp import Receiver

    receiver = Receiver(config, ledger, spool)
    try:
        receiver.start()
    except OSError as error:
        what = (
            "is in use by another program"
            if error.errno == errno.EADDRINUSE
            else f"cannot be opened ({error})"
        )
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
    from daemon.receive.inbox import Inbox

    if config.inbox is None:
        return None
    try:
        return Inbox(config.inbox, ledger, spool, config.spool_reserve_mb * 1024 * 1024)
    except OSError as error:
        raise CannotStartError(
            f"inbox: {error}; this user must be able to read and write there"
        ) from error


def _analyse(config: Config, ledger: Ledger, spool: Spool, stop: threading.Event) -> None:
    # OpenMP's threads would spin while they wait for one another: beside threads that decode and encode, each forward
    # pass then takes seven times as long. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(
            _M_ARENA_MAX, 2
        )  # glibc keeps free memory apart for each thread: pictures' worth of it
    began = time.monotonic()
    from daemon.analyse.worker import Worker, build_pipeline
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
    log.info(
        "analyse: imports {:.1f} s, package and golden replay {:.1f} s, warm-up {:.1f} s".format(
            *times
        )
    )
    _say_ready("analyse", f"model {pipeline.engine.identity.id} on {pipeline.engine.device}")
    del pipeline  # the worker's to let go of, when another takes its place
    worker.run(stop)


def _deliver(config: Config, ledger: Ledger, spool: Spool, stop: threading.Event) -> None:
    from daemon.deliver.deliverer import Deliverer

    deliverer = Deliverer(config, ledger, spool)
    deliverer.start()
    _say_ready("deliver", f"{len(config.destinations)} destination(s)")
    _wait(stop)
    deliverer.stop()


def _wait(stop: threading.Event) -> None:
    """Until SIGTERM, never in one endless wait: with other threads at work, a signal does not always end that."""
    while not stop.wait(_NOTICE_S):
        pass


ROLES: dict[str, Callable[[Config, Ledger, Spool, threading.Event], None]] = {
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
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(1)
