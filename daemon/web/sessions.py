"""Sessions of logged-in users, on the server's side, bounded in number and in time."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

# The most sessions at a time, in all and of one user. A new session ends the one that was idle
# longest.
_MOST = 500
_MOST_OF_ONE_USER = 20
_TOKEN_BYTES = 32


class Access(IntEnum):
    """The rights of a visitor; each level includes the levels before it."""

    # The login form, style and scripts.
    OPEN = 0
    # Counts, states, UIDs and times.
    STATES = 1
    # Also pictures, objects, and trying a file.
    LOOK = 2
    # Also retry, send again, re-address.
    ACT = 3


# By the name of a role in the settings.
ACCESS = {"look": Access.LOOK, "act": Access.ACT}


@dataclass
class Session:
    """One login."""

    user: str
    access: Access
    begun_at: float
    seen_at: float
    # The CSRF token of every form that changes something.
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(_TOKEN_BYTES))
    # The outcome of the last action, shown once.
    told: str = ""


class Sessions:
    """This process's sessions. They end with it."""

    def __init__(
        self, idle_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`idle_s`: the longest time without a click.

        `longest_s`: the longest time since the login.
        """
        self._idle_s = idle_s
        self._longest_s = longest_s
        self._clock = clock
        self._lock = threading.Lock()
        # By the digest of the token, so that leaked memory gives nobody a session.
        self._sessions: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, user: str, access: Access) -> str:
        """Begin a session. Returns the token for the browser's cookie."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now = self._clock()
        with self._lock:
            self._drop_ended(now)
            mine = [key for key, each in self._sessions.items() if each.user == user]
            if len(mine) >= _MOST_OF_ONE_USER:
                self._drop_longest_resting(mine)
            if len(self._sessions) >= _MOST:
                self._drop_longest_resting(list(self._sessions))
            self._sessions[_digest(token)] = Session(user, access, now, now)
        return token

    def find(self, token: str, is_click: bool = True) -> Session | None:
        """The session of a token; None: there is no such session, or it has ended.

        `is_click` False: a page that refreshes itself does not keep a session alive.
        """
        now = self._clock()
        with self._lock:
            session = self._sessions.get(_digest(token))
            if session is None:
                return None

            if self._has_ended(session, now):
                del self._sessions[_digest(token)]
                return None

            if is_click:
                session.seen_at = now
            return session

    def end(self, token: str) -> None:
        """Log out."""
        with self._lock:
            self._sessions.pop(_digest(token), None)

    def _has_ended(self, session: Session, now: float) -> bool:
        is_idle = now - session.seen_at > self._idle_s
        return is_idle or now - session.begun_at > self._longest_s

    def _drop_ended(self, now: float) -> None:
        ended = [key for key, each in self._sessions.items() if self._has_ended(each, now)]
        for key in ended:
            del self._sessions[key]

    def _drop_longest_resting(self, keys: list[bytes]) -> None:
        del self._sessions[min(keys, key=lambda key: self._sessions[key].seen_at)]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
