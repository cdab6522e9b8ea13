"""Losses: equal to MONAI's where MONAI has them, else to the papers' formulas; and how a recipe
combines them.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.fitting import losses
from training.recipe import Loss


def logits_and_masks(n: int = 4, side: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 1, side, side, generator=generator) * 3
    masks = (torch.rand(n, 1, side, side, generator=generator) < 0.1).float()
    masks[0] = 0
    return logits, masks


def value(
    loss: Loss, outputs: losses.Outputs, targets: Tensor, positive_share: float = 0.5
) -> float:
    return float(losses.compose(loss, positive_share)(outputs, targets))


def test_dice_and_focal_equal_monais() -> None:
    from monai.losses import DiceLoss, FocalLoss

    logits, masks = logits_and_masks()
    theirs = DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1)
    assert value(Loss(dice=1, empty=True), logits, masks) == pytest.approx(
        float(theirs(logits, masks)), rel=1e-6
    )
    assert value(Loss(dice=1), logits, masks) == pytest.approx(
        float(theirs(logits[1:], masks[1:])), rel=1e-6
    )

    theirs = FocalLoss(gamma=2)
    assert value(Loss(focal=1), logits, masks) == pytest.approx(
        float(theirs(logits, masks)), rel=1e-5
    )


def test_the_default_recipes_losses_are_unchanged() -> None:
    logits, masks = logits_and_masks()
    found = torch.sigmoid(logits[1:]).flatten(1)
    true = masks[1:].flatten(1)
    overlap = 1 - (2 * (found * true).sum(1) + 1) / (found.sum(1) + true.sum(1) + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, masks)
    assert value(Loss(cross_entropy=1, dice=1), logits, masks) == pytest.approx(
        float(entropy + overlap.mean())
    )
    soft = torch.tensor([[0.3], [0.8]])
    wanted = functional.binary_cross_entropy_with_logits(torch.ones(2, 1), soft)
    assert value(Loss(cross_entropy=1), torch.ones(2, 1), soft) == pytest.approx(float(wanted))


@pytest.mark.parametrize("term", ["cross_entropy", "focal", "dice", "tanimoto"])
def test_each_loss_falls_as_the_answer_improves(term: str) -> None:
    _, masks = logits_and_masks()
    found = [
        value(Loss(**{term: 1}), scale * (masks * 2 - 1), masks) for scale in (-2.0, 0.0, 2.0, 8.0)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.01


@pytest.mark.parametrize("term", ["cross_entropy", "tanimoto"])
def test_the_loss_of_a_soft_target_is_least_at_the_target(term: str) -> None:
    soft = torch.full((1, 1, 32, 32), 0.3)
    loss = losses.compose(Loss(**{term: 1}))
    best = torch.logit(soft)
    assert loss(best, soft) < min(loss(best - 0.1, soft), loss(best + 0.1, soft))
    # Tanimoto reaches 0 at a soft target, unlike Dice, so it is the loss for grey targets.
    if term == "tanimoto":
        assert float(loss(best, soft)) == pytest.approx(0, abs=1e-6)


def test_terms_are_weighted_and_added() -> None:
    logits, masks = logits_and_masks()
    alone = {
        term: value(Loss(**{term: 1}), logits, masks) for term in ("cross_entropy", "focal", "dice")
    }
    together = value(Loss(cross_entropy=3, focal=4, dice=1), logits, masks)
    assert together == pytest.approx(
        3 * alone["cross_entropy"] + 4 * alone["focal"] + alone["dice"], rel=1e-6
    )


def test_an_image_without_a_mask_counts_in_dice_only_if_asked() -> None:
    logits, masks = logits_and_masks(1)
    assert value(Loss(dice=1), logits, masks) == 0
    assert value(Loss(dice=1, empty=True), logits, masks) > 0.9
    assert value(Loss(dice=1, empty=True), logits - 50, masks) == pytest.approx(0)
    logits.requires_grad_()
    # A batch of only such images also has a gradient.
    losses.compose(Loss(dice=1))(logits, masks).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_balanced_classes_have_equal_weight_however_rare() -> None:
    labels = torch.tensor([[1.0]] + [[0.0]] * 9)
    for term in ("cross_entropy", "focal"):
        logits = torch.zeros(10, 1, requires_grad=True)
        losses.compose(Loss(**{term: 1}, balance=True), 0.1)(logits, labels).backward()
        assert logits.grad is not None
        assert float(logits.grad.sum()) == pytest.approx(0, abs=1e-6)
        assert float(logits.grad[0]) == pytest.approx(9 * -float(logits.grad[1]))

    plain, balanced = (
        value(Loss(cross_entropy=1, balance=yes), torch.zeros(10, 1), labels, 0.1) for yes in (0, 1)
    )

    # Balancing keeps the size of the loss, so the learning rate keeps its meaning.
    assert balanced == pytest.approx(plain)
    with pytest.raises(ValueError, match="both classes"):
        losses.compose(Loss(cross_entropy=1, balance=True), 0.0)


def test_each_output_is_compared_with_its_own_kind_of_target() -> None:
    logits, masks = logits_and_masks()
    image_level = torch.tensor([[-2.0], [1.0], [2.0], [3.0]])
    filled = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    loss = Loss(cross_entropy=1, dice=1)
    parts = [
        value(loss, logits, masks),
        value(loss, -logits, masks),
        value(loss, image_level, filled),
    ]
    assert value(loss, [logits, -logits, image_level], masks) == pytest.approx(sum(parts) / 3)

    assert value(Loss(dice=1), image_level, filled) == value(
        Loss(cross_entropy=1), image_level, filled
    )
    with pytest.raises(ValueError, match="wanted masks"):
        value(loss, logits, filled)


def test_auxiliary_outputs_have_the_weights_of_the_recipe() -> None:
    logits, masks = logits_and_masks()
    presence = torch.tensor([[2.0], [-1.0], [0.5], [0.0]])
    alone = value(Loss(dice=1), logits, masks)
    aside = value(Loss(dice=1), presence, masks)
    outputs = [logits, presence]
    assert value(Loss(dice=1), outputs, masks) == pytest.approx((alone + aside) / 2)
    assert value(Loss(dice=1, auxiliary=0.2), outputs, masks) == pytest.approx(alone + 0.2 * aside)
    assert value(Loss(dice=1, auxiliary=0.2), logits, masks) == pytest.approx(alone)


def test_sums_use_32_bits_in_mixed_precision() -> None:
    logits, masks = logits_and_masks(side=128)
    logits = logits.bfloat16()
    wanted = value(Loss(cross_entropy=1, dice=1, focal=1, tanimoto=1), logits.float(), masks)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.compose(Loss(cross_entropy=1, dice=1, focal=1, tanimoto=1))(logits, masks)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_the_overlap_losses_follow_the_papers_formulas() -> None:
    """Two pixels of one image: found with 0.8 and 0.6; the first is true."""
    logits = torch.logit(torch.tensor([0.8, 0.6])).view(1, 1, 1, 2)
    masks = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    hit, false, missed = 0.8, 0.6, 0.2
    smooth = 1.0

    union = hit + false + missed
    assert value(Loss(jaccard=1), logits, masks) == pytest.approx(
        1 - (hit + smooth) / (union + smooth)
    )
    for misses in (0.5, 0.7):
        index = (hit + smooth) / (hit + (1 - misses) * false + misses * missed + smooth)
        assert value(Loss(tversky=1, misses=misses), logits, masks) == pytest.approx(1 - index)
        assert value(Loss(focal_tversky=1, misses=misses), logits, masks) == pytest.approx(
            (1 - index) ** 0.75
        )
    # With equal weights, the Tversky loss equals the Dice loss.
    halves = (hit + smooth) / (hit + 0.5 * false + 0.5 * missed + smooth)
    dice = (2 * hit + 2 * smooth) / (2 * hit + false + missed + 2 * smooth)
    assert halves == pytest.approx(dice)


def test_lovasz_is_the_jaccard_loss_at_its_corners_and_linear_between() -> None:
    masks = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    # Margins 1 - logit x sign: 0 where right by 1, 2 where wrong by 1
    for wrong, jaccard in (((), 0.0), ((0,), 1 / 2), ((2,), 1 / 3), ((0, 2), 2 / 3)):
        signs = [1.0, 1.0, -1.0, -1.0]
        for place in wrong:
            signs[place] = -signs[place]
        logits = torch.tensor(signs).view(1, 1, 2, 2)
        assert value(Loss(lovasz=1), logits, masks) == pytest.approx(2 * jaccard)

    # By hand: margins 1.5, 0.5, 0.2, 0; the Jaccard loss grows to 1/2, 2/3, 1 in this order
    logits = torch.tensor([-0.5, 0.8, -0.5, -1.0]).view(1, 1, 2, 2)
    by_hand = 1.5 * 1 / 2 + 0.5 * (2 / 3 - 1 / 2) + 0.2 * (1 - 2 / 3)
    assert value(Loss(lovasz=1), logits, masks) == pytest.approx(by_hand)


def test_every_overlap_loss_has_a_gradient_and_ignores_empty_masks() -> None:
    logits, masks = logits_and_masks()
    for term in ("jaccard", "tversky", "focal_tversky", "lovasz"):
        given = logits.clone().requires_grad_()
        loss = losses.compose(Loss.model_validate({term: 1}))(given, masks)
        loss.backward()
        assert given.grad is not None
        assert given.grad.isfinite().all()
        assert given.grad[0].abs().sum() == 0 < given.grad[1].abs().sum()


def test_only_the_hardest_negatives_count() -> None:
    logits = torch.tensor([[0.0], [2.0], [1.0], [-3.0], [-1.0]])
    labels = torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0]])
    each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")[:, 0]
    half = value(Loss(cross_entropy=1, hard_negatives=0.5), logits, labels)
    assert half == pytest.approx(float(each[:3].mean()))
    assert value(Loss(cross_entropy=1), logits, labels) == pytest.approx(float(each.mean()))
    alone = value(Loss(cross_entropy=1, hard_negatives=0.1), logits[:1], labels[:1])
    assert alone == pytest.approx(float(each[0]))
