"""The allow-list of architectures that a model package may name. Each takes (n, 1, side, side) float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from inference.networks.residual import ResidualClassifier
from inference.networks.unet import ResidualUNet

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "residual-classifier": ResidualClassifier,
    "residual-unet": ResidualUNet,
}


def build(architecture: str, **arguments: Any) -> nn.Module:
    """A network with random weights.

    Raises:
        ValueError: a name that is not on the list, or arguments its builder does not take.
    """
    if architecture not in BUILDERS:
        raise ValueError(f"architecture: {architecture!r} found, allowed: {', '.join(sorted(BUILDERS))}")
    try:
        return BUILDERS[architecture](**arguments)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"arguments of {architecture}: {error}") from error
