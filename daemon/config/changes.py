"""How two settings differ, and which differences a running node takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from daemon.config.schema import Config

# The keys that change without a restart. Every other key holds something that a process opens or
# builds once: a port, a database, a device, a certificate's context.
LIVE = frozenset(
    {
        "admission",
        "alerts",
        "destinations",
        "limits",
        "log_level",
        "model",
        "overlay",
        "peers",
        "report_absent",
        "retention",
        "spool_reserve_mb",
    }
)

# Keys that only one role opens or builds something from, and that role. The other roles only read
# them.
ROLE_OF = {"shadow": "shadow", "web": "web"}

# Some processes get the ledger's URL from the environment, others from the file.
_NOT_SHARED = {"ledger", "ledger_file"}

_ABSENT = "(absent)"


def digests(config: Config) -> dict[str, str]:
    """A digest of each key of the settings, to tell which have changed."""
    shown = config.model_dump(mode="json")
    return {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for key, value in shown.items()
    }


def digest(config: Config) -> str:
    """64 hexadecimal digits that name the settings which all processes of a node share."""
    shared = {key: value for key, value in digests(config).items() if key not in _NOT_SHARED}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


def restart_keys(before: Config, after: Config) -> list[str]:
    """The keys that differ and need a restart."""
    old, new = digests(before), digests(after)
    return sorted(key for key in new if old.get(key) != new[key] and key not in LIVE)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The differences between two public() settings, a line for each value: key, before, after."""
    old, new = _flat(before), _flat(after)
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name}: {_said(old, name)} -> {_said(new, name)}"
        for name in names
        # A list that was empty is described by its new entries.
        if len({_said(old, name), _said(new, name)} - {_ABSENT, "[]"}) > 0
        and _said(old, name) != _said(new, name)
    ]


def _said(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else _ABSENT


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted name -> value.

    Peers and destinations are identified by their names, not their positions.
    """
    if isinstance(value, Mapping) and value:
        return {
            dotted: item
            for key, part in value.items()
            for dotted, item in _flat(part, f"{name}.{key}".lstrip(".")).items()
        }

    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        labels = _labels(value)
        return {
            dotted: item
            for label, part in zip(labels, value, strict=True)
            for dotted, item in _flat(part, f"{name}[{label}]").items()
        }

    return {name: value}


def _labels(items: list[Any]) -> list[str]:
    """A label for each entry of a list: its name or AE title, numbered from the second on."""
    labels: list[str] = []
    for number, item in enumerate(items):
        title = item.get("name") or item.get("ae_title") or str(number)
        earlier = sum(label == title or label.startswith(f"{title} #") for label in labels)
        labels.append(f"{title} #{earlier + 1}" if earlier else title)
    return labels
