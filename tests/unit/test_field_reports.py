"""Files like those in public bug reports: each shows the same picture as the unchanged file, or has
a reason why not.

The files are in the `reports` folder of the real X-rays; its README gives the correct outcome of
each. Variants of them are made here.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, config, dcmread, uid
from pydicom.encaps import encapsulate, generate_fragments, generate_frames
from pydicom.pixels.encoders import JPEGLSLosslessEncoder

from daemon.cli import main
from inference import radiograph
from inference.admission import Exclusion, Rules, judge
from inference.display import show
from inference.finding import Finding, ModelIdentity
from inference.measure import measure
from inference.preprocess import with_square_pixels, with_stored_pixels
from inference.radiograph import Radiograph, Unsuitable
from inference.results import Case, build
from inference.silence import silenced_warnings
from tests.conftest import missing
from tools.images import image

AT = datetime(2026, 11, 28, 12)
MODEL = ModelIdentity("m", "1.0.0", "0" * 64, "2.25.99")

# File -> the largest allowed mean difference from the unchanged file's picture, and words of its
# notes.
SAME_PICTURE = {
    "charset-hyphen-cyrillic": (0.001, ""),
    "charset-hyphen-umlaut": (0.001, ""),
    "charset-utf-8": (0.001, ""),
    "voilut-first-ss": (0.001, ""),
    "j2k-14-says-12": (0.001, "14 bits"),
    "no-sequence-delimiter": (0.0, "sequence delimiter"),
    "frame-header-not-in-first-fragment": (0.0, "first fragment"),
    # This file is a lossy JPEG.
    "icc-4k-fragments-1k": (0.01, "first fragment"),
    "jpeg-lossless-64-trailing": (0.0, "zeros follow"),
    "j2k-no-eoc": (0.0, "end marker"),
    "window-trailing-backslash": (0.001, "window without"),
    "slope-over-16-chars": (0.002, ""),
    "shutter-1-point": (0.0, "shutter is not usable"),
    "aspect-0-0": (0.0, "PixelAspectRatio"),
    "wrong-item-delimiter": (0.0, "(0010,2202)"),
    "bodypart-chinese": (0.0, ""),
    "no-pixel-representation": (0.0, "PixelRepresentation"),
}
OTHERS = {
    "base", "voilut-14-in-16", "age-7-YRS", "age-007J", "shutter-not-applied", "aspect-2-1",
}  # fmt: skip


@pytest.fixture(scope="module")
def reports(data: Path) -> Path:
    folder = data / "reports"
    if not (folder / "base.dcm").is_file():
        missing(f"no files of bug reports: {folder} holds no base.dcm")
    return folder


@pytest.fixture(scope="module")
def base(reports: Path) -> Radiograph:
    return picture(reports / "base.dcm")[0]


def picture(path: Path) -> tuple[Radiograph, tuple[str, ...]]:
    """The radiograph of a file, and every note on it."""
    dataset, notes = radiograph.parse(path.read_bytes())
    decoded = radiograph.decode(dataset)
    return decoded, (*notes, *decoded.notes)


def presented(decoded: Radiograph) -> Dataset:
    """The presentation state of a finding somewhere in the picture."""
    mask = np.zeros(decoded.pixels.shape, dtype=bool)
    rows, columns = mask.shape
    mask[rows // 3 : rows // 2, columns // 3 : columns // 2] = True
    orientation = decoded.header.get("PatientOrientation") or None
    measured = measure(mask, decoded.spacing, orientation)
    finding = Finding(0.9, 0.5, True, mask, measured)
    case = Case(
        header=decoded.header, content_digest="0" * 64, model=MODEL, result_time=AT,
        finding=finding, pixels=decoded.pixels, spacing=decoded.spacing,
    )  # fmt: skip
    (result,) = build(case, ["PR"])
    return dcmread(io.BytesIO(result.data))


def greys(state: Dataset, stored: NDArray[np.integer]) -> NDArray[np.float64]:
    """Grey 0..1 by a presentation state alone, as PS3.3 C.11 has it: rescale, one VOI, polarity."""
    values = stored.astype(np.float64)
    if "RescaleSlope" in state:
        values = values * float(state.RescaleSlope) + float(state.RescaleIntercept)

    voi = state.SoftcopyVOILUTSequence[0]
    if "VOILUTSequence" in voi:
        entries, first, bits = (int(value) for value in voi.VOILUTSequence[0].LUTDescriptor)
        table = np.frombuffer(voi.VOILUTSequence[0].LUTData, dtype="<u2")[: entries or 65536]
        index = np.clip(values - first, 0, len(table) - 1).astype(int)
        grey = table[index] / (2**bits - 1)
    else:
        centre = float(np.atleast_1d(voi.WindowCenter)[0])
        width = float(np.atleast_1d(voi.WindowWidth)[0])
        grey = np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    return 1 - grey if state.PresentationLUTShape == "INVERSE" else grey


@pytest.mark.parametrize("name", sorted(SAME_PICTURE))
def test_a_reported_file_shows_the_unchanged_picture(
    reports: Path, base: Radiograph, name: str
) -> None:
    decoded, notes = picture(reports / f"{name}.dcm")
    allowed, word = SAME_PICTURE[name]
    assert np.abs(decoded.pixels - base.pixels).mean() <= allowed
    assert word in " ".join(notes)
    verdict = judge(decoded.header, Rules(), lambda _: False)
    assert not isinstance(verdict, Exclusion)


def test_every_file_of_the_folder_has_its_outcome_by_predict(
    reports: Path, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file has the correct state, its note, and an overlay with the file's own identity."""
    files = sorted(reports.glob("*.dcm"))
    assert {path.stem for path in files} == {*SAME_PICTURE, *OTHERS}
    options = ["--model", str(tiny_package), "--device", "cpu", "--results", "SC"]
    command = ["predict", *map(str, files), *options, "--out", str(tmp_path)]
    assert main(command) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    by_name = {Path(answer["file"]).stem: answer for answer in answers}
    assert {name: answer["reason"] for name, answer in by_name.items() if answer["reason"]} == {
        "age-7-YRS": "under_age",
        "age-007J": "age_unknown",
    }
    for name, answer in by_name.items():
        assert answer["state"] == ("not_analysed" if answer["reason"] else "analysed"), name
        assert SAME_PICTURE.get(name, (0.0, ""))[1] in " ".join(answer["notes"]), name

    # pydicom cannot read the file with the malformed sequence. Files with the same content share
    # one overlay.
    readable = [path for path in files if path.stem != "wrong-item-delimiter"]
    with silenced_warnings():
        overlays = {identity(dcmread(path)) for path in tmp_path.glob("*.dcm")}
        sources = {identity(dcmread(path, stop_before_pixels=True)) for path in readable}
    assert overlays == sources


def identity(dataset: Dataset) -> tuple[bytes | None, ...]:
    """The identifying values as bytes, and their character set."""
    found = []
    for keyword in ("SpecificCharacterSet", "PatientName", "PatientID", "StudyInstanceUID"):
        element: Any = dataset.get_item(keyword) if keyword in dataset else None
        # pydicom has already decoded the character set; its values here are plain text.
        value = None if element is None else element.value
        found.append(value if value is None or isinstance(value, bytes) else str(value).encode())
    return tuple(found)


@pytest.mark.parametrize(
    "name",
    ["base", "voilut-14-in-16", *(name for name in sorted(SAME_PICTURE) if "charset" not in name)],
)
def test_the_presentation_state_shows_the_picture_that_the_networks_see(
    reports: Path, name: str
) -> None:
    path = reports / f"{name}.dcm"
    decoded, _ = picture(path)
    dataset, _ = radiograph.parse(path.read_bytes())
    stored = radiograph.read_pixels(dataset).values
    state = presented(decoded)
    assert np.abs(greys(state, stored) - decoded.pixels).max() < 0.01
    assert "ShutterShape" not in state
    area = state.DisplayedAreaSelectionSequence[0]
    assert list(area.PresentationPixelAspectRatio) == [1, 1]


def test_a_lut_with_fewer_bits_than_stated_is_shown_in_its_own_range(
    reports: Path, base: Radiograph
) -> None:
    decoded, _ = picture(reports / "voilut-14-in-16.dcm")
    assert decoded.pixels.max() == 1
    assert np.abs(decoded.pixels - base.pixels).mean() < 0.1


@pytest.mark.parametrize(
    ("name", "reason"), [("age-7-YRS", "under_age"), ("age-007J", "age_unknown")]
)
def test_a_childs_malformed_age_is_never_read_as_an_adults(
    reports: Path, name: str, reason: str
) -> None:
    dataset, _ = radiograph.parse((reports / f"{name}.dcm").read_bytes())
    verdict = judge(dataset, Rules(), lambda _: False)
    assert isinstance(verdict, Exclusion)
    assert verdict.reason == reason


def test_outside_the_shutter_is_black_and_inside_is_the_picture(
    reports: Path, base: Radiograph
) -> None:
    decoded, notes = picture(reports / "shutter-not-applied.dcm")
    assert notes == ()
    inside = (slice(100, 878), slice(100, 821))
    outside = np.ones(decoded.pixels.shape, dtype=bool)
    outside[inside] = False
    assert (decoded.pixels[outside] == 0).all()
    assert decoded.opening is not None
    assert (decoded.opening == ~outside).all()
    assert np.corrcoef(decoded.pixels[inside].ravel(), base.pixels[inside].ravel())[0, 1] > 0.99


def test_non_square_pixels_are_analysed_in_true_proportions(
    reports: Path, base: Radiograph
) -> None:
    decoded, _ = picture(reports / "aspect-2-1.dcm")
    assert decoded.aspect == 2
    seen = with_square_pixels(decoded.pixels, decoded.aspect)
    assert seen.shape == base.pixels.shape
    assert np.abs(seen - base.pixels).mean() < 0.02
    assert with_stored_pixels(seen, decoded.pixels.shape).shape == decoded.pixels.shape


# ---- variants


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def shown(values: NDArray[np.integer] = RAMP, bits: int | None = None, **changes: Any) -> Any:
    return show(image(values, 12, **changes), values, bits)


@pytest.mark.parametrize(
    ("attributes", "inside"),
    [
        (
            {"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 11,
             "ShutterRightVerticalEdge": 54, "ShutterUpperHorizontalEdge": 6,
             "ShutterLowerHorizontalEdge": 60},
            lambda row, column: (row >= 5) & (row < 60) & (column >= 10) & (column < 54),
        ),
        (
            {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [33, 33],
             "RadiusOfCircularShutter": 20},
            lambda row, column: (row - 32) ** 2 + (column - 32) ** 2 <= 400,
        ),
        (
            {"ShutterShape": "POLYGONAL",
             "VerticesOfThePolygonalShutter": [1, 1, 1, 64, 64, 64, 64, 1]},
            lambda row, column: (row >= 0) & (column >= 0),
        ),
        (
            {"ShutterShape": ["RECTANGULAR", "CIRCULAR"], "ShutterLeftVerticalEdge": 1,
             "ShutterRightVerticalEdge": 32, "ShutterUpperHorizontalEdge": 1,
             "ShutterLowerHorizontalEdge": 64, "CenterOfCircularShutter": [33, 33],
             "RadiusOfCircularShutter": 30},
            lambda row, column: (column < 32) & ((row - 32) ** 2 + (column - 32) ** 2 <= 900),
        ),
    ],
)  # fmt: skip
def test_each_shape_of_a_shutter_is_applied(
    attributes: dict[str, Any], inside: Callable[[Any, Any], Any]
) -> None:
    made = shown(np.full((64, 64), 4000, np.uint16) - RAMP // 2, **attributes)
    wanted = np.broadcast_to(inside(*np.ogrid[:64, :64]), (64, 64))
    assert (made.opening == wanted).all()
    assert (made.pixels[~wanted] == 0).all()
    assert made.notes == ()


@pytest.mark.parametrize(
    "attributes",
    [
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [32, 32]},
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [32, 32],
         "RadiusOfCircularShutter": 0},
        {"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 50,
         "ShutterRightVerticalEdge": 20, "ShutterUpperHorizontalEdge": 1,
         "ShutterLowerHorizontalEdge": 64},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 1, 64, 64]},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 1, 9, 9, 9]},
        {"ShutterShape": "HEXAGON"},
    ],
)  # fmt: skip
def test_a_broken_shutter_is_ignored_and_not_passed_on(attributes: dict[str, Any]) -> None:
    made = shown(**attributes)
    assert made.opening is None
    assert made.notes == ("the display shutter is not usable and is ignored",)
    assert not any(keyword in made.header for keyword in attributes)


@pytest.mark.parametrize(
    ("centres", "widths", "window"),
    [
        ("2048\\", "4096\\", (2048, 4096)),
        (["2048", "1000"], "4096", (2048, 4096)),
        ("2048", ["4096", "100"], (2048, 4096)),
        (["", "1500"], ["", "2000"], (1500, 2000)),
        (["1", "1500"], ["0", "2000"], (1500, 2000)),
    ],
)
def test_the_first_usable_window_is_shown_and_passed_on(
    centres: Any, widths: Any, window: tuple[int, int]
) -> None:
    described = image(RAMP, 12)
    with config.disable_value_validation():
        for keyword, value in (("WindowCenter", centres), ("WindowWidth", widths)):
            parts = value.split("\\") if isinstance(value, str) else value
            described.add_new(keyword, "DS", parts)
    written = io.BytesIO()
    described.save_as(written)
    read, _ = radiograph.parse(written.getvalue())
    made = show(read, RAMP)
    plain = shown(WindowCenter=window[0], WindowWidth=window[1])
    assert (made.pixels == plain.pixels).all()
    assert (made.header.WindowCenter, made.header.WindowWidth) == window


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"RescaleSlope": "2"}, (2, 0)),
        ({"RescaleIntercept": "-1000"}, (1, -1000)),
        ({"RescaleSlope": "0.24420024420024420", "RescaleIntercept": "-500"}, (0.2442002442, -500)),
        ({"RescaleSlope": "-1", "RescaleIntercept": "4095"}, (-1, 4095)),
    ],
)
def test_slope_and_intercept_are_passed_on_together_within_16_characters(
    changes: dict[str, str], wanted: tuple[float, float]
) -> None:
    with config.disable_value_validation():
        made = shown(**changes)
    header = made.header
    assert (float(header.RescaleSlope), float(header.RescaleIntercept)) == pytest.approx(wanted)
    assert len(str(header.RescaleSlope)) <= 16
    assert float(header.WindowWidth) > 1
    assert np.ptp(made.pixels) == 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_lut_with_fewer_bits_than_stated_keeps_its_brightness(bits: int) -> None:
    table = (np.arange(4096) >> 12 - bits if bits < 12 else np.arange(4096) << bits - 12).tolist()
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.LUTData = table
    made = shown(VOILUTSequence=[item])
    assert made.pixels.max() > 0.99
    assert made.notes == ()
    assert made.header.VOILUTSequence[0].LUTDescriptor[2] == max(8, bits)


def test_lut_data_written_as_signed_give_the_same_values() -> None:
    words = np.arange(4096, dtype=np.uint16) * 16
    pictures = []
    for vr, values in (("US", words.tolist()), ("SS", words.astype(np.int16).tolist())):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [4096, 0, 16])
        item.add_new("LUTData", vr, values)
        pictures.append(shown(VOILUTSequence=[item]).pixels)
    assert (pictures[0] == pictures[1]).all()
    assert np.ptp(pictures[0]) > 0.99


@pytest.mark.parametrize(("first", "entries"), [(-25536, 16384), (-500, 4596), (-4096, 8192)])
def test_the_first_mapped_value_of_a_lut_is_read_to_fit_the_pixels(
    first: int, entries: int
) -> None:
    """-25536 is 40000 written as signed; with -500 the table begins below all unsigned values."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [entries, first, 16])
    item.add_new(
        "LUTData", "OW", (np.arange(entries) * 65535 // (entries - 1)).astype("<u2").tobytes()
    )
    values = RAMP if first > -25536 else (40000 + RAMP.astype(np.int64) * 4).astype(np.uint16)
    made = shown(values, VOILUTSequence=[item])
    assert made.notes == ()
    assert np.ptp(made.pixels) > 0.4


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_more_bits_than_bits_stored_never_make_a_white_picture(window: dict[str, int]) -> None:
    made = shown(RAMP * 4, bits=14, **window)
    assert 0.3 < made.pixels.mean() < 0.7


def test_a_window_for_the_bits_of_the_stream_is_kept() -> None:
    made = shown(RAMP * 4, bits=14, WindowCenter=8192, WindowWidth=16384)
    assert made.notes == ()


@pytest.mark.parametrize(
    ("spacing", "aspect"),
    [
        ({"PixelAspectRatio": [2, 1]}, 2),
        ({"PixelAspectRatio": [3, 4]}, 0.75),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, 2),
        ({"PixelSpacing": [0.1, 0.2], "PixelAspectRatio": [1, 1]}, 0.5),
        ({"PixelAspectRatio": [0, 1]}, 1),
        ({"PixelAspectRatio": [-1, -1]}, 1),
        ({"PixelAspectRatio": 2}, 1),
        ({"PixelAspectRatio": [1000, 1]}, 1),
    ],
)
def test_the_pixel_aspect_comes_from_spacing_or_aspect_ratio(
    spacing: dict[str, Any], aspect: float
) -> None:
    made = shown(**spacing)
    assert made.aspect == pytest.approx(aspect)
    # The presentation state copies the aspect ratio from the source.
    if aspect == 1:
        assert "PixelAspectRatio" not in made.header
        assert made.notes
    else:
        height, width = made.header.PixelAspectRatio
        assert int(height) / int(width) == pytest.approx(aspect)


# ---- encapsulation


def encapsulated(syntax: uid.UID, fragments: list[bytes], table: bytes = b"") -> FileDataset:
    """A 12-bit ramp whose Pixel Data consists of these items."""
    dataset = image(RAMP, 12)
    dataset.file_meta.TransferSyntaxUID = syntax
    items = [table, *fragments]
    dataset.PixelData = b"".join(
        struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in items
    )
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    return dataset


def jpeg_ls() -> bytes:
    dataset = image(RAMP, 12)
    coded = JPEGLSLosslessEncoder.encode(
        RAMP.tobytes(), rows=64, columns=64, samples_per_pixel=1, number_of_frames=1,
        bits_allocated=16, bits_stored=12, pixel_representation=0,
        photometric_interpretation="MONOCHROME2", encoding_plugin="pyjpegls",
    )  # fmt: skip
    assert dataset.Rows == 64
    return bytes(coded)


def decoded_values(dataset: FileDataset) -> tuple[NDArray[np.integer], tuple[str, ...]]:
    found = radiograph.read_pixels(dataset)
    return found.values, found.notes


def test_a_zero_before_the_end_of_a_jpeg_ls_stream_is_left_out() -> None:
    stream = jpeg_ls().rstrip(b"\0")
    for padding in (b"\0",):
        odd = stream[:-2] + padding + stream[-2:]
        values, notes = decoded_values(encapsulated(uid.JPEGLSLossless, [odd]))
        assert (values == RAMP).all()
        assert "zero" in " ".join(notes)


@pytest.fixture(scope="module")
def jpeg_2000() -> bytes:
    dataset = image(RAMP, 12)
    dataset.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    return stream[: stream.rindex(b"\xff\xd9") + 2]


@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [([5000], [900]), ([0], [0]), ([0, 508], [500, 400]), ([], [])],
    ids=["from the file's start", "no length", "an entry for each fragment", "empty"],
)
def test_a_wrong_extended_offset_table_is_ignored(
    jpeg_2000: bytes, offsets: list[int], lengths: list[int]
) -> None:
    fragments = [jpeg_2000[:500], jpeg_2000[500:]]
    dataset = encapsulated(uid.JPEG2000Lossless, fragments)
    dataset.ExtendedOffsetTable = struct.pack(f"<{len(offsets)}Q", *offsets)
    dataset.ExtendedOffsetTableLengths = struct.pack(f"<{len(lengths)}Q", *lengths)
    values, _ = decoded_values(dataset)
    assert (values == RAMP).all()


def test_a_correct_extended_offset_table_serves_a_stream_without_an_end_marker(
    jpeg_2000: bytes,
) -> None:
    stream = jpeg_2000[:-2]
    dataset = encapsulated(uid.JPEG2000Lossless, [stream])
    dataset.ExtendedOffsetTable = struct.pack("<Q", 0)
    dataset.ExtendedOffsetTableLengths = struct.pack("<Q", len(stream))
    values, notes = decoded_values(dataset)
    assert (values == RAMP).all()
    assert "end marker" in " ".join(notes)


@pytest.mark.parametrize("size", [2, 16, 500])
def test_one_frame_in_many_fragments_is_one_frame(size: int) -> None:
    stream = jpeg_ls()
    parts = [stream[start : start + size] for start in range(0, len(stream), size)]
    offsets = struct.pack(f"<{len(parts)}L", *(start * (size + 8) for start in range(len(parts))))
    for table in (b"", offsets, b"\xff\xff\xff\x7f"):
        values, notes = decoded_values(encapsulated(uid.JPEGLSLossless, parts, table))
        assert (values == RAMP).all()
        if table == offsets:
            assert "offsets" in " ".join(notes)


@pytest.mark.parametrize(
    "stated",
    [uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit],
)
def test_a_stream_in_another_syntax_than_stated_is_decoded_by_its_content(stated: uid.UID) -> None:
    values, notes = decoded_values(encapsulated(stated, [jpeg_ls()]))
    assert (values == RAMP).all()
    assert "not what the transfer syntax names" in " ".join(notes)


def test_an_empty_fragment_is_not_a_frame() -> None:
    values, notes = decoded_values(encapsulated(uid.JPEGLSLossless, [b"", jpeg_ls(), b""]))
    assert (values == RAMP).all()
    assert "first fragment" in " ".join(notes)


@pytest.mark.parametrize("zeros", [1, 2, 64, 4096])
def test_zeros_after_the_end_of_the_image_are_ignored(zeros: int) -> None:
    values, _ = decoded_values(encapsulated(uid.JPEGLSLossless, [jpeg_ls() + bytes(zeros)]))
    assert (values == RAMP).all()


@pytest.mark.parametrize("high_bit", [0, 7, 12, 15, 16, 99])
def test_an_impossible_high_bit_is_ignored_with_a_note(high_bit: int) -> None:
    dataset = image(RAMP, 16 if high_bit in (12, 15, 16) else 12, HighBit=high_bit)
    values, notes = decoded_values(dataset)
    assert (values == RAMP).all()
    assert bool(notes) == (high_bit != 15)


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_high_bit_does_not_shift_a_codecs_output(syntax: uid.UID, jpeg_2000: bytes) -> None:
    stream = jpeg_2000 if syntax == uid.JPEG2000Lossless else jpeg_ls()
    dataset = encapsulated(syntax, [stream])
    dataset.HighBit = 15
    values, notes = decoded_values(dataset)
    assert (values == RAMP).all()
    assert "HighBit" in " ".join(notes)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless])
def test_high_bit_shifts_16_bit_cells(syntax: uid.UID) -> None:
    dataset = image(RAMP << 4, 16)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.BitsStored = 12
    values, _ = decoded_values(dataset)
    assert (values == RAMP).all()


# ---- malformed elements


def written(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def malformed(fault: str) -> bytes:
    """A file with one malformed element, unrelated to the image, that breaks or misleads the
    parser.
    """
    dataset = image(RAMP, 12)
    whole = written(dataset)

    at = whole.index(struct.pack("<HH", 0x0018, 0x0015))
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    inner = struct.pack("<HH2sH", 0x0008, 0x0100, b"SH", 4) + b"ABCD"
    sequence = struct.pack("<HH2sHL", 0x0010, 0x2202, b"SQ", 0, 0xFFFFFFFF)
    ends = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)

    inserted = {
        "the item's delimiter is the sequence's": sequence + item + inner + ends,
        "no delimiter at all": sequence + item + inner,
        "no delimiter of the sequence": sequence
        + item
        + inner
        + struct.pack("<HHL", 0xFFFE, 0xE00D, 0),
        "a length beyond the file": struct.pack("<HH2sHL", 0x0010, 0x2202, b"SQ", 0, 1 << 30),
        "a length too short": struct.pack("<HH2sHL", 0x0010, 0x2202, b"UN", 0, 2) + b"ABCDEFGH",
    }[fault]

    return whole[:at] + inserted + whole[at:]


@pytest.mark.parametrize(
    "fault",
    [
        "the item's delimiter is the sequence's",
        "no delimiter at all",
        "no delimiter of the sequence",
        "a length beyond the file",
        "a length too short",
    ],
)
def test_a_malformed_element_loses_no_other_element(fault: str) -> None:
    dataset, notes = radiograph.parse(malformed(fault))
    assert (radiograph.read_pixels(dataset).values == RAMP).all()
    assert dataset.BodyPartExamined == "CHEST"
    assert "(0010,2202)" in " ".join(notes)


def test_missing_pixel_data_delimiter_is_told_from_a_cut_off_file() -> None:
    dataset = image(RAMP, 12)
    dataset.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
    dataset.PixelData = encapsulate([jpeg_ls()])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    whole = written(dataset)
    assert whole.endswith(struct.pack("<HHL", 0xFFFE, 0xE0DD, 0))

    open_ended, notes = radiograph.parse(whole[:-8])
    assert notes == ("Pixel Data lacks its sequence delimiter",)
    assert (radiograph.read_pixels(open_ended).values == RAMP).all()

    cut, notes = radiograph.parse(whole[:-200])
    assert notes == ("file cut off",)
    with pytest.raises(Unsuitable):
        radiograph.decode(cut)


def test_the_fragments_of_a_report_are_those_of_one_frame(reports: Path) -> None:
    dataset = dcmread(reports / "icc-4k-fragments-1k.dcm")
    assert len(list(generate_fragments(dataset.PixelData))) > 100
