"""Random changes of a batch, at once on images and masks; none of them moves a collapsed lung to another picture."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional


class Augmentation(BaseModel):
    """How far an image may be changed; 0 turns a change off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip: float = 0.5  # chance of left for right
    rotate_degrees: float = 12.0
    scale: float = 0.15  # up to this share larger or smaller
    shift: float = 0.08  # of the side
    gamma: float = 0.4  # exponent between exp(-gamma) and exp(gamma)
    contrast: float = 0.2
    brightness: float = 0.1
    noise: float = 0.03  # standard deviation, in a third of the images
    blur: float = 0.2  # chance of halving and restoring the resolution


def augment(
    images: Tensor, masks: Tensor | None, how: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Change (n, 1, side, side) float32 images in 0..1, and masks of the same shape alike."""
    n = len(images)

    def within(limit: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=generator) * 2 - 1) * limit

    def chance(probability: float) -> Tensor:
        return torch.rand(n, generator=generator) < probability

    angle, scale = within(math.radians(how.rotate_degrees)), 1 + within(how.scale)
    mirror = torch.where(chance(how.flip), -1.0, 1.0)
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0] = torch.cos(angle) * scale * mirror
    affine[:, 0, 1] = -torch.sin(angle) * scale
    affine[:, 1, 0] = torch.sin(angle) * scale * mirror
    affine[:, 1, 1] = torch.cos(angle) * scale
    affine[:, :, 2] = within(2 * how.shift, 2)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, align_corners=False)
    if masks is not None:
        masks = functional.grid_sample(masks, grid, align_corners=False)
    images = images.clamp(0, 1) ** torch.exp(within(how.gamma, 1, 1, 1))
    images = images * (1 + within(how.contrast, 1, 1, 1)) + within(how.brightness, 1, 1, 1)
    noisy = chance(1 / 3)[:, None, None, None] * how.noise
    images = images + torch.randn(images.shape, generator=generator) * noisy
    blurred = chance(how.blur)
    if blurred.any():
        half = functional.interpolate(images[blurred], scale_factor=0.5, mode="area")
        images[blurred] = functional.interpolate(half, size=images.shape[2:], mode="bilinear", align_corners=False)
    return images.clamp(0, 1), masks
