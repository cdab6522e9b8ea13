"""Waiting for other threads and processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Far longer than any wait takes, so that only a test that would hang fails.
DEADLINE_S = 240.0


def wait_until(what: str, true: Callable[[], Any], every_s: float = 0.05) -> Any:
    """Poll until `true()` is truthy and return that; fail with `what` at the deadline."""
    deadline = time.monotonic() + DEADLINE_S

    while time.monotonic() < deadline:
        answer = true()
        if answer:
            return answer
        time.sleep(every_s)

    raise AssertionError(f"not within {DEADLINE_S:.0f} s: {what}")
