"""The ledger's URL from outside the settings file: it may hold the database's password.

It is looked for in the order that systemd and containers use: the environment, a file that the
environment names (LoadCredential=, a mounted secret), a file that the settings name, the settings
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "PLEURA_LEDGER"
FILE_VARIABLE = "PLEURA_LEDGER_FILE"

# Longer than any URL that PostgreSQL takes.
_MOST_BYTES = 8192


class SecretError(ValueError):
    """A secret cannot be read. The message names its place, never its value."""


@dataclass(frozen=True)
class Secret:
    """A value of `ledger`, and the place that it comes from."""

    value: str
    place: str


def ledger_url(found: Mapping[str, Any], environment: Mapping[str, str]) -> Secret | None:
    """The ledger's URL from outside the settings; None where they hold it, or the default holds.

    Raises:
        SecretError: its file cannot be read or is empty, a variable is, or both keys are given.
    """
    for name in (VARIABLE, FILE_VARIABLE):
        # This happens with a compose file whose own variable is not set. The default would be a new
        # ledger.
        if name in environment and not environment[name].strip():
            raise SecretError(f"{name}: found nothing; give it a value, or do not set it")
    if VARIABLE in environment:
        return Secret(environment[VARIABLE], VARIABLE)
    if FILE_VARIABLE in environment:
        return _read(Path(environment[FILE_VARIABLE]), FILE_VARIABLE)

    path = found.get("ledger_file")
    if path is None:
        return None
    if found.get("ledger") is not None:
        raise SecretError("ledger, ledger_file: one of them, not both")
    # The key's own check reports any other type.
    return _read(Path(path), "ledger_file") if isinstance(path, str) else None


def _read(path: Path, place: str) -> Secret:
    if not path.is_absolute():
        # Somebody may have written the secret itself in place of its file.
        raise SecretError(f"{place}: found another text; allowed: the absolute path of a file")
    try:
        with path.open(encoding="utf-8") as file:
            value = file.read(_MOST_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise SecretError(f"{place}: {path} cannot be read ({why})") from None

    if not value:
        raise SecretError(f"{place}: {path} is empty; it holds the value of `ledger`")
    return Secret(value, f"{place}, {path}")
