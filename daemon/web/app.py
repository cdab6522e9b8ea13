"""The page's routes, and the one door that every request goes through: session, access, token.

A page is a function from a Visit to a response. It runs in a thread, because it asks the ledger.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from daemon.ledger import LedgerError, describe
from daemon.metrics.probes import Probes
from daemon.spool import Spool
from daemon.web import acts, images, model, now, pictures, runbook, trial
from daemon.web.guard import Guard, TooLargeError, client_address
from daemon.web.sessions import Access, Session
from daemon.web.texts import Texts
from daemon.web.visit import Node, Visit

log = logging.getLogger("pleura.web")

Handler = Callable[[Visit], Response]

_STATIC = Path(__file__).parent / "static"
# Fields of a form, and bytes of one that is no file.
_MOST_FIELDS = 20
_MOST_FIELD_BYTES = 8192
_MOST_NAME = 64
# Signs the token of the login form, for this process.
_SECRET = secrets.token_bytes(32)
_LOGIN_COOKIE = "pleura_login"


@dataclass(frozen=True)
class Door:
    """One route: who may go through it, and what lies behind."""

    path: str
    access: Access
    handler: Handler
    method: str = "GET"
    # A page that a browser fetches by itself keeps no session alive.
    is_click: bool = True


def doors(spool: Spool) -> list[Door]:
    """Every route of the page."""
    files = pictures.Pictures(spool)
    tries = trial.Trials()

    return [
        Door("/login", Access.OPEN, _login_form),
        Door("/login", Access.OPEN, _log_in, "POST"),
        Door("/logout", Access.LOOK, _log_out, "POST"),
        Door("/", Access.STATES, lambda visit: now.page(visit, spool)),
        Door("/live", Access.STATES, lambda visit: now.live(visit, spool), is_click=False),
        Door("/images", Access.STATES, images.listing),
        Door("/images/{number:int}", Access.STATES, lambda visit: images.one(visit, files)),
        Door("/images/{number:int}/picture", Access.LOOK, files.radiograph),
        Door("/objects/{number:int}", Access.LOOK, files.download),
        Door("/objects/{number:int}/picture", Access.LOOK, files.overlay),
        Door("/model", Access.STATES, model.page),
        Door("/runbook", Access.STATES, runbook.page),
        Door("/try", Access.LOOK, tries.form),
        Door("/try", Access.LOOK, tries.answer, "POST"),
        Door("/acts", Access.ACT, acts.act, "POST"),
    ]


def build(node: Node, spool: Spool) -> ASGIApp:
    """The page as an ASGI application."""
    routes: list[Route | Mount] = [
        Route(door.path, _endpoint(node, door), methods=[door.method]) for door in doors(spool)
    ]
    routes.append(Mount("/static", StaticFiles(directory=_STATIC)))
    routes += _probes(node).routes()

    app = Starlette(routes=routes, exception_handlers={HTTPException: _not_found})
    return Guard(app, node.web)


def _probes(node: Node) -> Probes:
    """Answers to machines, without login: daemon/metrics decides which callers get one."""
    web = node.web
    # Without users the page itself shows this much to every program on this machine.
    return Probes(lambda: node.settings, node.ledger.inspect, not web.users, web.metrics_token_file)


def _endpoint(node: Node, door: Door) -> Callable[[Request], Any]:
    """The door as Starlette calls it."""

    async def enter(request: Request) -> Response:
        session = _session(node, request, door.is_click)
        access = _access(node, session)
        texts = Texts.for_browser(node.web.language, request.headers.get("accept-language", ""))
        if access < door.access:
            return _turned_away(Visit(node, request, access, texts, session), door)

        if door.method == "GET":
            return await _answered(door, Visit(node, request, access, texts, session))
        return await _posted(door, Visit(node, request, access, texts, session))

    return enter


async def _posted(door: Door, visit: Visit) -> Response:
    """A form: of this page, in bounds, with the session's token."""
    request = visit.request
    if not _is_from_here(request):
        return _plain_page(visit, 403, "forbidden_origin")

    try:
        form = await request.form(
            max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD_BYTES
        )
    except TooLargeError:
        return _plain_page(visit, 413, "too_large")
    except TimeoutError:
        return _plain_page(visit, 408, "too_slow")

    try:
        if not _has_token(visit, form):
            return _plain_page(visit, 403, "forbidden_token")
        whole = Visit(
            visit.node, request, visit.access, visit.texts, visit.session, dict(form.items())
        )
        return await _answered(door, whole)
    finally:
        await form.close()


async def _answered(door: Door, visit: Visit) -> Response:
    """The page's answer, or the page of the fault that prevented it."""
    try:
        return await run_in_threadpool(door.handler, visit)
    except (SQLAlchemyError, LedgerError) as error:
        trouble = describe(error) if isinstance(error, SQLAlchemyError) else str(error)
        log.warning("%s: the ledger does not answer: %s", door.path, trouble)
        return _plain_page(visit, 503, "ledger_away")
    except HTTPException as error:
        return _plain_page(visit, error.status_code, "not_found")
    except Exception:
        # The loop's one catch-all: a page that breaks must not show a traceback to its reader.
        log.exception("%s: the page broke", door.path)
        return _plain_page(visit, 500, "broken")


def _plain_page(visit: Visit, status: int, key: str) -> Response:
    return visit.page("message.html", status, title=visit.texts.say("problem"), key=key)


async def _not_found(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return Response(f"{status}\n", status, media_type="text/plain")


# -- who is there ----------------------------------------------------------------------------------


def _cookie_name(request: Request) -> str:
    """With TLS the name itself forbids that a sub-domain, or plain HTTP, sets the cookie."""
    return "__Host-pleura" if request.url.scheme == "https" else "pleura"


def _session(node: Node, request: Request, is_click: bool) -> Session | None:
    token = request.cookies.get(_cookie_name(request), "")
    return node.sessions.find(token, is_click) if token else None


def _access(node: Node, session: Session | None) -> Access:
    if session is not None:
        return session.access
    return Access.OPEN if node.web.users else Access.STATES


def _turned_away(visit: Visit, door: Door) -> Response:
    """To the login form; without a user in the settings, nobody can log in."""
    if visit.session is not None:
        return _plain_page(visit, 403, "forbidden")
    if door.method == "POST":
        return _plain_page(visit, 403, "forbidden")

    to = "/login?next=" + quote(visit.request.url.path)
    if visit.request.headers.get("hx-request"):
        return Response(status_code=401, headers={"hx-redirect": to})
    return RedirectResponse(to, 303)


# -- forms -----------------------------------------------------------------------------------------


def _is_from_here(request: Request) -> bool:
    """Whether the browser says that this form came from one of our pages."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _has_token(visit: Visit, form: FormData) -> bool:
    """Whether the form has the token of its session, or of its login form."""
    given = form.get("token")
    if not isinstance(given, str):
        return False
    if visit.session is not None:
        return hmac.compare_digest(given.encode(), visit.session.csrf.encode())

    nonce = visit.request.cookies.get(_LOGIN_COOKIE, "")
    return bool(nonce) and hmac.compare_digest(given.encode(), _signed(nonce).encode())


def _signed(nonce: str) -> str:
    return hmac.new(_SECRET, nonce.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


# -- logging in and out ----------------------------------------------------------------------------


def _login_form(visit: Visit) -> Response:
    if visit.session is not None:
        return RedirectResponse("/", 303)
    return _login_page(visit, visit.request.query_params.get("next", "/"))


def _login_page(visit: Visit, to: str, status: int = 200, told: str = "", **more: Any) -> Response:
    nonce = secrets.token_urlsafe(24)
    response = visit.page(
        "login.html",
        status,
        title=visit.texts.say("log_in"),
        next=_local(to),
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


def _log_in(visit: Visit) -> Response:
    name = _field(visit.form, "name")[:_MOST_NAME]
    to = _local(_field(visit.form, "next"))
    address = client_address(visit.request.scope)
    node = visit.node

    wait_s = node.throttle.wait_s(address, name)
    if wait_s:
        response = _login_page(visit, to, 429, "login_wait", seconds=wait_s)
        response.headers["retry-after"] = str(wait_s)
        return response

    if not node.passwords.is_right(name, _field(visit.form, "password")):
        node.throttle.failed(address, name)
        log.warning("a login from %s failed", address)
        node.ledger.record_audit("login_failed", {"by": name, "address": address})
        return _login_page(visit, to, 401, "login_failed")

    node.throttle.succeeded(address, name)
    token = node.sessions.begin(name, node.access_of(name))
    log.info("%s: logged in from %s", name, address)
    node.ledger.record_audit("login", {"by": name, "address": address})
    return _with_session(visit, token, to)


def _with_session(visit: Visit, token: str, to: str) -> Response:
    response = RedirectResponse(to, 303)
    response.set_cookie(
        _cookie_name(visit.request),
        token,
        httponly=True,
        samesite="strict",
        secure=visit.request.url.scheme == "https",
        path="/",
    )
    response.delete_cookie(_LOGIN_COOKIE, path="/login")
    return response


def _log_out(visit: Visit) -> Response:
    name = _cookie_name(visit.request)
    visit.node.sessions.end(visit.request.cookies.get(name, ""))
    address = client_address(visit.request.scope)
    visit.node.ledger.record_audit("logout", {"by": visit.user, "address": address})

    response = RedirectResponse("/login", 303)
    response.delete_cookie(name, path="/")
    return response


def _field(form: Mapping[str, Any], name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def _local(path: str) -> str:
    """A path on this page; another site's address becomes the first page."""
    parts = urlsplit(path)
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and not parts.netloc
    return path if is_local and path.isprintable() else "/"
