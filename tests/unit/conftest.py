"""Fixtures for the unit tests: one compute thread per test process, and a ledger whose clock the
test sets.
"""

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
    """A ledger on each database engine. A module that needs another kind of ledger overrides this."""
    ledger = Ledger(ledger_url, clock=clock, limits=LedgerLimits(lease_s=60.0))
    yield ledger
    ledger.close()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one thread per test process: parallel tests with more would compete for the cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Import here, because the daemon's own tests run without torch.
        import torch

        # inference/engines/cores.py keeps a number that is already set.
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
