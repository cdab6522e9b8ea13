"""The engines that can run a network: adapters with one common interface, in a table.

An engine is built here, from weights that were checked and replayed: compiled code is never loaded
from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference.engines import native, onnxruntime, openvino
from inference.engines.plan import Plan, UnavailableError

__all__ = [
    "ENGINES",
    "PLAIN",
    "Candidate",
    "Plan",
    "Runner",
    "UnavailableError",
    "build",
    "candidates",
]


class Runner(Protocol):
    """One network, ready to run."""

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, 1, side, side) -> the network's logits, n first. For one thread at a time."""
        ...


@dataclass(frozen=True)
class Candidate:
    """An engine and its arithmetic."""

    engine: str
    bf16: bool = False

    def __str__(self) -> str:
        return f"{self.engine} bf16" if self.bf16 else self.engine


ENGINES: dict[str, Callable[[nn.Module, Plan], Runner]] = {
    "torch": native.Eager,
    "compile": native.Compiled,
    "openvino": openvino.Compiled,
    "onnxruntime": onnxruntime.Session,
}
# The reference for every other engine, and the fallback when they fail.
PLAIN = Candidate("torch")


def build(candidate: Candidate, module: nn.Module, plan: Plan) -> Runner:
    """Build an engine from a module that is on its device.

    Raises:
        UnavailableError: this machine lacks what it needs. Other exceptions: it broke on this
            network.
    """
    return ENGINES[candidate.engine](module, plan)


def candidates(wanted: str, device: torch.device, allows_bf16: bool) -> tuple[Candidate, ...]:
    """The engines to try beside plain torch for a setting: "auto", or an engine's name (then in
    float32 alone).

    "auto" leaves torch.compile out, because it holds the device for a minute or more per network.
    """
    if wanted != "auto":
        return (Candidate(wanted),) if wanted != PLAIN.engine else ()

    on_cpu = device.type == "cpu"
    tried = [Candidate("openvino")] if on_cpu and openvino.is_installed() else []
    tried_bf16 = [
        Candidate(engine, bf16=True) for engine in ("torch", *(one.engine for one in tried))
    ]
    tried += [Candidate("onnxruntime")] if on_cpu and onnxruntime.is_installed() else []

    return tuple(tried + tried_bf16 if allows_bf16 and native.computes_bf16(device) else tried)
