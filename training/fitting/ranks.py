"""The processes of one training run: one, or as many as `torchrun --nproc-per-node N` started.

Everything here also works without torchrun: then there is one process, of rank 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from inference.engine import choose_device

# How long the other processes wait while the first evaluates
_PATIENCE = timedelta(hours=2)

Value = TypeVar("Value")


@contextmanager
def joined(device: str = "auto") -> Iterator[torch.device]:
    """Join the other processes; gives the device of this process.

    `device` is as in `choose_device`; each process takes its own GPU.

    Raises:
        ValueError: no such device, or fewer GPUs than processes.
    """
    chosen = choose_device(device)
    if "LOCAL_RANK" not in os.environ:
        yield chosen
        return

    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if chosen.index >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun: process {chosen.index} of this machine found "
                f"{torch.cuda.device_count()} GPUs, one for each process wanted; lower "
                "--nproc-per-node"
            )
        torch.cuda.set_device(chosen)

    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    yield chosen

    # Skipped after an error: torchrun ends the other processes, which wait for this one.
    distributed.destroy_process_group()


def rank() -> int:
    """The rank of this process; rank 0 evaluates, writes and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def same(value: Value) -> Value:
    """Broadcast: the first process' `value`, in every process."""
    if count() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def average(tensors: Iterable[Tensor]) -> None:
    """Replace each floating tensor by its mean over the processes."""
    if count() == 1:
        return
    for tensor in tensors:
        if tensor.is_floating_point():
            distributed.all_reduce(tensor)
            tensor /= count()
