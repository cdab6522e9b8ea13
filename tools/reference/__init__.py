"""Generates the configuration reference (docs/configuration.md) from the settings' schema.

    python -m tools.reference

A test checks that the page is up to date.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

from daemon.config import Config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
_WIDTH = 100

_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m tools.reference` from daemon/config/schema.py: edit that file. -->

The settings are one YAML file. Every key of this page has a default unless it says "required", so
the file names only what differs. `config/pleura.yaml` in the sources holds every key, commented, at
its default. An unknown key is an error. `pleura config check` reports every error at once, and
`pleura config show` prints the effective settings.
"""

# A JSON Schema as pydantic writes it. Its models are the `$defs` that its `$ref`s name.
Schema = dict[str, Any]


def page() -> str:
    """The whole page as Markdown, at most 100 characters a line."""
    schema = Config.model_json_schema()
    models = schema["$defs"]

    lines = [_INTRODUCTION]
    for key, value in schema["properties"].items():
        lines += _key(key, value, False, models)
        path = f"{key}[]" if value.get("type") == "array" else key
        lines += _inner_keys(path, _models_in(value, models), models)
    return "\n".join(lines).rstrip() + "\n"


def _inner_keys(path: str, variants: list[Schema], models: Schema) -> list[str]:
    """The keys inside a key. A key that several variants share is described only with the first."""
    told: set[str] = set()
    lines: list[str] = []

    for variant in variants:
        if len(variants) > 1:
            lines += [_paragraph(variant["description"].rstrip(".") + ":"), ""]

        for key, value in variant["properties"].items():
            if key not in told:
                is_required = key in variant.get("required", [])
                inner = f"{path}.{key}"
                lines += _key(inner, value, is_required, models)
                lines += _inner_keys(inner, _models_in(value, models), models)

        told |= set(variant["properties"])
    return lines


def _key(path: str, value: Schema, is_required: bool, models: Schema) -> list[str]:
    """One key: its heading, its meaning, the allowed values, its default."""
    depth = "###" if "." in path else "##"
    lines = [f"{depth} `{path}`", "", _paragraph(value["description"]), ""]

    if not _is_section(value):
        allowed = _allowed(value, models)
        default = "Required" if is_required else f"Default: `{json.dumps(value['default'])}`"
        lines += [_paragraph(f"Allowed: {allowed}. {default}."), ""]
    return lines


def _is_section(value: Schema) -> bool:
    """True if a key contains other keys, whose defaults are its default."""
    return "$ref" in value


def _models_in(value: Schema, models: Schema) -> list[Schema]:
    """The models of a key's value: none, one, or the variants of a union."""
    item = value.get("items", value)
    variants = item.get("oneOf") or item.get("anyOf") or [item]
    return [_resolve(variant, models) for variant in variants if "$ref" in variant]


def _resolve(value: Schema, models: Schema) -> Schema:
    model: Schema = models[value["$ref"].rpartition("/")[2]]
    return model


def _allowed(value: Schema, models: Schema) -> str:
    """The values that a schema allows, in words."""
    if "allowed" in value:
        return str(value["allowed"])
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "anyOf" in value or "oneOf" in value:
        choices = value.get("anyOf") or value["oneOf"]
        return ", or ".join(_allowed(choice, models) for choice in choices)
    if "$ref" in value:
        keys = ", ".join(f"`{key}`" for key in _resolve(value, models)["properties"])
        return f"the keys {keys}"

    return _allowed_by_type(value, models)


def _allowed_by_type(value: Schema, models: Schema) -> str:
    kind = value["type"]
    if kind == "array":
        return f"a list of {_allowed(value['items'], models)}"
    if kind in ("integer", "number"):
        lowest = value["minimum"]
        highest = value.get("maximum")
        span = f"from {lowest}" if highest is None else f"from {lowest} to {highest}"
        return f"{'an integer' if kind == 'integer' else 'a number'} {span}"

    return {"boolean": "`true` or `false`", "null": "`null`", "string": "text"}[kind]


def _paragraph(text: str) -> str:
    joined = " ".join(text.split())
    return fill(joined, _WIDTH, break_long_words=False, break_on_hyphens=False)
