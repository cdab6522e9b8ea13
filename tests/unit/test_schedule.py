"""Learning-rate schedules, averaging, stale figures, and frozen layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.fitting.schedule import Moment, averages, momentum, rate, stale, train
from training.recipe import Freeze, Schedule, Stage


def rates(schedule: Schedule, per_epoch: int, epochs: int) -> list[float]:
    return [rate(schedule, Moment(step, per_epoch, epochs)) for step in range(per_epoch * epochs)]


def test_one_cycle_equals_torchs_in_rate_and_momentum() -> None:
    optimiser = torch.optim.AdamW(nn.Linear(1, 1).parameters(), 0.5)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.5, total_steps=60, pct_start=0.15)
    schedule = Schedule(name="one-cycle")
    for step in range(60):
        now = Moment(step, 12, 5)
        group = optimiser.param_groups[0]
        assert rate(schedule, now) * 0.5 == pytest.approx(group["lr"])
        assert momentum(schedule, now) == pytest.approx(group["betas"][0])
        optimiser.step()
        theirs.step()


def test_cosine_equals_torchs_down_to_the_floor() -> None:
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20, eta_min=0.01)
    for ours in rates(Schedule(name="cosine"), 5, 4):
        assert ours == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()


def averaged(**average: object) -> list[int]:
    stage = Stage.model_validate(
        {
            "role": "segmenter", "architecture": "unet", "side": 64, "loss": {"dice": 1},
            "epochs": 10, "batch": 1, "optimiser": {"learning_rate": 0.1},
            "schedule": {"name": "cyclic", "cycle": 3, "warm_up": 1}, "average": average,
        }
    )  # fmt: skip
    return [epoch for epoch in range(10) if averages(stage, epoch)]


def test_weights_are_averaged_at_the_end_of_each_epoch_or_of_each_cycle() -> None:
    assert averaged(swa_last_epochs=4) == [6, 7, 8, 9]
    assert averaged(swa_last_epochs=4, swa_each="cycle") == [6, 9]


def test_a_cycle_restarts_at_the_highest_rate() -> None:
    found = rates(Schedule(name="cyclic", cycle=3, floor=0.1), 4, 9)
    assert [step for step, share in enumerate(found) if share == 1] == [0, 12, 24]
    assert found[:12] == sorted(found[:12], reverse=True) == found[12:24]
    assert 0.1 < found[11] < 0.2


@pytest.mark.parametrize("name", ["constant", "cosine", "cyclic", "one-cycle", "plateau"])
def test_warm_up_rises_and_the_schedule_takes_the_other_epochs(name: str) -> None:
    warm = rates(Schedule(name=name, warm_up=2), 10, 6)
    assert warm[0] == pytest.approx(0.01)
    assert warm[10] == pytest.approx((0.01 + 1) / 2)
    assert warm[20:] == rates(Schedule(name=name), 10, 4)


def after(figures: list[float], **options: float) -> float:
    return rate(Schedule(name="plateau", factor=0.5, **options), Moment(0, 1, 99, figures))


def test_the_rate_falls_after_patience_epochs_without_a_better_figure() -> None:
    assert after([0.5, 0.6, 0.6], patience=2) == 1
    assert after([0.5, 0.6, 0.6, 0.1], patience=2) == 0.5
    assert after([0.5, 0.6, 0.6, 0.7, 0.7], patience=2) == 1
    assert after([0.5, 0.4, 0.4, 0.4, 0.4], patience=2) == 0.25
    assert after([0.5, 0.4, 0.4, 0.4, 0.4], patience=2, cooldown=1) == 0.5
    assert after([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], patience=2, cooldown=1) == 0.25
    assert after([math.nan] * 3, patience=3) == 0.5


def test_stale_counts_from_the_first_best_epoch() -> None:
    assert [
        stale(figures) for figures in ([], [0.1], [0.1, 0.2], [0.2, 0.2, 0.1], [math.nan, 0.1])
    ] == [0, 0, 0, 2, 0]


@pytest.mark.parametrize(
    ("name", "steps"), [("one-cycle", 1), ("one-cycle", 2), ("cosine", 1), ("cyclic", 1)]
)
def test_the_shortest_runs_have_rates(name: str, steps: int) -> None:
    assert all(0 < share <= 1 for share in rates(Schedule(name=name), steps, 1))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = [
            nn.Conv2d(1, 2, 3),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.Conv2d(2, 2, 3),
            nn.BatchNorm2d(2),
        ]
        self.encoder = nn.Sequential(nn.Sequential(*block[:3]), *block[3:])
        self.head = nn.Conv2d(2, 1, 1)

    def resting(self) -> list[str]:
        holders = {
            name: one
            for name, one in self.named_modules()
            if next(one.parameters(recurse=False), None) is not None
        }
        resting = [name for name, one in holders.items() if not one.training]
        fixed = [
            name
            for name, one in holders.items()
            if not any(p.requires_grad for p in one.parameters())
        ]
        assert resting == fixed
        return resting


def test_the_first_half_of_the_encoder_is_frozen_for_its_epochs() -> None:
    network = Network()
    network.eval()
    train(network, Freeze(epochs=2, share=0.5), 1)
    assert network.resting() == ["encoder.0.0", "encoder.0.1"]
    train(network, Freeze(epochs=2, share=0.5), 2)
    assert network.resting() == []
    train(network, Freeze(epochs=0), 99)
    assert network.resting() == ["encoder.0.0", "encoder.0.1", "encoder.1", "encoder.2"]


def test_freezing_requires_an_encoder() -> None:
    with pytest.raises(ValueError, match="Conv2d has no encoder"):
        train(nn.Conv2d(1, 1, 1), Freeze(epochs=1), 0)
