"""Properties of the contours of any mask: they lie near its edge, and filling them gives the mask
back.
"""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from inference.contours import LARGEST_DISTANCE_PX, contours, is_hole

Line = NDArray[np.float64]


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Masks up to 24 x 24: random pixels, blobs or thin lines, also at the border."""
    shape = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    kind = draw(st.sampled_from(["pixels", "blobs", "lines"]))
    if kind == "pixels":
        return draw(hnp.arrays(bool, shape))

    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "blobs":
        field = ndimage.gaussian_filter(rng.random(shape), draw(st.floats(0.5, 4)))
        return np.asarray(field > np.quantile(field, draw(st.floats(0, 1))))

    mask = np.zeros(shape, dtype=bool)
    for _ in range(draw(st.integers(1, 4))):
        ends = rng.random((2, 2)) * np.array(shape)
        at = np.linspace(ends[0], ends[1], 60).astype(int)
        mask[at[:, 0], at[:, 1]] = True
    return mask


def filled(lines: list[Line], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres are inside by the even-odd rule: a ray to the right crosses the
    lines an odd number of times.
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, dtype=bool)
    for line in lines:
        for (top, left), (bottom, right) in itertools.pairwise(line):
            between = (top > rows) != (bottom > rows)
            if between.any():
                inside ^= between & (
                    columns < (right - left) * (rows - top) / (bottom - top) + left
                )
    return inside


def sides(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, 2, 2): the two ends of each pixel side between True and False, also at the matrix's
    border.
    """
    padded = np.pad(mask, 1)
    below = np.argwhere(padded[:-1] != padded[1:]) - 1.0
    right = np.argwhere(padded[:, :-1] != padded[:, 1:]) - 1.0
    return np.concatenate(
        [
            np.stack([below + np.array([0.5, -0.5]), below + 0.5], axis=1),
            np.stack([right + np.array([-0.5, 0.5]), right + 0.5], axis=1),
        ]
    )


def furthest(points: NDArray[np.float64], pieces: NDArray[np.float64]) -> float:
    """The largest distance of one of (n, 2) points to the nearest of (m, 2, 2) pieces."""
    start = pieces[:, 0]
    along = pieces[:, 1] - start
    length = np.maximum((along**2).sum(axis=1), 1e-12)
    part = np.clip(((points[:, None] - start) * along).sum(axis=2) / length, 0, 1)
    apart = points[:, None] - (start + part[..., None] * along)
    return float(np.hypot(apart[..., 0], apart[..., 1]).min(axis=1).max())


def dense(pieces: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate(
        [pieces[:, 0] + part * (pieces[:, 1] - pieces[:, 0]) for part in (0, 0.25, 0.5, 0.75, 1)]
    )


@settings(deadline=None)
@given(masks())
def test_filling_the_contours_gives_the_mask_back(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(filled(contours(mask), (mask.shape[0], mask.shape[1])), mask)


@settings(deadline=None)
@given(masks())
def test_each_region_and_each_hole_has_one_contour(mask: NDArray[np.bool_]) -> None:
    lines = contours(mask)
    regions = ndimage.label(mask, np.ones((3, 3)))[1]
    holes = ndimage.label(~np.pad(mask, 1))[1] - 1
    assert [is_hole(line) for line in lines].count(False) == regions
    assert [is_hole(line) for line in lines].count(True) == holes
    for line in lines:
        assert line.shape[1] == 2
        assert len(line) >= 4
        assert np.array_equal(line[0], line[-1])


@settings(deadline=None)
@given(masks())
def test_contour_and_edge_are_at_most_the_stated_distance_apart(mask: NDArray[np.bool_]) -> None:
    assert LARGEST_DISTANCE_PX < 0.66
    if not mask.any():
        return
    pieces = np.concatenate([np.stack([line[:-1], line[1:]], axis=1) for line in contours(mask)])
    edge = sides(mask)
    assert furthest(dense(pieces), edge) <= LARGEST_DISTANCE_PX
    assert furthest(dense(edge), pieces) <= LARGEST_DISTANCE_PX
