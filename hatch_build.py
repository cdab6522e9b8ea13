"""Build hook: the wheel carries config/ inside the packages that read it; an editable install reads the checkout's."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ConfigFiles(BuildHookInterface):  # type: ignore[misc]
    """The top-level folder config/ stays out of the wheel: "config" is no name to take in site-packages."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"] = {
                "config/pleura.yaml": "daemon/pleura.yaml",
                "config/recipes": "training/recipes",
            }
