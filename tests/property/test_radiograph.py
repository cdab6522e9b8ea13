"""Any bytes give a well-formed Radiograph, or Unsuitable with a reason of the table. The storage
form of a picture does not change its finding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import config

from inference import package, radiograph
from inference.admission import REASONS
from inference.engine import Engine
from inference.finding import Outcome
from inference.pipeline import AnalysisSettings, Pipeline
from inference.radiograph import Radiograph, Unsuitable
from tests.unit.variants import KINDS, SYNTAXES, Kind, image, of_kind, written
from training import phantom


def look(data: bytes) -> str:
    """The reason why it is unsuitable; "" if it gives a well-formed Radiograph."""
    try:
        made = radiograph.decode(radiograph.parse(data)[0])
    except Unsuitable as unsuitable:
        return unsuitable.reason
    well_formed(made)
    return ""


def well_formed(made: Radiograph) -> None:
    assert made.pixels.dtype == np.float32
    assert made.pixels.shape == (made.header.Rows, made.header.Columns)
    # Both comparisons also fail for NaN.
    assert made.pixels.min() >= 0
    assert made.pixels.max() <= 1
    spacing = made.spacing
    assert spacing is None or (0 < spacing.row_mm < 1500 and 0 < spacing.column_mm < 1500)


# Syntaxes that Python or a strict C library decodes. JPEG-LS is not among them: CharLS may take
# half a minute for a broken stream.
FUZZED = (
    "Explicit",
    "Implicit",
    "Deflated",
    "RLE",
    "JPEG Lossless",
    "JPEG Extended",
    "JPEG 2000",
    "HTJ2K",
)


@pytest.fixture(scope="module")
def files(peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("variants")
    chosen = [
        syntax
        for syntax in SYNTAXES
        if syntax.name.startswith(FUZZED) and "value 2" not in syntax.name
    ]
    made = [
        syntax.encode(kind, peer, folder)
        for syntax in chosen
        for kind in (KINDS[0], KINDS[3], KINDS[-1])
    ]
    return [data for data in made if data is not None]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_broken_bytes_are_unsuitable_and_nothing_else(
    files: list[bytes], data: st.DataObject
) -> None:
    broken = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(132, max(132, len(broken) - 1)))
        new = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xda"])
        )
        broken[at : at + data.draw(st.integers(0, 6))] = new
    assert look(bytes(broken[: data.draw(st.integers(len(broken) // 2, len(broken)))])) in {
        "",
        *REASONS,
    }


NUMBERS = st.one_of(
    st.integers(-70_000, 70_000),
    st.floats(),
    st.sampled_from(["", "nan", "1e400", "-inf", "0", "1\\2", "x", None]),
)
WORDS = st.sampled_from(
    [
        "",
        "LINEAR",
        "SIGMOID",
        "LINEAR_EXACT",
        "INVERSE",
        "IDENTITY",
        "MONOCHROME1",
        "RGB",
        "?",
        None,
    ]
)
ATTRIBUTES = {
    **dict.fromkeys(("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"), NUMBERS),
    **dict.fromkeys(
        ("PixelSpacing", "ImagerPixelSpacing"), st.lists(NUMBERS, max_size=3) | NUMBERS
    ),
    "EstimatedRadiographicMagnificationFactor": NUMBERS,
    "NumberOfFrames": NUMBERS,
    **dict.fromkeys(
        ("PixelPaddingValue", "PixelPaddingRangeLimit"), st.integers(0, 65535) | st.none()
    ),
    **dict.fromkeys(
        ("BitsStored", "HighBit", "PixelRepresentation", "Rows", "Columns"), st.integers(0, 65535)
    ),
    **dict.fromkeys(("VOILUTFunction", "PresentationLUTShape", "PhotometricInterpretation"), WORDS),
    "PatientOrientation": st.lists(
        st.sampled_from(["L", "R", "F", "H", "A", "", "LF", "?"]), max_size=3
    ),
}


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional=ATTRIBUTES), st.sampled_from(KINDS))
@example({"WindowCenter": float("nan"), "WindowWidth": 1e-300}, KINDS[3])
@example({"RescaleSlope": 1e307, "WindowCenter": 1e307, "WindowWidth": 1e307}, KINDS[3])
def test_any_header_gives_a_picture_or_its_reason(changes: dict[str, Any], kind: Kind) -> None:
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = of_kind(kind)
        for keyword, value in changes.items():
            try:
                setattr(dataset, keyword, value)
            except (ValueError, TypeError, OverflowError):
                # pydicom cannot hold this value, so no file that it reads can either.
                continue
        reason = ""
        try:
            well_formed(radiograph.decode(dataset))
        except Unsuitable as unsuitable:
            reason = unsuitable.reason
        assert reason in {"", *REASONS}


# -- polarity and bit depth never change the finding

# Measured on 2026-11-21: at most 0.00008. Rounding to 8 bits moves a grey by at most half a level
# of 255, and the networks average over many pixels.
SAME_PROBABILITY = 0.001
DEEP = Kind(16, 16)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.set_num_threads(1)
    return Pipeline(
        Engine(package.load(package.default_folder()), torch.device("cpu")),
        AnalysisSettings(kinds=frozenset()),
    )


def stored_as(
    picture: np.ndarray[Any, Any], kind: Kind, photometric: str, windowed: bool, offset: int
) -> bytes:
    """The picture, from 0 (black) to 1 (white), in another storage form. RescaleIntercept is
    `offset`, and the window moves with it.
    """
    low, high = kind.span
    shown = 1 - picture if photometric == "MONOCHROME1" else picture
    values = np.round(low + shown * (high - low)).astype(
        f"<{'i' if kind.signed else 'u'}{kind.allocated // 8}"
    )
    changes: dict[str, Any] = {"PhotometricInterpretation": photometric}
    if windowed:
        width = high - low + 1
        changes |= {"RescaleSlope": 1, "RescaleIntercept": offset, "WindowWidth": width}
        changes["WindowCenter"] = low + width / 2 + offset
    return written(image(values, kind.stored, **changes))


def answered(pipeline: Pipeline, files: list[bytes]) -> list[Outcome]:
    return pipeline.analyse(files, datetime(2026, 1, 1))


@pytest.mark.parametrize(("seed", "pneumothorax"), [(7, True), (19, False)])
def test_polarity_and_bit_depth_never_change_the_finding(
    pipeline: Pipeline, seed: int, pneumothorax: bool
) -> None:
    """Each kind is analysed in four forms: with and without a window, two forms for each phantom."""
    picture = phantom.draw(seed, pneumothorax, 256).pixels

    for windowed in (True, False):
        (outcome,) = answered(pipeline, [stored_as(picture, DEEP, "MONOCHROME2", windowed, 0)])
        wanted = outcome.finding
        assert wanted is not None

        photometric, offset = (
            ("MONOCHROME1", 0) if windowed == pneumothorax else ("MONOCHROME2", -1000)
        )

        files = [stored_as(picture, kind, photometric, windowed, offset) for kind in KINDS]
        for outcome in answered(pipeline, files):
            assert outcome.finding is not None, outcome.reason
            assert outcome.finding.positive == wanted.positive
            assert outcome.finding.probability == pytest.approx(
                wanted.probability, abs=SAME_PROBABILITY
            )
            if wanted.mask is not None and outcome.finding.mask is not None:
                assert (outcome.finding.mask ^ wanted.mask).mean() < 0.01
