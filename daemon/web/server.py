"""The web role: uvicorn on its own socket, in a thread, until the role is told to stop."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from daemon import tls
from daemon.config import Config, Web
from daemon.ledger import Ledger
from daemon.ledger.view import View
from daemon.spool import Spool
from daemon.web.app import build
from daemon.web.connections import PageProtocol
from daemon.web.visit import Node

log = logging.getLogger("pleura.web")

# Connections and requests at a time: a page for a few people.
_MOST_AT_ONCE = 100
_KEEP_ALIVE_S = 10
_BACKLOG = 64
# How long a page may finish after SIGTERM.
_PATIENCE_S = 5.0
_START_S = 30.0
# Longer than any browser's header.
_MOST_HEADER_BYTES = 32 * 1024


class PageServer:
    """Serves the page from start() to stop()."""

    def __init__(self, settings: Config, web: Web, ledger: Ledger, spool: Spool) -> None:
        """Raises TlsError if the page's certificate or key cannot be used."""
        self._web = web
        self._view = View.open(settings.ledger)
        self._node = Node.of(settings, web, ledger, self._view)
        self._context = tls.page_context(web.tls) if web.tls is not None else None
        self._server = _server(build(self._node, spool), web, self._context)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. Raises OSError: the address or the port cannot be used."""
        is_ipv6 = ":" in self._web.host
        self._socket = socket.create_server(
            (self._web.host, self._web.port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="page", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.02)

    def check(self, config: Config) -> Callable[[], None]:
        """New settings are always accepted: a change of `web` itself needs a restart anyway."""

        def take() -> None:
            self._node.settings = config

        return take

    def is_alive(self) -> bool:
        """Whether the server still serves."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Finish the pages in hand, then close."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)
        if self._socket is not None:
            self._socket.close()
        self._view.close()


def _server(app: ASGIApp, web: Web, context: ssl.SSLContext | None) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=PageProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        limit_concurrency=_MOST_AT_ONCE,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(_PATIENCE_S),
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        proxy_headers=web.proxy is not None,
        # On a port of both families, an IPv4 proxy comes from ::ffff:192.0.2.1.
        forwarded_allow_ips=[web.proxy, f"::ffff:{web.proxy}"] if web.proxy else None,
    )

    config.load()
    config.ssl = context
    return uvicorn.Server(config)
