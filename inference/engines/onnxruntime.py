"""ONNX Runtime on the CPU (the extra `onnxruntime`)."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference.engines.plan import Plan, UnavailableError
from inference.networks.onnx_graph import OnnxGraph, is_installed, session_options
from inference.silence import silenced_warnings

__all__ = ["Session", "is_installed"]

# The newest opset that this exporter fully supports.
_OPSET = 17


class Session:
    """A network as ONNX Runtime runs it, for batches of any size."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        if plan.device.type != "cpu" or plan.bf16:
            raise UnavailableError(
                f"onnxruntime runs on the CPU in float32, and it is {plan.device}, bf16 {plan.bf16}"
            )

        if not is_installed():
            raise UnavailableError(
                "onnxruntime is not installed: install Pleura's extra onnxruntime (docs/install.md)"
            )

        if any(isinstance(part, OnnxGraph) for part in module.modules()):
            raise UnavailableError("the network is an ONNX graph, run by ONNX Runtime as it is")

        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            _export(module, plan, path)
            self._session = onnxruntime.InferenceSession(
                path, session_options(), ["CPUExecutionProvider"]
            )

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits,) = self._session.run(None, {"x": batch})
        return np.asarray(logits, dtype=np.float32)


def _export(module: nn.Module, plan: Plan, path: Path) -> None:
    plain = copy.deepcopy(module)
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    # The golden replay, which compares the outputs, says more than the exporter's warnings.
    with silenced_warnings(), torch.no_grad():
        # The dynamo exporter needs another package, and minutes instead of seconds.
        torch.onnx.export(
            plain,
            (torch.zeros(2, 1, plan.side, plan.side),),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
