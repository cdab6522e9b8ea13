"""From image to network input and back, for any size and aspect ratio."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.networks import BUILDERS, build
from inference.preprocess import as_stored, fit, normalise, unfit, upright


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 900), st.integers(8, 900), st.sampled_from([32, 64, 256]))
def test_a_picture_returns_to_its_place(rows: int, columns: int, side: int) -> None:
    y, x = np.mgrid[0:rows, 0:columns]
    picture = ((x + 0.5) / columns * 0.6 + (y + 0.5) / rows * 0.4).astype(np.float32)
    fitted = fit(picture, side)
    assert fitted.pixels.shape == (side, side)
    back = unfit(fitted.pixels, fitted.geometry)
    assert back.shape == (rows, columns)
    # A ramp changes only by the rounding of the letterbox to whole pixels, and by a pixel's width
    # at the flat ends of the interpolation.
    shorter = min(fitted.geometry.height, fitted.geometry.width)
    assert np.abs(back - picture).max() <= 1.01 / shorter + 0.6 / min(rows, columns)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 600), st.integers(8, 600))
def test_a_mark_returns_to_its_place(rows: int, columns: int) -> None:
    picture = np.zeros((rows, columns), dtype=np.float32)
    row = rows // 4
    column = columns // 3
    radius = max(2, max(rows, columns) // 16)
    picture[max(0, row - radius) : row + radius, max(0, column - radius) : column + radius] = 1
    fitted = fit(picture, 128)
    found = np.argwhere(unfit(fitted.pixels, fitted.geometry) > 0.5).mean(0)
    wanted = np.argwhere(picture > 0.5).mean(0)
    assert np.abs(found - wanted).max() <= max(rows, columns) / 128 + 0.5


def test_two_windows_of_one_picture_give_nearly_equal_inputs() -> None:
    rng = np.random.default_rng(0)
    picture = rng.random((100, 60), dtype=np.float32)
    first, second = (fit(one, 64) for one in (picture, 0.2 + 0.5 * picture))
    inputs = [normalise(one.pixels, one.geometry, "image-standard") for one in (first, second)]
    assert np.abs(inputs[0] - inputs[1]).max() < 0.05
    # The letterbox stays black.
    assert (inputs[0][:, :10] == 0).all()


def test_an_unknown_normalisation_is_refused() -> None:
    fitted = fit(np.zeros((8, 8), dtype=np.float32), 32)
    with pytest.raises(ValueError, match="image-standard"):
        normalise(fitted.pixels, fitted.geometry, "secret")


@pytest.mark.parametrize(
    ("name", "shape"), [("residual-classifier", (2, 1)), ("residual-unet", (2, 1, 96, 96))]
)
def test_networks_have_the_input_and_output_that_a_package_expects(
    name: str, shape: tuple[int, ...]
) -> None:
    assert name in BUILDERS
    with torch.inference_mode():
        assert build(name).eval()(torch.zeros(2, 1, 96, 96)).shape == shape


def test_only_listed_networks_are_built() -> None:
    with pytest.raises(ValueError, match=r"allowed: .*residual-classifier"):
        build("os.system")
    with pytest.raises(ValueError, match="arguments of residual-unet"):
        build("residual-unet", widths=[1])


# These are not directions of PS3.3 C.7.6.1.1.1, despite their first letters.
NO_ORIENTATIONS = [
    ["ROW", "HEIGHT"], ["RIGHT", "FOOT"], ["r", "h"], ["R", "h"], ["RL", "H"], ["R", "HF"],
    ["RAP", "H"], ["RR", "H"], ["RFAP", "H"], ["R.", "H"], [82, 72], b"RH", 7,
]  # fmt: skip
DIRECTIONS = [[a, b] for pair in (("LR", "HF"), ("HF", "LR")) for a in pair[0] for b in pair[1]]


@pytest.mark.parametrize("orientation", DIRECTIONS, ids="".join)
def test_an_image_is_turned_upright_and_back(orientation: list[str]) -> None:
    # For each pixel of the stored image, its place in the patient: (to the left, to the feet), each
    # 0 to 1.
    row, column = np.mgrid[0:5, 0:8]
    along_row = column if orientation[0] in "LF" else 7 - column
    along_column = row if orientation[1] in "LF" else 4 - row
    to_left, to_feet = (
        (along_row, along_column) if orientation[0] in "LR" else (along_column, along_row)
    )
    for spelled in (orientation, [f"{orientation[0]}P", f" {orientation[1]} "]):
        assert (np.diff(upright(to_left, spelled), axis=1) == 1).all()
        assert (np.diff(upright(to_feet, spelled), axis=0) == 1).all()
    picture = np.arange(40, dtype=np.float32).reshape(5, 8)
    assert np.array_equal(as_stored(upright(picture, orientation), orientation), picture)


@pytest.mark.parametrize(
    "orientation",
    [None, "", "L", ["L"], ["A", "F"], ["L", "R"], ["", ""], ["L", "P"], *NO_ORIENTATIONS],
)
def test_an_unusable_orientation_turns_nothing(
    orientation: list[str] | str | None,
) -> None:
    picture = np.arange(40, dtype=np.float32).reshape(5, 8)
    assert np.array_equal(upright(picture, orientation), picture)  # type: ignore[arg-type]
    assert np.array_equal(as_stored(picture, orientation), picture)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([32, 256, 320]))
def test_fit_and_unfit_work_for_any_size_and_aspect(rows: int, columns: int, side: int) -> None:
    fitted = fit(np.ones((rows, columns), dtype=np.float32), side)
    geometry = fitted.geometry
    assert max(geometry.height, geometry.width) == side
    scale = side / max(rows, columns)
    # The aspect ratio is kept to within a pixel, and no side becomes 0.
    assert abs(geometry.height - rows * scale) < 1
    assert abs(geometry.width - columns * scale) < 1
    # The area outside the image is black.
    assert fitted.pixels.sum() == pytest.approx(geometry.height * geometry.width)
    assert unfit(fitted.pixels, geometry).shape == (rows, columns)
    assert unfit(fitted.pixels, geometry).min() > 0.999
