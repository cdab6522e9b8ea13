"""The types of single settings: each checks its value and says in words what it allows.

tools/reference prints `allowed` of a type's JSON schema; a check raises with the same words.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from daemon.config.terms import check_body_part, check_modality, check_view

_AE_TITLE = "1 to 16 printable ASCII characters, no backslash, no blank at either end"
_DEVICE = "auto, cpu, cuda or cuda:N"
_HOST = "a host name or an IP address"
_LEDGER = "sqlite:////absolute/path or postgresql+psycopg://user@host/database"
_PORTS = "a port is a number, and several hosts are written /database?host=a:5432&host=b:5432"
_ABSOLUTE = "an absolute path, such as /var/lib/pleura/spool"

# Memory and the kernel's own files: a restart empties them, or nothing can be written there.
_VOLATILE = ("/dev", "/run", "/proc", "/sys", "/var/run")


def _application_entity_title(value: str) -> str:
    # PS3.5 Table 6.2-1, AE: 16 characters of the default repertoire, no backslash, no control
    # characters.
    blank_inside = r"[\x21-\x5b\x5d-\x7e](?:[\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?"
    if not re.fullmatch(blank_inside, value):
        raise ValueError(_AE_TITLE)
    return value


def _single_title(value: str) -> str:
    if "*" in value:
        raise ValueError("one AE title for each peer, no wildcard; list every system that may send")
    return value


def switched_on(value: Any) -> Any:
    """`true` stands for a group with every default, `false` for its absence.

    Raises:
        ValueError: anything but true, false, null or the group itself.
    """
    if isinstance(value, bool):
        return {} if value else None
    if value is None or isinstance(value, dict | BaseModel):
        return value
    raise ValueError("true, false, or keys and values below it")


def _quoted(value: Any) -> Any:
    """YAML reads 123 or 1e5 as a number, true as a boolean: names that look so need quotes."""
    if isinstance(value, bool | float):
        # Its spelling is lost: YAML has turned 1.10 into 1.1, and 1e5 into 100000.0.
        raise ValueError("text; put what stands there in quotes")
    if isinstance(value, int):
        raise ValueError(f"text; write it in quotes: '{value}'")
    return value


def _host(value: str) -> str:
    is_address = re.fullmatch(r"[0-9a-fA-F:.%]*:[0-9a-zA-Z:.%]*", value) is not None
    ends_in_number = re.fullmatch(r"(?:.*\.)?(?:\d+|0[xX][0-9a-fA-F]*)\.?", value) is not None
    if is_address or ends_in_number:
        return _address(value)

    labels = value.removesuffix(".").split(".")
    is_name = all(re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", label) for label in labels)
    if not is_name or len(value) > 253:
        raise ValueError(f"{_HOST}{_hint_for_host(value)}")
    return value


def _address(value: str) -> str:
    """An IP address in its plain form.

    Programs disagree about others: those that read octal take 010.0.4.11 for 8.0.4.11.
    """
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{_HOST}{_hint_for_host(value)}") from None
    return value


def _hint_for_host(value: str) -> str:
    if value == "*":
        return "; null admits any address"
    if "/" in value:
        return "; a range of addresses is not supported: list each system"
    if re.fullmatch(r"[^:]+:\d+", value):
        return "; the port has its own key"
    if re.fullmatch(r"\d+(\.\d+)+", value) and re.search(r"(^|\.)0\d", value):
        return "; leading zeros mean octal to some programs: leave them out"
    if re.fullmatch(r"[\d.]+", value):
        return "; an IPv4 address has four numbers from 0 to 255"
    return ""


def _remote_host(value: str) -> str:
    """A host that a peer or an archive can have."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return value

    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"the address of one system; {value} is not the address of a system")
    return value


def _absolute(value: Path) -> Path:
    if value.parts[:1] != ("/",) or any(part.startswith("~") for part in value.parts):
        raise ValueError(f"{_ABSOLUTE}; ~ and relative paths depend on who starts the node")
    return value


def _absolute_file(value: Path) -> Path:
    if value.parts[:1] != ("/",) or any(part.startswith("~") for part in value.parts):
        raise ValueError(
            "an absolute path, such as /etc/pleura/node.pem; ~ and relative paths depend on who "
            "starts the node"
        )
    return value


def _lasting(value: Path) -> Path:
    _absolute(value)
    for folder in _VOLATILE:
        if value.is_relative_to(folder):
            raise ValueError(f"a folder on a disk; {folder} is not kept over a restart")
    return value


def _model(value: str) -> str:
    if value != "default":
        _absolute(Path(value))
    return value


def sqlite_file(url: str) -> str | None:
    """The file that an SQLite URL without options names; None for every other URL.

    Other URLs need SQLAlchemy, whose import takes half of a short command's time.
    """
    plain = re.fullmatch(r"sqlite(?:\+pysqlite)?:///([^?]*)", url)
    return plain[1] if plain else None


def _ledger_url(value: str) -> str:
    if (file := sqlite_file(value)) is not None:
        _check_sqlite(file)
        return value

    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(value)
    except ArgumentError:
        raise ValueError(_LEDGER) from None
    except ValueError:
        # Its port is not a number. The error quotes it, and without a host it is the password.
        raise ValueError(f"{_LEDGER}; {_PORTS}") from None

    # What PostgreSQL's own tools write. SQLAlchemy would look for psycopg2, which is not installed.
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")

    if url.drivername == "postgresql+psycopg":
        return url.render_as_string(hide_password=False)
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        _check_sqlite(url.database or "")
        return value
    raise ValueError(_LEDGER)


def _check_sqlite(path: str) -> None:
    if not path.startswith("/"):
        raise ValueError(
            "sqlite:////absolute/path, with four slashes: the roles are processes that share one "
            "file, and a relative path depends on where each is started"
        )
    _lasting(Path(path))


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(_DEVICE)
    return value


def _as_headers_have_it(text: str) -> str:
    """A Code String (PS3.5 6.2, CS) is upper case, however the settings spell it."""
    return text.strip().upper()


def _words(allowed: str, kind: str = "string") -> WithJsonSchema:
    return WithJsonSchema({"type": kind, "allowed": allowed})


Text = Annotated[str, BeforeValidator(_quoted)]
AETitle = Annotated[Text, AfterValidator(_application_entity_title), _words(_AE_TITLE)]
PeerTitle = Annotated[AETitle, AfterValidator(_single_title), _words(_AE_TITLE)]
Host = Annotated[Text, AfterValidator(_host), _words(_HOST)]
RemoteHost = Annotated[Host, AfterValidator(_remote_host), _words(_HOST)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
Name = Annotated[
    Text,
    Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$"),
    _words("1 to 64 letters, digits, dots, hyphens or underscores"),
]
Folder = Annotated[Path, AfterValidator(_absolute), _words("an absolute path")]
File = Annotated[Path, AfterValidator(_absolute_file), _words("the absolute path of a file")]
LastingFolder = Annotated[Path, AfterValidator(_lasting), _words("an absolute path on a disk")]
Model = Annotated[
    str,
    AfterValidator(_model),
    Field(min_length=1),
    _words("`default`, or the absolute path of a model package"),
]
LedgerUrl = Annotated[str, AfterValidator(_ledger_url), _words(_LEDGER)]
Device = Annotated[str, AfterValidator(_device), _words(_DEVICE)]

_CodeString = Annotated[Text, Field(min_length=1), AfterValidator(_as_headers_have_it)]
Modality = Annotated[
    _CodeString, AfterValidator(check_modality), _words("modalities of radiographs")
]
BodyPart = Annotated[
    _CodeString, AfterValidator(check_body_part), _words("terms of PS3.16 Annex L, or local words")
]
View = Annotated[_CodeString, AfterValidator(check_view), _words("`AP`, `PA`, `RLD`, `LLD`")]
