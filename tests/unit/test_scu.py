"""What an answer means, and when the next try comes."""

from __future__ import annotations

import pytest

from daemon.scu import Verdict, backoff_s, verdict


@pytest.mark.parametrize(
    ("status", "failures", "meaning"),
    [
        (0x0000, 0, Verdict.STORED),
        (0xB000, 0, Verdict.STORED),
        (0xB006, 0, Verdict.STORED),
        (0xB007, 99, Verdict.STORED),
        (0x0111, 0, Verdict.STORED),
        (0xA700, 99, Verdict.BUSY),
        (0xA7FF, 0, Verdict.BUSY),
        (0xA900, 0, Verdict.REFUSED),
        (0xA9FF, 0, Verdict.REFUSED),
        (0x0122, 0, Verdict.REFUSED),
        (0xC000, 0, Verdict.RETRY),
        (0xCFFF, 6, Verdict.RETRY),
        (0xC211, 7, Verdict.REFUSED),
        (0x0110, 99, Verdict.RETRY),
        (0x0124, 0, Verdict.RETRY),
        (0xA800, 0, Verdict.RETRY),
        (0xFFFF, 0, Verdict.RETRY),
    ],
)
def test_what_an_answer_means(status: int, failures: int, meaning: Verdict) -> None:
    assert verdict(status, failures) is meaning


def test_pauses_grow_to_five_minutes_and_no_further_without_an_end() -> None:
    for failures, longest in [(1, 0.5), (2, 1.0), (3, 2.0), (10, 256.0), (11, 300.0), (12, 300.0), (100_000, 300.0)]:
        pauses = [backoff_s(failures) for _ in range(200)]
        assert max(pauses) <= longest
        assert min(pauses) >= longest / 2
        assert len(set(pauses)) > 100  # jittered
