"""Login by an OpenID Connect provider: the redirect there, and the redirect back.

The redirect back comes from another site, so the browser sends no SameSite=Strict cookie with it. A
separate Lax cookie ties the answer to the browser that began the login. The answer is a page that
navigates on by itself, because a redirect would still count as the other site's.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from daemon.web import login
from daemon.web.guard import client_address
from daemon.web.provider import LoginRequest, Provider, Refusal, RefusedError
from daemon.web.visit import Visit

log = logging.getLogger("pleura.web")

BEGIN_PATH = "/login/oidc"
_COOKIE = "pleura_oidc"
# From the login page to the answer: a person types a password and a second factor meanwhile.
_LONGEST_S = 600
# The most pending logins. A new one ends the oldest of the address with the most pending logins.
_MOST = 500
_MOST_PARAMETER = 4096
# Stands for the name if no person is known.
_NOBODY = "oidc"

_STATUS = {
    Refusal.PROVIDER: 502,
    Refusal.BUSY: 503,
    Refusal.BROWSER: 400,
    Refusal.STATE: 400,
    Refusal.ISSUER: 400,
    Refusal.DENIED: 403,
    Refusal.TOKEN: 403,
    Refusal.ROLE: 403,
}
# Not attempts to get in: the provider does not answer, or a link on another site sent a visitor
# here.
_NOT_COUNTED = (Refusal.PROVIDER, Refusal.BUSY, Refusal.BROWSER)


@dataclass(frozen=True)
class PendingLogin:
    """A login that was begun and has not ended."""

    request: LoginRequest
    # The digest of the cookie of the browser that began it, and the browser's address.
    browser: bytes
    address: str
    # Where the person wanted to go.
    to: str
    begun_at: float


class PendingLogins:
    """The pending logins, by state. Each can be completed once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._logins: dict[bytes, PendingLogin] = {}

    def begin(self, browser: str, to: str, address: str) -> tuple[str, LoginRequest]:
        """Begin a login.

        Returns its state, and its other parameters for the provider. Anybody may begin logins, so a
        flood evicts logins of its own address first.
        """
        state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        challenge = urlsafe_b64encode(_digest(verifier)).rstrip(b"=").decode()
        request = LoginRequest(secrets.token_urlsafe(32), verifier, challenge)

        now = self._clock()
        with self._lock:
            ended = [key for key, each in self._logins.items() if self._has_ended(each, now)]
            for key in ended:
                del self._logins[key]
            if len(self._logins) >= _MOST:
                del self._logins[self._oldest_of_busiest()]
            self._logins[_digest(state)] = PendingLogin(request, _digest(browser), address, to, now)
        return state, request

    def take(self, state: str, browser: str) -> PendingLogin:
        """End and return the login that this browser began with this state. Raises RefusedError."""
        with self._lock:
            found = self._logins.pop(_digest(state), None)

        if found is None:
            raise RefusedError(Refusal.STATE, "its state is already used or unknown")
        if self._has_ended(found, self._clock()):
            raise RefusedError(Refusal.STATE, f"it took longer than {_LONGEST_S} s")
        if not hmac.compare_digest(found.browser, _digest(browser)):
            raise RefusedError(Refusal.STATE, "another browser began this login")
        return found

    def _oldest_of_busiest(self) -> bytes:
        """The oldest login of the address with the most of them; among several addresses, the
        oldest login.
        """
        per_address = Counter(each.address for each in self._logins.values())
        ((busiest, _),) = per_address.most_common(1)
        return next(key for key, each in self._logins.items() if each.address == busiest)

    def _has_ended(self, found: PendingLogin, now: float) -> bool:
        return now - found.begun_at > _LONGEST_S


class SingleSignOn:
    """The two routes of a login by the provider; 404 if the settings name none."""

    def __init__(self, provider: Provider | None) -> None:
        self._known = provider
        self._pending = PendingLogins()

    def begin(self, visit: Visit) -> Response:
        """Redirect to the provider's login page."""
        provider = self._provider()
        browser = secrets.token_urlsafe(32)
        to = login.local(visit.request.query_params.get("next", "/"))
        address = client_address(visit.request.scope)
        state, request = self._pending.begin(browser, to, address)
        try:
            url = provider.login_url(state, request)
        except RefusedError as refused:
            return self._refused(visit, refused)

        response = RedirectResponse(url, 303)
        response.set_cookie(
            _COOKIE,
            browser,
            max_age=_LONGEST_S,
            httponly=True,
            samesite="lax",
            secure=visit.request.url.scheme == "https",
            path=BEGIN_PATH,
        )
        return response

    def end(self, visit: Visit) -> Response:
        """The answer from the provider: a session, or the reason for the refusal."""
        provider = self._provider()
        browser = visit.request.cookies.get(_COOKIE)
        if not browser:
            words = "the browser shows no cookie of a login: it began none, or over 10 min ago"
            return self._refused(visit, RefusedError(Refusal.BROWSER, words))

        address = client_address(visit.request.scope)
        throttle = visit.node.throttle
        if wait_s := throttle.begin(address, address):
            return login.too_many_requests(visit, wait_s)

        try:
            answer = _parameters(visit)
            found = self._pending.take(answer.get("state", ""), browser)
            person = provider.person(answer, found.request)
        except RefusedError as refused:
            if refused.refusal in _NOT_COUNTED:
                throttle.withdraw(address, address)
            return self._refused(visit, refused)

        throttle.withdraw(address, address)
        token = login.begin_session(visit, person.name, person.role)
        response = visit.page("returned.html", title=visit.texts.say("log_in"), to=found.to)
        login.set_session(visit, response, token)
        response.delete_cookie(_COOKIE, path=BEGIN_PATH)
        return response

    def _provider(self) -> Provider:
        if self._known is None:
            raise HTTPException(404)
        return self._known

    def _refused(self, visit: Visit, refused: RefusedError) -> Response:
        """Tell the person in a sentence, the log with advice, and the audit trail."""
        node = visit.node
        address = client_address(visit.request.scope)
        log.warning("a login by OIDC from %s is refused: %s", address, refused)
        if refused.refusal not in _NOT_COUNTED:
            by = refused.name or _NOBODY
            node.ledger.record_audit("login_failed", {"by": by, "address": address})

        status = _STATUS[refused.refusal]
        return login.page(visit, "/", status, f"oidc_{refused.refusal}")


def _parameters(visit: Visit) -> dict[str, str]:
    """The query of the answer. Values longer than any provider sends are left out."""
    query = visit.request.query_params
    return {name: value for name, value in query.items() if len(value) <= _MOST_PARAMETER}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
