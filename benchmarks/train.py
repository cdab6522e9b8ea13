"""The training loop: images per second of `training.fitting`, beside a bare loop.

    python -m benchmarks.train [--rounds N] [--batches N] [--set KEY=VALUE ...]

Both train the network of recipe t6-unet-plus-plus-b4 at its real size on phantoms, with its loss,
optimiser and augmentation (elastic, grid and optical distortion, flips; EfficientNet-B4). "Ours"
reads uint8 images, shuffles, augments and normalises them, watches the loss and draws its progress.
"Bare" repeats forward, backward and step on one augmented batch in memory. They take alternate
turns of N batches each. Work that ours does once an epoch (validation, checkpoint) is not counted.

Prints median images per second, and two ratios of ours to bare: of the medians, and the median of
each turn's ratio, which other programs on the machine affect less. Wanted: at least 0.9. `--set` is
that of `pleura train`.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.measurement import (
    REPOSITORY,
    by_turns,
    command_line,
    load,
    machine,
    median_ratio,
)
from inference.engine import choose_device
from inference.networks import build
from training import phantom, recipe
from training.fitting import fit, losses
from training.fitting.batches import Batches, Samples
from training.fitting.run import Run
from training.recipe import Stage

RECIPE = REPOSITORY / "config" / "recipes" / "t6-unet-plus-plus-b4.yaml"
FIXED = {
    # One epoch for each turn
    "epochs": 1,
    # No mean of the last epochs: it is made after the loop
    "average": {},
    # No choice of the best epoch
    "best_by": None,
}


def main() -> None:
    """Print the images per second of both loops, and their ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=8, help="batches in each turn")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for example networks.0.side=128",
    )
    options = parser.parse_args()

    asked = recipe.load(RECIPE, dict(change.split("=", 1) for change in options.set))
    stage = Stage.model_validate(asked.networks[0].model_dump() | FIXED)
    device = choose_device("auto")
    batches = Batches([_phantoms(stage, options.batches)], stage, asked.seed, device)
    print(f"{stage.architecture}, {stage.side} px, batch {stage.batch}, {stage.precision}")
    print(f"{device}, {machine(f'torch {torch.__version__}', load())}")

    measures = {"ours": lambda: _ours(stage, batches), "bare": lambda: _bare(stage, batches)}
    speeds = by_turns(measures, options.rounds)
    ours, bare = (statistics.median(speeds[name]) for name in ("ours", "bare"))
    turns = median_ratio(speeds["ours"], speeds["bare"])
    print(
        f"ours {ours:.2f}, bare {bare:.2f} images/s; ours / bare {ours / bare:.2f}, by turns "
        f"{turns:.2f}"
    )


def _phantoms(stage: Stage, batches: int) -> Samples:
    drawn = [phantom.draw(seed, pneumothorax=True, size=stage.side) for seed in range(stage.batch)]
    images = [(chest.pixels / chest.pixels.max() * 255).astype(np.uint8) for chest in drawn]
    masks = [chest.mask.astype(np.uint8) * 255 for chest in drawn]
    return Samples(images=np.stack(images), targets=np.stack(masks), times=batches)


def _network(stage: Stage) -> nn.Module:
    torch.manual_seed(0)
    return build(stage.architecture, **stage.arguments)


def _ours(stage: Stage, batches: Batches) -> float:
    """Images per second of one epoch, from the run's own curve."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), stage, "phantoms", ["benchmark"])
        run.console.quiet = True
        fit.fit(_network(stage), batches, lambda _: {}, run, "network")
        (row,) = csv.DictReader(run.curve("network").read_text(encoding="utf-8").splitlines())
    return float(row["images_per_s"])


def _bare(stage: Stage, batches: Batches) -> float:
    """Images per second of the same number of steps on one batch."""
    device = batches.device
    network = _network(stage).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), stage.optimiser.learning_rate)
    loss_of = losses.compose(stage.loss)
    inputs, targets = next(batches.epoch(0))

    _wait(device)
    started = time.perf_counter()
    for _ in range(len(batches)):
        with torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bf16"):
            outputs = network(inputs)
        loss_of(outputs, targets).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()

    _wait(device)
    return len(batches) * stage.batch / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
