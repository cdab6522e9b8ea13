"""Means of weights: of a run's steps (EMA), of its last epochs (SWA), of two runs (WiSE-FT)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move `average` towards `network`: decay x average + (1 - decay) x network.

    Counters are copied.
    """
    ours = list(average.state_dict().values())
    theirs = list(network.state_dict().values())
    moving = [tensor.is_floating_point() for tensor in ours]

    torch._foreach_lerp_(
        [tensor for tensor, moves in zip(ours, moving, strict=True) if moves],
        [tensor for tensor, moves in zip(theirs, moving, strict=True) if moves],
        1 - decay,
    )

    for tensor, new, moves in zip(ours, theirs, moving, strict=True):
        if not moves:
            tensor.copy_(new)


def between(before: nn.Module, after: nn.Module, share: float) -> nn.Module:
    """A network `share` of the way from `before` a fine-tuning (0) to `after` it (1).

    Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022. Both stay as
    they are.
    """
    mean = copy.deepcopy(before)
    follow(mean, after, 1 - share)
    return mean


@torch.no_grad()
def redo_statistics(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Recompute the batch-norm statistics of averaged weights.

    Izmailov et al., "Averaging weights leads to wider optima", UAI 2018, section 3.2. A frozen
    layer (in eval mode) keeps its own.
    """
    layers = [
        layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training
    ]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        # None: the plain mean of all batches
        layer.momentum = None

    if layers:
        for batch in inputs:
            network(batch)

    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
