"""The meaning of a device's or a library's error."""

from __future__ import annotations

import torch

# The messages of torch, OpenVINO and the C++ library when memory is short; torch.OutOfMemoryError
# is only for accelerators.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad allocation",
    "bad_alloc",
)


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        mark in str(error).lower() for mark in _OUT_OF_MEMORY
    )


def is_fatal(error: Exception) -> bool:
    """Whether it is a CUDA error other than out-of-memory.

    Then the context is poisoned, and every later call fails too.
    """
    return not is_out_of_memory(error) and (
        isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
    )
