"""A model package: model.yaml, weights.safetensors, golden.safetensors. Loading runs no code from it.

The networks are built by allow-listed names (inference/networks), their weights are plain tensors, every file is
held against its sha256, and the golden inputs are replayed before the package may serve.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid5

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from inference.finding import ModelIdentity
from inference.networks import build

GOLDEN_TOLERANCE = 1e-3  # design, "Model package": more than this off in plain torch fp32 means refuse
_DEVICE_NAMESPACE = UUID("6f0f5c52-0d0c-5f60-9f0e-2f6a3b1f0a11")  # fixed for ever: DeviceUIDs are derived in it
_WEIGHTS = "weights.safetensors"
_GOLDEN = "golden.safetensors"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]


class PackageError(Exception):
    """The package cannot serve. The message says where, what was found, what is wanted."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(_Part):
    """One network: an allow-listed builder, its plain arguments, and the image it wants."""

    architecture: str
    arguments: dict[str, int | float | bool | str | list[int]] = {}
    side: Annotated[int, Field(ge=32, le=4096)]  # input is (n, 1, side, side), letterboxed by inference/preprocess.py
    normalisation: str  # a name inference/preprocess.py knows


class Classifier(Network):
    """Image -> one logit of pneumothorax, held against `threshold` after the sigmoid."""

    threshold: Probability
    operating_point: str  # how the threshold was chosen, in words


class Segmenter(Network):
    """Image -> (side, side) logits of pneumothorax; postprocess.segment says what its three figures mean."""

    bottom: Probability
    top: Probability
    min_area_at_1024_px: Annotated[float, Field(ge=0.0)]


class Code(_Part):
    """A coded concept (PS3.3 section 8)."""

    value: str
    scheme: str
    meaning: str


class Training(_Part):
    """Where the weights come from."""

    recipe: str
    data: list[str]
    date: str
    command: str


class Manifest(_Part):
    """model.yaml."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")  # goes into SH and LO attributes
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    task: Literal["pneumothorax"]
    classifier: Classifier
    segmenter: Segmenter
    label: Code
    training: Training
    metrics: dict[str, Any]
    licence: str
    intended_use: str
    sha256: dict[str, Sha256]  # of every other file of the package


@dataclass(frozen=True, eq=False)
class Package:
    """A package that was checked, replayed and is ready to serve on the CPU; engine.py moves it."""

    manifest: Manifest
    identity: ModelIdentity
    classifier: nn.Module
    segmenter: nn.Module


def default_folder() -> Path:
    """The folder of the model that ships with Pleura."""
    return Path(str(importlib.resources.files("inference"))) / "models" / "default"


def folder_of(model: str) -> Path:
    """The folder that a setting or an option names: "default", or a path."""
    return default_folder() if model == "default" else Path(model)


def read_manifest(folder: Path) -> Manifest:
    """model.yaml and the checksums, without loading a weight.

    Raises:
        PackageError: absent, not YAML, a wrong or unknown key, or a file whose sha256 differs.
    """
    path = folder / "model.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        manifest = Manifest.model_validate(document)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PackageError(f"{path}: cannot be read as YAML ({error}); give the folder of a model package") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise PackageError(f"{path}: {faults}") from error
    for name in (_WEIGHTS, _GOLDEN):
        if name not in manifest.sha256:
            raise PackageError(f"{path}: sha256: {name} is not listed; every file of the package must be")
    for name, wanted in manifest.sha256.items():
        if Path(name).name != name:
            raise PackageError(f"{path}: sha256: {name!r} is not a plain file name; a package is one flat folder")
        found = _sha256(folder / name)
        if found != wanted:
            raise PackageError(
                f"{folder / name}: sha256 {found} found, {wanted} wanted; the file is not the one packed"
            )
    return manifest


def load(folder: Path) -> Package:
    """Check, build, fill and replay a package on the CPU in fp32.

    Raises:
        PackageError: see `read_manifest`; also weights that do not fit, are not finite, or a golden replay that
            is off by more than 1e-3.
    """
    manifest = read_manifest(folder)
    weights = _tensors(folder / _WEIGHTS)
    networks = {}
    for role, network in (("classifier", manifest.classifier), ("segmenter", manifest.segmenter)):
        networks[role] = _filled(folder, role, network, weights)
    package = Package(manifest, _identity(folder, manifest), networks["classifier"], networks["segmenter"])
    _replay(folder, package)
    return package


def write(
    folder: Path, manifest: dict[str, Any], networks: dict[str, nn.Module], golden_inputs: dict[str, Tensor]
) -> Manifest:
    """Write a package: weights as float16 tensors, golden outputs computed from exactly those.

    `manifest` is a Manifest's fields without `sha256`; `networks` and `golden_inputs` have "classifier" and
    "segmenter"; a golden input is (n, 1, side, side) float32 as preprocess makes it. The networks are left holding
    the rounded weights. A README.md already in the folder (the model card) is listed too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    golden: dict[str, Tensor] = {}
    for role, network in networks.items():
        stored = {name: _stored(value) for name, value in network.state_dict().items()}
        weights |= {f"{role}.{name}": value for name, value in stored.items()}
        network.load_state_dict(_widened(stored))
        network.eval()
        golden[f"{role}.input"] = golden_inputs[role].float().clone().contiguous()
        with torch.inference_mode():
            golden[f"{role}.output"] = network(golden[f"{role}.input"]).float().contiguous()
    save_file(weights, folder / _WEIGHTS)
    save_file(golden, folder / _GOLDEN)
    return _write_manifest(folder, manifest)


def amend(folder: Path, metrics: dict[str, Any]) -> Manifest:
    """Write measured figures into model.yaml, and list every file as it is now (a model card may have come)."""
    manifest = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8")) | {"metrics": metrics}
    return _write_manifest(folder, manifest)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> Manifest:
    listed = [name for name in (_WEIGHTS, _GOLDEN, "README.md") if (folder / name).is_file()]
    checked = Manifest.model_validate(manifest | {"sha256": {name: _sha256(folder / name) for name in listed}})
    text = yaml.safe_dump(checked.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    return checked


def _widened(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _stored(value: Tensor) -> Tensor:
    # Half the bytes; the golden outputs and every published figure are of exactly these rounded weights.
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() else value


def _identity(folder: Path, manifest: Manifest) -> ModelIdentity:
    digest = _sha256(folder / "model.yaml")  # it holds the sha256 of every other file
    device_uid = f"2.25.{uuid5(_DEVICE_NAMESPACE, digest).int}"
    return ModelIdentity(manifest.id, manifest.version, digest, device_uid)


def _filled(folder: Path, role: str, network: Network, weights: dict[str, Tensor]) -> nn.Module:
    try:
        module = build(network.architecture, **network.arguments)
    except ValueError as error:
        raise PackageError(f"{folder / 'model.yaml'}: {role}: {error}") from error
    own = {name.removeprefix(f"{role}."): value for name, value in weights.items() if name.startswith(f"{role}.")}
    for name, value in own.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise PackageError(f"{folder / _WEIGHTS}: {role}.{name} holds NaN or infinity; weights must be finite")
    try:
        module.load_state_dict(_widened(own))
    except RuntimeError as error:
        raise PackageError(f"{folder / _WEIGHTS}: {role} does not fit {network.architecture}: {error}") from error
    return module.eval()


def _replay(folder: Path, package: Package) -> None:
    golden = _tensors(folder / _GOLDEN)
    for role, module in (("classifier", package.classifier), ("segmenter", package.segmenter)):
        try:
            given, wanted = golden[f"{role}.input"], golden[f"{role}.output"]
        except KeyError as error:
            raise PackageError(
                f"{folder / _GOLDEN}: {error} is absent; it must hold input and {role}.output"
            ) from error
        with torch.inference_mode():
            try:
                found = module(given)
            except RuntimeError as error:
                raise PackageError(f"{folder / _GOLDEN}: input {tuple(given.shape)} does not run: {error}") from error
        if found.shape != wanted.shape:
            raise PackageError(
                f"{folder / _GOLDEN}: {role}.output {tuple(wanted.shape)} found, {tuple(found.shape)} wanted"
            )
        off = float((found - wanted).abs().max())
        if not off <= GOLDEN_TOLERANCE:
            raise PackageError(
                f"{folder}: golden replay of the {role} is {off:.2e} off, at most {GOLDEN_TOLERANCE:.0e} allowed; "
                "the weights, the network or this machine's arithmetic differ from what was packed"
            )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise PackageError(f"{path}: not a safetensors file ({error})") from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror}); the package is incomplete") from error


def as_json(manifest: Manifest) -> str:
    """The manifest for `pleura model show`."""
    return json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
