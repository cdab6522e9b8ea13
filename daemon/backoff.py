"""How long to wait before trying a peer again."""

from __future__ import annotations

import random

_BACKOFF_S = (0.5, 300.0)  # the first and the longest


def backoff_s(failures: int) -> float:
    """The pause after so many failures in a row: doubling, capped, jittered so that nodes fall out of step. No end."""
    first, longest = _BACKOFF_S
    return min(longest, first * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)
