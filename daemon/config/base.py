"""The base of every group of settings."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict

# For plugins of other programs, pydantic would read the entry points of every installed
# distribution, and show them the settings.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


class Settings(BaseModel):
    """Keys that are checked, frozen, and never quoted in an error: a value may be a secret."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        # Each group is validated once, as a part of the whole.
        defer_build=True,
    )
