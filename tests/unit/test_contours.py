"""Contours: the outlines that a mask is drawn with."""

from __future__ import annotations

import numpy as np

from inference.contours import LARGEST_DISTANCE_PX, contours, is_hole


def test_a_disc_has_one_round_contour() -> None:
    rows, columns = np.mgrid[0:400, 0:400]
    disc = (rows - 200) ** 2 + (columns - 190) ** 2 < 120**2
    (line,) = contours(disc)
    radius = np.hypot(line[:, 0] - 200, line[:, 1] - 190)
    assert np.abs(radius - 119.75).max() < LARGEST_DISTANCE_PX
    assert np.array_equal(line[0], line[-1])
    # Fewer vertices than pixel edges along the circle.
    assert len(line) < 2 * np.pi * 120
    assert not is_hole(line)


def test_straight_edges_are_straight_and_cost_few_vertices() -> None:
    mask = np.zeros((600, 700), dtype=bool)
    mask[100:500, 200:600] = True
    (line,) = contours(mask)
    assert len(line) < 100
    assert np.abs(line.min(axis=0) - (99.5, 199.5)).max() < 0.01
    assert np.abs(line.max(axis=0) - (499.5, 599.5)).max() < 0.01


def test_a_hole_has_a_contour_in_the_opposite_direction() -> None:
    mask = np.zeros((30, 30), dtype=bool)
    mask[5:25, 5:25] = True
    mask[10:20, 10:20] = False
    lines = contours(mask)
    assert [is_hole(line) for line in lines] == [False, True]


def test_no_region_is_lost_however_thin_or_near_the_border() -> None:
    dots = np.zeros((50, 50), dtype=bool)
    dots[0, 0] = dots[49, 49] = dots[20, 10:40] = True
    # These pixels touch only at their corners and form one region.
    dots[np.arange(30, 40), np.arange(5, 15)] = True
    assert len(contours(dots)) == 4
    assert not any(is_hole(line) for line in contours(dots))
    assert len(contours(np.ones((3, 4), dtype=bool))) == 1
    assert contours(np.zeros((5, 5), dtype=bool)) == []
