"""The images for the node under test: any number of small chests, and a model that answers in
milliseconds.
"""

from __future__ import annotations

import io
import math
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydicom import Dataset, dcmread
from pydicom.uid import UID
from torch import nn

from inference import package
from inference.engine import Engine, choose_device
from inference.pipeline import AnalysisSettings, Pipeline
from tests import models
from training import phantom


@dataclass(frozen=True)
class Image:
    """One image to send, with the pixels of template number `template` and its own UID."""

    template: int
    sop_instance_uid: str
    dataset: Dataset


class Templates:
    """Makes any number of images from a few pictures: each image is a template with a new UID."""

    def __init__(self, files: Sequence[Path], rng: random.Random) -> None:
        self._data = [path.read_bytes() for path in files]
        self._rng = rng

    def draw(self) -> Image:
        number = self._rng.randrange(len(self._data))
        uid = f"2.25.{uuid.UUID(int=self._rng.getrandbits(128), version=4).int}"
        return self.image(number, uid)

    def image(self, number: int, uid: str) -> Image:
        """The same image again, for a modality that sends it twice."""
        dataset = dcmread(io.BytesIO(self._data[number]))
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(uid)
        return Image(number, uid, dataset)


def chests(folder: Path, number: int = 6, side_px: int = 192) -> list[Path]:
    """Synthetic chests, half of them with a pneumothorax."""
    return [
        phantom.write(phantom.draw(seed, seed % 2 == 0, side_px), folder / f"chest-{seed}.dcm")
        for seed in range(number)
    ]


def undecodable(folder: Path) -> Path:
    """A chest whose pixels cannot be decoded; the node reports that to the archive."""
    dataset = dcmread(phantom.write(phantom.draw(0, True, 64), folder / "undecodable.dcm"))
    dataset.PixelData = dataset.PixelData[:1000]
    dataset.save_as(folder / "undecodable.dcm")
    return folder / "undecodable.dcm"


def quick_model(folder: Path, files: Sequence[Path]) -> Path:
    """A package with untrained networks that call half of `files` positive. Returns `folder`."""
    networks = models.tiny_networks()
    for network in networks.values():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    models.write(folder / "first", networks)

    pipeline = Pipeline(
        Engine(package.load(folder / "first"), choose_device("cpu")), AnalysisSettings()
    )
    outcomes = pipeline.analyse(
        [path.read_bytes() for path in files], datetime(2026, 1, 1, tzinfo=UTC)
    )

    chances = sorted(outcome.finding.probability for outcome in outcomes if outcome.finding)
    logits = [math.log(p / (1 - p)) for p in chances]
    half = len(logits) // 2
    middle = (logits[half - 1] + logits[half]) / 2
    gap = logits[half] - logits[half - 1]

    head = networks["classifier"].head
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias.copy_((head.bias - middle) / gap)
        head.weight.div_(gap)
    return models.write(folder / "model", networks, "quick")
