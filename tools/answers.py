"""Makes the pictures of docs/overlays.md that show an answer: `python -m tools.answers docs`.

The shipped model analyses synthetic radiographs in the pipeline; the pictures show its answers as
they are.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import generate_frames

from inference import package
from inference.engine import Engine
from inference.pipeline import AnalysisSettings, Pipeline
from training import phantom

_LONGEST_SIDE_PX = 640
_COLOURS = 256
_WHEN = datetime(2026, 11, 28, 12)
# Rows and columns of the word SYNTHETIC.
_WORD = (slice(940, None), slice(0, 260))


def both_sides() -> phantom.Phantom:
    """A phantom whose collapsed lung is mirrored to the other side."""
    drawn = phantom.draw(7, pneumothorax=True)
    middle = drawn.pixels.shape[1] // 2
    pixels = drawn.pixels.copy()
    mask = drawn.mask.copy()

    for plane in (pixels, mask):
        plane[:, :middle] = plane[:, ::-1][:, :middle]
    pixels[_WORD] = drawn.pixels[_WORD]
    return replace(drawn, pixels=pixels, mask=mask)


PICTURES: dict[str, Callable[[], phantom.Phantom]] = {
    "overlay.png": lambda: phantom.draw(7, pneumothorax=True),
    "overlay-both-sides.png": both_sides,
    "overlay-not-detected.png": lambda: phantom.draw(19, pneumothorax=False),
}


def main() -> None:
    """Write the pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder

    shipped = package.load(package.default_folder())
    pipeline = Pipeline(Engine(shipped, torch.device("cpu")), AnalysisSettings())
    for name, draw in PICTURES.items():
        picture = _overlay(pipeline, draw())
        picture.thumbnail((_LONGEST_SIDE_PX, _LONGEST_SIDE_PX))
        picture.quantize(_COLOURS).save(folder / name, optimize=True)


def _overlay(pipeline: Pipeline, drawn: phantom.Phantom) -> Image.Image:
    """The picture that the pipeline makes of a phantom."""
    with tempfile.TemporaryDirectory() as scratch:
        data = phantom.write(drawn, Path(scratch) / "phantom.dcm").read_bytes()
    (outcome,) = pipeline.analyse([data], _WHEN)
    (overlay,) = (result.data for result in outcome.results if result.kind == "SC")

    frames = generate_frames(dcmread(io.BytesIO(overlay)).PixelData, number_of_frames=1)
    return Image.open(io.BytesIO(next(frames)))


if __name__ == "__main__":
    main()
