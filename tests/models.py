"""A model package that loads in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inference import package
from inference.networks import build

TINY: dict[str, Any] = {"widths": [8, 8, 8, 8, 8], "blocks": 1}


def write_tiny(folder: Path) -> Path:
    """A model package with untrained networks of a few thousand weights, and no plausibility network."""
    torch.manual_seed(0)
    unet = TINY | {"up_widths": [8, 8, 8, 8]}
    manifest = {
        "id": "tiny", "version": "1.0.0", "task": "pneumothorax",
        "classifier": {"architecture": "residual-classifier", "arguments": TINY, "side": 32,
                       "normalisation": "image-standard", "threshold": 0.5, "operating_point": "none"},
        "segmenter": {"architecture": "residual-unet", "arguments": unet, "side": 32,
                      "normalisation": "image-standard", "bottom": 0.5, "top": 0.5, "min_area_at_1024_px": 10},
        "label": {"value": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"},
        "training": {"recipe": "none", "data": [], "date": "2026-01-01", "command": "none"},
        "metrics": {}, "licence": "none", "intended_use": "tests",
    }  # fmt: skip
    networks = {"classifier": build("residual-classifier", **TINY), "segmenter": build("residual-unet", **unet)}
    package.write(folder, manifest, networks, dict.fromkeys(networks, torch.rand(2, 1, 32, 32)))
    return folder
