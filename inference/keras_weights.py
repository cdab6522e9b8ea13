"""Weights that Keras saved as HDF5: a DenseNet-121, such as CheXNet's Keras reimplementation.

Needs h5py (`pip install 'pleura[keras]'`). Only numbers are read from the file: links to other
files, and data sets in other files, are not followed.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.container import MAX_FILE_BYTES, PackageError

SUFFIXES = (".h5", ".hdf5")
# Keras' batch norms add 1.001e-5 to the variance, torch's add 1e-5.
_EPSILON_MORE = 1e-8
# Keras' name of a weight -> torch's
_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# Layers of keras.applications.DenseNet121 -> those of torchvision's
_LAYERS = (
    (r"conv1/conv", "features.conv0"),
    (r"conv1/bn", "features.norm0"),
    (r"conv(\d)_block(\d+)_0_bn", "features.denseblock{0}.denselayer{1}.norm1"),
    (r"conv(\d)_block(\d+)_1_conv", "features.denseblock{0}.denselayer{1}.conv1"),
    (r"conv(\d)_block(\d+)_1_bn", "features.denseblock{0}.denselayer{1}.norm2"),
    (r"conv(\d)_block(\d+)_2_conv", "features.denseblock{0}.denselayer{1}.conv2"),
    (r"pool(\d)_bn", "features.transition{0}.norm"),
    (r"pool(\d)_conv", "features.transition{0}.conv"),
    (r"bn", "features.norm5"),
    (r"predictions|fc1000|dense(?:_\d+)?", "classifier"),
)


def tensors(path: Path) -> dict[str, Tensor]:
    """The weights of a DenseNet-121 under torchvision's names.

    Raises:
        PackageError: h5py is absent, or the file is not an HDF5 file of such a network.
    """
    if importlib.util.find_spec("h5py") is None:
        raise PackageError(
            f"{path}: needs h5py, which is not installed; "
            "install Pleura's extra keras (docs/install.md)"
        )
    import h5py

    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise PackageError(f"{path}: {size} bytes found, at most {MAX_FILE_BYTES} allowed")
        with h5py.File(path, "r") as file:
            found = _read(file, h5py.Dataset)
    except OSError as error:
        raise PackageError(f"{path}: cannot be read as HDF5 ({error})") from error

    if not found:
        raise PackageError(
            f"{path}: no weights of keras.applications.DenseNet121 found; other networks of Keras "
            "are imported as ONNX (tf2onnx with --inputs-as-nchw and --outputs-as-nchw)"
        )
    return found


def _read(file: Any, dataset_type: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def visit(place: str, item: Any) -> None:
        # The optimiser's momenta have the names of the weights.
        if not isinstance(item, dataset_type) or place.startswith("optimizer_weights"):
            return
        name = _name(place)
        if name is not None and not item.external and not item.is_virtual:
            found[name] = _as_torch(np.asarray(item[()], dtype=np.float32), name)

    # Follows neither soft nor external links.
    file.visititems(visit)
    return found


def _name(place: str) -> str | None:
    """torchvision's name of the weight at a place such as "conv1/bn/conv1/bn/gamma:0"."""
    layer, _, weight = place.removesuffix(":0").rpartition("/")
    if weight not in _WEIGHTS:
        return None

    for pattern, theirs in _LAYERS:
        if match := re.search(rf"(?:^|/)(?:{pattern})$", layer):
            numbers = list(match.groups())
            if numbers:
                # Keras counts the stem as a stage: the first block is in stage 2.
                numbers[0] = str(int(numbers[0]) - 1)
            return f"{theirs.format(*numbers)}.{_WEIGHTS[weight]}"
    return None


def _as_torch(values: NDArray[np.float32], name: str) -> Tensor:
    """A weight in torch's order of axes."""
    if values.ndim == 4:
        # (height, width, in, out) -> (out, in, height, width)
        values = values.transpose(3, 2, 0, 1)
    elif values.ndim == 2:
        values = values.T
    if name.endswith("running_var"):
        values = values + np.float32(_EPSILON_MORE)
    return torch.from_numpy(np.ascontiguousarray(values))
