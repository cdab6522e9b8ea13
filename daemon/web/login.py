"""Logging in with a name and a password, the session of any login, and logging out."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from daemon.web.guard import client_address
from daemon.web.sessions import ACCESS
from daemon.web.turn import BusyError
from daemon.web.visit import Visit

log = logging.getLogger("pleura.web")

_MOST_NAME = 64
# Signs the token of the login form, for this process.
_SECRET = secrets.token_bytes(32)
_LOGIN_COOKIE = "pleura_login"
# When to try again if too many passwords wait to be verified.
_BUSY_S = 2


def cookie_name(request: Request) -> str:
    """With TLS, the name's prefix keeps sub-domains and plain HTTP from setting the cookie."""
    return "__Host-pleura" if request.url.scheme == "https" else "pleura"


def has_form_token(request: Request, given: str) -> bool:
    """Whether `given` is the token of the login form that this browser was shown."""
    nonce = request.cookies.get(_LOGIN_COOKIE, "")
    return bool(nonce) and hmac.compare_digest(given.encode(), _signed(nonce).encode())


def _signed(nonce: str) -> str:
    return hmac.new(_SECRET, nonce.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def form(visit: Visit) -> Response:
    """The login form, or the first page for a visitor who has logged in."""
    if visit.session is not None:
        return RedirectResponse("/", 303)
    return page(visit, visit.request.query_params.get("next", "/"))


def page(visit: Visit, to: str, status: int = 200, told: str = "", **more: Any) -> Response:
    """The login page, which then redirects to `to`. `told`: a text that says what went wrong."""
    nonce = secrets.token_urlsafe(24)
    response = visit.page(
        "login.html",
        status,
        title=visit.texts.say("log_in"),
        next=local(to),
        token=_signed(nonce),
        trouble=visit.texts.say(told, **more) if told else "",
    )

    response.set_cookie(
        _LOGIN_COOKIE,
        nonce,
        max_age=3600,
        httponly=True,
        samesite="strict",
        secure=visit.request.url.scheme == "https",
        path="/login",
    )
    return response


def log_in(visit: Visit) -> Response:
    """The answer to the login form."""
    name = _field(visit.form, "name")[:_MOST_NAME]
    to = local(_field(visit.form, "next"))
    address = client_address(visit.request.scope)
    node = visit.node

    if wait_s := node.throttle.begin(address, name):
        return too_many_requests(visit, wait_s, to)

    try:
        is_right = node.passwords.is_right(name, _field(visit.form, "password"))
    except BusyError:
        node.throttle.withdraw(address, name)
        return too_many_requests(visit, _BUSY_S, to)

    if not is_right:
        log.warning("a login from %s failed", address)
        node.ledger.record_audit("login_failed", {"by": name, "address": address})
        return page(visit, to, 401, "login_failed")

    node.throttle.succeeded(address, name)
    token = begin_session(visit, name, node.role_of(name))
    response = RedirectResponse(to, 303)
    set_session(visit, response, token)
    return response


def too_many_requests(visit: Visit, wait_s: int, to: str = "/") -> Response:
    """The answer to a login too soon after failed logins, or beside too many other logins."""
    response = page(visit, to, 429, "login_wait", seconds=wait_s)
    response.headers["retry-after"] = str(wait_s)
    return response


def begin_session(visit: Visit, name: str, role: str) -> str:
    """Begin a session, and record it in the log and the audit trail. Returns its cookie's token."""
    address = client_address(visit.request.scope)
    token = visit.node.sessions.begin(name, ACCESS[role])
    log.info("%s: logged in from %s", name, address)
    visit.node.ledger.record_audit("login", {"by": name, "address": address})
    return token


def set_session(visit: Visit, response: Response, token: str) -> None:
    """Give the browser its session, in place of the login form's token."""
    response.set_cookie(
        cookie_name(visit.request),
        token,
        httponly=True,
        samesite="strict",
        secure=visit.request.url.scheme == "https",
        path="/",
    )
    response.delete_cookie(_LOGIN_COOKIE, path="/login")


def log_out(visit: Visit) -> Response:
    """End the session."""
    name = cookie_name(visit.request)
    visit.node.sessions.end(visit.request.cookies.get(name, ""))
    address = client_address(visit.request.scope)
    visit.node.ledger.record_audit("logout", {"by": visit.user, "address": address})

    response = RedirectResponse("/login", 303)
    response.delete_cookie(name, path="/")
    return response


def _field(form: Mapping[str, Any], name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def local(path: str) -> str:
    """A path on this page; another site's address becomes the first page."""
    # Browsers remove line feeds and tabs before they look for the second slash.
    is_local = path.isprintable() and path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if is_local else "/"
