"""Labelled images, read from a folder of any layout or drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inference import radiograph
from training.data import lgg, siim, silver, table
from training.data.cases import Case
from training.data.findings import Cases

# The recipe imports torch, which the processes that decode images do not need.
if TYPE_CHECKING:
    from training import phantom
    from training.recipe import Layout

_PHANTOMS = 200


@dataclass(frozen=True)
class Source:
    """How a layout is read, and a line about it for a package's provenance."""

    about: str
    read: Callable[[Path], Cases]
    # Raises ValueError if the folder lacks the layout's files; fast, unlike `read`
    look: Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class PhantomCase(Case):
    """A synthetic radiograph, drawn when asked for."""

    seed: int
    size: int

    def pixels(self) -> NDArray[np.float32]:
        return radiograph.stretch(_drawn(self.seed, self.positive, self.size).pixels)

    def mask(self) -> NDArray[np.bool_]:
        return _drawn(self.seed, self.positive, self.size).mask

    def identity(self) -> str:
        return f"phantom {self.seed} {self.positive} {self.size}"


# Pixels and mask are read one after the other.
@lru_cache(maxsize=1)
def _drawn(seed: int, pneumothorax: bool, size: int) -> phantom.Phantom:
    # Imports scipy, which the processes that decode images do not need.
    from training import phantom

    return phantom.draw(seed, pneumothorax, size)


def phantoms(count: int, first_seed: int = 0, size: int = 256) -> Cases:
    """Synthetic radiographs of (size, size) with exact masks.

    Every second one, starting with the first, has a pneumothorax.
    """
    return Cases(
        PhantomCase(
            image_id=f"phantom-{seed}", patient=f"phantom-{seed}", label=label, seed=seed, size=size
        )
        for seed, label in ((first_seed + n, float(n % 2 == 0)) for n in range(count))
    )


LAYOUTS: dict[Layout, Source] = {
    "siim": Source(
        "SIIM-ACR 2019: NIH ChestX-ray14 images (DICOM), masks by radiologists",
        siim.read,
        siim.look,
    ),
    "silver": Source(
        "SIIM-ACR stage-2 pictures with silver probabilities: an ensemble's output, no reading",
        silver.read,
        silver.home,
    ),
    "lgg": Source(
        "TCGA-LGG brain MRI, FLAIR slices with masks of lower-grade glioma", lgg.read, lgg.look
    ),
    "table": Source("a folder of images with a table of labels", table.read, table.look),
    "phantom": Source(
        f"{_PHANTOMS} synthetic radiographs with exact masks",
        lambda _: phantoms(_PHANTOMS),
        lambda _: None,
    ),
}


def look(layout: Layout, folder: Path) -> None:
    """Check quickly that the folder has the layout's tables and images.

    Raises:
        ValueError: no such layout or folder, or one without the layout's files.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} found, allowed: {', '.join(LAYOUTS)}")
    if layout != "phantom" and not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; one with the layout {layout} wanted "
            f"(training/data/{layout}.py)"
        )
    LAYOUTS[layout].look(folder)


def read(layout: Layout, folder: Path) -> Cases:
    """Every labelled image of `folder`; neither pixels nor masks are held in memory.

    Raises:
        ValueError: the folder does not have the layout, or rows that are malformed; with file and
            line.
    """
    look(layout, folder)
    return LAYOUTS[layout].read(folder)
