"""The deliver role: a thread for each destination, one for each that commits, one for retention."""

from __future__ import annotations

import threading
from collections.abc import Callable

from daemon.alerts.files import wrong_files
from daemon.alerts.routes import routes_of
from daemon.alerts.sender import AlertSender
from daemon.alerts.watch import Watch
from daemon.audit import AuditSender
from daemon.config import Config, DicomDestination, FolderDestination
from daemon.deliver.commitment import Asker
from daemon.deliver.courier import Courier
from daemon.deliver.limits import DEFAULT_LIMITS, DeliverLimits
from daemon.deliver.retention import Retention
from daemon.ledger import Ledger
from daemon.live import RefusedError, Take
from daemon.spool import Spool
from daemon.tls import faults_of

_PATIENCE_S = 5.0

Run = Callable[[threading.Event], None]
_Destination = DicomDestination | FolderDestination


class _Desk:
    """The threads of one destination, which end together."""

    def __init__(self, destination: _Destination, runs: dict[str, Run]) -> None:
        """`runs`: what each thread runs, by the thread's name."""
        self.destination = destination
        self._stop = threading.Event()
        self._threads = [_thread(name, run, self._stop) for name, run in runs.items()]

    def start(self) -> None:
        """Start each thread that does not run yet."""
        for thread in self._threads:
            if thread.ident is None:
                thread.start()

    def stop(self) -> None:
        """Begin nothing more; returns at once."""
        self._stop.set()

    def is_over(self) -> bool:
        """Whether its threads have ended."""
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()


class Deliverer:
    """The deliver role: start() returns at once, stop() when the objects in flight are finished."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        spool: Spool,
        limits: DeliverLimits = DEFAULT_LIMITS,
    ) -> None:
        """A certificate or key that cannot be used does not raise.

        It is a trouble of its destination or of the audit trail only, because a reboot must not
        stop deliveries that worked before it.
        """
        self._ledger = ledger
        self._spool = spool
        self._limits = limits
        self._stop = threading.Event()

        self._desks = [self._desk(each, config) for each in config.destinations]
        # Desks that were closed, with an object in flight.
        self._closed: list[_Desk] = []
        self._retention = Retention(config, ledger, spool)
        self._watch = Watch(config, ledger)
        self._threads = [
            _thread("retention", self._retention.run, self._stop),
            _thread("watch", self._watch.run, self._stop),
        ]

        self._alerts = config.alerts
        self._alert_sender = AlertSender(routes_of(config), ledger)
        # Their servers may hang; their messages stay in the ledger until they are sent.
        self._messengers = [_thread("alerts", self._alert_sender.run, self._stop)]
        if config.audit is not None:
            sender = AuditSender(config, ledger, spool)
            self._messengers.append(_thread("audit", sender.run, self._stop))

    def start(self) -> None:
        """Start every thread."""
        for thread in [*self._threads, *self._messengers]:
            thread.start()
        for desk in self._desks:
            desk.start()

    def stop(self) -> None:
        """Start nothing more, and wait for the objects in flight."""
        self._stop.set()
        for desk in self._desks:
            desk.stop()

        for desk in [*self._desks, *self._closed]:
            desk.join()
        for thread in self._threads:
            thread.join()
        for thread in self._messengers:
            thread.join(_PATIENCE_S)

    def check(self, config: Config) -> Take:
        """Check new settings: a desk opens or closes for each destination that changes.

        Other destinations do not notice. An object in flight is finished by the desk that began it.

        Raises:
            RefusedError: a file that a destination or `alerts` names cannot be used.
        """
        if config.alerts != self._alerts and (wrong := list(wrong_files(config))):
            raise RefusedError("; ".join(wrong))

        kept = [desk for desk in self._desks if desk.destination in config.destinations]
        known = [desk.destination for desk in kept]
        others = [each for each in config.destinations if each not in known]
        for each in others:
            if isinstance(each, DicomDestination) and (found := faults_of(config, each)):
                raise RefusedError("; ".join(words for _, words in found))
        new = [self._desk(each, config) for each in others]

        def take() -> None:
            for desk in self._desks:
                if desk not in kept and desk not in new:
                    desk.stop()
                    self._closed.append(desk)
            self._closed = [desk for desk in self._closed if not desk.is_over()]

            self._desks = [*kept, *new]
            for desk in new:
                desk.start()
            self._retention.take(config)
            self._watch.take(config)
            if config.alerts != self._alerts:
                self._alerts = config.alerts
                self._alert_sender.take(routes_of(config))

        return take

    def _desk(self, destination: _Destination, config: Config) -> _Desk:
        name = destination.name
        courier = Courier(destination, config, self._ledger, self._spool, self._limits)
        runs: dict[str, Run] = {f"deliver-{name}": courier.run}

        if isinstance(destination, DicomDestination) and destination.commitment:
            asker = Asker(destination, config, self._ledger, self._limits)
            runs[f"commitment-{name}"] = asker.run
        return _Desk(destination, runs)


def _thread(name: str, run: Run, stop: threading.Event) -> threading.Thread:
    return threading.Thread(target=run, args=(stop,), name=name, daemon=True)
