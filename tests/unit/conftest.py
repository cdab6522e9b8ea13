"""One thread each where tests run side by side: more would wait for each other."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # inference/engines/cores.py lets it stand
        torch.set_num_threads(1)
