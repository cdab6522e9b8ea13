"""Augmentation: image and mask move together, unset options change nothing, and each option changes
what its name says.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from training import phantom
from training.fitting.augment import Augmentation, augment, equalise

NOTHING: dict[str, Any] = dict.fromkeys(
    (
        "flip",
        "rotate_degrees",
        "scale",
        "shift",
        "gamma",
        "contrast",
        "brightness",
        "noise",
        "blur",
    ),
    0,
)
MOVES = {
    "flip": 1, "rotate_degrees": 20, "scale": 0.3, "shift": 0.1, "crop": 0.4, "elastic": 0.02,
    "grid": 0.4,
    "optical": 0.3,
}  # fmt: skip
GREYS = {
    "gamma": 0.5,
    "contrast": 0.4,
    "brightness": 0.2,
    "noise": 0.1,
    "blur": 1,
    "gaussian": 0.05,
    "clahe": 1,
}


def changed(
    images: torch.Tensor, masks: torch.Tensor | None = None, seed: int = 0, **how: float
) -> Any:
    return augment(
        images, masks, Augmentation(**(NOTHING | how)), torch.Generator().manual_seed(seed)
    )


@pytest.fixture(scope="module")
def chests() -> tuple[torch.Tensor, torch.Tensor]:
    drawn = [phantom.draw(seed, True, 64) for seed in range(6)]
    images = torch.from_numpy(np.stack([one.pixels for one in drawn])).float()[:, None]
    masks = torch.from_numpy(np.stack([one.mask for one in drawn])).float()[:, None]
    return (images - images.min()) / (images.max() - images.min()), masks


def test_no_options_change_nothing(chests: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, masks = changed(*chests)
    assert torch.equal(images, chests[0])
    assert torch.equal(masks, chests[1])


@pytest.mark.parametrize("kind", [*MOVES, "all"])
def test_image_and_mask_move_alike(chests: tuple[torch.Tensor, torch.Tensor], kind: str) -> None:
    how = MOVES if kind == "all" else {kind: MOVES[kind]}
    alone = changed(chests[0], **how)[0]
    images, masks = changed(chests[0], chests[0].clone(), **how)
    assert torch.equal(images, masks)
    # The change to an image does not depend on whether it has a mask.
    assert torch.equal(images, alone)
    assert all((images[i] - chests[0][i]).abs().mean() > 1e-3 for i in range(6))


def test_a_phantoms_mask_stays_on_its_pneumothorax(
    chests: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """The pixels under the mask stay white after all movements combined."""
    marked = torch.where(chests[1] > 0, 1.0, chests[0] * 0.5)
    images, masks = changed(marked, chests[1], **MOVES)
    inside = masks > 0.99
    assert int(inside.sum()) > 100
    assert images[inside].min() > 0.98
    assert images[masks == 0].max() <= 0.51


@pytest.mark.parametrize("kind", GREYS)
def test_grey_changes_leave_the_mask_and_stay_in_range(
    chests: tuple[torch.Tensor, torch.Tensor], kind: str
) -> None:
    images, masks = changed(*chests, **{kind: GREYS[kind]})
    assert torch.equal(masks, chests[1])
    assert not torch.equal(images, chests[0])
    assert 0 <= images.min() <= images.max() <= 1


def test_the_seed_alone_determines_the_result(chests: tuple[torch.Tensor, torch.Tensor]) -> None:
    before = chests[0].clone()
    first, again, other = (changed(*chests, seed=seed, **MOVES, **GREYS)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(chests[0], before)


@pytest.mark.parametrize(
    "kind", [kind for kind in MOVES | GREYS if kind not in ("flip", "blur", "clahe")]
)
def test_the_chance_is_the_probability_that_an_image_changes(kind: str) -> None:
    images = torch.rand(400, 1, 32, 32, generator=torch.Generator().manual_seed(3)).clamp(0.1, 0.9)
    moved = changed(images, chance=0.3, **{kind: (MOVES | GREYS)[kind]})[0]
    share = ((moved - images).abs().amax((1, 2, 3)) > 1e-3).float().mean()
    assert float(share) == pytest.approx(0.1 if kind == "noise" else 0.3, abs=0.08)


def test_flip_swaps_left_and_right(chests: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert torch.allclose(changed(chests[0], flip=1)[0], chests[0].flip(3), atol=1e-5)


def test_halves_of_two_images_join_near_the_middle_with_their_masks() -> None:
    # Each image has a grey of its own, and its mask has the same grey.
    greys = torch.arange(1, 9).view(8, 1, 1, 1).expand(8, 1, 50, 50) / 10
    images, masks = changed(greys, greys.clone(), halves=1)
    assert torch.equal(images, masks)

    for number in range(8):
        line = images[number, 0, 0]
        lefts = int((line == line[0]).sum())
        assert 0.43 * 50 <= lefts <= 0.57 * 50
        assert torch.equal(line[lefts:], line[-1].expand(50 - lefts))
        assert line[0] == greys[number, 0, 0, 0]
        assert line[-1] == greys[number - 1, 0, 0, 0]

    kept = changed(greys, halves=0.5)[0]
    whole = [bool((kept[number] == greys[number]).all()) for number in range(8)]
    assert 0 < sum(whole) < 8


def ramps(n: int, side: int) -> torch.Tensor:
    """Two images whose grey is x and y, so that each pixel tells where it came from."""
    line = (torch.arange(side) + 0.5) / side
    return torch.stack([line.expand(side, side), line[:, None].expand(side, side)])[:, None].repeat(
        n, 1, 1, 1
    )


def test_a_crop_shows_part_of_the_image_at_full_size() -> None:
    for seed in range(20):
        shown = changed(ramps(1, 64)[:1], seed=seed, crop=0.5)[0][0, 0]
        step = (shown[:, 1:] - shown[:, :-1])[:, 2:-2]
        # The crop is never reduced, and nothing beyond the edge becomes visible.
        assert step.min() > 0.5 / 64 * 0.95
        assert step.max() < 1.05 / 64


def test_a_grid_bends_lines_only_at_its_cells_and_keeps_the_ends() -> None:
    # The outermost pixels mix with the black beyond the edge.
    shown = changed(ramps(1, 100)[:1], grid=0.5)[0][0, 0, 1:-1]
    # The grid bends each column as a whole, so columns stay columns.
    assert torch.allclose(shown, shown[:1].expand_as(shown), atol=1e-5)
    bends = (shown[0, 2:] - 2 * shown[0, 1:-1] + shown[0, :-2]).abs() > 1e-4
    assert {round(int(at + 1) / 20) * 20 for at in torch.nonzero(bends)} <= {0, 20, 40, 60, 80, 100}
    assert shown[0, 0] < 0.02
    assert shown[0, -1] > 0.98


def test_a_lens_moves_along_the_radius_by_r_cubed() -> None:
    # An odd side, so that there is a middle pixel.
    side = 101
    shown = changed(ramps(2, side), optical=0.3)[0] * 2 - 1
    x = ramps(1, side)[0, 0, 50] * 2 - 1
    near = slice(20, 81)
    for image in (shown[0, 0], shown[1, 0].T, shown[2, 0], shown[3, 0].T):
        k = float((image[50, 80] / x[80] - 1) / x[80] ** 2)
        # The displacement is 0.3 in the corner, where r^2 = 2.
        assert abs(k) <= 0.151
        assert torch.allclose(image[50, near], x[near] * (1 + k * x[near] ** 2), atol=2e-3)
        assert torch.allclose(
            image.diagonal()[near], x[near] * (1 + 2 * k * x[near] ** 2), atol=2e-3
        )


def test_elastic_displacements_have_the_requested_deviation() -> None:
    side = 128
    asked = 0.01
    images = ramps(1, side)[:1].repeat(60, 1, 1, 1)
    moved = (changed(images, elastic=asked)[0] - images)[:, 0, 16:-16, 16:-16]
    assert float(moved.std()) == pytest.approx(asked, rel=0.1)
    # The field is smooth: neighbouring pixels move alike.
    assert float((moved[:, :, 1:] - moved[:, :, :-1]).std()) < 0.4 * asked


def test_a_gaussian_blur_spreads_a_point_and_keeps_its_sum() -> None:
    point = torch.zeros(30, 1, 65, 65)
    point[:, :, 32, 32] = 1
    blurred = changed(point, gaussian=0.08)[0]
    assert torch.allclose(blurred.sum((1, 2, 3)), torch.ones(30), atol=1e-4)
    from_middle = torch.arange(65) - 32.0
    deviations = (blurred.sum((1, 2)) * from_middle**2).sum(1).sqrt()
    assert 0.85 * 0.08 * 65 < deviations.max() < 1.02 * 0.08 * 65
    assert deviations.max() > 2 * deviations.min()


def test_an_invalid_extent_is_refused() -> None:
    for wrong in ({"optical": 0.4}, {"flip": 1.5}, {"noise": -1}, {"elastik": 1}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Augmentation(**wrong)  # type: ignore[arg-type]


def clahe_by_the_paper(image: NDArray[np.float64], clip: float) -> NDArray[np.float64]:
    """CLAHE after Zuiderveld 1994, pixel by pixel and tile by tile."""
    side = len(image)
    grey = np.rint(image * 255).astype(int)
    tile = [i * 8 // side for i in range(side)]
    maps = np.zeros((8, 8, 256))
    for row in range(8):
        for column in range(8):
            part = grey[np.ix_([t == row for t in tile], [t == column for t in tile])]
            histogram = np.bincount(part.ravel(), minlength=256).astype(float)
            limit = clip * part.size / 256
            excess = np.maximum(histogram - limit, 0).sum()
            maps[row, column] = (np.minimum(histogram, limit) + excess / 256).cumsum() / part.size

    result = np.zeros_like(image)
    for y in range(side):
        for x in range(side):
            v, u = (min(max((i + 0.5) * 8 / side - 0.5, 0), 7) for i in (y, x))
            for row in range(8):
                for column in range(8):
                    nearness = max(0, 1 - abs(v - row)) * max(0, 1 - abs(u - column))
                    result[y, x] += nearness * maps[row, column, grey[y, x]] if nearness else 0

    return result


def test_clahe_equals_the_published_algorithm(chests: tuple[torch.Tensor, torch.Tensor]) -> None:
    # The tiles have unequal sizes.
    images = chests[0][:2, :, :44, :44]
    clip = torch.tensor([2.0, 30.0])
    found = equalise(images, clip)
    for i in range(2):
        wanted = clahe_by_the_paper(images[i, 0].double().numpy(), float(clip[i]))
        assert np.abs(found[i, 0].numpy() - wanted).max() < 1e-4


def test_clahe_changes_nothing_when_all_is_clipped_and_equalises_when_nothing_is() -> None:
    images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    assert float((equalise(images, torch.full((1,), 1e-6)) - images).abs().max()) < 1.5 / 255
    flat = equalise(images, torch.full((1,), 1e6))
    assert float(images.std()) < 0.06
    # The standard deviation of a uniform distribution.
    assert float(flat.std()) == pytest.approx(1 / math.sqrt(12), abs=0.03)
