"""Networks trained elsewhere -> a model package: ONNX, state dicts, torchxrayvision, timm.

`inference/importing.py` has CheXNet's checkpoints. Files are read as data: nothing in them is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from inference import package
from inference.container import MAX_FILE_BYTES, PackageError
from inference.importing import Choices, golden_input, renamed, state_dict
from inference.manifest import Manifest
from inference.networks import build, shapes
from inference.networks.onnx_graph import OnnxError, checked

Stage = Literal["classifier", "segmenter"]
# Arguments of the architecture `onnx` for the usual input of networks trained on ImageNet
IMAGENET: dict[str, list[float]] = {
    "mean": [0.485, 0.456, 0.406],
    "deviation": [0.229, 0.224, 0.225],
}
# The place among torchxrayvision's 18 findings (xrv.datasets.default_pathologies)
_XRAYVISION_PNEUMOTHORAX = 3
_XRAYVISION_CLASSES = 18
# Training's and thresholds' bookkeeping beside the weights
_BOOKKEEPING = ("num_batches_tracked", "op_threshs")
_FAULTS_SAID = 5


@dataclass(frozen=True, eq=False)
class Foreign:
    """A network as a package holds it: its manifest entry, and its module in eval mode."""

    # The network and where it comes from, in words
    about: str
    role: Stage
    architecture: str
    arguments: dict[str, Any]
    side: int
    module: nn.Module
    normalisation: str = "unit"

    def described(self) -> dict[str, Any]:
        """The entry of the manifest, without thresholds."""
        return {
            "architecture": self.architecture,
            "arguments": self.arguments,
            "side": self.side,
            "normalisation": self.normalisation,
        }


def from_onnx(path: Path, role: Stage, side: int, **arguments: Any) -> Foreign:
    """The network of an ONNX file; `arguments` are those of the architecture `onnx`.

    Raises:
        PackageError: unreadable, too large, or a graph that may not run here.
    """
    data = _bytes(path)
    try:
        checked(data)
    except OnnxError as error:
        raise PackageError(f"{path}: {error}") from error

    arguments = {"size": len(data)} | arguments
    module = _built("onnx", arguments)
    # A copy, because torch warns about read-only memory.
    module.load_state_dict({"graph": torch.frombuffer(bytearray(data), dtype=torch.uint8)})
    return Foreign(f"ONNX, {path.name}", role, "onnx", arguments, side, module.eval())


def from_state_dict(
    path: Path, role: Stage, side: int, architecture: str, arguments: dict[str, Any], scheme: str
) -> Foreign:
    """The named architecture, with all weights of a state dict.

    Raises:
        PackageError: an architecture that is not on the list, or weights that are not its own.
    """
    about = f"{architecture}, state dict {path.name}"
    named = (role, side, architecture, arguments, scheme)
    return from_tensors(renamed(tensors(path)), str(path), about, *named)


def from_tensors(
    state: Mapping[str, Tensor],
    where: str,
    about: str,
    role: Stage,
    side: int,
    architecture: str,
    arguments: dict[str, Any],
    scheme: str,
) -> Foreign:
    """The named architecture, with all of these tensors; `where` is where they come from.

    Raises:
        PackageError: as `from_state_dict`.
    """
    try:
        wanted = shapes(architecture, **arguments)
    except ValueError as error:
        raise PackageError(f"--architecture: {error}") from error

    module = _built(architecture, arguments)
    module.load_state_dict(_fitting(state, wanted, f"{where}: not {architecture}"))
    return Foreign(about, role, architecture, arguments, side, module.eval(), scheme)


def from_xrayvision(path: Path, side: int) -> Foreign:
    """A DenseNet-121 of torchxrayvision with its 18 findings; only pneumothorax is kept.

    Raises:
        PackageError: another network.
    """
    state = renamed(tensors(path))
    arguments = {"outputs": 1, "stem": "torchxrayvision"}
    whole = shapes("densenet-121", **arguments | {"outputs": _XRAYVISION_CLASSES})
    found = _fitting(state, whole, f"{path}: not a DenseNet-121 of torchxrayvision")

    chosen = slice(_XRAYVISION_PNEUMOTHORAX, _XRAYVISION_PNEUMOTHORAX + 1)
    for name in ("classifier.weight", "classifier.bias"):
        found[name] = found[name][chosen].clone()
    module = _built("densenet-121", arguments)
    module.load_state_dict(found)

    about = f"torchxrayvision, DenseNet-121, {path.name}"
    return Foreign(about, "classifier", "densenet-121", arguments, side, module.eval())


def write(foreign: Foreign, other: Path, folder: Path, choices: Choices) -> Manifest:
    """Write the package of a foreign network, its weights as they are.

    A classifier gets the segmenter (and plausibility gate) of the package `other`. A segmenter
    decides by its own map: an image is positive if a pixel of the map reaches the threshold.

    Raises:
        PackageError: a folder that holds something, a package `other` that does not load, or a
            network that does not answer as its role must.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackageError(f"{folder}: not an empty folder; an import overwrites nothing")

    loaded = package.load(other)
    entries, modules = _with_segmenter_of(loaded, foreign, choices)
    if foreign.role == "segmenter":
        entries, modules = _of_one_map(foreign, choices)
    golden = {
        role: loaded.golden[f"{role}.input"] if role != foreign.role else golden_input(foreign.side)
        for role in modules
    }
    if foreign.role == "segmenter":
        golden = dict.fromkeys(modules, golden_input(foreign.side))

    manifest = entries | _provenance(foreign, loaded.manifest, choices)
    try:
        package.write(folder, manifest, modules, golden, exact=True)
    except RuntimeError as error:
        raise PackageError(f"{foreign.about}: {error}") from error

    (folder / "README.md").write_text(_card(foreign, choices), encoding="utf-8")
    written = package.amend(folder, {})
    # Load it with every check that a node makes, including the golden replay.
    package.load(folder)
    return written


def _with_segmenter_of(
    loaded: package.Package, foreign: Foreign, choices: Choices
) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    kept = loaded.manifest.model_dump(mode="json", include={"segmenter", "plausibility"})
    chosen = {"threshold": choices.threshold, "operating_point": choices.operating_point}
    modules = {str(role): module for role, module in loaded.networks.items()}
    return (
        kept | {"classifier": foreign.described() | chosen},
        modules | {"classifier": foreign.module},
    )


def _of_one_map(foreign: Foreign, choices: Choices) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """A segmenter's own map as the classifier (inference/networks/largest_of_map.py)."""
    of = {"architecture": foreign.architecture, "arguments": foreign.arguments}
    arguments = {"of": of, "pixels": 1}
    classifier = _built("largest-of-map", arguments)
    classifier.get_submodule("segmenter").load_state_dict(foreign.module.state_dict())

    chosen = {"threshold": choices.threshold, "operating_point": choices.operating_point}
    rule = {"bottom": choices.threshold, "top": choices.threshold, "min_area_at_1024_px": 0.0}
    described = foreign.described()
    entries = {
        "classifier": described
        | {"architecture": "largest-of-map", "arguments": arguments}
        | chosen,
        "segmenter": described | rule,
    }
    return entries, {"classifier": classifier.eval(), "segmenter": foreign.module}


def _provenance(foreign: Foreign, other: Manifest, choices: Choices) -> dict[str, Any]:
    said = [f"{foreign.role}: as its authors say ({foreign.about})"]
    licence = f"{foreign.role}: {choices.licence}"
    if foreign.role == "classifier":
        said += [f"segmenter: {line}"[:1000] for line in other.training.data]
        licence += f"; segmenter ({other.id} {other.version}): {other.licence}"

    return {
        "id": choices.id,
        "version": choices.version,
        "task": package.SERVED_TASK,
        "label": other.label.model_dump(mode="json"),
        "training": {
            "recipe": f"imported: {foreign.about}"[:1000],
            "data": said,
            "date": datetime.now(UTC).date().isoformat(),
            "command": "pleura model import",
        },
        "metrics": {},
        "licence": licence[:1000],
        "intended_use": other.intended_use,
    }


def _card(foreign: Foreign, choices: Choices) -> str:
    return f"""# {choices.id} {choices.version}

Imported, not validated. Research use only, not for diagnosis.

- {foreign.role.capitalize()}: {foreign.about}.
- **No figure is known for this package.** Published figures of its network are of other images,
  prepared in another way; here the whole image is fitted into {foreign.side} px with black beside
  it. Measure it on images of your own: `pleura evaluate --model FOLDER --data DIR`.
- **The threshold {choices.threshold} was given by the person who imported it**, with these words:
  {choices.operating_point}
- Licence: {choices.licence}.
"""


def _built(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return build(architecture, **arguments)
    except ValueError as error:
        raise PackageError(str(error)) from error


def _fitting(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Exactly the expected tensors; raises with what is wrong with those that are there."""
    found = {name: value for name, value in state.items() if not name.endswith(_BOOKKEEPING)}
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):
            found[name] = state.get(name, torch.zeros_like(value, device="cpu"))

    faults = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"{name} is unknown" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if found[name].shape != wanted[name].shape:
            shape = tuple(wanted[name].shape)
            faults.append(f"{name} is {tuple(found[name].shape)}, wanted {shape}")
        elif found[name].is_floating_point() and not found[name].isfinite().all():
            faults.append(f"{name} holds NaN or infinity")

    if faults:
        more = f"; and {len(faults) - _FAULTS_SAID} more" if len(faults) > _FAULTS_SAID else ""
        raise PackageError(f"{where}: {'; '.join(faults[:_FAULTS_SAID])[:1000]}{more}")
    return found


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint or a safetensors file, read as data."""
    if path.suffix != ".safetensors":
        return state_dict(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise PackageError(f"{path}: cannot be read as safetensors ({str(error)[:300]})") from error


def _bytes(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise PackageError(f"{path}: {size} bytes found, at most {MAX_FILE_BYTES} allowed")
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror})") from error
