from __future__ import annotations

import numpy as np
import pytest

from inference.postprocess import label_regions, segment


def test_a_region_stays_when_enough_of_it_is_sure_and_is_then_drawn_down_to_the_lower_threshold() -> None:
    probability = np.zeros((1024, 1024), dtype=np.float32)
    probability[100:130, 100:130] = 0.4  # 900 px, a rim ...
    probability[110:120, 110:120] = 0.8  # ... around 100 sure ones
    probability[300:330, 300:330] = 0.4  # a rim around nothing
    probability[500:505, 500:505] = 0.9  # sure, but small
    mask = segment(probability, bottom=0.3, top=0.7, min_area_at_1024_px=100)
    assert mask.dtype == bool
    assert mask[100:130, 100:130].all()
    assert mask.sum() == 900


def test_the_smallest_area_means_the_same_part_of_a_chest_in_every_matrix() -> None:
    for side in (512, 1024, 2048):
        probability = np.zeros((side, side), dtype=np.float32)
        edge = side // 32
        probability[:edge, :edge] = 0.9  # 1024 px of a 1024 x 1024 matrix
        assert segment(probability, 0.5, 0.5, min_area_at_1024_px=1024).any()
        assert not segment(probability, 0.5, 0.5, min_area_at_1024_px=1025).any()


def test_a_diagonal_line_is_one_region_and_what_is_no_number_is_none() -> None:
    probability = np.eye(64, dtype=np.float32)
    assert label_regions(probability > 0.5)[1] == 1
    assert segment(probability, 0.5, 0.5, 0).sum() == 64
    assert not segment(np.full((8, 8), np.nan, dtype=np.float32), 0.5, 0.5, 0).any()
    assert not segment(np.zeros((8, 8), dtype=np.float32), 0.5, 0.5, 0).any()


def test_thresholds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match="bottom"):
        segment(np.zeros((8, 8), dtype=np.float32), bottom=0.7, top=0.3, min_area_at_1024_px=0)
