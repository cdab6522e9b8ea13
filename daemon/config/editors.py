"""The JSON Schema of the settings, with which an editor completes and checks the YAML file.

A first line `# yaml-language-server: $schema=FILE` names it to the editors that speak to
yaml-language-server (VS Code, Neovim, Emacs and others).
"""

from __future__ import annotations

import json
from typing import Any

from daemon.config.schema import PROFILES, Config

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> str:
    """The schema as JSON text: every key with its type, its default and its meaning.

    It allows what the types allow. `pleura config check` also checks the rest, such as whether a
    path is absolute.
    """
    schema = Config.model_json_schema()
    schema["$schema"] = _DIALECT
    schema["title"] = "Settings of Pleura"
    for definition in schema["$defs"].values():
        _in_words(definition)
    _in_words(schema)
    return json.dumps(schema, indent=2, ensure_ascii=False)


def _in_words(model: dict[str, Any]) -> None:
    """Add what a check allows to the key's description: editors show no other text of ours."""
    for value in model.get("properties", {}).values():
        if allowed := value.pop("allowed", None):
            value["description"] = f"{value['description']} Allowed: {allowed}."
        if value.get("description", "").startswith("In place of `results`"):
            value["examples"] = list(PROFILES)
