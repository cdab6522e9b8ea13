"""The time from a file to a picture, and of decoding JPEG 2000 and HTJ2K.

    python -m benchmarks.decode [--rounds N] [--codecs]

Without `--codecs`: the steps from a file to a picture, for a made-up uncompressed radiograph of
2500 x 2048 with 16 bits, beside pydicom's own LUT functions. The steps take turns in one process,
after a warm-up. Prints the least processor time of each step in milliseconds; on shared cores,
elapsed time says little.

`--codecs` (needs `pip install pleura[benchmark]`): all the node's steps from the encapsulated Pixel
Data of a lossless 12-bit radiograph to its stored values, beside imagecodecs, the fastest library
that could be shipped (OpenJPEG with one thread and with one per core; OpenJPH for HTJ2K), in
alternate turns. Prints medians of elapsed and processor time in milliseconds, and the ratio of
medians imagecodecs / node: above 1, the node is faster. DCMTK has no decoder for either.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID, HTJ2KLossless, JPEG2000Lossless

from benchmarks.measurement import by_turns, command_line, machine, median_ms, seconds_of
from inference import display, pixels, radiograph
from tools.images import image, written

ROWS, COLUMNS = 2500, 2048
CODEC_SHAPES = ((2500, 2048), (4300, 3500))


def main() -> None:
    """Print the cost of each step, or with `--codecs` the comparison of decoders."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--codecs", action="store_true", help="only JPEG 2000 and HTJ2K")
    options = parser.parse_args()

    if options.codecs:
        compare_codecs(options.rounds)
    else:
        time_steps(options.rounds)


# ---- the steps from a file to a picture


def time_steps(rounds: int) -> None:
    """Print the least milliseconds of processor time of each step."""
    steps = _steps(_uncompressed())
    measures = {name: partial(seconds_of, step, time.process_time) for name, step in steps.items()}

    seconds = by_turns(measures, rounds + 1, warm_ups=0)
    for name, figures in seconds.items():
        print(f"{name:34}{1000 * min(figures):7.1f} ms")


def _uncompressed() -> bytes:
    """A file of a ramp with grain, over the range of a detector's values."""
    row, column = np.mgrid[0:ROWS, 0:COLUMNS]
    grain = np.random.default_rng(0).normal(0, 600, (ROWS, COLUMNS))
    values = (30000 + 12 * (row - 1250) + 4 * (column - 1024) + grain).clip(0, 65535).astype("<u2")
    window = {"WindowCenter": 30000, "WindowWidth": 30000}
    return written(image(values, **window, RescaleSlope=1, RescaleIntercept=0))


def _steps(data: bytes) -> dict[str, Callable[[], object]]:
    dataset, _ = radiograph.parse(data)
    stored = pixels.stored_values(dataset)

    def show_by_pydicom() -> None:
        rescaled = apply_modality_lut(stored, dataset)
        shown = np.asarray(apply_voi_lut(rescaled, dataset, index=0), dtype=np.float32)
        low, high = float(shown.min()), float(shown.max())
        np.clip((shown - low) / (high - low), 0.0, 1.0)

    return {
        "parse": lambda: radiograph.parse(data),
        "stored values": lambda: pixels.stored_values(dataset),
        "sha256 of them": lambda: hashlib.sha256(stored.data).digest(),
        "stored values -> picture": lambda: display.displayed(dataset, stored),
        "the same by pydicom's functions": show_by_pydicom,
        "decode, all of it": lambda: radiograph.decode(dataset),
    }


# ---- decoders of JPEG 2000 and HTJ2K


def compare_codecs(rounds: int) -> None:
    """Print the times of imagecodecs and of the node, and their ratios, for each image size."""
    import imagecodecs

    libraries = f"{imagecodecs.jpeg2k_version()}, {imagecodecs.htj2k_version()}"
    print(
        f"{machine(f'{rounds} rounds', libraries)}; ms elapsed (processor), theirs / node = ratio "
        "of medians"
    )

    for shape in CODEC_SHAPES:
        values = radiograph_of_12_bits(shape)
        for name, (syntax, stream, decode) in _rivals(values).items():
            dataset = encapsulated(values, stream, syntax)
            theirs = partial(decode, stream)
            node = partial(pixels.stored_values, dataset)

            assert np.array_equal(theirs(), values), name
            assert np.array_equal(node(), values), name
            print(f"{shape[0]} x {shape[1]} {name:31}{row(theirs, node, rounds)}", flush=True)


def _rivals(values: NDArray[np.uint16]) -> dict[str, tuple[UID, bytes, Callable[..., Any]]]:
    """Name -> (transfer syntax, the encoded values, a decoder of imagecodecs)."""
    import imagecodecs

    cores = os.cpu_count() or 1
    jpeg_2000 = bytes(
        imagecodecs.jpeg2k_encode(
            values, level=0, codecformat="j2k", bitspersample=12, reversible=True, mct=False
        )
    )
    htj2k = bytes(imagecodecs.htj2k_encode(values, reversible=True))
    openjpeg = partial(imagecodecs.jpeg2k_decode, numthreads=1)
    openjpeg_on_all_cores = partial(imagecodecs.jpeg2k_decode, numthreads=cores)

    return {
        "JPEG 2000, OpenJPEG, 1 thread": (JPEG2000Lossless, jpeg_2000, openjpeg),
        f"JPEG 2000, OpenJPEG, {cores} threads": (
            JPEG2000Lossless,
            jpeg_2000,
            openjpeg_on_all_cores,
        ),
        "HTJ2K, OpenJPEG, 1 thread": (HTJ2KLossless, htj2k, openjpeg),
        "HTJ2K, OpenJPH": (HTJ2KLossless, htj2k, imagecodecs.htj2k_decode),
    }


def row(theirs: Callable[[], object], node: Callable[[], object], rounds: int) -> str:
    """Medians of both decoders in alternate turns, in milliseconds, and their ratios, as text."""
    elapsed: dict[str, list[float]] = {"theirs": [], "node": []}
    processor: dict[str, list[float]] = {"theirs": [], "node": []}

    for _ in range(rounds):
        for name, decode in (("theirs", theirs), ("node", node)):
            began = time.perf_counter()
            processor_began = time.process_time()
            decode()
            elapsed[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - processor_began)

    theirs_ms, node_ms = (median_ms(seconds) for seconds in elapsed.values())
    theirs_cpu_ms, node_cpu_ms = (median_ms(seconds) for seconds in processor.values())
    return (
        f"{theirs_ms:7.1f} ({theirs_cpu_ms:7.1f}) / {node_ms:7.1f} ({node_cpu_ms:7.1f}) = "
        f"{theirs_ms / node_ms:.2f} ({theirs_cpu_ms / node_cpu_ms:.2f})"
    )


def radiograph_of_12_bits(shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Stored values of (rows, columns): smooth, with a detector's grain."""
    down, across = np.mgrid[0 : shape[0], 0 : shape[1]]
    smooth = 2000 + 900 * np.sin(down / 700) * np.cos(across / 500)
    grain = np.random.default_rng(0).normal(0, 12, shape)
    values: NDArray[np.uint16] = (smooth + grain).clip(0, 4095).astype(np.uint16)
    return values


def encapsulated(values: NDArray[np.uint16], stream: bytes, syntax: UID) -> FileDataset:
    """An image as read from a file, with this stream as its only frame."""
    dataset = image(values, BitsStored=12, HighBit=11)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True

    parsed, _ = radiograph.parse(written(dataset, enforce_file_format=True))
    return parsed


if __name__ == "__main__":
    main()
