"""What an engine is asked to run."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """How one network is to be run. Its input is (n, 1, side, side) with any n."""

    device: torch.device
    side: int
    bf16: bool = False


class UnavailableError(Exception):
    """This machine lacks what the engine needs. The message says what, and how to get it."""
