"""Unique identifiers (PS3.5 9.1), as far as a peer's may be trusted."""

from __future__ import annotations

import re

_AS_WRITTEN = re.compile(r"[0-9.]{1,64}")
_STRICT = re.compile(r"[0-9]+(\.[0-9]+)*")


def is_uid(value: str) -> bool:
    """True for 1 to 64 digits and dots.

    Leading zeros break PS3.5 9.1, but such a UID names its object all the same (docs/decisions.md).
    """
    return _AS_WRITTEN.fullmatch(value) is not None


def can_name_a_file(value: str) -> bool:
    """True for numbers with single dots between them: no path, no hidden file."""
    return is_uid(value) and _STRICT.fullmatch(value) is not None
