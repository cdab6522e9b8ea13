"""Checks that every request passes before a page sees it (host, scheme, size, time), and the
headers of every answer.
"""

from __future__ import annotations

import asyncio
import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.addresses import canonical
from daemon.config import Web
from daemon.config.web import is_loopback

# The most bytes of a form. Uploads have their own limit.
_FORM_BYTES = 64 * 1024
UPLOAD_PATH = "/try"
# In millions, because the page writes sizes like that.
UPLOAD_BYTES = 64_000_000
# The longest time for a body to arrive.
_BODY_S = 60.0

# CSP Level 3. Scripts and styles come only from our files; pictures also from the page itself (data
# URIs), because those of a tried file are not stored.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Never send the path, which may contain an accession number that was searched for. Not
    # no-referrer either: with that, a browser posts forms with the origin "null" (Fetch, 3.2), and
    # every form would be refused.
    "referrer-policy": "strict-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
# RFC 6797: one year. Only over TLS.
_STRICT_TRANSPORT = "max-age=31536000"


class TooLargeError(Exception):
    """The body is larger than its path allows."""


class Guard:
    """ASGI middleware around the whole page."""

    def __init__(self, app: ASGIApp, web: Web) -> None:
        self._app = app
        # Without a login, another site's name that resolves to this machine (DNS rebinding) would
        # read the page through a browser on it.
        self._only_local_names = not web.asks_for_login
        # Passwords never travel in clear text: neither past the proxy, nor from it.
        self._only_tls = web.proxy is not None or not is_loopback(web.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        sends = _with_headers(send, is_tls=scope["scheme"] == "https", path=scope["path"])
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, sends)
            return

        await self._app(scope, _bounded(receive, _limit_bytes(scope)), sends)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if self._only_local_names and not is_loopback(_host_name(headers.get("host", ""))):
            return _plain(421, "this page is for this machine: open it as http://127.0.0.1")
        if self._only_tls and scope["scheme"] != "https":
            return _plain(403, "HTTPS only")

        if "transfer-encoding" in headers and "content-length" in headers:
            # RFC 9112, 6.1: a proxy before the page may see another request in the same bytes.
            return _plain(400, "a body has a length or is sent in chunks, not both")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > _limit_bytes(scope):
            return _plain(413, "larger than the page takes")
        return None


def _limit_bytes(scope: Scope) -> int:
    return UPLOAD_BYTES if scope["path"] == UPLOAD_PATH else _FORM_BYTES


def client_address(scope: Scope) -> str:
    """The address by which logins are throttled: IPv4, or the /64 network of IPv6."""
    host = str((scope.get("client") or ("", 0))[0])
    try:
        address = ipaddress.ip_address(canonical(host))
    except ValueError:
        return host[:64]
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _host_name(header: str) -> str:
    """The Host header without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header


def _plain(status: int, words: str) -> PlainTextResponse:
    # The body may not have been read, so the connection cannot serve another request.
    return PlainTextResponse(words + "\n", status, headers={"connection": "close"})


def _bounded(receive: Receive, limit_bytes: int) -> Receive:
    """Wrap `receive`: it raises TooLargeError or TimeoutError if a body is too large or slow."""
    seen = 0
    deadline: float | None = None

    async def bounded() -> Message:
        nonlocal seen, deadline
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + _BODY_S
        if seen < 0:
            # The whole body has arrived: what follows is the end of the connection.
            return await receive()

        async with asyncio.timeout_at(deadline):
            message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit_bytes:
                raise TooLargeError
            if not message.get("more_body", False):
                seen = -1
        return message

    return bounded


def _with_headers(send: Send, is_tls: bool, path: str) -> Send:
    """Wrap `send`: it adds the headers of every answer."""

    async def sends(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            if is_tls:
                headers["strict-transport-security"] = _STRICT_TRANSPORT
            # No browser and no proxy may store a user's page.
            if not path.startswith("/static/"):
                headers["cache-control"] = "no-store"
        await send(message)

    return sends
