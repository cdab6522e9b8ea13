"""Model packages that load and answer in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from inference import package
from inference.networks import build

TINY: dict[str, Any] = {"widths": [8, 8, 8, 8, 8], "blocks": 1}
_UNET = TINY | {"up_widths": [8, 8, 8, 8]}
_SIDE = 32


def tiny_networks() -> dict[str, nn.Module]:
    """Untrained networks of a few thousand weights, the same at each call."""
    torch.manual_seed(0)
    return {
        "classifier": build("residual-classifier", **TINY),
        "segmenter": build("residual-unet", **_UNET),
    }


def write(folder: Path, networks: dict[str, nn.Module], name: str = "tiny") -> Path:
    """Write a package of such networks, without a plausibility network. Returns `folder`."""
    manifest = {
        "id": name, "version": "1.0.0", "task": "pneumothorax",
        "classifier": {"architecture": "residual-classifier", "arguments": TINY, "side": _SIDE,
                       "normalisation": "image-standard", "threshold": 0.5, "operating_point": "none"},
        "segmenter": {"architecture": "residual-unet", "arguments": _UNET, "side": _SIDE,
                      "normalisation": "image-standard", "bottom": 0.5, "top": 0.5, "min_area_at_1024_px": 10},
        "label": {"value": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"},
        "training": {"recipe": "none", "data": [], "date": "2026-01-01", "command": "none"},
        "metrics": {}, "licence": "none", "intended_use": "tests",
    }  # fmt: skip
    package.write(
        folder, manifest, networks, dict.fromkeys(networks, torch.rand(2, 1, _SIDE, _SIDE))
    )
    return folder
