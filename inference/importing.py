"""`pleura model import`: turn another project's checkpoint into a model package.

Only here is a pickle read, and only its tensors are used. package.py writes the package.

CheXNet: Rajpurkar et al., "CheXNet: Radiologist-Level Pneumonia Detection on Chest X-Rays with Deep
Learning", arXiv 1711.05225; a DenseNet-121 with 14 outputs, as its public reimplementations save
it.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference import keras_weights, package
from inference.container import MAX_FILE_BYTES, PackageError
from inference.manifest import Manifest
from inference.networks import build, shapes
from inference.programs import program_in

# The 14 findings of ChestX-ray14 in the order of CheXNet's outputs.
CHEXNET_LABELS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
_PNEUMOTHORAX = CHEXNET_LABELS.index("Pneumothorax")
# The prefixes of DataParallel and of a trainer's attribute, in either order; then a wrapper's.
_PREFIXES = ("module.", "model.", "module.", "densenet121.")
# Checkpoints from before torch 0.4 say "norm.1"; module names may not contain a dot any more.
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
# The names of a head of Linear and Sigmoid.
_HEADS = {
    "classifier.0.weight": "classifier.weight",
    "classifier.0.bias": "classifier.bias",
}
_NO_LICENCE = "not stated with the checkpoint: ask its author before use"


@dataclass(frozen=True)
class Choices:
    """Facts that a checkpoint does not hold, and that a person must supply."""

    threshold: float
    # How the threshold was chosen, in words.
    operating_point: str
    side: int = 224
    id: str = "chexnet"
    version: str = "1.0.0"
    licence: str = _NO_LICENCE


CHOICES = frozenset(one.name for one in fields(Choices))


def import_chexnet(checkpoint: Path, segmenter: Path, folder: Path, choices: Choices) -> Manifest:
    """Write the package of a CheXNet checkpoint.

    Segmenter and plausibility gate come from another package.

    The weights are kept as they are, in float32. Only the output for pneumothorax, one of 14, is
    kept.

    Raises:
        PackageError: a checkpoint that is not one of a CheXNet DenseNet-121, a segmenter that does
            not load, or a `folder` that already holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackageError(f"{folder}: not an empty folder; an import overwrites nothing")

    network = chexnet(checkpoint)
    other = package.load(segmenter)
    manifest = _manifest(checkpoint, other.manifest, choices)
    networks = {str(role): one for role, one in other.networks.items()} | {"classifier": network}
    inputs = {role: other.golden[f"{role}.input"] for role in networks} | {
        "classifier": golden_input(choices.side)
    }
    package.write(folder, manifest, networks, inputs, exact=True)
    (folder / "README.md").write_text(_card(checkpoint, other.manifest, choices), encoding="utf-8")

    # Written first, so that model.yaml lists the card too.
    return package.amend(folder, {})


def chexnet(checkpoint: Path) -> nn.Module:
    """The network of a CheXNet checkpoint, with its pneumothorax output alone: (n, 1, side, side)
    -> (n, 1) logits.

    Raises:
        PackageError: see `import_chexnet`.
    """
    state = renamed(state_dict(checkpoint))

    wanted = shapes("densenet-121", outputs=len(CHEXNET_LABELS), stem="imagenet")
    for name, value in wanted.items():
        # Training's bookkeeping, which torch before 0.4.1 did not have.
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros_like(value, device="cpu"))

    faults = [f"{name} is missing" for name in sorted(wanted.keys() - state.keys())]
    faults += [f"{name} is unknown" for name in sorted(state.keys() - wanted.keys())]
    faults += [
        f"{name} is {tuple(state[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    faults += [
        f"{name} holds NaN or infinity"
        for name, value in sorted(state.items())
        if name in wanted
        and value.shape == wanted[name].shape
        and value.is_floating_point()
        and not torch.isfinite(value).all()
    ]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise PackageError(
            f"{checkpoint}: not a DenseNet-121 with {len(CHEXNET_LABELS)} outputs: "
            f"{'; '.join(faults[:5])[:1000]}{more}"
        )

    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][_PNEUMOTHORAX : _PNEUMOTHORAX + 1].clone()

    network = build("densenet-121", outputs=1, stem="imagenet")
    network.load_state_dict(state)

    return network.eval()


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under today's names, of torchvision and inference/networks/densenet.py."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {_HEADS.get(name, _OLD_NAME.sub(r"\1\2", name)): value for name, value in state.items()}


def state_dict(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, read as data: torch loads nothing else from a pickle.

    Raises:
        PackageError: too large, unreadable, or more than tensors.
    """
    if checkpoint.suffix.lower() in keras_weights.SUFFIXES:
        return keras_weights.tensors(checkpoint)
    if program := program_in(checkpoint):
        raise PackageError(f"{checkpoint}: {program}")

    try:
        if (size := checkpoint.stat().st_size) > MAX_FILE_BYTES:
            raise PackageError(
                f"{checkpoint}: {size} bytes found, at most {MAX_FILE_BYTES} allowed"
            )
        document = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise PackageError(
            f"{checkpoint}: cannot be read ({error.strerror}); give the checkpoint's file"
        ) from error
    except pickle.UnpicklingError as error:
        # torch's message names the call it refused, and advises to switch the protection off.
        # The name is passed on, the advice is not.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it wants to call {found[1][:100]}" if found else "it is damaged, or no checkpoint"
        raise PackageError(
            f"{checkpoint}: refused, nothing in it was run: {what}; only plain tensors are read. "
            "If you trust where it comes from, save its state_dict alone, on another machine, or "
            "export the model as ONNX there and import that with --kind onnx"
        ) from error
    except (
        Exception
        # On arbitrary bytes the unpickler may raise anything; a checkpoint is read completely or
        # not at all.
    ) as error:
        raise PackageError(
            f"{checkpoint}: not a torch checkpoint ({type(error).__name__})"
        ) from error

    state = document

    # A state dict, or a trainer's mapping that holds one.
    if isinstance(document, dict):
        state = next(
            (document[key] for key in ("state_dict", "model") if key in document), document
        )

    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        raise PackageError(
            f"{checkpoint}: no state_dict found: wanted a mapping of names to tensors"
        )

    return {str(name): value.detach() for name, value in state.items()}


def golden_input(side: int) -> Tensor:
    """Two smooth random pictures, (2, 1, side, side), 0 to 1, the same on every machine."""
    coarse = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)


def _manifest(checkpoint: Path, other: Manifest, choices: Choices) -> dict[str, Any]:
    segmenter_licence = f"segmenter ({other.id} {other.version}): {other.licence}"
    kept = other.model_dump(
        mode="json", include={"task", "segmenter", "plausibility", "label", "intended_use"}
    )

    return kept | {
        "id": choices.id,
        "version": choices.version,
        "classifier": {
            "architecture": "densenet-121",
            "arguments": {"outputs": 1, "stem": "imagenet"},
            "side": choices.side,
            # The network's first step standardises with ImageNet's figures.
            "normalisation": "unit",
            "threshold": choices.threshold,
            "operating_point": choices.operating_point,
        },
        "training": {
            "recipe": "imported: CheXNet, DenseNet-121",
            "data": [
                "classifier: as the checkpoint's authors say (CheXNet: ChestX-ray14)",
                *(f"segmenter: {one}"[:1000] for one in other.training.data),
            ],
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"pleura model import --kind chexnet {checkpoint.name}"[:1000],
        },
        "metrics": {},
        "licence": f"classifier: {choices.licence}; {segmenter_licence}"[:1000],
    }


def _card(checkpoint: Path, other: Manifest, choices: Choices) -> str:
    return f"""# {choices.id} {choices.version}

Imported, not validated. Research use only, not for diagnosis.

- Classifier: DenseNet-121 from `{checkpoint.name}`, output {_PNEUMOTHORAX} (pneumothorax) of
  CheXNet's 14; the others are left out.
- Segmenter: that of `{other.id}` {other.version}, unchanged; its model card holds for it.
- **No figure is known for this package.** The published figures of CheXNet are of other images,
  prepared in another way (256 px, ten crops of 224 px, averaged); here the whole image is fitted
  into {choices.side} px with black beside it.
  Measure it on images of your own: `pleura evaluate --model FOLDER --data DIR`.
- **The threshold {choices.threshold} was given by the person who imported it**, with these words:
  {choices.operating_point}
- Licence of the classifier: {choices.licence}. Licence of the segmenter: {other.licence}.
"""
