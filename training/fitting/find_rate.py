"""A learning rate to begin with: the rate rises step by step until the loss explodes.

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3.
"""

from __future__ import annotations

import copy
import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from training.fitting import losses, schedule
from training.fitting.batches import Batches
from training.fitting.fit import optimiser_of

_LOWEST, _HIGHEST, _STEPS = 1e-7, 1.0, 100
# Decay of the running mean of the losses
_SMOOTHING = 0.9
# The range ends where the smoothed loss is this many times the lowest.
_EXPLODED = 4.0
# The first steps' losses are still those of single batches.
_SKIPPED = 5


@dataclass(frozen=True)
class Range:
    """Smoothed losses at rising rates. `suggested` is where the loss falls most steeply."""

    rates: Sequence[float]
    losses: Sequence[float]
    suggested: float


def find(network: nn.Module, batches: Batches, steps: int = _STEPS) -> Range:
    """The range of rates for a copy of `network`, which itself stays as it is.

    Raises:
        ValueError: the first losses are not numbers.
    """
    network = copy.deepcopy(network).to(batches.device)
    schedule.train(network, batches.stage.freeze, 0)
    loss_of = losses.compose(batches.stage.loss, batches.positive_share)
    optimiser = optimiser_of(network, batches.stage.optimiser)

    rates: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    endless = itertools.chain.from_iterable(batches.epoch(n) for n in itertools.count())
    for step, (inputs, targets) in enumerate(itertools.islice(endless, steps)):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** (step / max(1, steps - 1))
        for group in optimiser.param_groups:
            group["lr"] = rate

        loss = loss_of(network(inputs), targets)
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * float(loss.detach())
        current = mean / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(current) or (smoothed and current > _EXPLODED * min(smoothed)):
            break

        rates.append(rate)
        smoothed.append(current)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return Range(rates, smoothed, _steepest(rates, smoothed))


def _steepest(rates: Sequence[float], smoothed: Sequence[float]) -> float:
    """The rate at which the loss falls fastest, of those before its lowest point."""
    if len(rates) <= _SKIPPED + 1:
        raise ValueError(
            f"learning rate: the loss is not a number, or explodes, within {len(rates)} steps; "
            "look at the images with --show-batches"
        )

    lowest = _SKIPPED + int(np.argmin(smoothed[_SKIPPED:]))
    falling = slice(_SKIPPED, max(lowest, _SKIPPED + 1) + 1)
    slopes = np.gradient(np.array(smoothed[falling]), np.log10(rates[falling]))
    return float(rates[_SKIPPED + int(np.argmin(slopes))])


def write(found: Range, path: Path) -> None:
    """Write the range as `path`.csv, and as a plot beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("learning_rate", "smoothed_loss"))
        writer.writerows(zip(found.rates, found.losses, strict=True))

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses)
    axes.axvline(found.suggested, linestyle="--", color="grey")
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")
    figure.savefig(path.with_suffix(".png"), dpi=100)
