"""Images in memory or on disk -> shuffled, augmented, normalised batches on the device.

A thread prepares the next batches ahead. Order and augmentation follow from (seed, epoch, batch,
process) alone, so a resumed run sees the same batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.fitting import ranks
from training.fitting.augment import augment
from training.recipe import Stage

Batch = tuple[Tensor, Tensor]
# Batches prepared while the device computes
_AHEAD = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples:
    """Images and their targets, in arrays or memory maps, which are not copied."""

    # (n, side, side), 0 black to 255 white, letterboxed
    images: NDArray[np.uint8]
    # (n,) float32 labels, or (n, side, side) uint8 masks, 255 inside
    targets: NDArray[Any]
    # How often an epoch shows each image
    times: int = 1
    # Share of the images that an epoch shows, drawn again for each epoch
    share: float = 1.0
    # (n,) whether the image is positive; None: follows from labels, unknown for masks
    positive: NDArray[np.bool_] | None = None
    # Names of the images for messages
    ids: Sequence[str] = ()
    # (n, 4) top, left, height, width in the letterbox; None: all of it
    inside: NDArray[np.integer[Any]] | None = None
    # (n,) the number of each image's fold, a second plane of the inputs; None: no such plane
    folds: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n, *square = self.images.shape
        if self.images.dtype != np.uint8 or len(square) != 2 or square[0] != square[1]:
            raise ValueError(
                f"images: {self.images.dtype} {self.images.shape} found, uint8 (n, side, side) "
                "wanted"
            )
        if self.targets.shape not in ((n,), self.images.shape):
            raise ValueError(
                f"targets: {self.targets.shape} found, {(n,)} labels or {self.images.shape} masks "
                "wanted"
            )
        if len(self.ids) not in (0, n) or (self.inside is not None and self.inside.shape != (n, 4)):
            raise ValueError(f"ids and inside: one for each of {n} images wanted")

    @property
    def shown(self) -> int:
        """How many images an epoch shows, each counted as often as it is shown."""
        return round(self.share * self.times * len(self.images))


class Batches:
    """One epoch after another of a stage's images.

    `stage.batch` images a batch, shared out among the processes.
    """

    def __init__(
        self, parts: Sequence[Samples], stage: Stage, seed: int, device: torch.device
    ) -> None:
        """Raises ValueError: less than one batch, parts that do not fit, or a batch that cannot be
        shared.
        """
        if len({(part.images.shape[1], part.targets.ndim) for part in parts}) != 1:
            raise ValueError("parts: one side, and labels everywhere or masks everywhere, wanted")
        self.stage, self.seed, self.device = stage, seed, device
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part.images) * part.times for part in parts)])
        self._boxed = stage.normalisation != "unit" and any(
            part.inside is not None for part in parts
        )

        self._positive = self._found_positive() if stage.positives is not None else None
        if not len(self):
            raise ValueError(
                f"{self._starts[-1]} images found, a batch of {stage.batch} wanted; lower batch"
            )
        if stage.batch % ranks.count():
            raise ValueError(
                f"batch: {stage.batch} cannot be shared by {ranks.count()} processes; change one "
                "of them"
            )

    def __len__(self) -> int:
        """Batches of an epoch; images that do not fill one are left to another epoch's shuffle."""
        return sum(part.shown for part in self._parts) // self.stage.batch

    @property
    def positive_share(self) -> float:
        """The share of positive labels, 0..1; 0.5 for masks, which no loss balances."""
        if self._parts[0].targets.ndim > 1:
            return 0.5
        if self.stage.positives is not None:
            shares = [
                self.stage.positive_share_of(epoch) or 0.0 for epoch in (0, self.stage.epochs)
            ]
            return sum(shares) / len(shares)
        positives = sum(float((part.targets > 0.5).mean()) * part.shown for part in self._parts)
        return positives / sum(part.shown for part in self._parts)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, as pairs of inputs and targets, float32.

        Inputs are (b, 1, side, side), normalised; targets (b, 1) labels or (b, 1, side, side)
        masks, 0..1. b is this process' share of the batch.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            ahead: deque[Future[Batch]] = deque()
            for index in range(len(self)):
                ahead.append(thread.submit(self._prepared, number, index))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def ids(self, number: int, index: int) -> list[str]:
        """The images of this process' share of a batch, for a message."""
        names = []
        for number_of_part, row in self._chosen(number, index):
            part = self._parts[number_of_part]
            names.append(part.ids[row] if part.ids else f"image {row}")
        return names

    def _chosen(self, number: int, index: int) -> list[tuple[int, int]]:
        """(part, row) of each image."""
        whole = self._order(number)[index * self.stage.batch : (index + 1) * self.stage.batch]
        places = whole[ranks.rank() :: ranks.count()]
        parts = np.searchsorted(self._starts, places, "right") - 1
        return [
            (int(part), int(place - self._starts[part]) % len(self._parts[part].images))
            for part, place in zip(parts, places, strict=True)
        ]

    def _order(self, number: int) -> NDArray[np.int64]:
        """The indices of the images that an epoch shows, shuffled."""
        share = self.stage.positive_share_of(number)
        if self._positive is not None and share is not None:
            return self._order_with(share, number)

        order = np.random.default_rng((self.seed, number)).permutation(self._starts[-1])

        for part, start in zip(self._parts, self._starts, strict=False):
            inside = (order >= start) & (order < start + part.times * len(part.images))
            surplus = inside & (inside.cumsum() > part.shown)
            order = order[~surplus]

        return order

    def _order_with(self, share: float, number: int) -> NDArray[np.int64]:
        """As many indices as there are images, a `share` of them positive.

        No image is shown twice before every other of its class was shown.
        """
        assert self._positive is not None
        rng = np.random.default_rng((self.seed, number))
        total = len(self._positive)
        positives = round(share * total)

        chosen = [
            _drawn(rng, np.flatnonzero(self._positive), positives),
            _drawn(rng, np.flatnonzero(~self._positive), total - positives),
        ]
        return rng.permutation(np.concatenate(chosen))

    def _found_positive(self) -> NDArray[np.bool_]:
        """(indices,) whether each image is positive.

        Raises:
            ValueError: one class is missing, although an epoch must have a share of it.
        """
        found = []
        for part in self._parts:
            positive = part.positive
            if positive is None:
                inside = part.targets.reshape(len(part.targets), -1).max(1)
                positive = np.asarray(inside > (0.5 if part.targets.ndim == 1 else 0))
            found.append(np.tile(positive, part.times))

        places = np.concatenate(found)
        if places.all() or not places.any():
            raise ValueError(
                f"positives: {self.stage.positives} found; {int(places.sum())} of {len(places)} "
                "images are positive: some of both classes wanted"
            )
        return places

    def _prepared(self, number: int, index: int) -> Batch:
        chosen = self._chosen(number, index)
        images = (
            self._gathered([self._parts[part].images[row] for part, row in chosen])[:, None].float()
            / 255
        )
        targets = self._gathered([self._parts[part].targets[row] for part, row in chosen])[
            :, None
        ].float()
        labels, masks = (targets, None) if targets.dim() == 2 else (None, targets / 255)

        box = None
        if self._boxed:
            rows = [
                None if (inside := self._parts[part].inside) is None else inside[row]
                for part, row in chosen
            ]
            box = _boxes(rows, images.shape[-1]).to(self.device)

        generator = torch.Generator().manual_seed(mixed(self.seed, number, index, ranks.rank()))
        moving = [plane for plane in (masks, box) if plane is not None]
        images, moved = augment(
            images, torch.cat(moving, 1) if moving else None, self.stage.augmentation, generator
        )

        if moved is not None:
            masks = moved[:, :1] if masks is not None else None
            box = moved[:, -1:] if box is not None else None

        target = labels if masks is None else masks
        assert target is not None
        shown = normalise(images, self.stage.normalisation, box)
        if self._parts[0].folds is not None:
            folds = [
                part.folds[row]
                for number, row in chosen
                if (part := self._parts[number]).folds is not None
            ]
            shown = with_folds(shown, np.array(folds, dtype=np.float32))
        return shown, target

    def _gathered(self, rows: list[NDArray[Any]]) -> Tensor:
        """(b, ...) on the device; the copy to a GPU runs while it computes."""
        batch = torch.from_numpy(np.stack(rows))
        return (
            batch.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else batch
        )


def _drawn(rng: np.random.Generator, places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of the indices: all of them as often as possible, then a random part."""
    rounds = [rng.permutation(places) for _ in range(-(-count // len(places)))]
    return np.concatenate([*rounds, places[:0]])[:count]


def mixed(*numbers: int) -> int:
    """Hash several numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def inputs(
    images: NDArray[np.uint8], scheme: str, inside: NDArray[np.integer[Any]] | None = None
) -> Tensor:
    """(n, 1, side, side) float32 network inputs, as the node makes them.

    `images` are letterboxed, (n, side, side).
    """
    box = None if inside is None else _boxes(list(inside), images.shape[-1])
    return normalise(torch.from_numpy(np.array(images))[:, None].float() / 255, scheme, box)


def with_folds(images: Tensor, folds: NDArray[np.float32]) -> Tensor:
    """(n, 2, side, side): (n, 1, side, side) images, and a plane of each image's fold number."""
    planes = torch.from_numpy(folds).to(images.device).view(-1, 1, 1, 1).expand_as(images)
    return torch.cat([images, planes], 1)


def normalise(images: Tensor, scheme: str, inside: Tensor | None = None) -> Tensor:
    """`inference.preprocess.normalise` of a batch: (n, 1, side, side) float32, 0 black to 1 white.

    `inside`, of the same shape, is above 0.5 where the image is and not its letterbox; None:
    everywhere.
    """
    if scheme == "image-standard":
        within = torch.ones_like(images) if inside is None else (inside > 0.5).to(images.dtype)
        pixels = within.sum((2, 3), keepdim=True).clamp_min(1)
        mean = (images * within).sum((2, 3), keepdim=True) / pixels
        centred = (images - mean) * within
        deviation = (centred.square().sum((2, 3), keepdim=True) / pixels).sqrt()
        images = centred / (deviation + 1e-3)
    elif scheme != "unit":
        raise ValueError(f"normalisation: {scheme!r} found, allowed: unit, image-standard")

    return images.contiguous(memory_format=torch.channels_last)


def _boxes(inside: Sequence[NDArray[np.integer[Any]] | None], side: int) -> Tensor:
    """(n, 1, side, side) float32, 1 inside."""
    boxes = torch.zeros(len(inside), 1, side, side)
    for box, place in zip(boxes, inside, strict=True):
        top, left, height, width = (0, 0, side, side) if place is None else place.tolist()
        box[:, top : top + height, left : left + width] = 1
    return boxes
