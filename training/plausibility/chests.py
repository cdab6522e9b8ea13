"""Real chests that train and measure the plausibility network, and phantoms beside them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference import radiograph
from inference.preprocess import fit
from training import phantom
from training.data import siim
from training.plausibility.non_chests import SIDE

# (n, SIDE, SIDE)
Pictures = NDArray[np.uint8]

FOLDS = 4
PHANTOMS = 120
# Of siim/: this fold trains nothing and chooses nothing.
REPORT_FOLD = 3
# The seeds of no other training set, no test, no demo.
PHANTOM_SEED = 200_000

# Real chests that lie upside down or inverted in the data: a person confirmed it after a network
# had refused them. They train nothing; the figures say what the network makes of them.
TURNED_OR_INVERTED = {
    "1.2.276.0.7230010.3.1.4.8323329.1649.1517875168.754818",
    "ID_aaa0d1b33",
    "ID_cba531b03",
    "ID_35a9e2842",
    "ID_eeadc6601",
}


@dataclass(frozen=True, eq=False)
class Chests:
    """Pictures of real chests and of phantoms."""

    # They may train; `folds` and `names` are those of each.
    pictures: Pictures
    folds: NDArray[np.int64]
    names: list[str]
    # The report fold
    reported: Pictures
    # They train beside the real chests.
    phantoms: Pictures


def read_chests(data: Path) -> Chests:
    """`data`/stage2 and `data`/siim.

    The stage-2 images that lie in `data`/node too are left out, so that node/ can test.
    """
    node = {path.stem for path in (data / "node").glob("*.dcm")}

    with (data / "stage2" / "silver-labels.csv").open(newline="", encoding="utf-8") as file:
        names = [row["ImageId"] for row in csv.DictReader(file)]
    tested = {name.removeprefix("stage2_") for name in node}
    names = [name for name in names if name not in tested | TURNED_OR_INVERTED]
    pictures = [grey(data / "stage2" / "jpeg512" / f"{name}.jpg") for name in names]

    # The patients of stage 2 are unknown.
    folds = np.random.default_rng(0).integers(0, FOLDS, len(names)).tolist()

    reported = []
    for case in siim.read(data):
        if case.image_id in node or case.image_id in TURNED_OR_INVERTED:
            continue
        picture = small(case.pixels())
        if case.fold == REPORT_FOLD:
            reported.append(picture)
        else:
            pictures.append(picture)
            folds.append(case.fold)
            names.append(case.image_id)

    drawn = [phantom.draw(PHANTOM_SEED + n, n % 2 == 0, size=128).pixels for n in range(PHANTOMS)]
    return Chests(
        np.stack(pictures),
        np.array(folds),
        names,
        np.stack(reported),
        np.stack([small(pixels) for pixels in drawn]),
    )


def real(data: Path, name: str) -> NDArray[np.float32]:
    """One real chest of siim/ or stage2/, (rows, columns), 0 black to 1 white."""
    path = data / "siim" / "dicom" / f"{name}.dcm"
    if path.exists():
        return radiograph.decode(radiograph.parse(path.read_bytes())[0]).pixels
    return grey(data / "stage2" / "jpeg512" / f"{name}.jpg").astype(np.float32) / np.float32(255)


def grey(path: Path) -> NDArray[np.uint8]:
    """A picture file, letterboxed to (SIDE, SIDE)."""
    with Image.open(path) as image:
        return small(radiograph.stretch(np.asarray(image.convert("L"), dtype=np.float32)))


def small(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns), 0 black to 1 white, letterboxed to (SIDE, SIDE) bytes."""
    return np.round(np.clip(fit(pixels, SIDE).pixels, 0, 1) * 255).astype(np.uint8)
