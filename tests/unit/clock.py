"""A clock that a test sets."""

from __future__ import annotations

START = 1_000_000.0


class Clock:
    """Seconds; calling it gives `now`."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now
