"""A model package: model.yaml, weights.safetensors, golden.safetensors.

Loading runs no code from it.

The networks are built by allow-listed names (inference/networks), their weights are plain tensors,
every file is checked against its sha256, and the golden inputs are replayed before the package may
serve. The order of the checks matters: every stated size is bounded before anything of that size is
allocated (docs/models.md has the list).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from inference import manifest as manifests
from inference.container import PackageError
from inference.finding import ModelIdentity
from inference.manifest import Manifest, ManifestError, Network, Role, as_json
from inference.networks import outline
from inference.package_files import (
    GOLDEN,
    MANIFEST,
    WEIGHTS,
    default_folder,
    digest_of,
    folder_of,
    read,
    read_manifest,
    sha256,
)

__all__ = [
    "Manifest", "Network", "Package", "PackageError",
    "amend", "as_json", "default_folder", "digest_of", "folder_of", "load", "read_manifest",
    "write",
]  # fmt: skip

SERVED_TASK = "pneumothorax"
# docs/rules.md, "Model package": a larger difference in plain torch fp32 refuses the package.
GOLDEN_TOLERANCE = 1e-3
_MAX_GOLDEN_IMAGES = 16
# The UUID namespace of DeviceUIDs. It must never change.
_DEVICE_NAMESPACE = UUID("6f0f5c52-0d0c-5f60-9f0e-2f6a3b1f0a11")
_LISTED = (WEIGHTS, GOLDEN, "README.md", "LICENSE")
_FLOATS = {torch.float16, torch.bfloat16, torch.float32}


@dataclass(frozen=True, eq=False)
class Package:
    """A package that was checked and replayed, ready to serve on the CPU; engine.py moves it to a
    device.
    """

    manifest: Manifest
    identity: ModelIdentity
    classifier: nn.Module
    segmenter: nn.Module
    # None if the manifest has no such network.
    plausibility: nn.Module | None = None
    # The classifier is the segmenter's map: it has no weights, and one map is both the decision and
    # the drawing.
    one_map: bool = False
    # By "<role>.input" and "<role>.output"; other engines are compared with them.
    golden: dict[str, Tensor] = field(default_factory=dict)
    # The largest difference of the golden replay on this machine, at most 1e-3.
    replay_error: dict[Role, float] = field(default_factory=dict)

    @property
    def networks(self) -> dict[Role, nn.Module]:
        """The package's networks, each in eval mode, float32, on the CPU."""
        networks: dict[Role, nn.Module] = {
            "classifier": self.classifier,
            "segmenter": self.segmenter,
        }
        return networks | (
            {"plausibility": self.plausibility} if self.plausibility is not None else {}
        )

    def describe(self) -> str:
        """A description for `pleura model check`."""
        weights = {
            role: sum(one.numel() for one in module.parameters())
            for role, module in self.networks.items()
        }
        return manifests.describe(self.manifest, weights, self.replay_error)


def load(path: Path, any_task: bool = False) -> Package:
    """Check, build, fill and replay a package (folder or zip) on the CPU in fp32.

    Raises:
        PackageError: see `read_manifest`; also a model not for chest X-rays (unless `any_task`), an
            architecture beyond the limits, weights that do not fit or are not finite, or a golden
            replay that differs by more than 1e-3.
    """
    files = read(path)
    if files.manifest.task != SERVED_TASK and not any_task:
        raise PackageError(
            f"{path}/{MANIFEST}: task: {files.manifest.task} found, {SERVED_TASK} wanted; a "
            "node analyses chest "
            "X-rays, other models can be trained and evaluated only"
        )

    weights, golden = (
        _tensors(f"{path}/{name}", files.kept.pop(name)) for name in (WEIGHTS, GOLDEN)
    )
    roles = files.manifest.networks
    strangers = sorted(name for name in weights if name.partition(".")[0] not in roles)
    if strangers:
        raise PackageError(
            f"{path}/{WEIGHTS}: {strangers[0][:200]} belongs to no network of {MANIFEST}"
        )

    one_map = files.manifest.one_map and not any(name.startswith("classifier.") for name in weights)
    networks: dict[Role, nn.Module] = {}
    errors: dict[Role, float] = {}

    for role, network in roles.items():
        of = "segmenter" if one_map and role == "classifier" else role
        own = {
            name.removeprefix(f"{of}."): value
            for name, value in weights.items()
            if name.startswith(f"{of}.")
        }
        if of != role:
            own = {f"segmenter.{name}": value for name, value in own.items()}
        networks[role] = _filled(path, role, network, own)
        errors[role] = _replayed(path, role, network, networks[role], golden)

    if one_map:
        # Share the weights, so that they are in memory only once.
        networks["segmenter"] = networks["classifier"].get_submodule("segmenter")

    device_uid = f"2.25.{uuid5(_DEVICE_NAMESPACE, files.digest).int}"
    identity = ModelIdentity(files.manifest.id, files.manifest.version, files.digest, device_uid)

    return Package(
        files.manifest,
        identity,
        networks["classifier"],
        networks["segmenter"],
        networks.get("plausibility"),
        one_map=one_map,
        golden=golden,
        replay_error=errors,
    )


def write(
    folder: Path,
    manifest: dict[str, Any],
    networks: dict[str, nn.Module],
    golden_inputs: dict[str, Tensor],
    exact: bool = False,
) -> Manifest:
    """Write a package: weights, golden inputs and outputs, model.yaml.

    Weights are rounded to float16 (`exact`: kept), and golden outputs are computed from those.

    `manifest` is a Manifest's fields without `sha256`; `networks` and `golden_inputs` have
    "classifier", "segmenter" and, where the manifest has one, "plausibility"; a golden input is (n,
    1, side, side) float32 as preprocess makes it, n at most 16. Afterwards the networks hold the
    rounded weights. A classifier that is the segmenter's map (`Manifest.one_map`) with the
    segmenter's weights is stored without weights: they are those of the segmenter. A README.md (the
    model card) and a LICENSE already in the folder are listed too.

    Raises:
        PackageError: a broken manifest, networks other than the manifest's, or weights that
            float16 cannot hold.
    """
    checked = _checked(folder, manifest | {"sha256": {}}, networks, golden_inputs)
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    golden: dict[str, Tensor] = {}

    for role, network in networks.items():
        stored = {name: _stored(value, exact) for name, value in network.state_dict().items()}
        for name, value in stored.items():
            _refuse_not_finite(f"{folder}/{WEIGHTS}", f"{role}.{name}", value)

        weights |= {f"{role}.{name}": value for name, value in stored.items()}
        network.load_state_dict(_widened(stored))
        network.eval()
        golden[f"{role}.input"] = golden_inputs[role].float().clone().contiguous()

        with torch.inference_mode():
            golden[f"{role}.output"] = network(golden[f"{role}.input"]).float().contiguous()

    if checked.one_map and _is_repeated(weights):
        weights = {
            name: value for name, value in weights.items() if not name.startswith("classifier.")
        }

    save_file(weights, folder / WEIGHTS)
    save_file(golden, folder / GOLDEN)

    return _write_manifest(folder, manifest)


def _is_repeated(weights: dict[str, Tensor]) -> bool:
    """Whether the segmenter inside the classifier has exactly the weights of the segmenter."""
    classifier = {
        name.removeprefix("classifier."): value
        for name, value in weights.items()
        if name.startswith("classifier.")
    }
    segmenter = {name: value for name, value in weights.items() if name.startswith("segmenter.")}
    return classifier.keys() == segmenter.keys() and all(
        torch.equal(value, segmenter[name]) for name, value in classifier.items()
    )


def amend(folder: Path, changes: dict[str, Any]) -> Manifest:
    """Change keys of model.yaml, and list every file again, such as a new model card. Weights stay.

    Raises:
        PackageError: model.yaml is broken, or would be with these changes.
    """
    try:
        manifest = manifests.parse((folder / MANIFEST).read_bytes())
    except (OSError, ManifestError) as error:
        raise PackageError(f"{folder}/{MANIFEST}: {error}") from error
    return _write_manifest(folder, manifest.model_dump(mode="json") | changes)


def _checked(folder: Path, document: dict[str, Any], *by_role: dict[str, Any]) -> Manifest:
    try:
        manifest = manifests.validate(document)
    except ManifestError as error:
        raise PackageError(f"{folder}/{MANIFEST}: {error}") from error
    for given in by_role:
        if set(given) != set(manifest.networks):
            raise PackageError(
                f"{folder}: {sorted(given)} given; the manifest names {sorted(manifest.networks)}"
            )
    return manifest


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> Manifest:
    listed = {
        name: sha256((folder / name).read_bytes()) for name in _LISTED if (folder / name).is_file()
    }
    checked = _checked(folder, manifest | {"sha256": listed})
    (folder / MANIFEST).write_text(manifests.dump(checked), encoding="utf-8")
    return checked


def _widened(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies with every float as float32."""
    return {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in weights.items()
    }


def _stored(value: Tensor, exact: bool) -> Tensor:
    # Half the bytes; golden outputs and published figures are computed from the rounded weights.
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() and not exact else value


def _filled(path: Path, role: Role, network: Network, weights: dict[str, Tensor]) -> nn.Module:
    try:
        module = outline(network.architecture, **network.arguments)
    except ValueError as error:
        raise PackageError(f"{path}/{MANIFEST}: {role}: {error}") from error

    wanted = module.state_dict()
    faults = [f"{name} is missing" for name in wanted.keys() - weights.keys()]
    faults += [f"{name} is of no use" for name in weights.keys() - wanted.keys()]

    for name in wanted.keys() & weights.keys():
        here, there = weights[name], wanted[name]
        if here.shape != there.shape:
            faults.append(f"{name} is {tuple(here.shape)}, wanted {tuple(there.shape)}")
        elif here.dtype not in (_FLOATS if there.is_floating_point() else {there.dtype}):
            faults.append(f"{name} is {here.dtype}, wanted {there.dtype}")

    if faults:
        shown = "; ".join(sorted(faults)[:5]) + (
            f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        )
        raise PackageError(
            f"{path}/{WEIGHTS}: {role} does not fit {network.architecture}: {shown[:1000]}"
        )

    for name, value in weights.items():
        _refuse_not_finite(f"{path}/{WEIGHTS}", f"{role}.{name}", value)

    # The weights become the network's own tensors. So no random weights are made before.
    module.load_state_dict(_widened(weights), assign=True)

    return module.eval()


def _output(role: Role, network: Network) -> tuple[int, ...]:
    return (1, network.side, network.side) if role == "segmenter" else (1,)


def _replayed(
    path: Path, role: Role, network: Network, module: nn.Module, golden: dict[str, Tensor]
) -> float:
    where = f"{path}/{GOLDEN}"

    given, wanted = golden.get(f"{role}.input"), golden.get(f"{role}.output")
    if given is None or wanted is None:
        raise PackageError(f"{where}: {role}.input or {role}.output is absent; it must hold both")

    number = len(given) if given.ndim else 0
    if not 1 <= number <= _MAX_GOLDEN_IMAGES:
        raise PackageError(
            f"{where}: {role}.input holds {number} images, 1 to {_MAX_GOLDEN_IMAGES} allowed"
        )

    shapes = {
        "input": (given, (1, network.side, network.side)),
        "output": (wanted, _output(role, network)),
    }
    for name, (value, shape) in shapes.items():
        if tuple(value.shape) != (number, *shape) or value.dtype != torch.float32:
            what = f"{tuple(value.shape)} {value.dtype}"
            raise PackageError(
                f"{where}: {role}.{name} {what} found, {(number, *shape)} float32 wanted"
            )

    try:
        with torch.inference_mode():
            # One by one, because sixteen large images take gigabytes.
            found = torch.cat([module(one) for one in torch.split(given, 1)])
    except RuntimeError as error:
        # For example, a side that cannot be halved often enough.
        raise PackageError(
            f"{where}: {role}.input does not run through {network.architecture}: {error}"
        ) from error

    if found.shape != wanted.shape:
        raise PackageError(
            f"{path}/{MANIFEST}: {network.architecture} gives {tuple(found.shape)}; a {role} "
            "must give "
            f"{tuple(wanted.shape)}"
        )

    off = float((found - wanted).abs().max())
    # Written so that NaN fails too.
    if not off <= GOLDEN_TOLERANCE:
        raise PackageError(
            f"{path}: golden replay of the {role} is {off:.2e} off, at most "
            f"{GOLDEN_TOLERANCE:.0e} allowed; "
            "the weights, the network or this machine's arithmetic differ from what was packed"
        )

    return off


def _refuse_not_finite(where: str, name: str, value: Tensor) -> None:
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise PackageError(f"{where}: {name} holds NaN or infinity; weights must be finite")


def _tensors(where: str, data: bytes) -> dict[str, Tensor]:
    try:
        return load_safetensors(data)
    # Besides its own error, safetensors raises these for unknown types and empty tensors.
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise PackageError(f"{where}: not a safetensors file ({str(error)[:300]})") from error
