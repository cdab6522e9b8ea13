"""The figures of a node: the content of /metrics, /healthz and /readyz, for any process."""

from daemon.metrics.exposition import CONTENT_TYPE, exposition
from daemon.metrics.health import Health, health, ready

__all__ = ["CONTENT_TYPE", "Health", "exposition", "health", "ready"]
