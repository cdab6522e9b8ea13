"""The networks alone: `engine: auto` beside ONNX Runtime and OpenVINO used directly, in one run.

    python -m benchmarks.engine [--rounds N] [--only NAME]       (pip install 'pleura[benchmark]')

Classifier and segmenter of the default package, and DenseNet-121 and U-Net/ResNet-34 at 512 px with
random weights; one image and eight. All in 32-bit floats, with as many threads, on the same input,
in turns of two calls, of which the second counts. Both rivals take the network as ONNX; OpenVINO
compiles it for exactly that batch, with its own default settings otherwise. Prints medians in
milliseconds and two ratios of the quicker rival to ours, above 1 if ours is quicker: of the
medians, and the median of each turn's ratio, which other programs on the machine disturb less.
Wanted: at least 0.95.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference import package
from inference.engine import Engine
from inference.networks import build
from inference.silence import silenced_warnings

BATCHES = (1, 8)
SIDE = 512
Call = Callable[[NDArray[np.float32]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="networks whose name holds this")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pleura").setLevel(logging.INFO)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, source in (("default", package.default_folder()), ("512 px", folder / "large")):
            if source == folder / "large":
                _write_large(source)

            loaded, twin = package.load(source), package.load(source)
            engine = Engine(loaded, torch.device("cpu"), "auto", max_batch=max(BATCHES))

            for role in ("classifier", "segmenter"):
                network = loaded.manifest.networks[role]
                title = f"{network.architecture} {network.side} px ({label})"
                if options.only in title:
                    while engine.running[role] == "torch" and engine.tune_step():
                        pass

                    path = folder / "network.onnx"
                    _export(twin.networks[role], network.side, path)

                    for batch in BATCHES:
                        ours = (partial(engine.logits, role), f"ours, on {engine.running[role]}")
                        _compare(title, path, ours, (batch, network.side), options.rounds)


def _compare(
    title: str, path: Path, ours: tuple[Call, str], shape: tuple[int, int], rounds: int
) -> None:
    batch, side = shape
    given = np.random.default_rng(0).standard_normal((batch, 1, side, side), dtype=np.float32)
    parties = {
        ours[1]: ours[0],
        "ONNX Runtime": _onnxruntime(path),
        "OpenVINO": _openvino(path, given.shape),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parties}
    answers = {}

    for turn in range(rounds + 1):
        # Rotate, so that no engine always follows the same other.
        first = turn % len(parties)
        for name, call in [*parties.items()][first:] + [*parties.items()][:first]:
            # The untimed call outlasts the previous engine's threads, which spin for a while.
            call(given)
            started = time.perf_counter()
            answers[name] = call(given)

            # The first turn warms up.
            if turn:
                seconds[name].append(time.perf_counter() - started)

    mine, *rivals = parties
    for name in rivals:
        assert np.abs(answers[name] - answers[mine]).max() < 1e-2, f"{name} answers otherwise"

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min(rivals, key=medians.__getitem__)
    turns = statistics.median(
        one / own for one, own in zip(seconds[best], seconds[mine], strict=True)
    )
    told = ", ".join(f"{name} {median * 1e3:.1f}" for name, median in medians.items())
    print(
        f"{title}, batch {batch}: {told} ms; {best} / ours {medians[best] / medians[mine]:.2f}, "
        f"by turns {turns:.2f}",
        flush=True,
    )


def _onnxruntime(path: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def _openvino(path: Path, shape: tuple[int, ...]) -> Call:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(shape)
    # Without the hint it takes bf16 where the CPU has it, another arithmetic than ours.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", settings)
    return lambda x: compiled(x)[0]


def _export(network: nn.Module, side: int, path: Path) -> None:
    # The exporter's remarks say less than the comparison of the answers.
    with silenced_warnings():
        torch.onnx.export(
            network, (torch.zeros(2, 1, side, side),), path, dynamo=False, opset_version=17,
            input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        )  # fmt: skip


def _write_large(folder: Path) -> None:
    torch.manual_seed(0)
    common = {"side": SIDE, "normalisation": "image-standard"}
    networks = {"classifier": build("densenet-121"), "segmenter": build("unet-resnet34")}
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
    package.write(
        folder, manifest, networks, dict.fromkeys(networks, torch.randn(1, 1, SIDE, SIDE))
    )


if __name__ == "__main__":
    main()
