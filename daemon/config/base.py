"""The base of every group of settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Keys that are checked, frozen, and never quoted in an error: a value may be a secret."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        # Each group is validated once, as a part of the whole.
        defer_build=True,
    )
