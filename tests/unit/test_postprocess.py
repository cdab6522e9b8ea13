"""From a probability map to a mask: thresholds, smallest areas and regions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from inference.postprocess import REFERENCE_MATRIX_PX, label_regions, segment

maps = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, float("nan")]),
)
thresholds = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])
pixels = st.integers(0, 20)


def segment_px(
    probability: NDArray[np.float32], bottom: float, top: float, area: float, sure: float = 0.0
) -> NDArray[np.bool_]:
    """segment() with areas in pixels of this map."""
    scale = REFERENCE_MATRIX_PX / probability.size
    # Subtract a hundredth of a pixel against rounding errors of the two conversions.
    return segment(
        probability, bottom, top, max(0, area - 0.01) * scale, max(0, sure - 0.01) * scale
    )


def test_sure_pixels_decide_and_the_lower_threshold_draws() -> None:
    probability = np.zeros((1024, 1024), dtype=np.float32)
    # A region of 900 px, with a rim of low probability ...
    probability[100:130, 100:130] = 0.4
    # ... around 100 sure pixels.
    probability[110:120, 110:120] = 0.8
    # A less sure region elsewhere also belongs to the mask.
    probability[300:330, 300:330] = 0.4
    mask = segment(probability, 0.3, 0.7, min_area_at_1024_px=0, min_sure_area_at_1024_px=100)
    assert mask.dtype == bool
    assert mask.sum() == 1800
    assert not segment(
        probability, 0.3, 0.7, min_area_at_1024_px=0, min_sure_area_at_1024_px=101
    ).any()


def test_small_regions_are_dropped_and_do_not_decide() -> None:
    probability = np.zeros((1024, 1024), dtype=np.float32)
    probability[100:130, 100:130] = 0.8
    probability[500:505, 500:505] = 0.9
    assert segment(probability, 0.5, 0.5, min_area_at_1024_px=26).sum() == 900
    assert segment(probability, 0.5, 0.5, min_area_at_1024_px=25).sum() == 925
    # Only the dropped speck was sure.
    assert not segment(probability, 0.5, 0.85, min_area_at_1024_px=26).any()


def test_areas_scale_with_the_matrix() -> None:
    for side in (512, 1024, 2048):
        probability = np.zeros((side, side), dtype=np.float32)
        edge = side // 32
        # A square that would be 1024 px in a 1024 x 1024 matrix.
        probability[:edge, :edge] = 0.9
        for areas in ((1024, 0), (0, 1024)):
            assert segment(probability, 0.5, 0.5, *areas).any()
            assert not segment(
                probability, 0.5, 0.5, *(area + 1 if area else 0 for area in areas)
            ).any()


def test_a_diagonal_line_is_one_region_and_nan_belongs_to_no_region() -> None:
    probability = np.eye(64, dtype=np.float32)
    assert label_regions(probability > 0.5)[1] == 1
    assert segment_px(probability, 0.5, 0.5, 64).sum() == 64
    assert not segment(np.full((8, 8), np.nan, dtype=np.float32), 0.5, 0.5, 0).any()
    assert not segment(np.zeros((8, 8), dtype=np.float32), 0.5, 0.5, 0).any()


@given(maps, thresholds, thresholds, pixels, pixels)
def test_a_mask_has_its_guaranteed_properties(
    probability: NDArray[np.float32], bottom: float, top: float, area: int, sure: int
) -> None:
    assume(bottom <= top)
    mask = segment_px(probability, bottom, top, area, sure)
    assert mask.shape == probability.shape
    # Every pixel of the mask reaches `bottom`, and none is NaN.
    assert (probability[mask] >= bottom).all()

    regions, count = label_regions(mask)
    assert all((regions == number).sum() >= area for number in range(1, count + 1))

    if mask.any():
        assert (probability[mask] >= top).sum() >= max(1, sure)
        # Nothing was left out wrongly: other pixels that reach `bottom` lie in regions that are too
        # small.
        whole, number = label_regions(probability >= bottom)
        assert all(
            (whole == i).sum() < area for i in range(1, number + 1) if not mask[whole == i].any()
        )
        # Segmenting the mask again gives the same mask.
        assert (segment_px(mask.astype(np.float32), bottom, top, area, sure) == mask).all()


@given(maps, thresholds, thresholds, pixels, pixels)
def test_stricter_thresholds_never_draw_more(
    probability: NDArray[np.float32], bottom: float, top: float, area: int, sure: int
) -> None:
    assume(bottom <= top)
    mask = segment_px(probability, bottom, top, area, sure)
    for stricter in (
        segment_px(probability, top, top, area, sure),
        segment_px(probability, bottom, 0.95, area, sure),
        segment_px(probability, bottom, top, area + 3, sure),
        segment_px(probability, bottom, top, area, sure + 3),
    ):
        assert not (stricter & ~mask).any()


@given(maps, thresholds, thresholds, pixels, pixels)
def test_a_mirrored_picture_has_the_mirrored_mask(
    probability: NDArray[np.float32], bottom: float, top: float, area: int, sure: int
) -> None:
    assume(bottom <= top)
    mask = segment_px(probability, bottom, top, area, sure)
    assert (segment_px(probability[:, ::-1], bottom, top, area, sure) == mask[:, ::-1]).all()
    assert (segment_px(probability.T, bottom, top, area, sure) == mask.T).all()


def test_thresholds_the_wrong_way_round_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="bottom"):
        segment(np.zeros((8, 8), dtype=np.float32), bottom=0.7, top=0.3, min_area_at_1024_px=0)
    with pytest.raises(ValueError, match="shape"):
        segment(np.zeros((1, 8, 8), dtype=np.float32), 0.5, 0.5, 0)
