"""The deliver role: a thread for each destination, one for each that commits, one to tidy up."""

from __future__ import annotations

import threading
from collections.abc import Callable

from daemon.audit import AuditSender
from daemon.config import Config
from daemon.deliver.commitment import Asker
from daemon.deliver.courier import Courier
from daemon.deliver.limits import DEFAULT_LIMITS, DeliverLimits
from daemon.deliver.retention import Retention
from daemon.ledger import Ledger
from daemon.spool import Spool


class Deliverer:
    """The deliver role: start() returns at once, stop() when the objects in flight are finished."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        spool: Spool,
        limits: DeliverLimits = DEFAULT_LIMITS,
    ) -> None:
        """Raises TlsError where a certificate or key of a destination, or of the audit trail,
        cannot be used.
        """
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

        for destination in config.destinations:
            courier = Courier(destination, config, ledger, spool, limits)
            self._add(f"deliver-{destination.name}", courier.run)

        for committing in config.committing():
            asker = Asker(committing, config, ledger, limits)
            self._add(f"commitment-{committing.name}", asker.run)

        self._add("retention", Retention(config, ledger, spool).run)
        if config.audit is not None:
            self._add("audit", AuditSender(config, ledger, spool).run)

    def _add(self, name: str, run: Callable[[threading.Event], None]) -> None:
        thread = threading.Thread(target=run, args=(self._stop,), name=name, daemon=True)
        self._threads.append(thread)

    def start(self) -> None:
        """Start every thread."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more, and wait for the objects in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
