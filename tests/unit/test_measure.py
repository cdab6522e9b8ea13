"""Measurements of a mask: area, centroid, extent, spread, side and size in millimetres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from inference.measure import measure
from inference.radiograph import Spacing


def mask_of(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (100, 200)) -> np.ndarray:
    """A mask of boxes (top, bottom, left, right), whose ends are exclusive."""
    mask = np.zeros(shape, dtype=bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


# Left and right as seen on the image.
LEFT = (10, 20, 20, 40)
RIGHT = (10, 20, 160, 170)


def test_area_centroid_and_regions_are_measured() -> None:
    found = measure(mask_of(LEFT, RIGHT), Spacing(0.5, 0.25, detector=False), None)
    assert found is not None
    assert (found.area_px, found.area_mm2, found.area_estimated, found.regions) == (
        300,
        37.5,
        False,
        2,
    )
    # Columns 20..39 (200 px, mean 29.5) and 160..169 (100 px, mean 164.5); pixel centres lie at
    # integers.
    assert found.centroid_px == pytest.approx((74.5, 14.5))


def test_an_empty_mask_has_no_measurement() -> None:
    assert measure(np.zeros((4, 4), dtype=bool), None, ["L", "F"]) is None


def test_millimetres_need_a_spacing_and_are_estimates_with_the_detectors() -> None:
    assert measure(mask_of(LEFT), None, None).area_mm2 is None  # type: ignore[union-attr]
    assert measure(mask_of(LEFT), Spacing(0.0, 0.0, False), None).area_mm2 is None  # type: ignore[union-attr]
    assert measure(mask_of(LEFT), Spacing(0.1, 0.1, True), None).area_estimated  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("orientation", "boxes", "side"),
    [
        # The usual chest image: its left side is the patient's right.
        (["L", "F"], [LEFT], "R"),
        (["L", "F"], [RIGHT], "L"),
        # A mirrored image.
        (["R", "F"], [LEFT], "L"),
        (["L", "F"], [LEFT, RIGHT], "B"),
        # An oblique orientation: the main direction comes first.
        (["LF", "FR"], [LEFT], "R"),
        # A region in the middle: the side is left open, not guessed.
        (["L", "F"], [LEFT, (50, 60, 95, 105)], None),
        (["L", "F"], [(50, 60, 95, 105)], None),
        # Rotated by 90 degrees: the columns run to the patient's left.
        (["F", "L"], [(5, 15, 95, 105)], "R"),
        (["F", "R"], [(5, 15, 95, 105)], "L"),
        (["H", "L"], [(85, 95, 95, 105)], "L"),
        # A lateral image.
        (["P", "F"], [LEFT], None),
        # A contradictory orientation.
        (["L", "R"], [LEFT], None),
        (["", ""], [LEFT], None),
        (["L"], [LEFT], None),
        ("LF", [LEFT], None),
        (["RIGHT", "FOOT"], [LEFT], None),
        (["r", "f"], [LEFT], None),
        (["LR", "F"], [LEFT], None),
        (None, [LEFT], None),
    ],
)
def test_the_side_is_the_patients_and_comes_from_patient_orientation_alone(
    orientation: Sequence[str] | None, boxes: list[tuple[int, int, int, int]], side: str | None
) -> None:
    found = measure(mask_of(*boxes), None, orientation)
    assert found is not None
    assert found.laterality == side


def test_extent_and_spread_cover_all_regions_together() -> None:
    found = measure(mask_of(LEFT, RIGHT), None, None)
    assert found is not None
    # First row, first column, last row, last column.
    assert found.extent_px == (10, 20, 19, 169)
    columns = np.concatenate([np.tile(np.arange(20, 40), 10), np.tile(np.arange(160, 170), 10)])
    assert found.spread_px == pytest.approx((np.arange(10, 20).std(), columns.std()))
    one = measure(mask_of((3, 4, 7, 8)), None, None)
    assert one is not None
    assert (one.extent_px, one.spread_px) == ((3, 7, 3, 7), (0.0, 0.0))
