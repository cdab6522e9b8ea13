"""One network -> trained weights.

A killed run that is resumed ends with the same weights, bit for bit on the same CPU: every epoch
sets its own seed, the rate follows from the step, and the checkpoint after each epoch holds the
rest.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.fitting import losses, ranks, schedule
from training.fitting.average import follow, redo_statistics
from training.fitting.batches import Batches, mixed
from training.fitting.curve import Curve, Row
from training.fitting.run import Run, write
from training.fitting.schedule import Moment
from training.recipe import Optimiser, Stage

Watch = Callable[[nn.Module], dict[str, float]]
# Seconds between looks at the losses: each look waits for the device
_LOOK_S = 1.0
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class TrainingError(Exception):
    """Training stopped; the message says where, and what to change."""


def fit(network: nn.Module, batches: Batches, watch: Watch, run: Run, name: str) -> nn.Module:
    """Train `network` as `batches.stage` says.

    Returns it in eval mode, with the weights to keep. After each epoch `watch` gives figures of the
    validation images, higher is better; it gets the network (or its running average) in eval mode
    on the device. A network that is finished in `run` is not trained again. torch's random state
    stays as it was, so that later networks do not depend on whether this one was trained or loaded.

    Raises:
        TrainingError: a loss that is not a number, out of memory, or `best_by` is not among the
            figures.
        ValueError: the recipe asks for what the network or the data cannot give.
    """
    device = batches.device
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.weights(name).exists():
        run.console.print(f"{name}: trained already")
        network.load_state_dict(load_file(run.weights(name), str(device)))
    else:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), _deterministic():
            _Fit(network, batches, watch, run, name).finish()

    return network.eval()


class _Fit:
    """A network in training, with everything that its next step needs."""

    def __init__(
        self, network: nn.Module, batches: Batches, watch: Watch, run: Run, name: str
    ) -> None:
        self._network = network
        self._batches = batches
        self._watch = watch
        self._run = run
        self._name = name
        self._stage = stage = batches.stage

        # Steps of the optimiser
        self._per_epoch = math.ceil(len(batches) / stage.accumulate)
        self._loss_of = losses.compose(stage.loss, batches.positive_share)
        self._optimiser = optimiser_of(network, stage.optimiser)
        self._half = _half(batches.device) if _wants_half(stage, batches.device) else None
        self._scaler = torch.amp.GradScaler(
            batches.device.type, enabled=self._half == torch.float16
        )

        self._trained = network
        if ranks.count() > 1:
            # Frozen tensors, and parts that a network leaves out while training, get no gradient.
            self._trained = DistributedDataParallel(
                network, broadcast_buffers=False, find_unused_parameters=True
            )

        averages = bool(stage.average.ema or stage.average.swa_last_epochs)
        self._average = copy.deepcopy(network) if averages else None
        self._step = 0

        # The weights at the highest best_by
        self._best: dict[str, Tensor] = {}
        self._curve = Curve(run, name, self._resumed(), stage.epochs * len(batches) * stage.batch)

    def finish(self) -> None:
        """Train the missing epochs; leave the weights to keep in the network and in the run."""
        stage = self._stage
        with self._curve as curve:
            while len(curve.rows) < stage.epochs and not self._stands_still():
                self._epoch(len(curve.rows))
                self._save()
            kept = self._average
            if stage.average.swa_last_epochs and len(curve.rows) < stage.epochs:
                # Stopped early: the last epochs, which were to be averaged, were not trained.
                kept = None
            if kept is not None and stage.average.redo:
                self._redo_statistics(kept)
            elif kept is not None and stage.average.swa_last_epochs:
                # Each epoch's network was measured, but the mean of the last epochs never was.
                self._judge(kept, {"epoch": len(curve.rows) + 1}, {})

        self._network.load_state_dict(self._best or (kept or self._network).state_dict())
        if stage.freeze:
            self._network.requires_grad_(True)

        if self._run.first:
            self._run.keep(self._name, self._network)
            self._run.checkpoint(self._name).unlink(missing_ok=True)

    def _epoch(self, number: int) -> None:
        stage = self._stage
        started = time.monotonic()

        torch.manual_seed(mixed(self._batches.seed, number, ranks.rank()))
        schedule.train(self._network, stage.freeze, number)
        with _explained(self._name):
            loss = self._steps(number)

        speed = len(self._batches) * stage.batch / (time.monotonic() - started)
        ranks.average(self._network.buffers())
        watched = self._network
        if self._average and stage.average.ema:
            watched = self._average
            ranks.average(watched.buffers())
        elif self._average and schedule.averages(stage, number):
            before = sum(schedule.averages(stage, earlier) for earlier in range(number))
            follow(self._average, self._network, before / (before + 1))

        row = {
            "epoch": number + 1,
            "loss": loss,
            "learning_rate": self._optimiser.param_groups[0]["lr"],
        }
        self._judge(watched, row, {"images_per_s": speed})

    def _steps(self, number: int) -> float:
        """Train for one epoch; returns its mean loss."""
        stage, batches = self._stage, self._batches
        # Losses still on the device
        waiting: list[Tensor] = []
        total = 0.0
        looked = time.monotonic()

        for index, (inputs, targets) in enumerate(batches.epoch(number)):
            first = index - index % stage.accumulate
            together = min(stage.accumulate, len(batches) - first)
            last = index == first + together - 1
            with contextlib.nullcontext() if last else self._apart():
                with torch.autocast(
                    batches.device.type, self._half, enabled=self._half is not None
                ):
                    outputs = self._trained(inputs)
                loss = self._loss_of(outputs, targets)
                self._scaler.scale(loss / together).backward()  # type: ignore[no-untyped-call]

            if last:
                self._update()
            waiting.append(loss.detach())

            if index + 1 == len(batches) or time.monotonic() - looked > _LOOK_S:
                seen = torch.stack(waiting).tolist()
                self._require_numbers(seen, number, index + 1 - len(seen))
                now = time.monotonic()
                images = (number * len(batches) + index + 1) * stage.batch
                self._curve.show(
                    images, sum(seen) / len(seen), len(seen) * stage.batch / (now - looked)
                )
                total += sum(seen)
                looked = now
                waiting = []

        mean = torch.tensor(total / len(batches), dtype=torch.float64, device=batches.device)
        ranks.average([mean])
        return float(mean)

    def _update(self) -> None:
        """One step of the optimiser, by the gradients gathered so far."""
        stage, optimiser = self._stage, self._optimiser
        epochs = stage.schedule_epochs or stage.epochs
        now = Moment(self._step, self._per_epoch, epochs, self._figures())
        momentum = schedule.momentum(stage.schedule, now)
        for group in optimiser.param_groups:
            group["lr"] = stage.optimiser.learning_rate * schedule.rate(stage.schedule, now)
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif momentum is not None:
                group["momentum"] = momentum

        if stage.optimiser.clip:
            self._scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(self._network.parameters(), stage.optimiser.clip)

        self._scaler.step(optimiser)
        self._scaler.update()
        optimiser.zero_grad()
        self._step += 1

        if self._average and stage.average.ema:
            # The first steps count more, so that the average soon forgets the random weights.
            follow(
                self._average,
                self._network,
                min(stage.average.ema, (1 + self._step) / (10 + self._step)),
            )

    def _redo_statistics(self, mean: nn.Module) -> None:
        """Recompute the mean's batch-norm statistics, and measure it like one more epoch."""
        stage, number = self._stage, len(self._curve.rows)
        torch.manual_seed(mixed(self._batches.seed, number, ranks.rank()))
        schedule.train(mean, stage.freeze, number)
        redo_statistics(mean, (inputs for inputs, _ in self._batches.epoch(number)))
        ranks.average(mean.buffers())
        self._judge(mean, {"epoch": number + 1}, {})

    def _judge(self, network: nn.Module, before: Row, after: Row) -> None:
        """Add a row with figures; keep the weights if they are the best so far."""
        network.eval()
        with torch.no_grad():
            figures = ranks.same(self._watch(network) if self._run.first else {})
        by = self._stage.best_by
        if by is not None and by not in figures:
            raise TrainingError(
                f"{self._name}: best_by: {by} found, one of {', '.join(figures) or 'nothing'} "
                "wanted"
            )
        self._curve.add(before | figures | after)
        if by is not None and not math.isnan(figures[by]) and schedule.stale(self._figures()) == 0:
            self._best = {key: tensor.cpu().clone() for key, tensor in network.state_dict().items()}

    def _figures(self) -> list[float]:
        return [row[self._stage.best_by] for row in self._curve.rows] if self._stage.best_by else []

    def _stands_still(self) -> bool:
        return 0 < self._stage.early_stop <= schedule.stale(self._figures())

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        """Gather gradients in each process alone, until the last batch of a step shares them."""
        if isinstance(self._trained, DistributedDataParallel):
            return self._trained.no_sync()
        return contextlib.nullcontext()

    def _require_numbers(self, seen: list[float], number: int, first: int) -> None:
        for index, loss in enumerate(seen, first):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"{self._name}: epoch {number + 1}, batch {index + 1}: the loss is {loss}; "
                    f"images {', '.join(self._batches.ids(number, index))}. Lower the learning "
                    "rate, set optimiser.clip, or look at these images; the run is kept as it "
                    f"was after epoch {number}"
                )

    def _save(self) -> None:
        if self._run.first:
            state = {
                "network": self._network.state_dict(),
                "average": self._average.state_dict() if self._average else {},
                "best": self._best,
                "optimiser": self._optimiser.state_dict(),
                "scaler": self._scaler.state_dict(),
                "step": self._step,
                "rows": self._curve.rows,
            }
            write(self._run.checkpoint(self._name), lambda file: torch.save(state, file))

    def _resumed(self) -> list[Row]:
        """Load the checkpoint, if there is one; returns the rows of its epochs."""
        if not self._run.checkpoint(self._name).exists():
            return []

        state = torch.load(self._run.checkpoint(self._name), "cpu", weights_only=True)
        self._network.load_state_dict(state["network"])
        if self._average:
            self._average.load_state_dict(state["average"])
        self._best = state["best"]
        self._step = state["step"]
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])

        rows: list[Row] = state["rows"]
        self._run.console.print(f"{self._name}: resumes after epoch {len(rows)}")
        return rows


def optimiser_of(network: nn.Module, how: Optimiser) -> torch.optim.Optimizer:
    """torch's optimiser of a recipe's knobs."""
    if how.name == "sgd":
        return torch.optim.SGD(
            network.parameters(),
            how.learning_rate,
            momentum=0.9,
            weight_decay=how.weight_decay,
            nesterov=True,
        )
    kind = torch.optim.AdamW if how.name == "adamw" else torch.optim.Adam
    return kind(network.parameters(), how.learning_rate, weight_decay=how.weight_decay)


def _wants_half(stage: Stage, device: torch.device) -> bool:
    """Whether the forward pass runs in half precision: "auto" wants it on a GPU alone."""
    return stage.precision == "bf16" or (stage.precision == "auto" and device.type == "cuda")


def _half(device: torch.device) -> torch.dtype:
    """bf16, which needs no loss scaling; fp16 on GPUs before Ampere, which only emulate bf16."""
    old = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if old else torch.bfloat16


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Let cuDNN choose only deterministic algorithms."""
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn an out-of-memory error into a message that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = str(error) or type(error).__name__
        is_out_of_memory = any(words in message.lower() for words in _OUT_OF_MEMORY)
        if not is_out_of_memory and not isinstance(error, MemoryError):
            raise

        raise TrainingError(
            f"{name}: out of memory ({message.splitlines()[0][:200]}). Lower batch and raise "
            "accumulate by the same factor: each step then sees as many images as before"
        ) from error
