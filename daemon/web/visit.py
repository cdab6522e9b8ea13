"""One request for a page: the node, the visitor, the language, the form."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from daemon import installed
from daemon.config import Config, Web
from daemon.drift import monday_of
from daemon.ledger import Ledger
from daemon.ledger.view import View
from daemon.web import shown
from daemon.web.passwords import Passwords, Throttle
from daemon.web.sessions import Access, Session, Sessions
from daemon.web.texts import Texts

log = logging.getLogger("pleura.web")

_FOLDER = Path(__file__).parent


@dataclass(eq=False)
class Node:
    """What every page uses. `ledger` is only for actions; pages read `view`.

    `settings` may be replaced while pages are served (daemon/live.py).
    """

    settings: Config
    web: Web
    ledger: Ledger
    view: View
    sessions: Sessions
    passwords: Passwords
    throttle: Throttle
    templates: jinja2.Environment
    # Name -> (lifetime, time of making, value), shared by all browsers.
    _kept: dict[str, tuple[float, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, settings: Config, web: Web, ledger: Ledger, view: View) -> Node:
        """The node of these settings."""
        hashes = {user.name: user.password_hash for user in web.users}
        return cls(
            settings=settings,
            web=web,
            ledger=ledger,
            view=view,
            sessions=Sessions(web.idle_minutes * 60.0, web.session_hours * 3600.0),
            passwords=Passwords(hashes),
            throttle=Throttle(),
            templates=_templates(),
        )

    @property
    def destinations(self) -> list[str]:
        """The names of the destinations in the settings."""
        return [destination.name for destination in self.settings.destinations]

    def role_of(self, name: str) -> str:
        """The role of a user of the settings."""
        return {user.name: user.role for user in self.web.users}[name]

    def once_every(self, seconds: float, name: str, make: Callable[[], Any]) -> Any:
        """The result of `make`, at most `seconds` old, so that ten open pages query no more than
        one.

        Others wait while one of them makes it.
        """
        with self._lock:
            made_at, value = self._kept.get(name, (-seconds, None))
            if time.monotonic() - made_at >= seconds:
                value = make()
                self._kept[name] = (time.monotonic(), value)
            return value

    def forget(self, name: str) -> None:
        """Make it again for the next request, because an action has changed it."""
        with self._lock:
            self._kept.pop(name, None)


@dataclass(frozen=True, eq=False)
class Visit:
    """One admitted request."""

    node: Node
    request: Request
    access: Access
    texts: Texts
    session: Session | None = None
    form: Mapping[str, Any] = field(default_factory=dict)

    @property
    def user(self) -> str:
        """For the audit trail and the log."""
        return self.session.user if self.session else "a program on this machine"

    @property
    def may_look(self) -> bool:
        """Whether pictures and objects are for this visitor."""
        return self.access >= Access.LOOK

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A template as an answer."""
        session = self.session
        common = {
            "t": self.texts.say,
            "shown": shown.Shown(self.texts),
            "language": self.texts.language,
            "ae_title": self.node.settings.ae_title,
            "version": installed.version(),
            "path": self.request.url.path,
            "user": session.user if session else "",
            "csrf": session.csrf if session else "",
            "may_look": self.may_look,
            "may_act": self.access >= Access.ACT,
            "asks_for_login": self.node.web.asks_for_login,
            "has_users": bool(self.node.web.users),
            "has_oidc": self.node.web.oidc is not None,
            "told": self._told(),
        }

        text = self.node.templates.get_template(template).render(common | values)
        return HTMLResponse(text, status)

    def back(self, to: str, told: str) -> Response:
        """After an action: redirect to a page that shows its outcome once."""
        if self.session is not None:
            self.session.told = told
        return RedirectResponse(to, 303)

    def audit(self, event: str, what: str) -> None:
        """Record in the audit trail and the log what the visitor did or saw."""
        log.info("%s: %s %s", self.user, event, what)
        self.node.ledger.record_audit(event, {"by": self.user, "what": what})

    def _told(self) -> str:
        if self.session is None or self.request.headers.get("hx-request"):
            return ""
        told, self.session.told = self.session.told, ""
        return told


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["monday"] = monday_of
    return environment
