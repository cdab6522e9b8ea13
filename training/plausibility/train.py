"""The network that tells a frontal chest from anything else: training, and the threshold.

Real chests are plentiful, other X-rays are not: what the network must refuse is drawn or made from
chests (non_chests.py). The few real pictures of something else are neither trained on nor used to
choose.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from inference.networks import build
from inference.preprocess import fit, normalise
from training.plausibility.chests import FOLDS, Chests, Pictures

# Logits
Scores = NDArray[np.float64]

ARCHITECTURE = "plain-classifier"
INPUT_SIDE = 64
# How far, in the logit, the threshold lies below the chests that were held out
MARGIN = 1.0

_STEPS = 1500
_BATCH = 64
_LEARNING_RATE = 3e-3


def train(chests: Pictures, others: Pictures, seed: int, steps: int = _STEPS) -> nn.Module:
    """A network that tells `chests` from `others`; each batch holds as many of either."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    network = build(ARCHITECTURE)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _LEARNING_RATE, total_steps=steps, pct_start=0.1
    )

    half = _BATCH // 2
    sides = [torch.from_numpy(pictures)[:, None] for pictures in (chests, others)]
    targets = torch.cat([torch.ones(half, 1), torch.zeros(half, 1)])
    softened = 0.98 * targets + 0.01

    network.train()
    for _ in range(steps):
        drawn = [side[torch.randint(len(side), (half,), generator=generator)] for side in sides]
        logits = network(vary(torch.cat(drawn).float() / 255, generator))
        loss = functional.binary_cross_entropy_with_logits(logits, softened)

        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()

    return network.eval()  # type: ignore[no-any-return]


def vary(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Show each picture as another unit would.

    (n, 1, side, side) in 0..1 become network inputs (n, 1, INPUT_SIDE, INPUT_SIDE): mirrored,
    leaned by up to 15 degrees, cut or with collimated borders, portrait to landscape, windowed,
    blurred, grained; letterboxed and standardised as inference/preprocess.py does.
    """
    n, side = len(pictures), INPUT_SIDE

    def within(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    def chance(share: float) -> Tensor:
        return torch.rand(n, 1, 1, generator=generator) < share

    # Aspect is width by height. Where zoom is above 1, the film is larger than the field.
    aspect = torch.exp(within(-0.45, 0.45))
    angle = within(-math.pi / 12, math.pi / 12)
    zoom = torch.where(chance(0.4), within(0.85, 2.0), within(0.9, 1.1))
    free = 0.12 + 0.6 * (zoom - 1.1).clamp(min=0)

    # The letterbox of the aspect, -1 to 1 across the picture inside it
    across = torch.linspace(-1, 1, side + 1)[:-1] + 1 / side
    u = across[None, None, :].expand(n, side, side) / aspect.clamp(max=1)
    v = across[None, :, None].expand(n, side, side) * aspect.clamp(min=1)
    inside = ((u.abs() <= 1) & (v.abs() <= 1)).float()[:, None]

    # Zoomed, mirrored, leaned, shifted
    u = u * zoom * aspect.sqrt() * torch.exp(within(-0.08, 0.08))
    v = v * zoom / aspect.sqrt()
    mirror = torch.where(chance(0.5), -1.0, 1.0)
    x = mirror * (u * angle.cos() - v * angle.sin()) + free * within(-1, 1)
    y = u * angle.sin() + v * angle.cos() + free * within(-1, 1)
    shown = functional.grid_sample(
        pictures, torch.stack([x, y], -1), padding_mode="border", align_corners=False
    )

    # Beside the exposed field: shutters, black or white, or nothing of the kind.
    outside = ((x.abs() > 1) | (y.abs() > 1))[:, None] & chance(0.75)[:, None]
    shown = torch.where(outside, chance(0.25)[:, None].float(), shown)

    # Windowed, blurred, grained
    low = within(-0.3, 0.2)[:, None]
    high = within(0.75, 1.5)[:, None]
    shown = ((shown - low) / (high - low)).clamp(0, 1) ** torch.exp(within(-0.5, 0.5))[:, None]
    blurred = functional.avg_pool2d(functional.pad(shown, (1, 1, 1, 1), mode="replicate"), 3, 1)
    shown = torch.where(chance(0.25)[:, None], blurred, shown)
    grain = torch.randn(shown.shape, generator=generator)
    shown = shown + grain * (within(0, 0.05) * chance(0.5))[:, None]

    # Standardised over the picture, not over its letterbox
    area = inside.sum((2, 3), keepdim=True)
    mean = (shown * inside).sum((2, 3), keepdim=True) / area
    deviation = (((shown - mean) ** 2 * inside).sum((2, 3), keepdim=True) / area).sqrt()
    standard = (shown - mean) / (deviation + 1e-3) * inside
    return standard.contiguous(memory_format=torch.channels_last)


def scores(network: nn.Module, pictures: Pictures) -> Scores:
    """Logits of (n, side, side) pictures, each through inference/preprocess.py as in the engine."""
    inputs = [network_input(picture.astype(np.float32) / 255) for picture in pictures]

    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(np.stack(inputs[start : start + _BATCH])))
            for start in range(0, len(inputs), _BATCH)
        ]
    return torch.cat(parts)[:, 0].double().numpy()


def network_input(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1, INPUT_SIDE, INPUT_SIDE) of an image, (rows, columns), 0 black to 1 white."""
    fitted = fit(pixels, INPUT_SIDE)
    return normalise(fitted.pixels, fitted.geometry, "image-standard")[None]


def cross_validated(
    chests: Chests, others: dict[str, Pictures], fold: int
) -> tuple[Scores, dict[str, Scores]]:
    """Train without one fold, and score what was left out.

    Logits of the fold's chests, and of every fourth kind of other picture, by a network that saw
    neither.
    """
    held_out = list(others)[fold::FOLDS]
    seen = np.concatenate([pictures for kind, pictures in others.items() if kind not in held_out])
    trained_on = np.concatenate([chests.pictures[chests.folds != fold], chests.phantoms])

    network = train(trained_on, seen, fold)
    left_out = scores(network, chests.pictures[chests.folds == fold])
    return left_out, {kind: scores(network, others[kind]) for kind in held_out}


def threshold_of(held_out: Scores) -> float:
    """The probability under which a picture is refused.

    It lies MARGIN below all but one in a thousand of the chests held out. Not below all: the two
    lowest of the data show mostly an abdomen, one under a metal frame.
    """
    limit = np.sort(held_out)[len(held_out) // 1000] - MARGIN
    return float(np.round(1 / (1 + np.exp(-limit)), 4))
