"""torch itself: eager, and through torch.compile."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference.engines.plan import Plan, UnavailableError

# Strict float32: TensorFloat-32, cuDNN's default, keeps 10 of 23 bits, which changes results by
# about 1e-3.
torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
torch.backends.cuda.matmul.fp32_precision = "ieee"


class Eager:
    """The module as it is, on its device, in channels_last.

    1.5 times the default layout's speed on CPUs.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self._module = module
        self._plan = plan

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        device = self._plan.device
        given = torch.from_numpy(batch)

        if device.type == "cuda":
            # From page-locked memory the copy is asynchronous; torch keeps the pages.
            given = given.pin_memory()

        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=self._plan.bf16),
        ):
            moved = given.to(device, non_blocking=True).contiguous(
                memory_format=torch.channels_last
            )
            logits = self._module(moved)

        found: NDArray[np.float32] = logits.float().cpu().numpy()

        return found


class Compiled(Eager):
    """torch.compile.

    A batch of one and batches of other sizes are compiled separately, each on first use.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise UnavailableError(
                f"torch.compile needs a C++ compiler, and {compiler} is not installed"
            )

        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            # torch's default is a predictable name under /tmp, which another user may have created.
            folder = tempfile.mkdtemp(prefix="pleura-compiled-")
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
            atexit.register(shutil.rmtree, folder, ignore_errors=True)

        from torch._inductor import config

        # With more, torch would leave a pool of processes behind.
        config.compile_threads = 1
        super().__init__(torch.compile(module), plan)  # type: ignore[arg-type]


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
