"""The task that an engine is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """How one network is to be run. Input is (n, 1, side, side), n any number."""

    device: torch.device
    side: int
    bf16: bool = False


class UnavailableError(Exception):
    """This machine lacks what the engine needs. The message says what, and how to get it."""
