"""The cost of turning a file into a picture, beside pydicom's own LUT functions.

One made-up radiograph of 2500 x 2048, 16 bits, uncompressed; the steps in turn, in one process,
after a warm-up:

    python -m benchmarks.decode [--rounds N]

Prints the least milliseconds of processor time of each step; shared cores make elapsed time say
little.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Callable

import numpy as np
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from inference import display, pixels, radiograph
from tools.images import image

ROWS, COLUMNS = 2500, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    # A ramp with grain, in the span of a detector's values.
    row, column = np.mgrid[0:ROWS, 0:COLUMNS]
    grain = np.random.default_rng(0).normal(0, 600, (ROWS, COLUMNS))
    values = (30000 + 12 * (row - 1250) + 4 * (column - 1024) + grain).clip(0, 65535).astype("<u2")

    buffer = io.BytesIO()
    image(
        values, WindowCenter=30000, WindowWidth=30000, RescaleSlope=1, RescaleIntercept=0
    ).save_as(buffer)
    dataset, _ = radiograph.parse(buffer.getvalue())
    stored = pixels.stored_values(dataset)

    def pydicoms() -> None:
        shown = np.asarray(
            apply_voi_lut(apply_modality_lut(stored, dataset), dataset, index=0), dtype=np.float32
        )
        low, high = float(shown.min()), float(shown.max())
        np.clip((shown - low) / (high - low), 0.0, 1.0)

    steps: dict[str, Callable[[], object]] = {
        "parse": lambda: radiograph.parse(buffer.getvalue()),
        "stored values": lambda: pixels.stored_values(dataset),
        "sha256 of them": lambda: hashlib.sha256(stored.data).digest(),
        "stored values -> picture": lambda: display.displayed(dataset, stored),
        "the same by pydicom's functions": pydicoms,
        "decode, all of it": lambda: radiograph.decode(dataset),
    }

    least = dict.fromkeys(steps, float("inf"))
    for _ in range(options.rounds + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            least[name] = min(least[name], time.process_time() - began)

    for name, seconds in least.items():
        print(f"{name:34}{1000 * seconds:7.1f} ms")


if __name__ == "__main__":
    main()
