"""The recipes' networks: parameters, arithmetic and, where asked, time of one forward pass.

    python -m tools.recipe_table [--time] [NAME...]      # a Markdown table for docs/training.md

Parameters and multiplications are counted on torch's meta device, without memory or computing;
times are medians on this machine's CPU, in float32, of one image.
"""

# ruff: noqa: T201 - a program

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from inference.networks import build
from training import recipe
from training.recipe import Stage

RECIPES = Path(__file__).resolve().parent.parent / "config" / "recipes"
# Trains no network
_OUTCOME = "lgg-outcome"
_TIMED = 3


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("name", nargs="*")
    options.add_argument("--time", action="store_true")
    given = options.parse_args()

    names = given.name or sorted(path.stem for path in RECIPES.glob("*.yaml"))
    print(f"| recipe | network | px | parameters | GMAC |{' ms |' if given.time else ''}")
    print(f"|---|---|---|---|---|{'---|' if given.time else ''}")
    for name in names:
        if name != _OUTCOME:
            for row in _rows(name, given.time):
                print("| " + " | ".join(row) + " |", flush=True)


def _rows(name: str, timed: bool) -> Iterator[tuple[str, ...]]:
    for stage in recipe.load(RECIPES / f"{name}.yaml").networks:
        parameters, macs = counted(stage)
        # A classifier of a segmenter's map has the network inside it.
        of = stage.arguments.get("of", stage.model_dump())
        encoder = of["arguments"].get("encoder")
        network = f"{of['architecture']}{f' on {encoder}' if encoder else ''}"
        counted_macs = "not counted" if macs is None else f"{macs / 1e9:.1f}"
        row = (f"`{name}`", network, str(stage.side), f"{parameters:,}", counted_macs)
        yield (*row, f"{_milliseconds(stage):.0f}") if timed else row


def counted(stage: Stage) -> tuple[int, int | None]:
    """(parameters, multiplications with addition of one image) of a stage's network.

    None where the network does not run on the meta device.
    """
    with torch.device("meta"):
        network = build(stage.architecture, **stage.arguments).eval()
        image = torch.zeros(1, 1, stage.side, stage.side)

    parameters = sum(weight.numel() for weight in network.parameters())
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(image)
    except RuntimeError:
        # torch.autocast does not know the meta device.
        return parameters, None
    return parameters, counter.get_total_flops() // 2


def _milliseconds(stage: Stage) -> float:
    network = build(stage.architecture, **stage.arguments).eval()
    image = torch.zeros(1, 1, stage.side, stage.side)
    times = []
    for _ in range(1 + _TIMED):
        started = time.perf_counter()
        with torch.inference_mode():
            network(image)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:]) * 1000


if __name__ == "__main__":
    main()
