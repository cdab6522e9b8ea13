"""The networks alone: `engine: auto` beside ONNX Runtime and OpenVINO used directly, in one run.

    python -m benchmarks.engine [--rounds N] [--only NAME]       (pip install 'pleura[benchmark]')

It runs classifier and segmenter of the default package, and DenseNet-121 and U-Net/ResNet-34 at
512 px with random weights, with one image and with eight. All use 32-bit floats, the same number of
threads and the same input. They take turns of two calls, of which the second is timed. Both rivals
load the network as ONNX; OpenVINO compiles it for exactly that batch, otherwise with its default
settings. Prints medians in milliseconds and two ratios of the faster rival to ours, above 1 if ours
is faster: of the medians, and the median of each turn's ratio, which other programs on the machine
affect less. Wanted: at least 0.95.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.measurement import (
    command_line,
    in_turn,
    load,
    machine,
    median_ms,
    median_ratio,
)
from inference import package
from inference.engine import Engine
from inference.networks import build
from inference.silence import silenced_warnings

BATCHES = (1, 8)
SIDE = 512
# Of opset 17, OpenVINO ignores the axes of ReduceLogSumExp: an ensemble's answer is one number.
OPSET = 18
Call = Callable[[NDArray[np.float32]], Any]


def main() -> None:
    """Compare on every network of both packages."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="only networks whose title contains NAME")
    options = parser.parse_args()

    logging.basicConfig(format="%(message)s")
    logging.getLogger("pleura").setLevel(logging.INFO)
    print(machine(f"torch {torch.__version__}", load()))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _compare_package("default", package.default_folder(), folder, options.only, options.rounds)

        large = folder / "large"
        _write_large(large)
        _compare_package("512 px", large, folder, options.only, options.rounds)


def _compare_package(label: str, source: Path, folder: Path, only: str, rounds: int) -> None:
    """Compare on the networks of a package whose title contains `only`."""
    loaded = package.load(source)
    # The engine may change its networks, so others are exported.
    plain = package.load(source)
    engine = Engine(loaded, torch.device("cpu"), "auto", max_batch=max(BATCHES))

    for role in ("classifier", "segmenter"):
        network = loaded.manifest.networks[role]
        title = f"{network.architecture} {network.side} px ({label})"
        if only not in title:
            continue

        while engine.running[role] == "torch" and engine.tune_step():
            pass

        path = folder / "network.onnx"
        _export(plain.networks[role], network.side, path)
        ours = f"ours, on {engine.running[role]}"

        for batch in BATCHES:
            shape = (batch, 1, network.side, network.side)
            calls: dict[str, Call] = {
                ours: partial(engine.logits, role),
                "ONNX Runtime": _onnxruntime(path),
                "OpenVINO": _openvino(path, shape),
            }
            images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            _print(f"{title}, batch {batch}", _measured(calls, images, rounds))


def _measured(
    calls: Mapping[str, Call], images: NDArray[np.float32], rounds: int
) -> Mapping[str, Sequence[float]]:
    """Seconds of each call in alternate turns. Their answers must agree."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    answers: dict[str, Any] = {}

    for turn in range(rounds + 1):
        for name in in_turn([*calls], turn):
            # The previous engine's threads spin for a while. The untimed call outlasts them.
            calls[name](images)
            started = time.perf_counter()
            answers[name] = calls[name](images)

            # The first turn warms up.
            if turn:
                seconds[name].append(time.perf_counter() - started)

    ours, *rivals = calls
    for name in rivals:
        # Broadcasting could hide a wrong shape.
        same_shape = answers[name].shape == answers[ours].shape
        assert same_shape, f"{name} answers {answers[name].shape}, ours {answers[ours].shape}"
        off = np.abs(answers[name] - answers[ours]).max()
        assert off < 1e-2, f"{name} disagrees with {ours}: {off:.1e} off"
    return seconds


def _print(title: str, seconds: Mapping[str, Sequence[float]]) -> None:
    """Print one line: the medians, and the ratios of the fastest rival to ours."""
    medians = {name: median_ms(times) for name, times in seconds.items()}
    ours, *rivals = seconds
    quickest = min(rivals, key=medians.__getitem__)
    turns = median_ratio(seconds[quickest], seconds[ours])

    told = ", ".join(f"{name} {median:.1f}" for name, median in medians.items())
    print(
        f"{title}: {told} ms; {quickest} / ours {medians[quickest] / medians[ours]:.2f}, "
        f"by turns {turns:.2f}",
        flush=True,
    )


def _onnxruntime(path: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _openvino(path: Path, shape: tuple[int, ...]) -> Call:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(shape)
    # Without the hint it uses bf16 if the CPU has it, while ours uses 32-bit floats.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", settings)
    return lambda images: compiled(images)[0]


def _export(network: nn.Module, side: int, path: Path) -> None:
    batches = {"images": {0: "batch"}, "logits": {0: "batch"}}

    # The exporter's warnings do not matter, because the answers are compared.
    with silenced_warnings():
        torch.onnx.export(
            network, (torch.zeros(2, 1, side, side),), path, dynamo=False, opset_version=OPSET,
            input_names=["images"], output_names=["logits"], dynamic_axes=batches,
        )  # fmt: skip


def _write_large(folder: Path) -> None:
    """Write a package of common networks at 512 px, with random weights."""
    torch.manual_seed(0)
    networks = {"classifier": build("densenet-121"), "segmenter": build("unet-resnet34")}

    common = {"side": SIDE, "normalisation": "image-standard"}
    manifest = {
        "id": "large", "version": "1.0.0", "task": "pneumothorax",
        "classifier": common
        | {"architecture": "densenet-121", "threshold": 0.5, "operating_point": "none"},
        "segmenter": common
        | {"architecture": "unet-resnet34", "bottom": 0.5, "top": 0.5, "min_area_at_1024_px": 10},
        "label": {"value": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"},
        "training": {"recipe": "none", "data": ["none"], "date": "2026-01-01", "command": "none"},
        "metrics": {}, "licence": "none", "intended_use": "benchmarks",
    }  # fmt: skip

    inputs = dict.fromkeys(networks, torch.randn(1, 1, SIDE, SIDE))
    package.write(folder, manifest, networks, inputs)


if __name__ == "__main__":
    main()
