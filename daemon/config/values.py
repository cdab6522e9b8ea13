"""The types of single settings: each checks its value and says in words what it allows.

tools/reference prints `allowed` of a type's JSON schema; a check raises with the same words.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

_AE_TITLE = "1 to 16 printable ASCII characters, no backslash, no blank at either end"
_DEVICE = "auto, cpu, cuda or cuda:N"
_HOST = "a host name or an IP address"
_LEDGER = "sqlite:////absolute/path or postgresql+psycopg://user@host/database"
_LATER = "not in this version: only null"


def _application_entity_title(value: str) -> str:
    # PS3.5 Table 6.2-1, AE: 16 characters of the default repertoire, no backslash, no control
    # characters.
    blank_inside = r"[\x21-\x5b\x5d-\x7e](?:[\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?"
    if not re.fullmatch(blank_inside, value):
        raise ValueError(_AE_TITLE)

    return value


def _host(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", value):
        return value

    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(_HOST) from None
    return value


def _ledger_url(value: str) -> str:
    try:
        url = make_url(value)
    except ArgumentError:
        raise ValueError(_LEDGER) from None

    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ValueError(_LEDGER)

    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("sqlite:////absolute/path: the roles are processes and share one file")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(_DEVICE)
    return value


def _built_later(value: Any) -> None:
    if value is not None:
        raise ValueError(_LATER)


def _as_headers_have_it(text: str) -> str:
    """A Code String (PS3.5 6.2, CS) is upper case, however the settings spell it."""
    return text.strip().upper()


def _words(allowed: str, kind: str = "string") -> WithJsonSchema:
    return WithJsonSchema({"type": kind, "allowed": allowed})


AETitle = Annotated[str, AfterValidator(_application_entity_title), _words(_AE_TITLE)]
Host = Annotated[str, AfterValidator(_host), _words(_HOST)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$"),
    _words("1 to 64 letters, digits, dots, hyphens or underscores"),
]
Folder = Annotated[Path, _words("a folder")]
LedgerUrl = Annotated[str, AfterValidator(_ledger_url), _words(_LEDGER)]
Device = Annotated[str, AfterValidator(_device), _words(_DEVICE)]
CodeString = Annotated[
    str,
    AfterValidator(_as_headers_have_it),
    Field(min_length=1),
    _words("code strings, as headers have them"),
]
Later = Annotated[None, BeforeValidator(_built_later), _words(_LATER, "null")]
