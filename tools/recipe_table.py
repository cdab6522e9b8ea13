"""The recipes' networks: parameters, arithmetic and, with an option, the time of a forward pass.

    # A Markdown table
    python -m tools.recipe_table [--time | --processor-time] [--turns N] [NAME...]

Parameters and multiplications are counted on torch's meta device, without memory or computation.
Times are for one image in float32 on this machine's CPU. Each network is timed in alternate turns
with the first of the table, so that a change of the machine's speed affects both. The table shows
the median time and the median ratio to the first network. `--processor-time` excludes waiting for
other work on a busy machine; set OMP_NUM_THREADS=1 with it, because it adds up all threads' time.
"""

# ruff: noqa: T201 - a program

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from inference.networks import build
from training import recipe
from training.recipe import Stage

RECIPES = Path(__file__).resolve().parent.parent / "config" / "recipes"
# This recipe trains no network.
_OUTCOME = "lgg-outcome"
_TURNS = 7

Forward = Callable[[], object]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*")
    times = parser.add_mutually_exclusive_group()
    times.add_argument("--time", dest="clock", action="store_const", const=time.perf_counter)
    times.add_argument(
        "--processor-time", dest="clock", action="store_const", const=time.process_time
    )
    parser.add_argument("--turns", type=int, default=_TURNS)
    options = parser.parse_args()

    stages = _stages(options.name or sorted(path.stem for path in RECIPES.glob("*.yaml")))
    first = _forward(stages[0][1]) if options.clock else None
    columns = ["recipe", "network", "px", "parameters", "GMAC"]
    if first is not None:
        columns += ["ms", "x first"]
    _print_row(columns)
    print("|" + "---|" * len(columns))

    for name, stage in stages:
        row = _counts(name, stage)
        if first is not None:
            other = _forward(stage)
            milliseconds, times_first = by_turns(first, other, options.turns, options.clock)
            row += [f"{milliseconds:.0f}", f"{times_first:.2f}"]
        _print_row(row)


def _stages(names: Iterable[str]) -> list[tuple[str, Stage]]:
    """(recipe, network) of every recipe that trains a network, in order."""
    return [
        (name, stage)
        for name in names
        if name != _OUTCOME
        for stage in recipe.load(RECIPES / f"{name}.yaml").networks
    ]


def _print_row(cells: Iterable[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def _counts(name: str, stage: Stage) -> list[str]:
    # A classifier of a segmenter's map contains that network.
    inner = stage.arguments.get("of", stage.model_dump())
    encoder = inner["arguments"].get("encoder")
    network = f"{inner['architecture']} on {encoder}" if encoder else str(inner["architecture"])

    parameters, macs = counted(stage)
    gmacs = "not counted" if macs is None else f"{macs / 1e9:.1f}"
    return [f"`{name}`", network, str(stage.side), f"{parameters:,}", gmacs]


def counted(stage: Stage) -> tuple[int, int | None]:
    """(parameters, multiplications with addition of one image) of a stage's network.

    The second is None if the network does not run on the meta device.
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


def by_turns(
    first: Forward, other: Forward, turns: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """(milliseconds of `other`, their ratio to those of `first`), medians of alternate turns.

    A first turn of each is not counted.
    """
    milliseconds = []
    ratios = []
    first()
    other()

    for _ in range(turns):
        started = clock()
        first()
        between = clock()
        other()
        ended = clock()
        milliseconds.append((ended - between) * 1000)
        ratios.append((ended - between) / (between - started))

    return statistics.median(milliseconds), statistics.median(ratios)


def _forward(stage: Stage) -> Forward:
    network = build(stage.architecture, **stage.arguments).eval()
    image = torch.zeros(1, 1, stage.side, stage.side)

    def run() -> object:
        with torch.inference_mode():
            return network(image)

    return run


if __name__ == "__main__":
    main()
