"""A classifier of timm (or torchvision) with its head -> a network of a package.

`pleura train --start` takes the encoder of such a file alone; here the head stays, as it was
trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.foreign import Foreign
from inference.networks import build
from inference.networks.onnx_graph import Gives
from training.fitting import weights
from training.fitting.weights import WeightsError
from training.recipe import Stage

# What timm and torchvision call the last layer
_HEADS = ("fc", "classifier", "head.fc", "head", "last_linear", "classif", "_fc")


@dataclass(frozen=True)
class Head:
    """Which class is kept, and what the outputs are: logits of sigmoids, or of one softmax."""

    index: int = 0
    gives: Gives = "logits"


def classifier(path: Path, encoder: str, side: int, head: Head) -> Foreign:
    """The classifier on `encoder` (inference/networks/encoders, or timm-<name>) of a state dict.

    Of two classes under a softmax, the logit is the difference to the other class.

    Raises:
        WeightsError: weights of another encoder, no head, or an output that it does not have.
    """
    arguments: dict[str, Any] = {"encoder": encoder, "stem": "imagenet"}
    try:
        network = build("classifier", **arguments)
    except ValueError as error:
        raise WeightsError(f"--architecture {encoder}: {error}") from error

    weights.load_start(network, _stage(arguments, side), path)
    weight, bias = _kept(weights.read(path), head, path)
    last = network.get_submodule("head")[-1]  # type: ignore[index]
    assert isinstance(last, nn.Linear)
    if weight.shape != last.weight.shape:
        raise WeightsError(
            f"{path}: a head on {weight.shape[1]} features found, {last.weight.shape[1]} of "
            f"{encoder} wanted"
        )

    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)
    about = f"timm, {encoder}, {path.name}"
    return Foreign(about, "classifier", "classifier", arguments, side, network.eval())


def _kept(state: dict[str, Tensor], head: Head, path: Path) -> tuple[Tensor, Tensor]:
    """(1, features) weights and (1,) bias of the class that is kept."""
    name = next((name for name in _HEADS if f"{name}.weight" in state), None)
    if name is None or f"{name}.bias" not in state:
        raise WeightsError(f"{path}: no head found; one of {', '.join(_HEADS)} wanted")

    weight, bias = state[f"{name}.weight"].flatten(1), state[f"{name}.bias"]
    if not 0 <= head.index < len(weight):
        raise WeightsError(f"{path}: --output {head.index}: 0 to {len(weight) - 1} wanted")

    kept = slice(head.index, head.index + 1)
    if head.gives == "logits":
        return weight[kept], bias[kept]
    if head.gives == "softmax-logits" and len(weight) == 2:
        other = slice(1 - head.index, 2 - head.index)
        return weight[kept] - weight[other], bias[kept] - bias[other]
    raise WeightsError(
        f"{path}: --gives {head.gives} of {len(weight)} classes: logits wanted, or softmax-logits "
        "of two classes"
    )


def _stage(arguments: dict[str, Any], side: int) -> Stage:
    """A stage on this encoder, for what reads starting weights."""
    return Stage.model_validate(
        {
            "role": "classifier",
            "architecture": "classifier",
            "arguments": arguments,
            "side": side,
            "loss": {"cross_entropy": 1},
            "epochs": 1,
            "batch": 1,
            "optimiser": {"learning_rate": 0.001},
        }
    )
