"""One role that runs until SIGTERM: what it opens, when it is ready, how it ends.

supervisor.py runs them all.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from daemon import config as settings
from daemon import garbage, installed, output, ownership, torch_process, watchdog
from daemon import log as lines
from daemon.config import Config
from daemon.exits import EXIT_DONE, EXIT_FAILED, CannotStartError
from daemon.heartbeat import SignsOfLife
from daemon.ledger import Ledger, LedgerError, Outage, describe
from daemon.ledger.processes import is_gone
from daemon.live import LiveSettings, Take
from daemon.parent import end_with_parent
from daemon.readiness import PARENT, READY, notify
from daemon.spool import Spool, SpoolError, identity

if TYPE_CHECKING:
    from daemon.receive.inbox import Inbox
    from daemon.receive.scp import Receiver
    from daemon.web.server import PageServer

log = logging.getLogger("pleura.service")

# How long a SIGTERM may go unnoticed.
_NOTICE_S = 0.5

# Set when this process has said READY.
_ready = threading.Event()

# What this process reports with each heartbeat; a role that has facts sets it.
_tells: list[Callable[[], Mapping[str, Any]]] = []

# The longest step of a thread that is not stuck: decoding an image (WorkerLimits.image_s), or a
# connection that accepts no byte (requestor.Limits.stalled_s). The grace covers the ledger's waits
# on top.
_LONGEST_STEP_S = {"analyse": 600.0, "deliver": 60.0, "web": 60.0, "shadow": 60.0}
_GRACE_S = 180.0

# The pause before the next try to open a ledger whose server is unreachable.
_LEDGER_PAUSE_S = 2.0

# The pause before the next try to listen.
_PORT_PAUSE_S = 1.0
_PORT_TROUBLES = {
    errno.EADDRINUSE: "is held by another program: end it, or give the node another port",
    errno.EADDRNOTAVAIL: "is not yet an address of this machine: is the network up, `host` right?",
    errno.EACCES: "may not be opened by this user: ports below 1024 need CAP_NET_BIND_SERVICE",
}
# Errors that last until a person changes the settings or the permissions.
_LASTING = {
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EINVAL,
}  # fmt: skip


def run_role(role: str, file: Path, device: str | None = None) -> int:
    """Run one role until SIGTERM or SIGINT, then finish the work in hand.

    Says READY when the role can do its job. `file`: the settings, which SIGHUP reads again.
    `device` overrides the settings'. Returns 0, or 1 if another start may succeed.

    Raises:
        ConfigError: wrong settings.
        CannotStartError: a wrong model, device, port or folder.
    """
    shared = settings.load(file)
    config = settings.with_device(shared, device) if device else shared
    _set_log_level(config)
    lines.use(config.log_format)
    _die_with_parent()
    stop = _stop_on_signals()
    try:
        stores = _wait_for_stores(config, stop)
    except SpoolError as error:
        log.error("%s", error)
        return EXIT_FAILED
    if stores is None:
        return EXIT_DONE

    ledger, spool = stores
    ledger.is_audited = config.audit is not None
    activity = {"role": role, "pid": str(os.getpid())}
    try:
        ledger.record_settings(settings.digests(shared))
        ledger.record_audit("start", activity)
        feeder = watchdog.feeder(lambda: notify("WATCHDOG=1"), _longest_silence_s(role, config))

        def taken(new: Config) -> None:
            _set_log_level(new)
            if feeder is not None:
                feeder.limit_s = _longest_silence_s(role, new)

        live = LiveSettings(role, shared, lambda: settings.load(file), ledger, taken)
        signal.signal(signal.SIGHUP, lambda *_: live.ask())
        signs = SignsOfLife(ledger, role, _ready, facts=_facts)

        with signs, live, feeder or contextlib.nullcontext():
            ROLES[role](config, ledger, spool, stop, live)
    except CannotStartError:
        raise
    except Exception:
        # Our own log formats this: Python's report of an exception may quote a header.
        log.exception("the %s role ends", role)
        return EXIT_FAILED

    try:
        ledger.record_audit("stop", activity)
    except SQLAlchemyError as error:
        # The work is done. An unreachable ledger must not turn the end into a failure.
        log.warning("the end of the %s role is not in the audit trail: %s", role, describe(error))
    ledger.close()
    return EXIT_DONE


def _facts() -> dict[str, Any]:
    """The heartbeats of this process."""
    return {name: fact for tell in _tells for name, fact in tell().items()}


def _set_log_level(config: Config) -> None:
    logging.getLogger("pleura").setLevel(config.log_level.upper())


def _longest_silence_s(role: str, config: Config) -> float:
    """How long a thread of the role may be silent before the watchdog takes it for stuck."""
    # The longest wait in which a thread cannot beat: a peer does not read an answer.
    wait_s = config.limits.pdu_s if role == "receive" else _LONGEST_STEP_S[role]
    return wait_s + _GRACE_S


def _stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set.

    SIGHUP is ignored until the role can read its settings again: a closed terminal ends no role.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return stop


def _wait_for_stores(config: Config, stop: threading.Event) -> tuple[Ledger, Spool] | None:
    """The ledger and the spool, once the database server answers; None when `stop` came first.

    An outage is logged once, not at each try.

    Raises:
        CannotStartError: one of them cannot be opened, and a retry would not help. SpoolError: the
            spool is another folder.
    """
    outage = Outage(log, "the ledger or the spool")

    while not stop.is_set():
        try:
            ledger, spool = open_stores(config)
            spool.claim(ledger.spool_identity)
            release_dead_leases(ledger)
        except (SQLAlchemyError, OSError) as error:
            outage.failed(error)
            stop.wait(_LEDGER_PAUSE_S)
            continue

        outage.over()
        return ledger, spool
    return None


def open_stores(config: Config) -> tuple[Ledger, Spool]:
    """The ledger and the spool, in which the roles meet.

    Raises:
        CannotStartError: one of them cannot be opened.
        OperationalError: the database server is unreachable.
        OSError: a disk is full or unreachable.
    """
    if trouble := ownership.trouble(config):
        raise CannotStartError(trouble)

    made = ownership.absent(config)
    try:
        is_spool_used = identity(config.spool) is not None
        stores = Ledger(config.ledger), Spool(config.spool)
    except LedgerError as error:
        raise CannotStartError(str(error)) from error
    except ModuleNotFoundError as error:
        raise CannotStartError(f"ledger: {installed.lacking('postgresql') or error}") from error
    except OSError as error:
        if time_may_cure(error):
            raise
        raise CannotStartError(
            f"spool or ledger: {error}; this user must be able to write there"
        ) from error

    # Only root could create a mistyped path anywhere.
    level = logging.WARNING if os.geteuid() == 0 else logging.INFO
    for what in made:
        log.log(level, "%s was not there and is new; is its path right?", what)
    if stores[0].is_new and is_spool_used:
        log.warning(
            "the ledger had no tables and is new, but spool %s has been in use: is `ledger` right? "
            "If the ledger was lost, stop the node and restore it from a backup (docs/backup.md)",
            config.spool,
        )
    return stores


def time_may_cure(error: OSError) -> bool:
    """Whether another try may succeed without a change of settings or permissions."""
    return error.errno not in _LASTING


def release_dead_leases(ledger: Ledger) -> None:
    """End the leases of this machine's dead processes.

    Leases of another machine, or of a live process, expire on the ledger's clock.
    """
    for owner in ledger.inspect.lease_owners():
        if is_gone(owner):
            log.info("released the leases of dead process %s", owner)
            ledger.release_leases(owner)


def _receive(
    config: Config, ledger: Ledger, spool: Spool, stop: threading.Event, live: LiveSettings
) -> None:
    from daemon.receive.scp import Receiver
    from daemon.tls import TlsError

    try:
        receiver = Receiver(config, ledger, spool)
    except TlsError as error:
        raise CannotStartError(str(error)) from error
    if not listen(receiver, f"{config.host}, {_ports(config)}", stop):
        return

    inbox = _started_inbox(config, ledger, spool)

    def check(new: Config) -> Take:
        return lambda: _take(new, receiver, inbox)

    live.serve(check)

    # Loaded modules stay for good, so the garbage collector need not scan them every few dozen
    # associations.
    gc.freeze()
    what = f"listening on {config.host}, {_ports(config)}, as {config.ae_title}"
    _say_ready("receive", what)
    while not stop.wait(_NOTICE_S) and receiver.is_alive():
        pass

    if inbox:
        inbox.stop()
    receiver.stop()
    if not stop.is_set():
        raise RuntimeError("the listener has ended")


def _take(config: Config, receiver: Receiver, inbox: Inbox | None) -> None:
    receiver.take(config)
    if inbox is not None:
        inbox.reserve(config.spool_reserve_mb)


def listen(
    server: Receiver | PageServer, address: str, stop: threading.Event, keys: str = "host, port"
) -> bool:
    """Listen, once the address exists and no other program holds the port.

    `keys`: the settings' keys for the address. The wait is logged once. Returns False when `stop`
    came first.

    Raises:
        CannotStartError: this user or this machine can never listen there.
    """
    said = ""
    while not stop.is_set():
        try:
            server.start()
        except OSError as error:
            # The listener names the port that failed.
            address = error.filename or address
            what = _PORT_TROUBLES.get(error.errno or 0, f"cannot be opened: {error}")
            if not time_may_cure(error):
                raise CannotStartError(f"{keys}: {address} {what}") from error
            if what != said:
                log.error("%s: %s %s; retrying", keys, address, what)
            said = what
            stop.wait(_PORT_PAUSE_S)
            continue

        if said:
            log.info("%s: %s is available now", keys, address)
        return True
    return False


def _ports(config: Config) -> str:
    """The ports that the node listens on, in words."""
    plain = [] if config.port is None else [f"port {config.port}"]
    secure = [] if config.tls is None else [f"TLS port {config.tls.port}"]
    return " and ".join(plain + secure)


def _started_inbox(config: Config, ledger: Ledger, spool: Spool) -> Inbox | None:
    from daemon.receive.inbox import Inbox
    from daemon.receive.intake import Intake

    if config.inbox is None:
        return None

    intake = Intake(ledger, spool, config.spool_reserve_mb * 1024 * 1024)
    inbox = Inbox(config.inbox, intake)
    inbox.start()
    _tells.append(inbox.facts)
    return inbox


def _analyse(
    config: Config, ledger: Ledger, spool: Spool, stop: threading.Event, live: LiveSettings
) -> None:
    torch_process.prepare()

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

    log.info(
        "analyse: imports %.1f s, package and golden replay %.1f s, warm-up %.1f s",
        imported - began,
        loaded - imported,
        time.monotonic() - loaded,
    )

    worker = Worker(pipeline, ledger, spool, config)
    # The settings of the file may name another device than the command line.
    live.serve(lambda new: worker.check(new.model_copy(update={"device": config.device})))
    _tells.append(worker.facts)
    what = f"model {pipeline.engine.identity.id} on {pipeline.engine.device}"
    _say_ready("analyse", what)

    # From here on only the worker holds the pipeline, so that it can free it for a successor.
    del pipeline
    worker.run(stop)


def _deliver(
    config: Config, ledger: Ledger, spool: Spool, stop: threading.Event, live: LiveSettings
) -> None:
    from daemon.deliver.deliverer import Deliverer

    deliverer = Deliverer(config, ledger, spool)
    deliverer.start()
    live.serve(deliverer.check)
    what = f"{len(config.destinations)} destination(s)"
    _say_ready("deliver", what)
    _wait(stop)
    deliverer.stop()


def _wait(stop: threading.Event) -> None:
    """Wait for SIGTERM in short steps: beside busy threads, a signal may not end a long wait."""
    while not stop.wait(_NOTICE_S):
        pass


def _web(
    config: Config, ledger: Ledger, spool: Spool, stop: threading.Event, live: LiveSettings
) -> None:
    if config.web is None:
        raise CannotStartError("web: found null; the web role needs `web: true`, or its keys")

    from daemon.tls import TlsError
    from daemon.web.server import PageServer

    try:
        server = PageServer(config, config.web, ledger, spool)
    except TlsError as error:
        raise CannotStartError(str(error)) from error

    address = f"{config.web.host}, port {config.web.port}"
    if not listen(server, address, stop, "web.host, web.port"):
        return
    live.serve(server.check)
    scheme = "http" if config.web.tls is None else "https"
    _say_ready("web", f"{scheme} on {address}")

    while not stop.wait(_NOTICE_S) and server.is_alive():
        pass
    server.stop()
    if not stop.is_set():
        raise RuntimeError("the page's server has ended")


def _shadow(
    config: Config, ledger: Ledger, spool: Spool, stop: threading.Event, live: LiveSettings
) -> None:
    if config.shadow is None:
        raise CannotStartError("shadow: found null; the shadow role needs `shadow.model`")
    shadow = config.shadow

    from daemon.analyse.shadow import Process, ShadowLimits, ShadowWorker, command

    # No reload waits for the shadow, not even while it loads: it accepts every change and ignores
    # it.
    live.serve(lambda _: lambda: None)

    limits = ShadowLimits()
    worker = ShadowWorker(lambda: Process(command(config, shadow), limits), ledger, spool, limits)
    worker.run(stop, lambda name: _say_ready("shadow", f"model {name} on {shadow.device}"))


# The function of a role takes its settings, ledger and spool, the event that stops it, and what
# gives it new settings.
Role = Callable[[Config, Ledger, Spool, threading.Event, LiveSettings], None]

ROLES: dict[str, Role] = {
    "receive": _receive,
    "analyse": _analyse,
    "deliver": _deliver,
    "web": _web,
    "shadow": _shadow,
}
# Roles that the node can do without.
_OPTIONAL = ("web", "shadow")


def roles_of(config: Config) -> list[str]:
    """The roles that `serve` runs with these settings."""
    return [role for role in ROLES if is_needed(role) or getattr(config, role) is not None]


def is_needed(role: str) -> bool:
    """Whether the node cannot do its job without this role."""
    return role not in _OPTIONAL


def _say_ready(role: str, what: str) -> None:
    log.info("%s: ready, %s", role, what)
    garbage.as_usual()
    _ready.set()
    output.say(READY)
    notify("READY=1")


def _die_with_parent() -> None:
    """Under `serve`, end with it: an orphan would keep the port and the leases."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    end_with_parent()

    # The parent had died before the call above.
    if os.getppid() != int(parent):
        os._exit(1)
