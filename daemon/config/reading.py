"""The only reader of settings: one YAML file in, one `Config` out, or every error at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from daemon.config.schema import Config


class ConfigError(Exception):
    """The settings cannot be used. The message lists every error: key, value found, allowed."""


def load(path: Path) -> Config:
    """Read and check one YAML file.

    Raises:
        ConfigError: unreadable, not YAML, or one or more keys wrong; all of them are listed.
    """
    document = _document(path)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        lines = [_explain(path, document, dict(detail)) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from error


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
    """The whole effective configuration as YAML, defaults filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML would silently take the later value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)

        return super().construct_mapping(node, deep)


def _document(path: Path) -> dict[str, Any]:
    """The file's keys and values, unchecked; an empty file has none.

    Raises:
        ConfigError: the file is unreadable, not YAML, or holds something else than keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); give a readable UTF-8 YAML file with -c"
        ) from error

    try:
        document = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error

    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: found {type(document).__name__} at the top, wanted keys and values"
        )
    return document


def _explain(path: Path, document: Any, error: dict[str, Any]) -> str:
    """One of pydantic's errors as a line: file, key, value found, allowed."""
    # The tags of the two kinds of destination are pydantic's, not the file's.
    keys = [part for part in error["loc"] if part not in ("<dicom>", "<folder>")]
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in keys)
    where = dotted.lstrip(".")

    if error["type"] == "extra_forbidden":
        return f"{path}: {where}: unknown key; config/pleura.yaml lists every key there is"
    if error["type"] == "missing":
        return f"{path}: {where}: absent, and it has no default"

    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if not where:
        return f"{path}: {message}"
    return f"{path}: {where}: found {_found(document, keys)!r}; allowed: {message}"


def _found(document: Any, keys: list[Any]) -> Any:
    for key in keys:
        try:
            document = document[key]
        except (KeyError, IndexError, TypeError):
            return None
    return document
