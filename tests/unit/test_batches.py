"""Batches: each image is shown once per epoch, reproducible from the seed, and normalised as the
node does.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference import preprocess
from training.fitting.augment import Augmentation
from training.fitting.batches import Batches, Samples, inputs
from training.recipe import Stage

CPU = torch.device("cpu")
STILL = dict.fromkeys(Augmentation.model_fields, 0)


def stage(**changes: Any) -> Stage:
    whole: dict[str, Any] = {
        "role": "segmenter", "architecture": "plain", "side": 32, "loss": {"cross_entropy": 1},
        "epochs": 1,
        "batch": 4, "optimiser": {"learning_rate": 0.1}, "augmentation": STILL,
    }  # fmt: skip
    return Stage.model_validate(whole | changes)


def numbered(count: int, first: int = 0) -> NDArray[np.uint8]:
    """Images filled with one grey value each: the image's number."""
    return np.full((count, 32, 32), np.arange(first, first + count)[:, None, None], np.uint8)


def greys(batches: Batches, epoch: int) -> list[list[int]]:
    return [(images[:, 0, 0, 0] * 255).round().int().tolist() for images, _ in batches.epoch(epoch)]


def test_each_image_is_seen_once_per_repeat() -> None:
    parts = [
        Samples(images=numbered(6), targets=np.zeros(6, np.float32), times=3),
        Samples(images=numbered(6, first=100), targets=np.ones(6, np.float32)),
    ]
    batches = Batches(parts, stage(), 1, CPU)
    seen = greys(batches, 0)
    assert sorted(itertools.chain(*seen)) == sorted([*range(6)] * 3 + [*range(100, 106)])
    assert len(seen) == len(batches) == 6
    assert greys(batches, 1) != seen
    for images, labels in batches.epoch(0):
        assert ((images[:, 0, 0, 0] > 0.3) == (labels[:, 0] == 1)).all()
    assert batches.positive_share == 0.25


def test_epochs_show_different_shares_of_the_images() -> None:
    parts = [
        Samples(images=numbered(6), targets=np.ones(6, np.float32)),
        Samples(images=numbered(20, first=100), targets=np.zeros(20, np.float32), share=0.3),
    ]
    batches = Batches(parts, stage(), 1, CPU)
    assert (len(batches), batches.positive_share) == (3, 0.5)
    first, second = (set(itertools.chain(*greys(batches, epoch))) for epoch in (0, 1))
    assert {*range(6)} < first
    assert len(first) == 12
    assert first != second


def test_batches_are_reproducible_from_their_seed() -> None:
    rng = np.random.default_rng(0)
    images, masks = (rng.integers(0, 256, (13, 32, 32), dtype=np.uint8) for _ in "im")
    samples = Samples(images=images, targets=masks)

    def all_of(seed: int, epoch: int) -> list[torch.Tensor]:
        return [
            one
            for batch in Batches([samples], stage(augmentation={}), seed, CPU).epoch(epoch)
            for one in batch
        ]

    first = all_of(5, 3)
    again = all_of(5, 3)
    other = all_of(6, 3)

    # The thirteenth image does not fill a batch and is dropped.
    assert len(first) == 6
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert {one.shape for one in first} == {(4, 1, 32, 32)}
    assert {one.dtype for one in first} == {torch.float32}
    assert all(one.min() >= 0 and one.max() <= 1 for one in first)


def test_memory_maps_stay_on_the_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", numbered(8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    batches = Batches([Samples(images=images, targets=images)], stage(), 1, CPU)
    for pictures, masks in batches.epoch(0):
        assert torch.equal(pictures, masks)


@pytest.mark.parametrize("scheme", preprocess.SCHEMES)
@pytest.mark.parametrize("shape", [(40, 40), (30, 50), (64, 11)])
def test_images_are_normalised_as_the_node_does(scheme: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    fitted = preprocess.fit(rng.random(shape, dtype=np.float32), 32)
    image = (fitted.pixels * 255).round().astype(np.uint8)
    geometry = fitted.geometry
    box = np.array([[geometry.top, geometry.left, geometry.height, geometry.width]])
    wanted = preprocess.normalise(image.astype(np.float32) / 255, geometry, scheme)
    assert np.allclose(inputs(image[None], scheme, box)[0, 0], wanted, atol=1e-5)
    samples = Samples(images=image[None], targets=image[None], inside=box)
    ((batch, masks),) = Batches([samples], stage(batch=1, normalisation=scheme), 1, CPU).epoch(0)
    assert np.allclose(batch[0, 0], wanted, atol=1e-5)
    assert np.allclose(masks[0, 0], image / np.float32(255))


def test_a_letterbox_moves_with_its_image() -> None:
    image = np.zeros((1, 32, 32), np.uint8)
    image[0, :, :20] = np.random.default_rng(2).integers(50, 200, (32, 20))
    samples = Samples(
        images=image, targets=np.ones(1, np.float32), inside=np.array([[0, 0, 32, 20]])
    )
    mirrored = stage(batch=1, normalisation="image-standard", augmentation=STILL | {"flip": 1})
    ((batch, _),) = Batches([samples], mirrored, 1, CPU).epoch(0)
    assert torch.allclose(batch.flip(3), inputs(image, "image-standard", samples.inside), atol=1e-4)


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (np.zeros((2, 32, 32), np.float32), np.zeros(2), "float32"),
        (np.zeros((2, 32, 16), np.uint8), np.zeros(2), "side, side"),
        (np.zeros((2, 32, 32), np.uint8), np.zeros(3), "targets"),
    ],
)
def test_samples_of_a_wrong_type_or_shape_are_refused(
    images: Any, targets: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Samples(images=images, targets=targets)


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images found, a batch of 4 wanted"):
        Batches([Samples(images=numbered(3), targets=np.zeros(3))], stage(), 1, CPU)


def test_an_unreadable_image_raises_in_the_training_loop() -> None:
    class Torn:
        shape = (4, 32, 32)
        dtype = np.dtype(np.uint8)
        ndim = 3

        def __len__(self) -> int:
            return 4

        def __getitem__(self, row: int) -> None:
            raise OSError("Input/output error")

    torn: Any = Torn()
    with pytest.raises(OSError, match="Input/output"):
        list(Batches([Samples(images=torn, targets=np.zeros(4))], stage(), 1, CPU).epoch(0))


def shares(batches: Batches, epochs: int) -> list[float]:
    """For each epoch, the share of images numbered 100 or more."""
    seen = [list(itertools.chain(*greys(batches, epoch))) for epoch in range(epochs)]
    assert {len(epoch) for epoch in seen} == {40}
    return [sum(grey >= 100 for grey in epoch) / len(epoch) for epoch in seen]


def test_an_epoch_has_the_requested_share_of_positives_fixed_or_sliding() -> None:
    images = np.concatenate([numbered(30), numbered(10, first=100)])
    labels = np.repeat(np.array([0, 1], np.float32), [30, 10])
    part = Samples(images=images, targets=labels)
    fixed = Batches([part], stage(positives=0.5, epochs=3), 1, CPU)
    assert shares(fixed, 3) == [0.5, 0.5, 0.5]
    assert fixed.positive_share == 0.5
    sliding = Batches([part], stage(positives=[0.8, 0.4], epochs=3), 1, CPU)
    assert shares(sliding, 4) == [0.8, 0.6, 0.4, 0.4]
    assert greys(sliding, 1) == greys(Batches([part], sliding.stage, 1, CPU), 1)

    # Every positive is shown twice before any is shown a third time.
    counts = np.bincount(list(itertools.chain(*greys(fixed, 0))), minlength=110)[100:]
    assert set(counts) == {2}


def test_masks_also_identify_positives_and_a_single_class_has_no_share() -> None:
    masks = np.zeros((8, 32, 32), np.uint8)
    masks[6:, 3, 3] = 255
    part = Samples(images=numbered(8), targets=masks)
    seen = itertools.chain(*greys(Batches([part], stage(positives=0.5), 1, CPU), 0))
    assert sum(grey >= 6 for grey in seen) == 4
    with pytest.raises(ValueError, match=r"positives: 0\.5 found; 0 of 8 images"):
        Batches([Samples(images=numbered(8), targets=masks * 0)], stage(positives=0.5), 1, CPU)
    with pytest.raises(ValueError, match="beside negatives"):
        stage(positives=0.5, negatives=0.5)
