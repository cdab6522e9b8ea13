"""The cost of turning a file into a picture, beside pydicom's own LUT functions, and of JPEG 2000
and HTJ2K beside the quickest libraries that could be shipped.

One made-up radiograph of 2500 x 2048, 16 bits, uncompressed; the steps in turn, in one process,
after a warm-up:

    python -m benchmarks.decode [--rounds N] [--codecs]

Prints the least milliseconds of processor time of each step; shared cores make elapsed time say
little.

`--codecs` (needs `pip install pleura[benchmark]`): the node's whole way from the encapsulated Pixel
Data of a lossless radiograph of 12 bits to its stored values, beside imagecodecs (OpenJPEG with one
thread and with one a core; OpenJPH for HTJ2K), by alternate turns. Prints medians in milliseconds
of elapsed and of processor time, and imagecodecs / node = ratio of medians: above 1, the node is
quicker. DCMTK has no decoder for either.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID, HTJ2KLossless, JPEG2000Lossless

from inference import display, pixels, radiograph
from tools.images import image

ROWS, COLUMNS = 2500, 2048
CODEC_SHAPES = ((2500, 2048), (4300, 3500))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--codecs", action="store_true", help="JPEG 2000 and HTJ2K alone")
    options = parser.parse_args()
    if options.codecs:
        compare_codecs(options.rounds)
        return

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


def compare_codecs(rounds: int) -> None:
    import imagecodecs

    cores = os.cpu_count() or 1
    print(
        f"{cores} cores, {rounds} rounds, {imagecodecs.jpeg2k_version()}, "
        f"{imagecodecs.htj2k_version()}; ms elapsed (processor), theirs / node = ratio of medians"
    )
    for shape in CODEC_SHAPES:
        values = radiograph_of_12_bits(shape)
        jpeg_2000 = imagecodecs.jpeg2k_encode(
            values, level=0, codecformat="j2k", bitspersample=12, reversible=True, mct=False
        )
        ht = imagecodecs.htj2k_encode(values, reversible=True)
        rivals = {
            "JPEG 2000, OpenJPEG, 1 thread": (JPEG2000Lossless, jpeg_2000, 1),
            f"JPEG 2000, OpenJPEG, {cores} threads": (JPEG2000Lossless, jpeg_2000, cores),
            "HTJ2K, OpenJPEG, 1 thread": (HTJ2KLossless, ht, 1),
            "HTJ2K, OpenJPH": (HTJ2KLossless, ht, None),
        }
        for name, (syntax, stream, threads) in rivals.items():
            dataset = encapsulated(values, stream, syntax)

            def theirs(stream: bytes = stream, threads: int | None = threads) -> object:
                if threads is None:
                    return imagecodecs.htj2k_decode(stream)
                return imagecodecs.jpeg2k_decode(stream, numthreads=threads)

            def node(dataset: FileDataset = dataset) -> object:
                return pixels.stored_values(dataset)

            assert np.array_equal(theirs(), values), name
            assert np.array_equal(node(), values), name
            print(f"{shape[0]} x {shape[1]} {name:31}{row(theirs, node, rounds)}", flush=True)


def row(theirs: Callable[[], object], node: Callable[[], object], rounds: int) -> str:
    """Medians of both by alternate turns, and their ratios."""
    times: dict[Callable[[], object], list[tuple[float, float]]] = {theirs: [], node: []}
    for _ in range(rounds):
        for step, taken in times.items():
            elapsed, processor = time.perf_counter(), time.process_time()
            step()
            taken.append((time.perf_counter() - elapsed, time.process_time() - processor))

    (a, a_cpu), (b, b_cpu) = (
        [1e3 * statistics.median(column) for column in zip(*taken, strict=True)]
        for taken in times.values()
    )
    return f"{a:7.1f} ({a_cpu:7.1f}) / {b:7.1f} ({b_cpu:7.1f}) = {a / b:.2f} ({a_cpu / b_cpu:.2f})"


def radiograph_of_12_bits(shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Smooth, with a detector's grain."""
    down, across = np.mgrid[0 : shape[0], 0 : shape[1]]
    smooth = 2000 + 900 * np.sin(down / 700) * np.cos(across / 500)
    grain = np.random.default_rng(0).normal(0, 12, shape)
    return (smooth + grain).clip(0, 4095).astype(np.uint16)


def encapsulated(values: NDArray[np.uint16], stream: bytes, syntax: UID) -> FileDataset:
    """An image as it is read from a file, with this stream as its one frame."""
    dataset = image(values, BitsStored=12, HighBit=11)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    parsed, _ = radiograph.parse(buffer.getvalue())
    return parsed


if __name__ == "__main__":
    main()
