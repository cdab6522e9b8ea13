"""Build hook: the wheel carries config/ and the runbook inside the packages that read them.

An editable install reads those of the checkout.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ConfigFiles(BuildHookInterface):  # type: ignore[misc]
    """Keeps the name "config" free in site-packages: its files ship inside daemon and training."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"] = {
                "config/pleura.yaml": "daemon/pleura.yaml",
                "docs/faults.md": "daemon/faults.md",
                "config/recipes": "training/recipes",
            }
