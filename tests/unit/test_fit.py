"""The training loop: it learns, resumes identically after kill -9, and explains its errors."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor, nn

from training import phantom
from training.fitting import average, ranks
from training.fitting.augment import Augmentation
from training.fitting.batches import Batches, Samples, inputs
from training.fitting.fit import TrainingError, fit
from training.fitting.run import Run
from training.recipe import Stage

CPU = torch.device("cpu")
SIDE = 32


class Recipe(BaseModel):
    """An empty recipe: these tests compare no settings."""


def stage(**changes: Any) -> Stage:
    whole: dict[str, Any] = {
        "role": "segmenter", "architecture": "tiny", "side": SIDE,
        "loss": {"cross_entropy": 1, "dice": 1},
        "epochs": 3, "batch": 4, "optimiser": {"name": "adamw", "learning_rate": 0.01},
    }  # fmt: skip
    return Stage.model_validate(whole | changes)


class Tiny(nn.Module):
    """A network with every trait that the loop handles: an encoder, batch norm, dropout, and an
    extra output in training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(
            nn.Conv2d(8, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)
        )
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        features = self.encoder(x)
        logits = self.head(self.deep(features))
        return [logits, self.head(features)] if self.training else logits


def phantoms(count: int) -> Samples:
    """The upper left quarters of phantoms, which still show something at this size."""
    drawn = [phantom.draw(seed, seed % 2 == 0, 2 * SIDE) for seed in range(count)]
    images = np.stack([(one.pixels[:SIDE, :SIDE] * 255).astype(np.uint8) for one in drawn])
    # Threshold the images, so that this small network learns the task in seconds.
    bright = (images > 128).astype(np.uint8) * 255
    return Samples(images=images, targets=bright)


SAMPLES = phantoms(12)


def build() -> Tiny:
    torch.manual_seed(1)
    return Tiny()


def plain() -> nn.Module:
    """A network without batch norm, whose gradient does not depend on how a batch is divided."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))


def dice(network: nn.Module) -> dict[str, float]:
    with torch.inference_mode():
        found = network(inputs(SAMPLES.images, "unit"))[:, 0].numpy() > 0
    true = SAMPLES.targets > 0
    return {"dice": 2 * float((found & true).sum()) / float(found.sum() + true.sum())}


def run_in(folder: Path) -> Run:
    return Run(folder, Recipe(), "data", ["test"])


def fitted(
    folder: Path, *, watch: Any = dice, network: nn.Module | None = None, **changes: Any
) -> nn.Module:
    batches = Batches([SAMPLES], stage(**changes), 7, CPU)
    return fit(network or build(), batches, watch, run_in(folder), "net")


def rows(folder: Path) -> list[dict[str, str]]:
    with run_in(folder).curve("net").open(newline="") as file:
        return list(csv.DictReader(file))


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def falling_figure(network: nn.Module) -> dict[str, float]:
    """A figure that falls while the network learns, so that the first epoch is the best."""
    return {"dice": -dice(network)["dice"]}


STEADY = {
    "average": {"ema": 0.9},
    "schedule": {"name": "one-cycle"},
    "best_by": "dice",
    "early_stop": 4,
}
STILL: dict[str, Any] = {
    "augmentation": dict.fromkeys(Augmentation.model_fields, 0),
    "loss": {"cross_entropy": 1},
    "optimiser": {"name": "sgd", "learning_rate": 0.1},
}
RECIPES: dict[str, dict[str, Any]] = {
    "mean of the steps": STEADY | {"optimiser": {"name": "adamw", "learning_rate": 0.02, "clip": 1}},
    "best at first": STEADY | {"watch": falling_figure},
    "mean of the epochs": {
        "average": {"swa_last_epochs": 2}, "schedule": {"name": "plateau", "patience": 1},
        "best_by": "dice",
        "accumulate": 2, "freeze": {"epochs": 1},
    },
}  # fmt: skip


def test_training_learns_and_shows_its_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = fitted(tmp_path, epochs=8, precision="bf16", **STEADY)
    assert not network.training
    table = rows(tmp_path)
    # The last row belongs to the averaged weights, with their own statistics.
    assert [int(float(row["epoch"])) for row in table] == list(range(1, 10))
    assert float(table[7]["loss"]) < 0.7 * float(table[0]["loss"])
    assert dice(network)["dice"] == max(float(row["dice"]) for row in table) > 0.8
    assert float(table[0]["images_per_s"]) > 0
    assert "net: epoch 8  loss" in capsys.readouterr().out
    assert list(run_in(tmp_path).tensorboard("net").iterdir())
    assert not run_in(tmp_path).checkpoint("net").exists()


# The fork server loads torch once for all processes.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "torch._dynamo"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(folder: Path, name: str, threads: int, forward: int, save: int) -> None:
    """Train in a child process that dies in its `forward`th training batch, or half way through
    writing its `save`th checkpoint.
    """
    torch.set_num_threads(threads)
    batches = itertools.count(1)
    saves = itertools.count(1)
    whole_save = torch.save

    def dying_save(state: Any, file: BinaryIO) -> None:
        if next(saves) == save:
            file.write(b"PK, and then")
            file.flush()
            die()
        whole_save(state, file)

    torch.save = dying_save  # type: ignore[assignment]

    def dying_forward(layer: nn.Module, _: object) -> None:
        if layer.training and next(batches) == forward:
            die()

    network = build()
    network.deep.register_forward_pre_hook(dying_forward)
    fitted(folder, network=network, epochs=4, **RECIPES[name])


@pytest.mark.parametrize(
    ("name", "forward", "save"),
    [
        # In the second epoch.
        ("mean of the steps", 5, 0),
        ("mean of the steps", 0, 2),
        ("best at first", 5, 0),
        # In the fourth epoch, between two batches of one step.
        ("mean of the epochs", 11, 0),
        # While the statistics of the mean are computed.
        ("mean of the epochs", 14, 0),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, name: str, forward: int, save: int
) -> None:
    whole = fitted(tmp_path / "whole", epochs=4, **RECIPES[name])
    arguments = (tmp_path / "cut", name, torch.get_num_threads(), forward, save)
    process = PROCESSES.Process(target=train_until_killed, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    assert 1 <= len(rows(tmp_path / "cut")) < len(rows(tmp_path / "whole"))
    cut = fitted(tmp_path / "cut", epochs=4, **RECIPES[name])
    assert equal(whole, cut)
    drop = {"images_per_s"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in rows(tmp_path / "cut")] == [
        {k: v for k, v in row.items() if k not in drop} for row in rows(tmp_path / "whole")
    ]

    kept = load_file(run_in(tmp_path / "cut").weights("net"))
    assert all(torch.equal(tensor, kept[key]) for key, tensor in cut.state_dict().items())


def test_a_finished_network_is_not_trained_again_and_later_networks_are_unaffected(
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    first = fit(build(), Batches([SAMPLES], stage(epochs=1), 7, CPU), dice, run_in(tmp_path), "net")
    after_training = torch.rand(1)

    def never(_: nn.Module) -> dict[str, float]:
        raise AssertionError("trained again")

    again = fit(
        build(), Batches([SAMPLES], stage(epochs=1), 7, CPU), never, run_in(tmp_path), "net"
    )
    assert equal(first, again)
    assert torch.equal(torch.rand(1), after_training)


def test_a_phase_shorter_than_its_schedule_equals_the_start_of_a_whole_run(
    tmp_path: Path,
) -> None:
    schedule = {"name": "one-cycle"}
    whole = stage(epochs=3, schedule=schedule)
    later = stage(
        schedule=schedule,
        first=[
            {"side": SIDE, "epochs": 1, "schedule_epochs": 3, "batch": 4, "learning_rate": 0.01}
        ],
    )
    begun = later.earlier(later.first[0])

    for name, how in (("whole", whole), ("begun", begun)):
        fit(build(), Batches([SAMPLES], how, 7, CPU), dice, run_in(tmp_path / name), "net")

    first, *_ = rows(tmp_path / "whole")
    (only,) = rows(tmp_path / "begun")
    assert [only[key] for key in ("loss", "learning_rate", "dice")] == [
        first[key] for key in ("loss", "learning_rate", "dice")
    ]


def test_a_phase_cannot_outlast_its_schedule() -> None:
    phase = {"side": SIDE, "epochs": 3, "schedule_epochs": 2, "batch": 4, "learning_rate": 0.01}
    with pytest.raises(ValueError, match="schedule_epochs: 2 found; at least the phase's 3 epochs"):
        stage(first=[phase])


def scripted(figures: list[float]) -> Callable[[nn.Module], dict[str, float]]:
    left = iter(figures)
    return lambda _: {"dice": next(left)}


def test_the_best_epoch_is_kept_and_training_stops_early(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    figures = scripted([0.1, 0.5, math.nan, 0.4, 0.9])

    def watch(network: nn.Module) -> dict[str, float]:
        seen.append(next(network.parameters()).detach().clone())
        return figures(network)

    network = fitted(tmp_path, watch=watch, epochs=9, best_by="dice", early_stop=2)
    assert len(rows(tmp_path)) == 4
    assert torch.equal(next(network.parameters()), seen[1])


def test_without_any_figure_the_last_weights_are_kept(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def watch(network: nn.Module) -> dict[str, float]:
        seen.append(next(network.parameters()).detach().clone())
        return {"dice": math.nan}

    network = fitted(tmp_path, watch=watch, epochs=2, best_by="dice")
    assert torch.equal(next(network.parameters()), seen[1])


def test_the_mean_of_the_steps_gets_new_batch_statistics(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def watch(network: nn.Module) -> dict[str, float]:
        seen.append({name: one.clone() for name, one in network.state_dict().items()})
        return {}

    network = fitted(tmp_path, watch=watch, epochs=2, average={"ema": 0.9})
    last, redone = seen[1:]
    weights, mean = "head.weight", "deep.1.running_mean"
    assert torch.equal(last[weights], redone[weights])
    assert not torch.allclose(last[mean], redone[mean], atol=1e-6)
    assert all(torch.equal(one, redone[name]) for name, one in network.state_dict().items())


def test_the_mean_of_the_last_epochs_gets_new_batch_statistics(tmp_path: Path) -> None:
    seen: list[nn.Module] = []

    def watch(network: nn.Module) -> dict[str, float]:
        copy = Tiny()
        copy.load_state_dict(network.state_dict())
        seen.append(copy)
        return {}

    network = fitted(tmp_path, watch=watch, epochs=4, average={"swa_last_epochs": 2})
    weights = [one.get_parameter("head.weight") for one in seen]
    assert torch.allclose(
        network.get_parameter("head.weight"), (weights[2] + weights[3]) / 2, atol=1e-6
    )
    means = [one.get_buffer("deep.1.running_mean") for one in [*seen[2:4], network]]
    assert not torch.allclose(means[2], (means[0] + means[1]) / 2, atol=1e-6)

    assert [row["loss"] != "" for row in rows(tmp_path)] == [True] * 4 + [False]


def test_batch_statistics_come_only_from_the_given_batches() -> None:
    layers = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    layers(torch.full((4, 2), 99.0))
    layers[1].eval()
    before = layers[1].running_mean.clone()
    batches = [torch.randn(8, 2), torch.randn(8, 2)]
    average.redo_statistics(layers, batches)
    assert torch.allclose(layers[0].running_mean, torch.cat(batches).mean(0))
    assert torch.equal(layers[1].running_mean, before)
    assert layers[0].momentum == 0.1


def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path: Path) -> None:
    for name, changes in {"whole": {"batch": 12}, "parts": {"batch": 3, "accumulate": 4}}.items():
        fitted(tmp_path / name, network=plain(), watch=lambda _: {}, **STILL, **changes)
    whole, parts = (
        load_file(run_in(tmp_path / name).weights("net")) for name in ("whole", "parts")
    )
    assert all(torch.allclose(tensor, parts[key], atol=1e-6) for key, tensor in whole.items())
    assert not torch.allclose(plain().state_dict()["0.weight"], whole["0.weight"], atol=1e-3)


def test_gradient_clipping_bounds_the_weight_change(tmp_path: Path) -> None:
    sgd = {"name": "sgd", "learning_rate": 1, "clip": 0.01}
    network = fitted(tmp_path, network=plain(), epochs=1, batch=12, **STILL | {"optimiser": sgd})
    pairs = zip(network.parameters(), plain().parameters(), strict=True)
    moved = [(after - before).detach() for after, before in pairs]
    # The optimiser uses Nesterov momentum of 0.9, so the first step is 1.9 times the gradient.
    assert float(torch.cat([one.flatten() for one in moved]).norm()) == pytest.approx(
        1.9 * 0.01, rel=0.01
    )


def test_frozen_weights_stay_unchanged_until_their_epoch(tmp_path: Path) -> None:
    before = build().encoder.state_dict()
    seen: list[dict[str, Tensor]] = []

    def watch(network: nn.Module) -> dict[str, float]:
        encoder = network.get_submodule("encoder")
        seen.append({key: tensor.clone() for key, tensor in encoder.state_dict().items()})
        return {}

    network = fitted(
        tmp_path,
        watch=watch,
        freeze={"epochs": 2},
        optimiser={"learning_rate": 0.1, "weight_decay": 0.1},
    )

    moved = [[not torch.equal(before[key], tensor) for key, tensor in one.items()] for one in seen]
    assert [any(one) for one in moved] == [False, False, True]
    assert all(parameter.requires_grad for parameter in network.parameters())


class Broken(Tiny):
    """A network that fails in its fifth batch, the second of the second epoch."""

    def __init__(self, fail: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fail = fail
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.seen += self.training
        return super().forward(self.fail(x) if self.seen == 5 else x)


def test_a_nan_loss_stops_the_run_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError,
        match=r"net: epoch 2, batch 2: the loss is nan; images image \d+, .*optimiser\.clip",
    ):
        fitted(tmp_path, network=Broken(lambda x: x * math.nan), epochs=4)
    kept = torch.load(run_in(tmp_path).checkpoint("net"), weights_only=True)
    assert len(kept["rows"]) == 1
    assert all(tensor.isfinite().all() for tensor in kept["network"].values())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you "
            "tried ..."
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_settings_to_lower(tmp_path: Path, error: Exception) -> None:
    def fail(_: Tensor) -> Tensor:
        raise error

    with pytest.raises(TrainingError, match=r"out of memory.*Lower batch and raise accumulate"):
        fitted(tmp_path, network=Broken(fail))


def test_another_error_of_the_network_is_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="to have 1 channels, but got 4"):
        fitted(tmp_path, network=Broken(lambda x: x[:, :, :2, 0]))


def test_best_by_must_name_a_figure_of_the_watch(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="best_by: iou found, one of dice wanted"):
        fitted(tmp_path, best_by="iou")


def test_between_interpolates_two_networks() -> None:
    before, after = nn.Linear(2, 2), nn.Linear(2, 2)
    mean = average.between(before, after, 0.7)
    assert torch.allclose(mean.get_parameter("weight"), 0.3 * before.weight + 0.7 * after.weight)


def together() -> list[tuple[str, nn.Module, dict[str, Any]]]:
    full = STEADY | {"freeze": {"epochs": 1, "share": 0.5}}
    return [("plain", plain(), STILL | {"accumulate": 2}), ("full", build(), full)]


def train_together(folder: Path, rank: int, port: int) -> None:
    """One of two processes, started as torchrun does; each saves its final weights and its output."""
    launcher = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in launcher.items()}

    torch.set_num_threads(1)
    with (
        (folder / f"{rank}.txt").open("w") as output,
        contextlib.redirect_stdout(output),
        ranks.joined("cpu"),
    ):
        for name, network, changes in together():
            trained = fitted(folder / name, network=network, **changes)
            torch.save(trained.state_dict(), folder / f"{name}-{rank}.pt")


def test_two_processes_train_one_network(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    processes = [
        PROCESSES.Process(target=train_together, args=(tmp_path, rank, port)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()

    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert "net: epoch 3" in (tmp_path / "0.txt").read_text()
    assert (tmp_path / "1.txt").read_text() == ""

    for name, network, changes in together():
        one, other = (
            torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)
        )
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
        # Two processes with half a batch each equal one process with the whole batch.
        if name == "plain":
            alone = fitted(tmp_path / "alone", network=network, **changes).state_dict()
            assert all(torch.allclose(tensor, alone[key], atol=1e-5) for key, tensor in one.items())


def test_the_mean_of_the_last_epochs_is_evaluated_without_new_statistics(tmp_path: Path) -> None:
    figures = iter([0.5, 0.9, 0.6, 0.7, 0.95])
    seen: list[Tensor] = []

    def watch(network: nn.Module) -> dict[str, float]:
        seen.append(network.get_parameter("head.weight").detach().clone())
        return {"dice": next(figures)}

    average = {"swa_last_epochs": 2, "redo": False}
    network = fitted(tmp_path, watch=watch, epochs=4, average=average, best_by="dice")
    mean = (seen[2] + seen[3]) / 2
    assert torch.allclose(network.get_parameter("head.weight"), mean, atol=1e-6)
