"""One thread each where tests run side by side: more would wait for each other."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Imported only here: the daemon's own tests need no torch.
        import torch

        # inference/engines/cores.py leaves a given number as it is.
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
