"""The three endpoints for machines, as routes of the operator's page: /healthz, /readyz and
/metrics.

/healthz and /readyz are open: they name roles and the disk, never a peer. /metrics names senders
and destinations: where the page has users, it asks for a token.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from daemon.config import Config
from daemon.ledger import Inspection, LedgerError, describe
from daemon.metrics.exposition import CONTENT_TYPE, exposition
from daemon.metrics.health import Health, health, ready

# The shortest time between two queries of the ledger, however many clients ask.
_KEPT_S = 1.0
_MOST_OF_TOKEN = 8192

_T = TypeVar("_T")


class Probes:
    """The three answers, each made at most once a second."""

    def __init__(
        self,
        config: Callable[[], Config],
        inspect: Inspection,
        is_local: bool,
        token_file: Path | None,
    ) -> None:
        """`config` gives the settings that hold now.

        `is_local`: only programs on this machine reach the page, and none needs a login.

        `token_file` holds the token that every other asker of /metrics sends.
        """
        self._is_local = is_local
        self._token_file = token_file

        self._health = _Kept(lambda: health(inspect))
        self._ready = _Kept(lambda: ready(config(), inspect))
        self._metrics = _Kept(lambda: exposition(config(), inspect))

    def routes(self) -> list[Route]:
        """The routes; Starlette runs each answer in a thread."""
        return [
            Route("/healthz", self._answer_health),
            Route("/readyz", self._answer_ready),
            Route("/metrics", self._answer_metrics),
        ]

    def _answer_health(self, _: Request) -> Response:
        return _as_json(self._health.get())

    def _answer_ready(self, _: Request) -> Response:
        try:
            return _as_json(self._ready.get())
        except (SQLAlchemyError, LedgerError) as error:
            return _as_json(Health(False, {"ledger": describe(error)}))

    def _answer_metrics(self, request: Request) -> Response:
        if not self._may_read(request):
            words = "send `Authorization: Bearer` with the token of `web.metrics_token_file`\n"
            return PlainTextResponse(words, 401, headers={"www-authenticate": "Bearer"})
        try:
            return Response(self._metrics.get(), media_type=CONTENT_TYPE)
        except (SQLAlchemyError, LedgerError) as error:
            return PlainTextResponse(f"ledger: {describe(error)}\n", 503)

    def _may_read(self, request: Request) -> bool:
        if self._token_file is None:
            return self._is_local
        try:
            with self._token_file.open("rb") as file:
                token = file.read(_MOST_OF_TOKEN).strip()
        except OSError:
            return False
        given = request.headers.get("authorization", "").encode()
        return bool(token) and hmac.compare_digest(given, b"Bearer " + token)


class _Kept(Generic[_T]):
    """The answer of `make`, at most a second old. Others wait while one thread makes it."""

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made_at = -_KEPT_S
        self._value: _T | None = None

    def get(self) -> _T:
        with self._lock:
            if self._value is None or time.monotonic() - self._made_at >= _KEPT_S:
                self._value = self._make()
                self._made_at = time.monotonic()
            return self._value


def _as_json(found: Health) -> Response:
    status = 200 if found.is_well else 503
    return JSONResponse({"ok": found.is_well, **found.checks}, status)
