"""Alerts without Prometheus: which troubles there are, and the way of a message to people."""

from daemon.alerts.routes import RouteError, routes_of
from daemon.alerts.sender import AlertSender
from daemon.alerts.watch import Watch

__all__ = ["AlertSender", "RouteError", "Watch", "routes_of"]
