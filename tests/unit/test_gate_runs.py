"""The gate finds regions from runs of pixels; they equal the regions of a pixel-by-pixel labelling."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from inference.results.gate.regions import Region, measured_of, regions_of
from inference.results.gate.runs import Runs
from tools.cases import header, positive

CORNERS = np.ones((3, 3), dtype=bool)


def masks() -> list[NDArray[np.bool_]]:
    """Noise of several densities, blobs of several sizes, a spiral, an empty mask and a full mask."""
    rng = np.random.default_rng(11)
    found = [rng.random((31, 23)) < part for part in (0.02, 0.3, 0.5, 0.6, 0.9)]
    for sigma in (1.0, 2.0, 4.0):
        found += [ndimage.gaussian_filter(rng.normal(size=(60, 50)), sigma) > 0 for _ in range(5)]

    spiral = np.zeros((41, 41), dtype=bool)
    for turn in range(0, 20, 4):
        spiral[turn, turn : 41 - turn] = spiral[turn : 41 - turn, 40 - turn] = True
        spiral[40 - turn, turn : 41 - turn] = spiral[turn + 4 : 41 - turn, turn] = True
        spiral[turn + 4, turn : turn + 5] = True
    return [*found, spiral, np.zeros((4, 5), dtype=bool), np.ones((4, 5), dtype=bool)]


@pytest.mark.parametrize("over_corners", [True, False])
@pytest.mark.parametrize("mask", masks())
def test_regions_equal_labelled_regions(mask: NDArray[np.bool_], over_corners: bool) -> None:
    labels, wanted = ndimage.label(mask, CORNERS if over_corners else None)
    runs = Runs.of(mask)
    numbers, count = runs.together(over_corners)
    assert count == wanted
    assert np.array_equal(numbers, labels[runs.rows, runs.starts] - 1)


@pytest.mark.parametrize("mask", [mask for mask in masks() if mask.any()])
def test_a_region_is_painted_at_its_place(mask: NDArray[np.bool_]) -> None:
    runs = Runs.of(mask)
    whole = np.zeros_like(mask)
    whole[runs.box] = runs.painted(runs.box)
    assert np.array_equal(whole, mask)


@pytest.mark.parametrize("mask", [mask for mask in masks() if mask.any()])
def test_figures_and_lesions_equal_those_of_the_pixels(mask: NDArray[np.bool_]) -> None:
    case = positive(header(Rows=mask.shape[0], Columns=mask.shape[1]), mask)
    labels, count = ndimage.label(mask, CORNERS)
    rows, columns = np.nonzero(mask)

    measured = measured_of(case)
    assert measured is not None
    assert (measured.area_px, measured.regions) == (rows.size, count)
    assert measured.centroid_px == (columns.mean(), rows.mean())
    assert measured.extent_px == (rows.min(), columns.min(), rows.max(), columns.max())
    assert measured.spread_px == pytest.approx((rows.std(), columns.std()))

    regions = regions_of(case)
    together = np.zeros_like(mask)
    for region in regions:
        top, left = region.corner
        bottom, right = top + region.mask.shape[0], left + region.mask.shape[1]
        together[top:bottom, left:right] |= region.mask
        largest = labels[top:bottom, left:right] == _largest(labels[top:bottom, left:right], region)
        assert np.array_equal(region.outer, ndimage.binary_fill_holes(largest))
    assert np.array_equal(together, mask)
    assert [region.area_px for region in regions[:-1]] == sorted(
        np.bincount(labels.ravel())[1:], reverse=True
    )[: len(regions) - 1]


def _largest(labels: NDArray[np.int32], region: Region) -> int:
    """The label of a lesion's largest part; of equal parts, the first in reading order."""
    return int(np.bincount(labels[region.mask]).argmax())
