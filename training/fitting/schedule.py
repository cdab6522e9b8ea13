"""The learning rate of each step, and which modules are frozen.

All of it follows from the recipe, the step and the figures so far: a resumed run needs no saved
state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from training.recipe import Freeze, Schedule, Stage

_WARM_UP_FROM = 0.01
# Shares of the highest rate at the start, the top and the end, as in torch's scheduler
_ONE_CYCLE = (
    1 / 25,
    1.0,
    1 / 250_000,
)
_ONE_CYCLE_MOMENTUM = (0.95, 0.85, 0.95)


@dataclass(frozen=True)
class Moment:
    """The point of a run before step `step` of `per_epoch` x `epochs`.

    `figures` holds `best_by` of each finished epoch.
    """

    step: int
    per_epoch: int
    epochs: int
    figures: Sequence[float] = ()


def rate(schedule: Schedule, now: Moment) -> float:
    """The learning rate of the next step, as a share of the highest."""
    warm_up = schedule.warm_up * now.per_epoch
    if now.step < warm_up:
        return _WARM_UP_FROM + (1 - _WARM_UP_FROM) * now.step / warm_up

    step, steps = now.step - warm_up, now.epochs * now.per_epoch - warm_up

    match schedule.name:
        case "constant":
            return 1.0
        case "plateau":
            return schedule.factor ** _falls(schedule, now.figures)
        case "cosine":
            return _cosine(1, schedule.floor, step / steps)
        # With warm restarts: Loshchilov & Hutter, "SGDR", ICLR 2017
        case "cyclic":
            cycle = schedule.cycle * now.per_epoch
            return _cosine(1, schedule.floor, step % cycle / cycle)
        # Smith & Topin, "Super-convergence", 2018
        case "one-cycle":
            return _up_and_down(_ONE_CYCLE, step, steps, schedule.rise)


def momentum(schedule: Schedule, now: Moment) -> float | None:
    """The momentum of the next step: one-cycle moves it against the rate (Adam's first beta).

    None leaves the optimiser's own.
    """
    if schedule.name != "one-cycle":
        return None
    warm_up = schedule.warm_up * now.per_epoch
    steps = now.epochs * now.per_epoch - warm_up
    return _up_and_down(_ONE_CYCLE_MOMENTUM, max(0, now.step - warm_up), steps, schedule.rise)


def averages(stage: Stage, epoch: int) -> bool:
    """Whether SWA takes the weights at the end of this epoch, counted from 0."""
    average, cycle = stage.average, stage.schedule.cycle
    if epoch < stage.epochs - average.swa_last_epochs:
        return False
    return average.swa_each == "epoch" or (epoch + 1 - stage.schedule.warm_up) % cycle == 0


def stale(figures: Sequence[float]) -> int:
    """Epochs since the best figure, the first of equals; NaN is worse than any."""
    worst_nan = [-math.inf if math.isnan(figure) else figure for figure in figures]
    return len(figures) - 1 - worst_nan.index(max(worst_nan)) if figures else 0


def train(network: nn.Module, freeze: Freeze | None, epoch: int) -> None:
    """Put the network into train mode, and freeze what `freeze` names in this epoch (from 0).

    A frozen module has no gradient and is in eval mode, because changing batch-norm statistics
    would train it after all.

    Raises:
        ValueError: something is to be frozen, but the network has no encoder with weights.
    """
    network.train()
    if freeze is None:
        return
    encoder = getattr(network, "encoder", None)
    modules = list(encoder.modules()) if isinstance(encoder, nn.Module) else []
    holders = [
        module for module in modules if next(module.parameters(recurse=False), None) is not None
    ]

    if not holders:
        raise ValueError(
            f"freeze: {type(network).__name__} has no encoder with weights; leave freeze out"
        )

    rests = freeze.epochs == 0 or epoch < freeze.epochs
    for module in holders[: math.ceil(freeze.share * len(holders))]:
        module.train(not rests)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not rests)


def _falls(schedule: Schedule, figures: Sequence[float]) -> int:
    """How often the rate has fallen: each time after `patience` epochs without improvement."""
    falls, best, waited, cooling = 0, -math.inf, 0, 0
    for figure in figures:
        if figure > best:
            best, waited = figure, 0
        elif not cooling:
            waited += 1
        cooling = max(0, cooling - 1)
        if waited >= max(1, schedule.patience):
            falls, waited, cooling = falls + 1, 0, schedule.cooldown
    return falls


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def _up_and_down(values: tuple[float, float, float], step: int, steps: int, rise: float) -> float:
    first, middle, last = values
    top = max(0.0, rise * steps - 1)
    if step < top:
        return _cosine(first, middle, step / top)
    return _cosine(middle, last, (step - top) / max(1.0, steps - 1 - top))
