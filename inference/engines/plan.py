"""What an engine is asked to run."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """How one network is to be run. Its input is (n, 1, side, side) with any n.

    Batches of one and of `batch` images are the usual ones: an engine may prepare for them.
    """

    device: torch.device
    side: int
    bf16: bool = False
    batch: int = 1


class UnavailableError(Exception):
    """This machine lacks what the engine needs. The message says what, and how to get it."""
