"""The package that ships, with another plausibility network in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from inference import package
from training import phantom
from training.plausibility import non_chests
from training.plausibility.train import ARCHITECTURE, INPUT_SIDE, MARGIN, network_input

VERSION = "1.0.1"
_DATA = "plausibility: stage2, siim folds [0, 1, 2], synthetic phantoms and non-chests"


def write(network: nn.Module, threshold: float, measured: dict[str, Any], folder: Path) -> None:
    """Write the shipped package with this network into `folder`.

    The weights of its other networks stay as they are, bit by bit.
    """
    shipped = package.load(package.default_folder())

    manifest = shipped.manifest.model_dump(mode="json")
    manifest["version"] = VERSION
    manifest["plausibility"] = {
        "architecture": ARCHITECTURE,
        "arguments": {},
        "side": INPUT_SIDE,
        "normalisation": "image-standard",
        "threshold": threshold,
        "operating_point": (
            f"{MARGIN:g} in the logit below 99.9 % of the real chests held out in four folds"
        ),
    }
    others = [line for line in manifest["training"]["data"] if line != _DATA]
    manifest["training"]["data"] = [*others, _DATA]
    manifest["metrics"] |= {"version": VERSION, "plausibility": measured}

    golden = {role: shipped.golden[f"{role}.input"] for role in ("classifier", "segmenter")}
    pictures = [
        phantom.draw(0, True, size=non_chests.SIDE).pixels,
        non_chests.draw("limb", 1, np.zeros((1, 1, 1), np.uint8), 0)[0] / 255,
    ]
    inputs = [network_input(picture.astype(np.float32)) for picture in pictures]
    golden["plausibility"] = torch.from_numpy(np.stack(inputs))

    card = package.default_folder() / "README.md"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / card.name).write_bytes(card.read_bytes())

    networks = {str(role): module for role, module in shipped.networks.items()}
    networks["plausibility"] = network
    package.write(folder, manifest, networks, golden)


def carry(folder: Path) -> None:
    """Give a trained package the plausibility network of the package that ships.

    The weights of its other networks stay as they are, bit by bit.
    """
    shipped, trained = package.load(package.default_folder()), package.load(folder)
    if shipped.plausibility is None or shipped.manifest.plausibility is None:
        return

    manifest = trained.manifest.model_dump(mode="json", exclude={"sha256"})
    manifest["plausibility"] = shipped.manifest.plausibility.model_dump(mode="json")
    others = [line for line in manifest["training"]["data"] if line != _DATA]
    manifest["training"]["data"] = [*others, _DATA]
    if "plausibility" in shipped.manifest.metrics:
        manifest["metrics"]["plausibility"] = shipped.manifest.metrics["plausibility"]

    networks = {str(role): module for role, module in trained.networks.items()}
    networks["plausibility"] = shipped.plausibility
    golden = {role: trained.golden[f"{role}.input"] for role in ("classifier", "segmenter")}
    golden["plausibility"] = shipped.golden["plausibility.input"]
    package.write(folder, manifest, networks, golden)
