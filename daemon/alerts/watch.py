"""Looks at the node every few seconds: counts arrivals and records troubles.

One thread of the deliver role. Several processes may look: the ledger keeps each trouble once.
"""

from __future__ import annotations

import logging
import socket
import threading

from daemon import tls
from daemon.alerts.routes import routes_of
from daemon.alerts.troubles import Sight, troubles
from daemon.config import Alerts, Config
from daemon.drift import drift
from daemon.ledger import Ledger, Outage, Unresolved

log = logging.getLogger("pleura.alerts")

_EVERY_S = 10.0
# A trouble is over once it has been absent for this long, so that a flapping destination is one
# trouble.
_SETTLE_S = 60.0
# Drift compares weeks, so it changes slowly.
_DRIFT_EVERY_S = 600.0
# A look at the files of TLS opens keys, and does a handshake with each.
_FILES_EVERY_S = 60.0
# The ledger sorts every failure that waits for a person.
_FAILURES_EVERY_S = 60.0
# Without `alerts`, troubles appear only in the log, the metrics and the page.
_DEFAULTS = Alerts.model_construct()


class Watch:
    """The thread that looks."""

    def __init__(
        self, config: Config, ledger: Ledger, every_s: float = _EVERY_S, settle_s: float = _SETTLE_S
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._every_s = every_s
        self._settle_s = settle_s

        self._began_at: float | None = None
        self._drift: dict[str, str] = {}
        self._drift_due_at = 0.0
        self._file_faults: dict[str, str] = {}
        self._files_due_at = 0.0
        self._unresolved: list[Unresolved] = []
        self._failures_due_at = 0.0
        self._outage = Outage(log, "watch for troubles: the ledger")

    def take(self, config: Config) -> None:
        """Look with new settings from now on."""
        self._config = config
        self._files_due_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        while not stop.is_set():
            try:
                self.look()
            except Exception as error:
                # The loop's only catch-all: an unreachable ledger comes back.
                self._outage.failed(error)
            else:
                self._outage.over()
            stop.wait(self._every_s)

    def look(self) -> None:
        """Count what arrived, and note the troubles."""
        while self._ledger.count_arrivals():
            pass

        config = self._config
        figures = self._ledger.inspect.figures()
        # A time in the future is from a clock that was set back.
        if self._began_at is None or self._began_at > figures.now:
            self._began_at = figures.now
        self._compare(figures.now)
        self._look_at_files(figures.now)
        self._look_at_failures(figures.now)

        machine = socket.gethostname()
        sight = Sight(
            figures=figures,
            unresolved=self._unresolved,
            sending_hours=self._ledger.inspect.sending_hours(),
            drift=self._drift,
            machine=machine,
            began_at=self._began_at,
            file_faults=self._file_faults,
        )

        found = troubles(config, config.alerts or _DEFAULTS, sight)
        routes = routes_of(config)
        began, over = self._ledger.alarms.note(found, routes.keys(), machine, self._settle_s)
        for alarm in began:
            log.warning("trouble: %s: %s: %s", alarm.kind, alarm.subject, alarm.words)
        for key in over:
            log.info("trouble over: %s", key)

    def _look_at_files(self, now: float) -> None:
        """Look at the files of TLS, now and then: each role uses them as this look finds them."""
        if self._files_due_at - _FILES_EVERY_S <= now < self._files_due_at:
            return
        self._files_due_at = now + _FILES_EVERY_S
        self._file_faults = dict(tls.faults(self._config))

    def _look_at_failures(self, now: float) -> None:
        """Look at what failed and needs a person, now and then."""
        if self._failures_due_at - _FAILURES_EVERY_S <= now < self._failures_due_at:
            return
        # It stays due until it succeeds: a trouble that could not be checked is not over.
        self._unresolved = self._ledger.inspect.unresolved()
        self._failures_due_at = now + _FAILURES_EVERY_S

    def _compare(self, now: float) -> None:
        """Compare the newest weeks with their baseline, now and then."""
        if self._drift_due_at - _DRIFT_EVERY_S <= now < self._drift_due_at:
            return
        self._drift_due_at = now + _DRIFT_EVERY_S

        words: dict[str, dict[str, str]] = {}
        for alarm in drift(self._ledger.inspect).alarms:
            # Those of the newest week come last.
            words.setdefault(alarm.ae_title, {})[alarm.what] = alarm.words
        self._drift = {title: "; ".join(said.values()) for title, said in words.items()}
