"""A MONAI bundle's network -> a network of a package, if we can build that network ourselves.

Only two files of a bundle are read, as data: its configuration (JSON or YAML), of which only plain
values are used, and its state dict. Nothing that they name is imported or run.

MONAI's LoadImage has the image's columns as its first axis, so a network trained with it expects
images with rows and columns exchanged. Its kernels are transposed here, instead of each image: the
answers are the same, in our order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from inference.container import MAX_FILE_BYTES, PackageError
from inference.foreign import Foreign, Stage, from_tensors, tensors

Axes = Literal["xy", "yx"]
Gives = Literal["logits", "probabilities", "softmax-logits"]
_CONFIGS = ("inference.json", "inference.yaml", "train.json", "train.yaml")
_WEIGHTS = ("model.safetensors", "model.pt")
_NETWORK = ("network_def", "network", "net")
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Head:
    """The class that is kept, the form of the outputs, and the first axis of the training images.

    `axes`: "xy", columns first, as in LoadImage; "yx", rows first.
    """

    index: int = 0
    gives: Gives = "logits"
    axes: Axes = "xy"


@dataclass(frozen=True)
class _Known:
    """A network of MONAI that we can build: the names of its arguments and weights here."""

    role: Stage
    architecture: str
    # MONAI's arguments with their defaults, which change the network; only these may be given
    fixed: Mapping[str, Any]
    # Taken over: MONAI's name -> ours
    passed: Mapping[str, str]
    # MONAI's name of a weight -> ours
    renamed: Callable[[str], str]
    # Ours, of the last layer
    head: str
    # Weights that MONAI has and does not use
    unused: tuple[str, ...] = ()


def _of_densenet(name: str) -> str:
    return name.replace(".layers.", ".").replace("class_layers.out", "classifier")


_KNOWN = {
    "DenseNet121": _Known(
        role="classifier",
        architecture="densenet-121",
        fixed={
            "spatial_dims": 2, "in_channels": 1, "init_features": 64, "growth_rate": 32,
            "block_config": [6, 12, 24, 16], "bn_size": 4, "act": "relu", "norm": "batch",
        },
        passed={},
        renamed=_of_densenet,
        head="classifier",
    ),
    "BasicUNetPlusPlus": _Known(
        role="segmenter",
        architecture="monai-unet-plus-plus",
        fixed={"spatial_dims": 2, "in_channels": 1, "deep_supervision": False},
        passed={"features": "features"},
        renamed=lambda name: f"network.{name}",
        head="network.final_conv_0_4",
        unused=tuple(f"network.final_conv_0_{step}." for step in (1, 2, 3)),
    ),
}  # fmt: skip
# Arguments that do not matter after training
_IDLE = ("_target_", "out_channels", "dropout_prob", "dropout", "pretrained", "progress")


def from_bundle(folder: Path, side: int, head: Head, normalisation: str) -> Foreign:
    """The network of a bundle, with the class of `head` alone.

    Raises:
        PackageError: no folder of a bundle, a network that is not on the list, an argument that
            our network does not have, or weights that are not its own.
    """
    name, given = _network(folder)
    known = _KNOWN[name]
    arguments = _arguments(known, given, f"{folder}: {name}")
    weights = next((folder / "models" / one for one in _WEIGHTS if _is_file(folder, one)), None)
    if weights is None:
        raise PackageError(f"{folder}: no models/model.pt found, nor models/model.safetensors")

    state = {known.renamed(key): value for key, value in tensors(weights).items()}
    state = {key: value for key, value in state.items() if not key.startswith(known.unused)}
    _keep(state, known.head, head, weights)
    if head.axes == "xy":
        state = {
            key: value.transpose(2, 3).contiguous() if value.dim() == 4 else value
            for key, value in state.items()
        }

    about = f"MONAI bundle {folder.resolve().name}, {name}, axes {head.axes}"
    named = (known.role, side, known.architecture, arguments, normalisation)
    return from_tensors(state, str(weights), about, *named)


def _is_file(folder: Path, name: str) -> bool:
    return (folder / "models" / name).is_file()


def _network(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """(name, arguments) of the network that a bundle's configuration describes."""
    configs = [folder / "configs" / one for one in _CONFIGS]
    path = next((one for one in configs if one.is_file()), None)
    if path is None:
        raise PackageError(
            f"{folder}: no configs/{_CONFIGS[0]} found; the folder of an unpacked bundle wanted"
        )

    document = _read(path)
    given = next((document[key] for key in _NETWORK if key in document), None)
    if not isinstance(given, dict) or not isinstance(given.get("_target_"), str):
        raise PackageError(f"{path}: no network_def with a _target_ found")

    target: str = given["_target_"]
    name = target.rpartition(".")[2]
    if name not in _KNOWN or target not in (name, f"monai.networks.nets.{name}"):
        raise PackageError(
            f"{path}: network {target[:100]} found; {', '.join(_KNOWN)} can be built here. Way "
            "out: export it as ONNX and import that with --kind onnx"
        )

    return name, {key: _plain(value, document, f"{path}: {key}") for key, value in given.items()}


def _read(path: Path) -> dict[str, Any]:
    if (size := path.stat().st_size) > min(_MAX_CONFIG_BYTES, MAX_FILE_BYTES):
        raise PackageError(f"{path}: {size} bytes found, at most {_MAX_CONFIG_BYTES} allowed")

    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise PackageError(f"{path}: cannot be read ({type(error).__name__})") from error
    if not isinstance(document, dict):
        raise PackageError(f"{path}: a mapping wanted")
    return document


def _plain(value: Any, document: Mapping[str, Any], where: str) -> Any:
    """A value, or the value at the top of the configuration that "@name" refers to."""
    if isinstance(value, str) and value.startswith("@"):
        value = document.get(value[1:], value)
    if isinstance(value, str) and value.startswith(("@", "$", "%")):
        raise PackageError(
            f"{where}: the expression {value[:100]!r} found, and expressions are not run; write "
            "its value there"
        )
    return value


def _arguments(known: _Known, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key, value in given.items():
        if key in known.fixed and value != known.fixed[key]:
            raise PackageError(f"{where}: {key}: {value!r} found, {known.fixed[key]!r} wanted")
        if key not in {*known.fixed, *known.passed, *_IDLE}:
            raise PackageError(f"{where}: {key[:60]} found, which our network does not have")

    return {ours: given[key] for key, ours in known.passed.items() if key in given}


def _keep(state: dict[str, Tensor], layer: str, head: Head, path: Path) -> None:
    """Leave the last layer with the logit of one class."""
    for kind in ("weight", "bias"):
        name = f"{layer}.{kind}"
        if name not in state or state[name].dim() == 0:
            raise PackageError(f"{path}: no last layer {name} found")

        classes = len(state[name])
        if not 0 <= head.index < classes:
            raise PackageError(f"{path}: --output {head.index}: 0 to {classes - 1} wanted")
        if head.gives != "logits" and (head.gives != "softmax-logits" or classes != 2):
            raise PackageError(
                f"{path}: --gives {head.gives} of {classes} classes: logits wanted, or "
                "softmax-logits of two classes"
            )

        kept = state[name][head.index : head.index + 1].clone()
        if head.gives == "softmax-logits":
            # Of two classes, the sigmoid of the difference is the softmax.
            kept -= state[name][1 - head.index : 2 - head.index]
        state[name] = kept
