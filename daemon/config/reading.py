"""The only reader of settings: one YAML file in, one `Config` out, or every error at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from daemon import installed
from daemon.config import conflicts, document, secrets
from daemon.config.public import hidden, public, without_password
from daemon.config.schema import Config
from daemon.config.terms import closest
from daemon.exits import CannotStartError

_GROUP = "keys and values below it"
_LIST = "a list, such as [A, B]"
# YAML's names of types in place of pydantic's, by the type of the error.
_WANTED = {
    "model_type": _GROUP,
    "model_attributes_type": _GROUP,
    "tuple_type": _LIST,
    "int_type": "an integer, without quotes",
    "float_type": "a number, without quotes or unit",
    "string_type": "text",
    "bool_type": "true or false",
}

# A key at least this similar (difflib) to a known key is taken for a typo of it.
_KEY_LIKENESS = 0.6


class ConfigError(CannotStartError):
    """The settings cannot be used. The message lists every error: key, value found, allowed."""


def commented_file() -> Path:
    """The shipped settings file that lists every key, commented, at its default."""
    return installed.shipped_file("daemon", "pleura.yaml")


def begin(path: Path) -> str:
    """Write the commented settings to a new file. Returns what was done, and what comes next.

    Raises:
        ConfigError: the file exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(commented_file().read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise ConfigError(f"{path}: already exists; nothing was written") from error
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: its folder is not there; make it: mkdir -p {path.absolute().parent}"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error

    said = (
        f"{path}: written, every key at its default; edit it, then: pleura config check -c {path}"
    )
    if os.geteuid() == 0:
        said += f"\nThe service's user must be able to read it: chown root:GROUP {path}"
        said += f" && chmod 640 {path}"
    return said


def load(path: Path) -> Config:
    """Read and check one YAML file.

    Raises:
        ConfigError: unreadable, not YAML, or one or more keys wrong; all of them are listed.
    """
    found = _read(path)
    try:
        secret = secrets.ledger_url(found, os.environ)
    except secrets.SecretError as error:
        raise ConfigError(f"{path}: {error}") from None
    if secret is not None:
        _check_secret(secret)
        found["ledger"] = secret.value

    try:
        config = Config.model_validate(found)
    except ValidationError as error:
        details = error.errors()
        wrong = {detail["loc"] for detail in details if detail["type"] != "too_short"}
        lines = [
            _explain(found, dict(detail))
            for detail in details
            # A list with wrong entries is not also reported as too short.
            if not _holds_another(detail["loc"], wrong)
        ]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from error

    if lines := conflicts.find(config, path):
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines))
    return config


def _holds_another(place: tuple[int | str, ...], places: set[tuple[int | str, ...]]) -> bool:
    """Whether one of `places` lies inside `place`."""
    return any(other[: len(place)] == place for other in places - {place})


def _check_secret(secret: secrets.Secret) -> None:
    """Refuse a wrong URL by naming its place only: the value may be a bare password.

    Raises:
        ConfigError: it is not the URL of a ledger.
    """
    try:
        Config.model_validate({"ledger": secret.value})
    except ValidationError as error:
        allowed = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"{secret.place}: found another text; allowed: {allowed}") from None


def with_device(config: Config, device: str) -> Config:
    """The same settings for another device (`pleura analyse --device`).

    Raises:
        ConfigError: the device's name is wrong.
    """
    try:
        return Config.model_validate(config.model_dump() | {"device": device})
    except ValidationError as error:
        raise ConfigError(
            f"--device: found {device!r}; allowed: auto, cpu, cuda or cuda:N"
        ) from error


def show(config: Config) -> str:
    """The whole effective configuration as YAML, defaults filled in, passwords hidden."""
    return yaml.safe_dump(public(config), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    """The file's keys and values, unchecked; a file of comments has none.

    Raises:
        ConfigError: the file is unreadable, empty, not YAML, or not a mapping of keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give the settings with -c FILE or "
            f"PLEURA_CONFIG, or begin them: pleura config init -c {path} (a copy of "
            f"{commented_file()})"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); it must be UTF-8 that this user may read"
        ) from error

    if not text.strip():
        # A disk that is full at an edit leaves such a file. Defaults would name neither peers nor
        # destinations, and another ledger and spool.
        raise ConfigError(
            f"{path}: is empty; settings wanted. Restore it from a copy, or remove it and begin "
            f"again: pleura config init -c {path}"
        )

    try:
        found = document.parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {_in_words(error)}") from error

    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: found {type(found).__name__} at the top, wanted keys and values"
        )
    return found


def _in_words(error: yaml.YAMLError) -> str:
    """The place in the file and the problem; PyYAML itself calls the file "<unicode string>"."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or not problem:
        return str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _explain(found: Any, error: dict[str, Any]) -> str:
    """One of pydantic's errors as a line: key, value found, allowed."""
    # The tags of the two kinds of destination are pydantic's, not the file's.
    keys = [part for part in error["loc"] if part not in ("<dicom>", "<folder>")]
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in keys)
    where = dotted.lstrip(".")

    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_suggestion(keys)}{commented_file()} lists every key"
    if error["type"] == "missing":
        return f"{where}: absent, and it has no default"

    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    message = _WANTED.get(error["type"], message)
    inner = _known_keys().get(".".join(key for key in keys if isinstance(key, str)))
    if inner and message == _GROUP:
        message += f": {', '.join(inner)}"
    elif inner and message == _LIST:
        message = f"a list, each entry after a hyphen, with the keys {', '.join(inner)}"
    if not where:
        return message

    value = _value_at(found, keys)
    if value is None:
        is_entry = isinstance(keys[-1], int)
        rest = "" if is_entry else "; or leave the key out"
        return f"{where}: found nothing (null); allowed: {message}{rest}"
    if keys[0] == "ledger" and isinstance(value, str):
        value = without_password(value)
    if keys[-1] == "password_hash" or (keys[0] == "web" and isinstance(value, dict | list)):
        # Somebody may have written the password in place of its hash.
        return f"{where}: allowed: {message}"
    if str(keys[-1]).endswith("_file") and isinstance(value, str):
        # Somebody may have written the secret itself in place of its file.
        return f"{where}: found another text; allowed: {message}"
    return f"{where}: found {hidden(value, str(keys[-1]))!r}; allowed: {message}"


def _suggestion(keys: list[Any]) -> str:
    """The known key that was probably meant, at the same place or elsewhere."""
    unknown = str(keys[-1])
    parent = ".".join(str(key) for key in keys[:-1] if isinstance(key, str))
    places = _known_keys()

    if unknown in places.get(parent, ()):
        # The one list whose entries are of two kinds.
        return "a destination is either an archive or a `folder`. "
    meant = closest(unknown, places.get(parent, ()), _KEY_LIKENESS)
    if meant:
        return f"did you mean {meant!r}? "

    homes = [place for place, names in places.items() if unknown in names]
    if homes:
        return f"it belongs {'under ' + homes[0] if homes[0] else 'at the top'}. "
    return ""


def _known_keys() -> dict[str, list[str]]:
    """The known keys by place: "" is the top level, "retention" and "alerts.mail" are groups.

    Entries of a list belong to the place of the list.
    """
    schema = Config.model_json_schema()
    known: dict[str, list[str]] = {}
    waiting = [("", schema)]

    while waiting:
        place, group = waiting.pop(0)
        keys = known.setdefault(place, [])
        keys += [key for key in group["properties"] if key not in keys]

        for key, value in group["properties"].items():
            inner_place = f"{place}.{key}".lstrip(".")
            waiting += [(inner_place, schema["$defs"][name]) for name in _groups_of(value)]
    return known


def _groups_of(value: Mapping[str, Any]) -> Iterator[str]:
    """The names of the groups that a key may hold, as its value or in a list."""
    item = value.get("items", value)
    for variant in item.get("oneOf") or item.get("anyOf") or [item]:
        reference = variant.get("items", variant).get("$ref")
        if reference:
            yield reference.rpartition("/")[2]


def _value_at(found: Any, keys: list[Any]) -> Any:
    for key in keys:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            return None
    return found
