"""Random changes of a batch of images and their masks.

Every movement is composed into one grid of source positions, and image and mask are sampled once,
together.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

Chance = Annotated[float, Field(ge=0, le=1)]
Extent = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]

# How far an elastic displacement reaches, as a share of the side: 6 px of 256 (Simard et al., ICDAR
# 2003)
_ELASTIC_WIDTH = 0.024
_GRID_CELLS = 5
# How far the line between two halves lies from the middle, at most, as a share of the side
_HALVES_OFF_MIDDLE = 0.06
# Tiles of CLAHE along each axis
_TILES = 8
_GREYS = 256
# Range of CLAHE's clip limit; near 0 nothing changes
_CLIP = (1.0, 4.0)


class Augmentation(BaseModel):
    """How far an image may be changed; 0 turns a change off.

    Shares of the side look alike at every side.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Chance of each change for which the recipe states no chance, drawn apart for each image
    chance: Chance = 1.0
    # Chance that what lies right of a line near the middle comes from another image of the batch,
    # with its mask (CutMix: Yun et al., ICCV 2019). Two chests become a third: one lung of each.
    halves: Chance = 0.0
    # Chance of left for right
    flip: Chance = 0.0
    rotate_degrees: Extent = 0.0
    # Up to this share larger or smaller
    scale: Share = 0.0
    # Shift along each axis, as a share of the side
    shift: Extent = 0.0
    # Up to this share of the side is cut off, anywhere, and the rest shown at full size
    crop: Share = 0.0
    # Standard deviation of a smooth random displacement, of the side
    elastic: Extent = 0.0
    # Columns and rows of a 5 x 5 grid, up to this share wider or narrower
    grid: Share = 0.0
    # k of the lens r (1 + k r^2), r 1 in a corner; at 1/3 the picture folds
    optical: Annotated[float, Field(ge=0, le=0.33)] = 0.0
    # Exponent between exp(-gamma) and exp(gamma)
    gamma: Extent = 0.0
    contrast: Share = 0.0
    brightness: Extent = 0.0
    # Standard deviation, in a third of the images
    noise: Extent = 0.0
    # Chance of halving and restoring the resolution
    blur: Chance = 0.0
    # Largest standard deviation of a gaussian blur, of the side
    gaussian: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    # Chance of contrast-limited adaptive histogram equalisation
    clahe: Chance = 0.0


class _Draws:
    """Random numbers for each of n images, drawn on the CPU: every device sees the same."""

    def __init__(self, images: Tensor, chance: float, generator: torch.Generator) -> None:
        self._n, self._device = len(images), images.device
        self._chance, self._generator = chance, generator

    def within(self, limit: float, *shape: int) -> Tensor:
        """(n, *shape), uniform in -limit to limit; 0 for images that the change skips."""
        return self._some(torch.rand(self._n, *shape, generator=self._generator) * 2 - 1) * limit

    def normal(self, deviation: float, *shape: int) -> Tensor:
        """(n, *shape), normal about 0; 0 for images that the change skips."""
        return self._some(torch.randn(self._n, *shape, generator=self._generator)) * deviation

    def place(self, *shape: int) -> Tensor:
        """(n, *shape), uniform in -1 to 1."""
        return (torch.rand(self._n, *shape, generator=self._generator) * 2 - 1).to(self._device)

    def chosen(self, chance: float) -> Tensor:
        """Indices of the images that a change of this chance happens to."""
        return torch.nonzero(torch.rand(self._n, generator=self._generator) < chance)[:, 0].to(
            self._device
        )

    def on_device(self) -> torch.Generator:
        """A generator on the device, for numbers drawn per pixel."""
        seed = int(torch.randint(2**62, (), generator=self._generator))
        return torch.Generator(self._device).manual_seed(seed)

    def _some(self, drawn: Tensor) -> Tensor:
        happens = torch.rand(self._n, generator=self._generator) < self._chance
        return (drawn * happens.view(-1, *[1] * (drawn.dim() - 1))).to(self._device)


def augment(
    images: Tensor, masks: Tensor | None, how: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Change (n, 1, side, side) float32 images in 0..1, and their masks alike.

    Masks are (n, planes, side, side). The arguments stay as they are.

    `generator` is one of the CPU, wherever the images are; from the same state it gives the same
    images again. What lay outside the image is black, and no mask.
    """
    draws = _Draws(images, how.chance, generator)
    moved = images if masks is None else torch.cat([images, masks], dim=1)
    if how.halves:
        moved = _halves(moved, how.halves, draws)

    grid = _grid(images.shape[-1], how, draws)
    if grid is not None:
        moved = functional.grid_sample(moved, grid, align_corners=False)

    images, masks = moved[:, :1], None if masks is None else moved[:, 1:].contiguous()
    return _grey(images, how, draws), masks


def _halves(planes: Tensor, chance: float, draws: _Draws) -> Tensor:
    """(n, planes, side, side), the right half of some images from the next image of the batch."""
    side = planes.shape[-1]
    some = draws.chosen(chance)
    line = side * (0.5 + _HALVES_OFF_MIDDLE * draws.place(1, 1, 1))

    # (n, 1, 1, side)
    right = torch.arange(side, device=planes.device) >= line
    mixed = torch.where(right, planes.roll(1, 0), planes)
    return planes.index_copy(0, some, mixed[some])


def _grid(side: int, how: Augmentation, draws: _Draws) -> Tensor | None:
    """Where each pixel comes from: (n, side, side, 2), x and y, -1 to 1 across the image.

    None: from where it is.
    """
    if not any(
        (
            how.flip,
            how.rotate_degrees,
            how.scale,
            how.shift,
            how.crop,
            how.elastic,
            how.grid,
            how.optical,
        )
    ):
        return None

    mirrored = draws.chosen(how.flip)
    middle = _middles(side, mirrored.device)

    # (n or 1, 1, side), (n or 1, side, 1)
    x, y = middle[None, None, :], middle[None, :, None]
    if how.grid:
        columns, rows = _uneven(draws.within(how.grid, 2, _GRID_CELLS), middle).unbind(1)
        x, y = columns[:, None, :], rows[:, :, None]

    if how.elastic:
        # (side, knots)
        along = _smooth(middle)
        knots = draws.normal(2 * how.elastic, 2, along.shape[1], along.shape[1])
        # (n, 2, side, side)
        displaced = along @ knots @ along.T
        x, y = x + displaced[:, 0], y + displaced[:, 1]

    if how.optical:
        farther = 1 + draws.within(how.optical, 1, 1) * (x**2 + y**2) / 2
        x, y = x * farther, y * farther

    angle = draws.within(math.radians(how.rotate_degrees), 1, 1)
    cut = draws.within(how.crop, 1, 1).abs()
    zoom = (1 + draws.within(how.scale, 1, 1)) * (1 - cut)
    mirror = torch.ones_like(zoom).index_fill_(0, mirrored, -1.0)
    to = draws.within(2 * how.shift, 2, 1, 1) + cut[:, None] * draws.place(2, 1, 1)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom

    return torch.stack(
        [cosine * mirror * x - sine * y + to[:, 0], sine * mirror * x + cosine * y + to[:, 1]],
        dim=-1,
    )


def _middles(side: int, device: torch.device) -> Tensor:
    """The middles of a line of pixels that reaches from -1 to 1."""
    return (torch.arange(side, device=device) + 0.5) * (2 / side) - 1


def _uneven(stretch: Tensor, middle: Tensor) -> Tensor:
    """(..., side): the line -1 to 1 with cells made wider or narrower by (..., cells) shares."""
    cells = stretch.shape[-1]
    bounds = functional.pad((1 + stretch).cumsum(-1), (1, 0))
    bounds = bounds / bounds[..., -1:] * 2 - 1
    # Positions in units of cells
    at = (middle + 1) * (cells / 2)
    # Linear interpolation between the bounds
    hats = (1 - (at[:, None] - torch.arange(cells + 1, device=at.device)).abs()).clamp_min(0)
    return bounds @ hats.T


def _smooth(middle: Tensor) -> Tensor:
    """(side, knots): weights that make independent numbers at knots a smooth line of variance 1."""
    width = 2 * _ELASTIC_WIDTH
    # Knots further out do not reach the picture.
    knots = torch.arange(-1 - 3 * width, 1 + 3 * width, width, device=middle.device)
    weights = torch.exp(-0.5 * ((middle[:, None] - knots) / width) ** 2)
    return functional.normalize(weights, dim=1)


def _grey(images: Tensor, how: Augmentation, draws: _Draws) -> Tensor:
    if how.clahe:
        some = draws.chosen(how.clahe)
        low, high = _CLIP
        clip = low + (draws.place().add(1) / 2 * (high - low))[some]
        if len(some):
            images = images.index_copy(0, some, equalise(images[some], clip))

    if how.gamma:
        images = images.clamp(0, 1) ** torch.exp(draws.within(how.gamma, 1, 1, 1))
    if how.contrast or how.brightness:
        images = images * (1 + draws.within(how.contrast, 1, 1, 1)) + draws.within(
            how.brightness, 1, 1, 1
        )

    if how.noise:
        some = draws.chosen(how.chance / 3)
        shape = (len(some), *images.shape[1:])
        grain = torch.randn(shape, generator=draws.on_device(), device=images.device)
        images = images.index_add(0, some, grain, alpha=how.noise)

    if how.blur:
        some = draws.chosen(how.blur)
        if len(some):
            half = functional.interpolate(images[some], scale_factor=0.5, mode="area")
            whole = functional.interpolate(
                half, size=images.shape[2:], mode="bilinear", align_corners=False
            )
            images = images.index_copy(0, some, whole)

    if how.gaussian:
        images = _gaussian(images, draws.within(how.gaussian).abs() * images.shape[-1])
    return images.clamp(0, 1)


def _gaussian(images: Tensor, deviation_px: Tensor) -> Tensor:
    """Blur each image by its own standard deviation, (n,); 0 leaves it as it is."""
    n, side = len(images), images.shape[-1]
    reach = min(side - 1, math.ceil(3 * float(deviation_px.max())))
    from_middle = torch.arange(-reach, reach + 1, device=images.device)
    kernels = torch.exp(-0.5 * (from_middle / deviation_px[:, None].clamp_min(1e-3)) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).view(n, 1, 1, -1)
    # Grouped convolution: each image is a channel with its own kernel.
    planes = functional.pad(images.transpose(0, 1), (reach,) * 4, mode="reflect")
    planes = functional.conv2d(
        functional.conv2d(planes, kernels, groups=n), kernels.transpose(2, 3), groups=n
    )
    return planes.transpose(0, 1)


def equalise(images: Tensor, clip: Tensor) -> Tensor:
    """Contrast-limited adaptive histogram equalisation (CLAHE), (n, 1, side, side) in 0..1.

    Zuiderveld, Graphics Gems IV, 1994: 8 x 8 tiles, 256 greys; a tile's histogram is cut at `clip`,
    (n,), times its mean height, what was cut off is spread evenly, and its running sum is the
    tile's new greys; a pixel takes those of the four nearest tiles, by nearness.
    """
    n, side = len(images), images.shape[-1]
    line = torch.arange(side, device=images.device)
    tile = line * _TILES // side

    # (n, side, side)
    grey = (images[:, 0].clamp(0, 1) * (_GREYS - 1)).round().long()
    image = torch.arange(n, device=images.device)[:, None, None] * _TILES**2

    def place(row: Tensor, column: Tensor) -> Tensor:
        return (image + row[:, None] * _TILES + column) * _GREYS + grey

    counts = torch.bincount(place(tile, tile).flatten(), minlength=n * _TILES**2 * _GREYS)
    counts = counts.view(n, -1, _GREYS).to(images.dtype)
    pixels = counts.sum(2, keepdim=True)
    cut = torch.minimum(counts, clip.view(-1, 1, 1) * pixels / _GREYS)
    spread = (pixels - cut.sum(2, keepdim=True)) / _GREYS
    new = ((cut + spread).cumsum(2) / pixels).flatten()

    # Positions in units of tiles, from the middle of the first
    at = ((line + 0.5) * (_TILES / side) - 0.5).clamp(0, _TILES - 1)
    before = at.long()
    after, share = (before + 1).clamp_max(_TILES - 1), at - before
    rows = ((before, 1 - share), (after, share))
    parts = [new[place(y, x)] * (p[:, None] * q) for y, p in rows for x, q in rows]

    return torch.stack(parts).sum(0)[:, None]
