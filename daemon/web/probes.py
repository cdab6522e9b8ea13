"""/metrics, /healthz and /readyz: for programs, which do not log in.

Any program learns whether the node is well; only a named address, or this machine, learns more.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from daemon.config.web import is_loopback
from daemon.metrics import CONTENT_TYPE, Health, exposition, health, ready
from daemon.web.visit import Visit

# However many programs ask, the ledger is asked as often as this.
_FRESH_S = 2.0


def metrics(visit: Visit) -> Response:
    """The figures in Prometheus' format."""
    if not _is_trusted(visit):
        raise HTTPException(404)
    node = visit.node
    text: bytes = node.once_every(_FRESH_S, "metrics", lambda: exposition(node.settings, node.view))
    return Response(text, media_type=CONTENT_TYPE)


def healthz(visit: Visit) -> Response:
    """Whether the page lives and sees the ledger."""
    return _told(visit, visit.node.once_every(_FRESH_S, "health", lambda: health(visit.node.view)))


def readyz(visit: Visit) -> Response:
    """Whether the node can do its job."""
    node = visit.node
    return _told(visit, node.once_every(_FRESH_S, "ready", lambda: ready(node.settings, node.view)))


def _told(visit: Visit, found: Health) -> Response:
    told: dict[str, object] = {"well": found.is_well}
    if _is_trusted(visit):
        told["checks"] = dict(found.checks)
    return JSONResponse(told, 200 if found.is_well else 503)


def _is_trusted(visit: Visit) -> bool:
    client = visit.request.client
    host = client.host if client is not None else ""
    return is_loopback(host) or host in visit.node.web.metrics_from
