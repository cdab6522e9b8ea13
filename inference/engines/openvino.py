"""OpenVINO on the CPU (the extra `openvino`)."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference.engines.plan import Plan, UnavailableError
from inference.silence import silenced_warnings


def is_installed() -> bool:
    """Whether the extra is installed, without loading it."""
    return importlib.util.find_spec("openvino") is not None


class Compiled:
    """A network as OpenVINO compiles it: for exactly one image, and for the largest batch.

    Compiled for any size, one image takes up to a quarter longer. Batches of other sizes run image
    by image, so that only plans which were tried serve.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        if plan.device.type != "cpu":
            raise UnavailableError(f"openvino runs on the CPU, and the device is {plan.device}")
        if not is_installed():
            raise UnavailableError(
                "openvino is not installed: install Pleura's extra openvino (docs/install.md)"
            )

        import openvino

        options = {
            "PERFORMANCE_HINT": "LATENCY",
            # Explicit: on CPUs with AMX the default is bf16, which moves probabilities by up to
            # 3e-2.
            "INFERENCE_PRECISION_HINT": "bf16" if plan.bf16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Do not pin threads: other roles and programs use these cores.
            "ENABLE_CPU_PINNING": False,
        }
        core = openvino.Core()
        model = _converted(module, plan)
        self._requests = {}

        for size in sorted({1, plan.batch}):
            model.reshape([size, 1, plan.side, plan.side])
            compiled = core.compile_model(model, "CPU", options)
            self._requests[size] = compiled.create_infer_request()

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        request = self._requests.get(len(batch))
        if request is None:
            return np.concatenate([self(batch[i : i + 1]) for i in range(len(batch))])

        return np.asarray(request.infer({0: batch}, share_inputs=True)[0], dtype=np.float32)


def _converted(module: nn.Module, plan: Plan) -> Any:
    # Not openvino.convert_model: it reports each conversion to a statistics server.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    plain = copy.deepcopy(module)
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    # The tracer warns about size arithmetic; the golden replay compares the outputs.
    with silenced_warnings(), torch.no_grad():
        example = torch.zeros(1, 1, plan.side, plan.side)
        traced = torch.jit.trace(plain, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        # The decoder must outlive the conversion.
        decoder = TorchScriptPythonDecoder(traced)
        frontend = FrontEndManager().load_by_framework("pytorch")
        loaded = frontend.load(decoder)
        return frontend.convert(loaded)
