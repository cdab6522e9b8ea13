"""Synthetic radiographs: the mask marks the pneumothorax, and each image states that it is
synthetic.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training import phantom


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_a_phantoms_mask_is_where_its_pneumothorax_is(seed: int) -> None:
    with_one = phantom.draw(seed, True, 128)
    assert with_one.mask.any()
    assert not phantom.draw(seed, False, 128).mask.any()
    assert np.array_equal(with_one.pixels, phantom.draw(seed, True, 128).pixels)
    columns = np.argwhere(with_one.mask)[:, 1]
    # The mask lies on one side.
    assert (columns < 64).all() or (columns >= 64).all()


def test_a_phantom_states_that_it_is_synthetic(tmp_path: Path) -> None:
    from pydicom import dcmread

    drawn = phantom.draw(1, False, 256)
    dataset = dcmread(phantom.write(drawn, tmp_path / "one.dcm"))
    assert "SYNTHETIC" in dataset.StudyDescription
    assert "Synthetic" in str(dataset.PatientName)
    assert dataset.BurnedInAnnotation == "YES"
    # The pixels of the printed word.
    assert (drawn.pixels[-20:, :80] == 1).sum() > 60
