"""The page's routes, and the checks that every request passes: session, access, token.

A page is a function from a Visit to a response. It runs in a thread, because it asks the ledger.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
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
from daemon.web import acts, images, login, model, now, pictures, runbook, trial
from daemon.web.guard import Guard, TooLargeError
from daemon.web.provider import ANSWER_PATH, Provider
from daemon.web.sessions import Access, Session
from daemon.web.single_sign_on import BEGIN_PATH, SingleSignOn
from daemon.web.texts import Texts
from daemon.web.visit import Node, Visit

log = logging.getLogger("pleura.web")

Handler = Callable[[Visit], Response]

_STATIC = Path(__file__).parent / "static"
# The most fields of a form, and the most bytes of a field that is not a file.
_MOST_FIELDS = 20
_MOST_FIELD_BYTES = 8192


@dataclass(frozen=True)
class Door:
    """One route: who may use it, and its page."""

    path: str
    access: Access
    handler: Handler
    method: str = "GET"
    # A page that the browser fetches by itself does not keep a session alive.
    is_click: bool = True


def doors(spool: Spool, sign_on: SingleSignOn) -> list[Door]:
    """Every route of the page."""
    files = pictures.Pictures(spool)
    tries = trial.Trials()

    return [
        Door("/login", Access.OPEN, login.form),
        Door("/login", Access.OPEN, login.log_in, "POST"),
        Door(BEGIN_PATH, Access.OPEN, sign_on.begin),
        Door(ANSWER_PATH, Access.OPEN, sign_on.end),
        Door("/logout", Access.LOOK, login.log_out, "POST"),
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
    """The page as an ASGI application.

    Raises:
        TlsError: a file of `web.oidc` cannot be used, or its library is not installed.
    """
    oidc = node.web.oidc
    sign_on = SingleSignOn(None if oidc is None else Provider(oidc))
    routes: list[Route | Mount] = [
        Route(door.path, _endpoint(node, door), methods=[door.method])
        for door in doors(spool, sign_on)
    ]
    routes.append(Mount("/static", StaticFiles(directory=_STATIC)))
    routes += _probes(node).routes()

    app = Starlette(routes=routes, exception_handlers={HTTPException: _not_found})
    return Guard(app, node.web)


def _probes(node: Node) -> Probes:
    """Endpoints for machines, without login: daemon/metrics decides who gets an answer."""
    web = node.web
    # Without a login the page itself shows this much to every program on this machine.
    is_open = not web.asks_for_login
    return Probes(lambda: node.settings, node.ledger.inspect, is_open, web.metrics_token_file)


def _endpoint(node: Node, door: Door) -> Callable[[Request], Any]:
    """The endpoint that Starlette calls."""

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
    """The posted form, checked: from this page, within limits, with the session's token."""
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
    """The page's response, or an error page."""
    try:
        return await run_in_threadpool(door.handler, visit)
    except (SQLAlchemyError, LedgerError) as error:
        trouble = describe(error) if isinstance(error, SQLAlchemyError) else str(error)
        log.warning("%s: the ledger does not answer: %s", door.path, trouble)
        return _plain_page(visit, 503, "ledger_away")
    except HTTPException as error:
        return _plain_page(visit, error.status_code, "not_found")
    except Exception:
        # The loop's only catch-all: a page that breaks must not show a traceback to its reader.
        log.exception("%s: the page broke", door.path)
        return _plain_page(visit, 500, "broken")


def _plain_page(visit: Visit, status: int, key: str) -> Response:
    return visit.page("message.html", status, title=visit.texts.say("problem"), key=key)


async def _not_found(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return Response(f"{status}\n", status, media_type="text/plain")


# -- who is there ----------------------------------------------------------------------------------


def _session(node: Node, request: Request, is_click: bool) -> Session | None:
    token = request.cookies.get(login.cookie_name(request), "")
    return node.sessions.find(token, is_click) if token else None


def _access(node: Node, session: Session | None) -> Access:
    if session is not None:
        return session.access
    return Access.OPEN if node.web.asks_for_login else Access.STATES


def _turned_away(visit: Visit, door: Door) -> Response:
    """Redirect to the login form; without users in the settings, an error page."""
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
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:
        # Half an IPv6 address.
        return False


def _has_token(visit: Visit, form: FormData) -> bool:
    """Whether the form has the token of its session, or of its login form."""
    given = form.get("token")
    if not isinstance(given, str):
        return False
    if visit.session is not None:
        return hmac.compare_digest(given.encode(), visit.session.csrf.encode())

    return login.has_form_token(visit.request, given)
