"""Messages from the ledger to their routes, retried for ever with back-off.

One thread of the deliver role. The ledger drops a message once its route has taken it. After a
crash in between, the message is sent again with the same ID.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping

from daemon.alerts.routes import Route, RouteError, hand_over
from daemon.backoff import Backoff
from daemon.ledger import AlarmMessage, Ledger, Outage, owner_name

log = logging.getLogger("pleura.alerts")

_IDLE_S = 1.0
_LEDGER_PAUSE_S = 5.0
# Longer than a route may take for each of a few messages.
_LEASE_S = 300.0


class AlertSender:
    """Sends what the ledger owes to the routes, until it is stopped."""

    def __init__(
        self, routes: Mapping[str, Route], ledger: Ledger, backoff: Backoff | None = None
    ) -> None:
        self._routes = dict(routes)
        self._ledger = ledger
        self._backoff = backoff or Backoff(first_s=2.0)
        self._outage = Outage(log, "alerts: the ledger")
        # Routes in trouble, so that each outage is logged once.
        self._troubled: set[str] = set()

    def take(self, routes: Mapping[str, Route]) -> None:
        """Use these routes from the next turn on. Each one logs its trouble again."""
        self._troubled = set()
        self._routes = dict(routes)

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        while not stop.is_set():
            try:
                self.turn(stop)
            except Exception as error:
                # The loop's only catch-all: an unreachable ledger comes back.
                self._outage.failed(error)
                stop.wait(_LEDGER_PAUSE_S)
            else:
                self._outage.over()
                stop.wait(_IDLE_S)

    def turn(self, stop: threading.Event) -> int:
        """Send what is due. Returns how many messages were sent."""
        routes = self._routes
        if not routes:
            # A claim would drop what another machine owes to its own route.
            return 0

        messages = self._ledger.alarms.claim(owner_name(), routes.keys(), _LEASE_S)
        failed: dict[str, float] = {}
        sent = 0
        for message in messages:
            if stop.is_set() or message.route in failed:
                # Later messages wait behind the failed one, so that messages keep their order.
                delay_s = failed.get(message.route, 0.0)
                self._ledger.alarms.retry_later(message, delay_s, is_failure=False)
                continue

            route = routes[message.route]
            try:
                hand_over(route, message)
            except RouteError as error:
                delay_s = self._backoff.pause_s(message.failures + 1)
                self._ledger.alarms.retry_later(message, delay_s)
                failed[message.route] = delay_s
                self._note_trouble(route, error)
            else:
                self._ledger.alarms.mark_sent(message)
                sent += 1
                self._note_success(route, message)
        return sent

    def _note_trouble(self, route: Route, error: RouteError) -> None:
        if route.name not in self._troubled:
            log.error("alerts: %s: %s; messages wait; retrying", route, error)
        self._troubled.add(route.name)

    def _note_success(self, route: Route, message: AlarmMessage) -> None:
        if route.name in self._troubled:
            log.warning("alerts: %s takes messages again", route)
        self._troubled.discard(route.name)
        kind, event = message.facts.get("kind"), message.facts.get("event")
        log.info("alerts: %s has %s %s", route, kind, event)


def send_trial(routes: Mapping[str, Route], now: float) -> dict[str, str]:
    """`pleura alerts test`: a trial message over each route. By route, "" or its trouble."""
    said: dict[str, str] = {}
    for name, route in routes.items():
        facts = {
            "event": "test",
            "kind": "test",
            "subject": "alerts",
            "words": "This is a trial: mail and webhook work.",
            "since": now,
        }

        try:
            hand_over(route, AlarmMessage(uuid.uuid4().hex, name, facts, now, 0))
        except RouteError as error:
            said[str(route)] = str(error)
        else:
            said[str(route)] = ""
    return said
