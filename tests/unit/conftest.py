"""Fixtures of the unit tests: one thread each, and a ledger under a clock that a test sets."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from daemon.ledger import Ledger, LedgerLimits
from tests.unit.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(ledger_url: str, clock: Clock) -> Iterator[Ledger]:
    """On each engine. A test module with another kind of ledger has its own fixture."""
    ledger = Ledger(ledger_url, clock=clock, limits=LedgerLimits(lease_s=60.0))
    yield ledger
    ledger.close()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tests run side by side, more threads would wait for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Imported only here: the daemon's own tests need no torch.
        import torch

        # inference/engines/cores.py leaves a given number as it is.
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
