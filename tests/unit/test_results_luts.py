"""The source's LUTs in the presentation state: every viewer shows the grey that the model saw."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from inference.display import displayed, show
from inference.finding import Result
from inference.results import Case, GateError, build, gate
from tools.cases import header, positive


def read(result: Result) -> Any:
    return dcmread(io.BytesIO(result.data))


def lut(first: int, bits: int, data: bytes | list[int], entries: int) -> list[Dataset]:
    item = Dataset()
    # The whole descriptor is SS, including the number of entries.
    if first < 0:
        item.add_new(
            0x00283002, "SS", [entries if entries < 32768 else entries - 65536, first, bits]
        )
    else:
        item.add_new(0x00283002, "US", [entries % 65536, first, bits])
    item.add_new(0x00283006, "OW" if isinstance(data, bytes) else "US", data)
    return [item]


def shown_grey(name: str, source: Dataset, luts_of: Dataset) -> NDArray[np.float32]:
    """A ramp over the tables' input values, displayed through the LUTs and windows of `luts_of`."""
    ramp = np.arange(8192).reshape(64, 128).astype("<u2")
    if source.get("PixelRepresentation") == 1:
        ramp = (ramp - np.uint16(4096)).view("<i2")
    elif name == "SS as US":
        # Use only values that need US.
        ramp = ramp // 2 + np.uint16(61440)

    seen = Dataset()
    seen.PhotometricInterpretation = "MONOCHROME2"
    for one in (luts_of, *luts_of.get("SoftcopyVOILUTSequence", ())):
        for keyword in (
            "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "WindowCenter", "WindowWidth",
        ):  # fmt: skip
            if keyword in one:
                seen.add(one[keyword])

    seen.set_original_encoding(*luts_of.original_encoding)
    return displayed(seen, ramp)[0]


RAMP = np.linspace(0, 4095, 4096).astype(np.uint16)
WORDS = (RAMP.astype(np.int64) ** 2 // 4096 * 16 + 15).astype(np.uint16)
BYTES = (RAMP // 16).astype(np.uint8)
# Name -> (whether little endian, the LUT).
TABLES: dict[str, tuple[bool, list[Dataset]]] = {
    "words": (True, lut(0, 16, WORDS.astype("<u2").tobytes(), 4096)),
    "numbers": (True, lut(100, 16, WORDS.tolist(), 4096)),
    "packed bytes": (True, lut(0, 8, BYTES.tobytes(), 4096)),
    "an odd number of packed bytes": (True, lut(0, 8, BYTES[:4095].tobytes() + b"\0", 4095)),
    "bytes in words": (True, lut(0, 8, BYTES.astype("<u2").tobytes(), 4096)),
    "big endian words": (False, lut(0, 12, RAMP.astype(">u2").tobytes(), 4096)),
    "big endian packed bytes": (False, lut(0, 8, BYTES.tobytes(), 4096)),
    "65536 entries": (True, lut(0, 16, np.arange(65536).astype("<u2").tobytes(), 65536)),
    "more than its bits": (True, lut(0, 10, RAMP.astype("<u2").tobytes(), 4096)),
    "from a negative value": (True, lut(-500, 16, WORDS.astype("<u2").tobytes(), 4096)),
    "SS as US": (True, lut(61440, 16, WORDS.astype("<u2").tobytes(), 4096)),
}


@pytest.mark.parametrize("keyword", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("name", TABLES)
def test_the_presentation_state_shows_the_sources_grey_for_every_lut_encoding(
    name: str, signed: int, keyword: str
) -> None:
    little_endian, table = TABLES[name]
    source = header(PixelRepresentation=signed, **{keyword: table})
    source.set_original_encoding(False, little_endian, "ISO_IR 100")
    (result,) = build(positive(source), ["PR"])
    made = read(result)
    holder = made if keyword == "ModalityLUTSequence" else made.SoftcopyVOILUTSequence[0]
    item = holder[keyword].value[0]
    entries, _, bits = item.LUTDescriptor
    assert bits in (8, 16)
    # PS3.3 C.11.1.1.1: entries of 8 bits are packed, larger entries are words.
    assert len(item.LUTData) == -(-entries // 2) * 2 if bits == 8 else 2 * (entries or 65536)
    assert np.allclose(
        shown_grey(name, source, made), shown_grey(name, source, source), rtol=0, atol=1e-5
    )


def through_a_modality_lut(largest: int) -> Case:
    """A case of unsigned pixels whose modality LUT has `largest` as its highest output."""
    values = np.arange(4096, dtype=np.uint16)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, largest.bit_length()])
    item.add_new("LUTData", "US", (values.astype(np.int64) * largest // 4095).tolist())
    source = header(BitsStored=12, PixelRepresentation=0, ModalityLUTSequence=[item])
    return positive(show(source, values.reshape(64, 64)).header)


@pytest.mark.parametrize("largest", [255, 1023, 4095, 16383, 65535])
def test_a_modality_lut_has_8_or_16_bits(largest: int) -> None:
    (result,) = build(through_a_modality_lut(largest), ["PR"])
    descriptor = read(result).ModalityLUTSequence[0].LUTDescriptor
    assert descriptor[2] == (8 if largest == 255 else 16)


def test_a_modality_lut_of_12_bits_is_valid_in_the_presentation_state(
    peer: Callable[[str], str], tmp_path: Path
) -> None:
    (result,) = build(through_a_modality_lut(4095), ["PR"])
    file = tmp_path / "state.dcm"
    file.write_bytes(result.data)
    found = subprocess.run([peer("dciodvfy"), file], capture_output=True, text=True, check=False)
    errors = [line for line in found.stderr.splitlines() if line.startswith("Error")]
    # Ignore the validator's complaint about 16 bits: the standard allows only 8 or 16.
    assert all("number of bits = 16 but maximum LUT Data value" in line for line in errors)


def test_the_gate_refuses_a_modality_lut_of_12_bits() -> None:
    case = through_a_modality_lut(4095)
    (result,) = build(case, ["PR"])
    state = read(result)
    state.ModalityLUTSequence[0].LUTDescriptor = [4096, 0, 12]
    written = io.BytesIO()
    state.save_as(written)
    with pytest.raises(GateError, match="neither 8 nor 16 bits"):
        gate.check(replace(result, data=written.getvalue()), case)


VOI_LUT = Dataset()
VOI_LUT.add_new("LUTDescriptor", "SS", [4096, -5000, 12])
VOI_LUT.add_new("LUTData", "OW", np.arange(4096).astype("<u2").tobytes())


@pytest.mark.parametrize(
    "changes",
    [
        {
            "VOILUTFunction": "LINEAR_EXACT", "RescaleSlope": 0.0001, "RescaleIntercept": 0,
            "WindowCenter": 0.2, "WindowWidth": 0.4,
        },
        {
            "VOILUTFunction": "SIGMOID", "RescaleSlope": 0.0001, "RescaleIntercept": 0,
            "WindowCenter": 0.2, "WindowWidth": 0.4,
        },
        {"RescaleSlope": 1, "RescaleIntercept": -5000, "VOILUTSequence": [VOI_LUT]},
    ],
    ids=["LINEAR_EXACT", "SIGMOID", "VOI LUT"],
)  # fmt: skip
def test_a_legal_display_of_small_or_negative_numbers_is_copied(
    changes: dict[str, Any],
) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    shown = show(header(BitsStored=12, PixelRepresentation=0, **changes), values)
    assert shown.notes == ()
    # build() has passed the object through the gate, which compares the greys.
    (result,) = build(positive(shown.header), ["PR"])
    assert "SoftcopyVOILUTSequence" in read(result)


def test_a_lut_that_cannot_be_copied_gives_no_state_and_a_broken_lut_the_window() -> None:
    # Input values from -5 on fit neither US nor SS.
    wide = lut(65531, 16, np.arange(40000).astype("<u2").tobytes(), 40000)
    # The output of a modality LUT has 8 or 16 bits.
    few_bits = lut(0, 4, bytes(range(16)), 16)
    either = lut(65000, 16, RAMP.astype("<u2").tobytes(), 4096)

    for changes in (
        {"VOILUTSequence": wide, "PixelRepresentation": 1},
        {"ModalityLUTSequence": few_bits},
        {"VOILUTSequence": either, "RescaleSlope": 1, "RescaleIntercept": -1024},
        {"ModalityLUTSequence": lut(0, 16, b"half", 256)},
    ):
        assert build(positive(header(**changes)), ["PR"]) == ()

    (kept,) = build(
        positive(header(VOILUTSequence=lut(0, 16, b"half", 256), WindowCenter=50, WindowWidth=100)),
        ["PR"],
    )
    assert read(kept).SoftcopyVOILUTSequence[0].WindowCenter == 50
