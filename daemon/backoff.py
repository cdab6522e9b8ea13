"""Back-off: the pause before a peer, a process or a question is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass


def doubled_s(first_s: float, longest_s: float, times: int) -> float:
    """`first_s`, doubled this many times, at most `longest_s`."""
    return min(longest_s, first_s * 2.0 ** min(times, 30))


@dataclass(frozen=True)
class Backoff:
    """Pauses that double up to a limit and never end, jittered so that nodes fall out of step."""

    first_s: float = 0.5
    longest_s: float = 300.0

    def pause_s(self, failures: int) -> float:
        """The pause after this many failures in a row."""
        return doubled_s(self.first_s, self.longest_s, failures - 1) * random.uniform(0.5, 1.0)
