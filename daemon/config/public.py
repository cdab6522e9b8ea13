"""The settings as people and logs may see them: every secret is hidden."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from daemon.config.schema import Config
from daemon.config.values import sqlite_file

HIDDEN = "***"

# Keys that hold a secret itself. A key that names a file (`..._file`) holds only its path.
_SECRET_KEY = re.compile(r"(?i)(^|_)(password|password_hash|passphrase|secret|token|api_key)$")


def public(config: Config) -> dict[str, Any]:
    """Every key of the settings with its effective value, secrets hidden; fit for JSON and YAML."""
    shown: dict[str, Any] = hidden(config.model_dump(mode="json"))
    shown["ledger"] = without_password(config.ledger)
    return shown


def hidden(value: Any, key: str = "") -> Any:
    """The value of a key, without the secrets in it or below it."""
    if isinstance(value, dict):
        return {name: hidden(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [hidden(item, key) for item in value]
    if value is not None and _SECRET_KEY.search(key):
        return HIDDEN
    return _without_credentials(value) if isinstance(value, str) else value


def _without_credentials(text: str) -> str:
    """A web address without its user, its query and its fragment, which may hold a token."""
    if not text.startswith(("http://", "https://")):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return HIDDEN

    _, at, host = parts.netloc.rpartition("@")
    user = f"{HIDDEN}@" if at else ""
    rest = f"?{HIDDEN}" if parts.query or parts.fragment else ""
    return f"{parts.scheme}://{user}{host}{parts.path}{rest}"


def without_password(url: str) -> str:
    """A database URL that may be shown, *** in place of its password."""
    if sqlite_file(url) is not None:
        return url

    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not a valid URL: anything before an @ may be a password, and so may any text but a path.
        _, at, after = url.rpartition("@")
        if at:
            return f"{HIDDEN}@{after}"
        return url if url.startswith(("/", "./", "sqlite")) else HIDDEN

    query = {
        key: HIDDEN if "password" in key.lower() else value for key, value in parsed.query.items()
    }
    shown = parsed.set(query=query).render_as_string(hide_password=True)
    return shown.replace("%2A%2A%2A", HIDDEN)
