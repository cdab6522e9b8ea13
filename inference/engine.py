"""Runs a model package's two networks on one device: lists of images in, plain numpy out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference import preprocess
from inference.finding import ModelIdentity
from inference.package import Manifest, Network, Package
from inference.preprocess import Geometry

log = logging.getLogger("pleura.engine")


def choose_device(wanted: str) -> torch.device:
    """The device for "auto" (the first CUDA device, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: a CUDA device is named that this machine or this build of torch does not have.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    try:
        device = torch.device("cuda:0" if wanted in ("auto", "cuda") else wanted)
    except RuntimeError as error:
        raise ValueError(f"device: {wanted!r} found; allowed: auto, cpu, cuda, cuda:N") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.index is not None and device.index >= count:
        raise ValueError(
            f"device: {wanted} found, but torch {torch.__version__} sees {count} CUDA devices; "
            "use auto or cpu, or install a CUDA build of torch (README, torch)"
        )
    return device


class Engine:
    """One package on one device. Not thread-safe: one owner per device (design, section 1)."""

    def __init__(self, package: Package, device: torch.device) -> None:
        self.device = device
        self.manifest: Manifest = package.manifest
        self.identity: ModelIdentity = package.identity
        # channels_last: 1.5 times the speed of the default layout on CPUs, and what GPUs' tensor cores want.
        self._classifier, self._segmenter = (
            nn.Module.to(network, device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for network in (package.classifier, package.segmenter)
        )

    def classify(self, images: Sequence[NDArray[np.float32]]) -> list[float]:
        """Probability of pneumothorax, 0 to 1, for each (rows, columns) float32 image of display polarity."""
        logits, _ = self._forward(self._classifier, self.manifest.classifier, images)
        return [float(p) for p in torch.sigmoid(logits.flatten()).tolist()]

    def segment(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Probability map of pneumothorax, (rows, columns) float32 like each image given."""
        logits, geometries = self._forward(self._segmenter, self.manifest.segmenter, images)
        maps = torch.sigmoid(logits[:, 0]).numpy()
        return [preprocess.unfit(one, geometry) for one, geometry in zip(maps, geometries, strict=True)]

    def _forward(
        self, module: nn.Module, network: Network, images: Sequence[NDArray[np.float32]]
    ) -> tuple[Tensor, list[Geometry]]:
        fitted = [preprocess.fit(image, network.side) for image in images]
        arrays = [preprocess.normalise(one.pixels, one.geometry, network.normalisation) for one in fitted]
        batch = torch.from_numpy(np.stack(arrays))[:, None]
        with torch.inference_mode():
            logits = module(batch.to(self.device).contiguous(memory_format=torch.channels_last))
        return logits.float().cpu(), [one.geometry for one in fitted]
