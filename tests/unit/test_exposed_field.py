"""The exposed field: margins and surrounding air are excluded from the body, dark lungs are not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.exposed_field import exposed

SIDE = 512


def chest() -> NDArray[np.float32]:
    """A grey body that fills the picture, with one black lung."""
    picture = np.full((SIDE, SIDE), 0.6, dtype=np.float32)
    picture[120:380, 300:440] = 0.0
    return picture


def test_a_picture_without_a_margin_is_all_body() -> None:
    assert exposed(chest()).all()


def test_a_black_margin_is_excluded_and_a_black_lung_beside_it_is_not() -> None:
    picture = chest()
    picture[:, :60] = 0.0
    picture[-40:] = 0.02
    found = exposed(picture)
    assert not found[:, :56].any()
    assert not found[-36:].any()
    assert found[120:380, 300:440].all()


def test_a_thin_black_line_does_not_join_a_lung_to_the_margin() -> None:
    picture = chest()
    picture[:, -60:] = 0.0
    picture[250:252, 440:452] = 0.0
    assert exposed(picture)[150:350, 320:430].all()


def test_compression_noise_does_not_hide_a_margin() -> None:
    picture = chest()
    noise = np.random.default_rng(1).uniform(0, 0.04, (SIDE, 60))
    picture[:, :60] = noise
    assert not exposed(picture)[:, :50].any()


def test_the_body_has_the_size_of_the_picture() -> None:
    for shape in ((1, 1), (7, 300), (2500, 2048)):
        assert exposed(np.full(shape, 0.5, dtype=np.float32)).shape == shape
