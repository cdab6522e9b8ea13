"""A classifier of timm (or torchvision) with its head -> a network of a package.

`pleura train --start` takes the encoder of such a file alone; here the head stays, as it was
trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.foreign import Foreign
from inference.importing import golden_input
from inference.networks import build
from inference.networks.encoders import from_timm
from inference.networks.onnx_graph import Gives
from training.fitting import weights
from training.fitting.weights import WeightsError
from training.recipe import Stage

# Our encoders that compute what the published networks compute, with the same weights. Inception,
# Xception and AlexNet pad otherwise here, so that every map is a half of the one before; VGG and
# EfficientNet-B3 and -B4 have layers before the classes that are not part of the encoder.
_AS_PUBLISHED = (
    "densenet121", "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "resnet34",
    "resnet50", "se-resnext50", "se-resnext101", "senet154",
)  # fmt: skip
# Between timm's answer and ours, of the same weights
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4
# Tensors that an error names
_MOST = 5
# What timm and torchvision call the last layer
_HEADS = ("fc", "classifier", "head.fc", "head", "last_linear", "classif", "_fc")


@dataclass(frozen=True)
class Head:
    """Which class is kept, and whether the outputs are logits of sigmoids or of one softmax."""

    index: int = 0
    gives: Gives = "logits"


def classifier(path: Path, encoder: str, side: int, head: Head) -> Foreign:
    """The classifier on `encoder` (inference/networks/encoders, or timm-<name>) of a state dict.

    Of two classes under a softmax, the logit is the difference to the other class. An encoder of
    timm is compared with timm's whole network, and must give the same answer.

    Raises:
        WeightsError: weights of another encoder, no head, an output that it does not have, layers
            that the package's network lacks, or an encoder that computes something else.
    """
    is_timms = encoder.startswith(from_timm.PREFIX)
    if not is_timms and encoder not in _AS_PUBLISHED:
        raise WeightsError(
            f"--architecture {encoder}: computes something else here than the network that was "
            f"published; allowed: {', '.join(_AS_PUBLISHED)}, {from_timm.PREFIX}<name of timm>; or "
            "export the network as ONNX and import it with --kind onnx"
        )

    arguments: dict[str, Any] = {"encoder": encoder, "stem": "imagenet"}
    try:
        network = build("classifier", **arguments)
    except ValueError as error:
        raise WeightsError(f"--architecture {encoder}: {error}") from error

    left_out = weights.load_start(network, _stage(arguments, side), path)
    state = weights.read(path)
    name = _name_of_head(state, path)
    weight, bias = _kept(state[f"{name}.weight"].flatten(1), state[f"{name}.bias"], head, path)
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
    network.eval()
    if is_timms:
        _require_timms_answer(network, encoder, state, golden_input(side), head, path)
    elif unused := sorted(left_out - {f"{name}.weight", f"{name}.bias"} - _counts(state)):
        raise WeightsError(
            f"{path}: {', '.join(unused[:_MOST])}: layers that {encoder} with a linear head does "
            "not have, so the answer would be another; import the network as ONNX (--kind onnx)"
        )

    about = f"timm, {encoder}, {path.name}"
    return Foreign(about, "classifier", "classifier", arguments, side, network)


def _require_timms_answer(
    network: nn.Module,
    encoder: str,
    state: dict[str, Tensor],
    image: Tensor,
    head: Head,
    path: Path,
) -> None:
    """Raise unless timm's whole network, with all of these weights, gives what ours gives.

    Between its maps and its head a network of timm may have a norm, an activation or a pooling of
    its own, with weights or without.
    """
    classes = len(state[f"{_name_of_head(state, path)}.weight"])
    theirs = from_timm.original(encoder, classes)
    missing, unknown = theirs.load_state_dict(state, strict=False)
    faults = [f"{name} is missing" for name in missing if name not in _counts(missing)]
    faults += [f"{name} is unknown" for name in unknown]
    if faults:
        raise WeightsError(f"{path}: not weights of {encoder}: {'; '.join(faults[:_MOST])}")

    with torch.inference_mode():
        found = network(image)
        logits = theirs(network.get_submodule("input")(image))
        wanted = _kept(logits.T, torch.zeros(classes), head, path)[0].T
    if not torch.allclose(found, wanted, rtol=_RELATIVE, atol=_ABSOLUTE):
        raise WeightsError(
            f"{path}: {encoder} with a linear head answers {float(found[0]):.4g} where timm's own "
            f"network answers {float(wanted[0]):.4g}: between its maps and its head it has layers "
            "that a package does not have; import the network as ONNX (--kind onnx)"
        )


def _counts(names: Iterable[str]) -> set[str]:
    """Bookkeeping of training, in a state dict or not."""
    return {name for name in names if name.endswith("num_batches_tracked")}


def _name_of_head(state: dict[str, Tensor], path: Path) -> str:
    for name in _HEADS:
        if {f"{name}.weight", f"{name}.bias"} <= state.keys():
            return name
    raise WeightsError(f"{path}: no head found; one of {', '.join(_HEADS)} wanted")


def _kept(weight: Tensor, bias: Tensor, head: Head, path: Path) -> tuple[Tensor, Tensor]:
    """(1, features) weights and (1,) bias of the class that is kept, of (classes, features)."""
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
    """A stage with this encoder, for the functions that read starting weights."""
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
