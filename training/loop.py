"""Recipe -> trained networks -> model package. Read from top to bottom: that is the order in which it runs."""

from __future__ import annotations

import copy
import csv
import math
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from inference import package
from inference.engine import Engine
from inference.networks import build
from inference.postprocess import REFERENCE_MATRIX_PX
from training import losses, metrics, siim
from training.augment import augment
from training.recipe import ClassifierStage, Recipe, SegmenterStage, Stage

Loss = Callable[[Tensor, Tensor], Tensor]
_PHANTOM_SEED = 100_000  # training phantoms are counted from here; tests and the demo use small seeds
_INTENDED_USE = "Research use only, not for diagnosis."


def train(recipe: Recipe, data: Path, out: Path, command: str) -> Path:
    """Train both stages and write the package; returns its folder.

    `data` holds stage2/ and siim/; `out` receives recipe.json, a CSV of each stage's curve, the last weights, and
    package/. The figures of the package come from `training.evaluate`, run by the caller.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=2), encoding="utf-8")
    torch.manual_seed(recipe.seed)
    console = Console()

    classifier = _train_classifier(recipe.classifier, data, out, recipe.seed, console)
    cases = siim.read_cases(data / "siim")
    segmenter = _train_segmenter(recipe.segmenter, classifier, cases, out, recipe.seed, console)

    classifier = _finish_classifier(recipe.classifier, classifier, data, out, recipe.seed, console)

    return export(recipe, {"classifier": classifier, "segmenter": segmenter}, cases, out / "package", command)


def export(recipe: Recipe, networks: dict[str, nn.Module], cases: list[siim.Case], folder: Path, command: str) -> Path:
    """Write the package of trained networks, its threshold chosen through the very code that serves it."""
    golden = {
        "classifier": _inputs(siim.phantoms(1, recipe.classifier.side, 0)[0]),
        "segmenter": _inputs(siim.phantoms(1, recipe.segmenter.side, 0)[0]),
    }
    manifest = _manifest(recipe, cases, command)
    package.write(folder, manifest, networks, golden)
    manifest["classifier"] |= _operating_point(recipe, folder, cases)
    package.write(folder, manifest, networks, golden)
    return folder


def _train_classifier(stage: ClassifierStage, data: Path, out: Path, seed: int, console: Console) -> nn.Module:
    console.print("reading stage2/ (silver labels: probabilities of somebody's ensemble, used as soft targets)")
    network = build(stage.architecture, **stage.arguments)
    return _fit_classifier(network, stage, data, seed, out / "classifier", console)


def _finish_classifier(
    stage: ClassifierStage, classifier: nn.Module, data: Path, out: Path, seed: int, console: Console
) -> nn.Module:
    """Fine-tune on many phantoms, then go a share of the way (Wortsman et al., "Robust fine-tuning", CVPR 2022)."""
    last = stage.model_copy(update=stage.finish.model_dump(exclude={"share"}))
    before = copy.deepcopy(classifier)
    after = _fit_classifier(classifier, last, data, seed, out / "classifier-finish", console)
    return _between(before, after, stage.finish.share)


def _between(before: nn.Module, after: nn.Module, share: float) -> nn.Module:
    _follow(before, after, 1 - share)
    return before


def _fit_classifier(
    network: nn.Module, stage: ClassifierStage, data: Path, seed: int, out: Path, console: Console
) -> nn.Module:
    pictures, silver = siim.read_silver(data / "stage2", stage.side)
    order = np.random.default_rng(seed).permutation(len(pictures))
    watched, used = order[: stage.held_out], order[stage.held_out :]
    drawn, masks = siim.phantoms(stage.phantoms, stage.side, _PHANTOM_SEED)
    images = np.concatenate([pictures[used], drawn])
    targets = np.concatenate([silver[used], masks.any((1, 2)).astype(np.float32)])

    def watch(network: nn.Module) -> dict[str, float]:
        scores = _scores(network, pictures[watched])
        return {"silver_auc": metrics.auc(scores, silver[watched] > 0.5)}

    batches = _Batches(images, targets[:, None], stage, seed)
    return _fit(network, batches, losses.soft_cross_entropy, watch, out, console)


def _train_segmenter(
    stage: SegmenterStage, classifier: nn.Module, cases: list[siim.Case], out: Path, seed: int, console: Console
) -> nn.Module:
    console.print(f"reading siim/, folds {stage.folds}")
    pictures, masks = siim.pictures_and_masks([case for case in cases if case.fold in stage.folds], stage.side)
    drawn, drawn_masks = siim.phantoms(stage.phantoms, stage.side, _PHANTOM_SEED)
    images = np.concatenate([*[pictures] * stage.repeats, drawn])
    targets = np.concatenate([*[masks] * stage.repeats, drawn_masks])[:, None]
    network = build(stage.architecture, **stage.arguments)
    encoder = classifier.encoder
    assert isinstance(encoder, nn.Module)
    if isinstance(network.encoder, nn.Module):
        network.encoder.load_state_dict(encoder.state_dict())
    batches = _Batches(images, targets, stage, seed)
    return _fit(network, batches, losses.cross_entropy_and_dice, lambda _: {}, out / "segmenter", console)


class _Batches:
    """Shuffled, augmented batches of one stage: (n, 1, side, side) float32 inputs and float32 targets."""

    def __init__(self, images: NDArray[np.uint8], targets: NDArray[Any], stage: Stage, seed: int) -> None:
        self.stage = stage
        self._images, self._targets = torch.from_numpy(images), torch.from_numpy(targets)
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._images) // self.stage.batch

    def __iter__(self) -> Any:
        order = torch.randperm(len(self._images), generator=self._generator)
        for start in range(0, len(self) * self.stage.batch, self.stage.batch):
            chosen = order[start : start + self.stage.batch]
            images, targets = self._images[chosen][:, None].float() / 255, self._targets[chosen].float()
            spatial = targets.dim() == 4
            images, masks = augment(
                images, targets / 255 if spatial else None, self.stage.augmentation, self._generator
            )
            yield _standard(images), targets if masks is None else masks


def _fit(
    network: nn.Module,
    batches: _Batches,
    loss_of: Loss,
    watch: Callable[[nn.Module], dict[str, float]],
    out: Path,
    console: Console,
) -> nn.Module:
    """Optimise; returns the running average of the weights, which is steadier than the last step's."""
    stage = batches.stage
    network = _channels_last(network)
    average = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW(network.parameters(), stage.learning_rate, weight_decay=stage.weight_decay)
    steps = stage.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, stage.learning_rate, total_steps=steps, pct_start=0.15)
    step = 0
    curve: list[dict[str, float]] = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(stage.architecture, total=steps)
        for epoch in range(stage.epochs):
            started, total = time.monotonic(), 0.0
            network.train()
            for images, targets in batches:
                # bf16 halves the time on CPUs with AMX or AVX512-BF16; weights and averages stay fp32.
                with torch.autocast("cpu", torch.bfloat16):
                    logits = network(images)
                loss = loss_of(logits.float(), targets)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                step += 1
                _follow(average, network, min(stage.average, (1 + step) / (10 + step)))
                total += float(loss.detach())
                progress.advance(task)
            row = {"epoch": epoch + 1, "loss": total / len(batches), "seconds": time.monotonic() - started}
            curve.append(row | watch(average))
            console.print("  ".join(f"{key} {value:.4g}" for key, value in curve[-1].items()))
            torch.save(average.state_dict(), out.with_suffix(".pt"))
            _write_curve(out.with_suffix(".csv"), curve)
    return average


def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def _standard(images: Tensor) -> Tensor:
    """inference.preprocess' "image-standard" for a batch whose letterboxes hold no border."""
    mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
    return ((images - mean) / (deviation + 1e-3)).contiguous(memory_format=torch.channels_last)


def _channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _inputs(pictures: NDArray[np.uint8]) -> Tensor:
    return _standard(torch.from_numpy(pictures)[:, None].float() / 255).contiguous()


def _scores(network: nn.Module, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    network.eval()
    with torch.inference_mode():
        parts = [network(_inputs(pictures[i : i + 32])) for i in range(0, len(pictures), 32)]
    return torch.sigmoid(torch.cat(parts)[:, 0]).double().numpy()


def _operating_point(recipe: Recipe, folder: Path, cases: list[siim.Case]) -> dict[str, Any]:
    point = recipe.operating_point
    engine = Engine(package.load(folder), torch.device("cpu"))
    chosen = [case for case in cases if case.fold in point.folds]
    scores = np.array([engine.classify([case.read().pixels])[0] for case in chosen])
    threshold = metrics.threshold_for_sensitivity(
        scores, np.array([case.positive for case in chosen]), point.sensitivity
    )
    return {
        # Rounded down, so that the positive it was chosen at is on its right side in any arithmetic.
        "threshold": max(0.001, math.floor(threshold * 1000) / 1000),
        "operating_point": f"sensitivity {point.sensitivity:.2f} or more on the labels of siim/ folds {point.folds}",
    }


def _manifest(recipe: Recipe, cases: list[siim.Case], command: str) -> dict[str, Any]:
    stages = {"classifier": recipe.classifier, "segmenter": recipe.segmenter}
    networks = {
        name: stage.model_dump(include={"architecture", "arguments", "side", "normalisation"})
        for name, stage in stages.items()
    }
    networks["classifier"] |= {"threshold": 0.5, "operating_point": "not chosen yet"}
    networks["segmenter"] |= {
        "bottom": recipe.segmenter.threshold,
        "top": recipe.segmenter.threshold,
        "min_area_at_1024_px": _smallest_area(recipe.segmenter, cases),
    }
    return {
        "id": recipe.id,
        "version": recipe.version,
        "task": "pneumothorax",
        **networks,
        "label": {"value": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"},
        "training": {
            "recipe": recipe.id,
            "data": ["stage2: silver probabilities", f"siim: folds {recipe.segmenter.folds}", "synthetic phantoms"],
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"{command} ({os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__})",
        },
        "metrics": {},
        "licence": "research use, non-commercial: see README.md of this package",
        "intended_use": _INTENDED_USE,
    }


def _smallest_area(stage: SegmenterStage, cases: list[siim.Case]) -> float:
    """The quantile of the annotated areas below which a found region is taken for noise."""
    areas = [
        case.mask.sum() * REFERENCE_MATRIX_PX / case.mask.size
        for case in cases
        if case.fold in stage.folds and case.mask.any()
    ]
    return float(np.round(np.quantile(areas, stage.smallest)))


def _write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)
