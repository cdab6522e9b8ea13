"""Display of a radiograph: windows against the formulas of PS3.3 C.11.2, written here
independently, and lookup tables against direct computation.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, config

from inference.display import WINDOWS, displayed, show
from inference.pixels import Unsuitable
from tools.images import header


def by_the_standard(name: str, x: float, c: float, w: float, y_min: float, y_max: float) -> float:
    """The pseudo-code of C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, one value at a time."""
    if name == "LINEAR":
        if x <= c - 0.5 - (w - 1) / 2:
            return y_min
        if x > c - 0.5 + (w - 1) / 2:
            return y_max
        return ((x - (c - 0.5)) / (w - 1) + 0.5) * (y_max - y_min) + y_min
    if name == "LINEAR_EXACT":
        if x <= c - w / 2:
            return y_min
        if x > c + w / 2:
            return y_max
        return ((x - c) / w + 0.5) * (y_max - y_min) + y_min
    return (y_max - y_min) / (1 + math.exp(min(700, -4 * (x - c) / w))) + y_min


@given(
    st.sampled_from(sorted(WINDOWS)),
    st.integers(-3000, 3000),
    st.integers(-2000, 2000).map(lambda n: n / 2),
    st.integers(1, 5000),
)
def test_a_window_follows_the_standard(name: str, x: int, centre: float, width: int) -> None:
    wanted = by_the_standard(name, x, centre, width, 0, 255)
    found = WINDOWS[name](np.array([float(x)]), centre, width)[0] * 255
    assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("edge", [-0.5, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("width", [1, 2, 100])
@pytest.mark.parametrize("name", ["LINEAR", "LINEAR_EXACT"])
def test_the_edges_of_a_window_follow_the_standard(name: str, width: int, edge: float) -> None:
    for x in (50 - width / 2 + edge, 50 + width / 2 + edge, 49.5, 50, 50.5):
        wanted = by_the_standard(name, x, 50, width, 0, 1)
        assert WINDOWS[name](np.array([x]), 50, width)[0] == pytest.approx(wanted, abs=1e-12)


def test_a_width_of_one_is_a_threshold() -> None:
    assert WINDOWS["LINEAR"](np.array([99.0, 99.5, 100.0]), 100, 1).tolist() == [0, 0, 1]


@given(
    st.sampled_from(["uint8", "int8", "uint16", "int16"]),
    st.sampled_from(sorted(WINDOWS)),
    st.floats(-4, 4).filter(lambda slope: abs(slope) > 0.01),
    st.integers(-500, 500),
)
def test_the_lookup_table_gives_the_same_values_as_the_formulas(
    dtype: str, name: str, slope: float, intercept: int
) -> None:
    kind = np.iinfo(dtype)
    stored = np.linspace(kind.min, kind.max, 60 * 50).round().astype(dtype).reshape(60, 50)
    low, high = sorted(slope * edge + intercept for edge in (kind.min, kind.max))

    window = {
        "WindowCenter": round((low + high) / 2),
        "WindowWidth": max(2, round((high - low) * 0.7)),
    }
    described = header(
        RescaleSlope=f"{slope:.6f}", RescaleIntercept=intercept, VOILUTFunction=name, **window
    )

    shown, notes = displayed(described, stored)
    assert notes == ()

    for row, column in ((0, 0), (59, 49), (30, 20), (10, 7), (45, 3)):
        x = float(f"{slope:.6f}") * int(stored[row, column]) + intercept
        wanted = by_the_standard(name, x, window["WindowCenter"], window["WindowWidth"], 0, 1)
        assert shown[row, column] == pytest.approx(wanted, abs=1e-6)


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def test_a_window_for_bone_or_lung_is_kept() -> None:
    for centre in (800, 2048, 3300):
        shown, notes = displayed(header(WindowCenter=centre, WindowWidth=900), RAMP)
        assert notes == ()
        assert 0.1 < ((shown > 0) & (shown < 1)).mean() < 0.5


@pytest.mark.parametrize(
    "window", [(-500, 100), (9000, 500), (2048, 2), (128, 256), (0, 10_000_000)]
)
def test_a_window_that_would_hide_the_lung_is_replaced(window: tuple[int, int]) -> None:
    shown, notes = displayed(header(WindowCenter=window[0], WindowWidth=window[1]), RAMP)
    assert np.ptp(shown) == 1
    assert notes == ("the window hides the picture, so the central range of its values is shown",)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "RescaleSlope is not a usable number"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}, "RescaleSlope is not a usable number"),
        ({"PresentationLUTShape": "INVERSE"}, "PresentationLUTShape contradicts PhotometricInterpretation"),
        (
            {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "CUBIC"},
            "VOILUTFunction unknown, LINEAR taken",
        ),
        ({"VOILUTSequence": [header()]}, "VOILUTSequence cannot be applied"),
    ],
)  # fmt: skip
def test_an_unusable_attribute_is_noted(changes: dict[str, object], note: str) -> None:
    shown, notes = displayed(header(**changes), RAMP)
    assert notes == (note,)
    assert np.ptp(shown) == 1


def test_a_modality_lut_that_cannot_be_applied_is_an_error() -> None:
    with pytest.raises(Unsuitable, match="undecodable"):
        displayed(header(ModalityLUTSequence=[header()]), RAMP)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_a_padding_limit_above_the_images_maximum_does_not_wrap_around(kind: str) -> None:
    top = 250 if kind == "uint8" else 3990
    stored = np.linspace(0, top, 4096).astype(kind).reshape(64, 64)
    value = top - top // 20
    shown, _ = displayed(header(PixelPaddingValue=value, PixelPaddingRangeLimit=4095), stored)
    assert (shown[stored >= value] == 0).all()
    assert (shown > 0).mean() > 0.9


def test_signed_padding_written_as_unsigned_is_recognised() -> None:
    stored = RAMP.astype(np.int16) - 2000
    stored[:8] = -2001
    described = header(WindowCenter=48, WindowWidth=4096)
    described.add_new("PixelPaddingValue", "US", 65536 - 2001)
    described.PhotometricInterpretation = "MONOCHROME1"
    assert (displayed(described, stored)[0][:8] == 0).all()


def test_a_table_of_many_entries_may_have_a_signed_descriptor() -> None:
    stored = (RAMP.astype(int) * 14 - 30000).astype(np.int16)
    item = Dataset()
    # pydicom validates the first value as US, whatever the VR.
    with config.disable_value_validation():
        item.add_new("LUTDescriptor", "SS", [60000 - 65536, -30000, 16])
    item.add_new("LUTData", "OW", np.arange(60000).astype("<u2").tobytes())
    shown, notes = displayed(header(VOILUTSequence=[item]), stored)
    assert notes == ()
    assert np.allclose(shown, (stored + 30000.0) / 65535, atol=1e-4)


def test_a_padding_range_over_the_whole_picture_is_ignored() -> None:
    shown, notes = displayed(header(PixelPaddingValue=0, PixelPaddingRangeLimit=3000), RAMP)
    assert np.array_equal(shown, displayed(header(), RAMP)[0])
    assert len(notes) == 1


@pytest.mark.parametrize("what", ["window", "VOI LUT"])
def test_the_note_names_the_window_or_lut_that_was_replaced(what: str) -> None:
    """The stream has 14 bits, the header states 12, and the window or LUT covers 12 bits."""
    stored = np.linspace(0, 16383, 64 * 64).astype(np.uint16).reshape(64, 64)
    source = header(BitsStored=12, PixelRepresentation=0)
    if what == "window":
        source.WindowCenter = 2048
        source.WindowWidth = 4096
    else:
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [4096, 0, 16])
        item.add_new("LUTData", "OW", (np.arange(4096, dtype="<u2") * 16).tobytes())
        source.VOILUTSequence = [item]
    notes = show(source, stored, 14).notes
    assert f"the {what} is for the bits of BitsStored, so the central range is shown" in notes
