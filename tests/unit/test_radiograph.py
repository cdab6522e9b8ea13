"""From bytes to a Radiograph: polarity, window, digest, spacing, and the reasons given for broken
files.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from inference import radiograph
from inference.pipeline import AnalysisSettings, Pipeline
from inference.radiograph import Radiograph, Unsuitable
from inference.results.source import lossy_history
from inference.results.uids import taken_digest
from inference.spacing import spacing_and_notes
from tools.cases import refused
from training import phantom


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return phantom.write(
        phantom.draw(3, True, 128), tmp_path_factory.mktemp("phantom") / "one.dcm"
    ).read_bytes()


def changed(data: bytes, **changes: Any) -> bytes:
    dataset = dcmread(io.BytesIO(data))
    for keyword, value in changes.items():
        if value is None and keyword not in dataset:
            continue
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return written(dataset)


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def decoded(data: bytes) -> Radiograph:
    return radiograph.decode(radiograph.parse(data)[0])


def test_pixels_are_in_display_polarity_whatever_the_photometric_interpretation(
    tmp_path: Path,
) -> None:
    drawn = phantom.draw(3, True, 128)
    pictures = [
        decoded(phantom.write(drawn, tmp_path / "p.dcm", photometric, bits).read_bytes()).pixels
        for photometric in ("MONOCHROME1", "MONOCHROME2")
        for bits in (8, 10, 12, 16)
    ]
    for picture in pictures:
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        # Air beside the shoulder is dark.
        assert picture[0, 0] < 0.2
        assert np.abs(picture - pictures[0]).max() < 0.02


def test_a_window_is_applied(sample: bytes) -> None:
    plain = decoded(sample)
    windowed = decoded(changed(sample, WindowCenter=2500, WindowWidth=1000))
    assert (windowed.pixels == 1).mean() > (plain.pixels == 1).mean() + 0.1
    assert windowed.content_digest != plain.content_digest


def test_presentation_lut_shape_overrides_the_photometric_interpretation(sample: bytes) -> None:
    inverse = decoded(changed(sample, PresentationLUTShape="INVERSE")).pixels
    assert np.allclose(inverse, 1 - decoded(sample).pixels, atol=1e-6)


def test_padding_is_black(sample: bytes) -> None:
    dataset = dcmread(io.BytesIO(sample))
    pixels = dataset.pixel_array.copy()
    pixels[:10] = 4095
    dataset.PixelData = pixels.tobytes()
    dataset.add_new("PixelPaddingValue", "US", 4095)
    assert (decoded(written(dataset)).pixels[:10] == 0).all()


def test_the_digest_covers_picture_and_patient_not_the_encoding(sample: bytes) -> None:
    dataset = dcmread(io.BytesIO(sample))
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    other_encoding = io.BytesIO()
    dataset.save_as(other_encoding, implicit_vr=True)
    assert decoded(other_encoding.getvalue()).content_digest == decoded(sample).content_digest

    assert (
        decoded(changed(sample, PatientOrientation=["R", "F"])).content_digest
        != decoded(sample).content_digest
    )
    assert (
        decoded(changed(sample, PatientID="another")).content_digest
        != decoded(sample).content_digest
    )
    pixels = dcmread(io.BytesIO(sample)).pixel_array.copy()

    pixels[5, 5] ^= 1
    assert (
        decoded(changed(sample, PixelData=pixels.tobytes())).content_digest
        != decoded(sample).content_digest
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_lut_gives_the_same_digest_and_picture_in_every_encoding(
    sample: bytes, keyword: str, packed: bool
) -> None:
    # If packed, these are 32 entries of 8 bits, two per word.
    words = [n * 251 % 65536 for n in range(16)]

    def encoded(vr: str, implicit: bool, little_endian: bool, values: list[int]) -> bytes:
        dataset = dcmread(io.BytesIO(sample))

        table = Dataset()
        table.add_new("LUTDescriptor", "US", [32, 1000, 8] if packed else [16, 1000, 16])
        order = "<" if little_endian else ">"
        table.add_new(
            "LUTData", vr, np.array(values, f"{order}u2").tobytes() if vr == "OW" else values
        )

        setattr(dataset, keyword, [table])
        if not little_endian:
            dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        elif implicit:
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

        buffer = io.BytesIO()
        # A copy that does not remember how the data set was read.
        fresh = Dataset(dataset)
        fresh.file_meta = dataset.file_meta
        fresh.save_as(
            buffer, implicit_vr=implicit, little_endian=little_endian, enforce_file_format=True
        )
        return buffer.getvalue()

    forms = [
        ("US", False, True),
        ("OW", False, True),
        ("US", True, True),
        ("US", False, False),
        ("OW", False, False),
    ]
    shown = [decoded(encoded(*form, words)) for form in forms]
    assert len({image.content_digest for image in shown}) == 1
    assert len({image.pixels.tobytes() for image in shown}) == 1
    assert len({taken_digest(refused(image.header, pixels=image.pixels)) for image in shown}) == 1
    other = decoded(encoded(*forms[0], [*words[:-1], 7]))
    assert other.content_digest != shown[0].content_digest


def test_a_malformed_lut_still_has_a_digest(sample: bytes) -> None:
    for vr, value in (("OB", b"\1\2\3"), ("LO", "none"), ("US", None)):
        table = Dataset()
        table.LUTDescriptor = [16, 0, 16]
        table.add_new("LUTData", vr, value)
        image = decoded(changed(sample, VOILUTSequence=[table]))
        assert image.content_digest != decoded(sample).content_digest
        assert image.notes == ("VOILUTSequence cannot be applied",)


def test_a_blank_image_has_one_digest_in_every_transfer_syntax(sample: bytes) -> None:
    blank = changed(sample, PixelData=b"\7\0" * 128 * 128)
    dataset = dcmread(io.BytesIO(blank))
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    digests = set()
    pipeline = Pipeline(None, AnalysisSettings())  # type: ignore[arg-type] - reading needs no engine
    for data in (blank, written(dataset), changed(blank, SeriesDescription="another")):
        with pytest.raises(Unsuitable, match="blank") as caught:
            decoded(data)
        digests |= {caught.value.content_digest, pipeline.read(data).digest}
    assert len(digests) == 1
    assert None not in digests
    with pytest.raises(Unsuitable, match="undecodable") as caught:
        decoded(changed(sample, PixelData=b"\0" * 100))
    assert caught.value.content_digest is None


@pytest.mark.parametrize("stated", [None, "00", "01"])
def test_a_lossy_jpeg_is_marked_lossy_whatever_its_header_states(
    sample: bytes, stated: str | None
) -> None:
    for syntax, lossy in (
        (JPEGBaseline8Bit, True),
        (JPEGExtended12Bit, True),
        (JPEGLSLossless, stated == "01"),
    ):
        dataset = radiograph.parse(changed(sample, LossyImageCompression=stated))[0]
        dataset.file_meta.TransferSyntaxUID = syntax
        assert bool(lossy_history(radiograph.without_pixels(dataset))) is lossy
        # The received data set is unchanged.
        assert dataset.get("LossyImageCompression") == stated


def test_the_digest_of_an_undecodable_image_excludes_the_file_meta(sample: bytes) -> None:
    dataset = dcmread(io.BytesIO(sample))
    dataset.file_meta.SourceApplicationEntityTitle = "ANOTHER"
    assert radiograph.undecoded_digest(written(dataset)) == radiograph.undecoded_digest(sample)
    assert radiograph.undecoded_digest(
        changed(sample, PatientID="x")
    ) != radiograph.undecoded_digest(sample)


NO_DETECTOR: dict[str, Any] = {"ImagerPixelSpacing": None}
SCANNED: dict[str, Any] = NO_DETECTOR | {"SOPClassUID": SecondaryCaptureImageStorage}
WRAPPED_BYTES = NO_DETECTOR | {"SOPClassUID": MultiFrameGrayscaleByteSecondaryCaptureImageStorage}
WRAPPED_WORDS = NO_DETECTOR | {"SOPClassUID": MultiFrameGrayscaleWordSecondaryCaptureImageStorage}
FIDUCIAL = {"PixelSpacingCalibrationType": "FIDUCIAL"}
GEOMETRY = {"PixelSpacingCalibrationType": "GEOMETRY"}


def whole(**changes: Any) -> Dataset:
    """The header of a complete radiograph; None removes an attribute."""
    header = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": ComputedRadiographyImageStorage, "Rows": 1024, "Columns": 1024,
        "ImagerPixelSpacing": [0.4, 0.4],
    }  # fmt: skip
    for keyword, value in (values | changes).items():
        if value is not None:
            setattr(header, keyword, value)
    return header


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, (0.4, 0.4, True)),
        # Equal to the detector's spacing, so not calibrated.
        ({"PixelSpacing": [0.4, 0.4]}, (0.4, 0.4, True)),
        # Equal after rounding, so not calibrated.
        ({"PixelSpacing": [0.402, 0.398]}, (0.4, 0.4, True)),
        # Equal, but written with fewer digits.
        ({"PixelSpacing": [0.41, 0.41]}, (0.4, 0.4, True)),
        # Magnified by 1.11.
        ({"PixelSpacing": [0.36, 0.36]}, (0.36, 0.36, False)),
        # The largest magnification.
        ({"PixelSpacing": [0.2, 0.2]}, (0.2, 0.2, False)),
        (
            {"ImagerPixelSpacing": [0.4, 0.3], "PixelSpacing": [0.36, 0.27]},
            (0.36, 0.27, False),
        ),
        ({"PixelSpacing": [0.4, 0.4]} | FIDUCIAL, (0.4, 0.4, False)),
        ({"PixelSpacing": [0.4, 0.4]} | GEOMETRY, (0.4, 0.4, False)),
        ({"PixelSpacing": [0, 0]}, (0.4, 0.4, True)),
        ({"PixelSpacing": [0.3]}, (0.4, 0.4, True)),
        ({"EstimatedRadiographicMagnificationFactor": 1.25}, (0.32, 0.32, True)),
        ({"EstimatedRadiographicMagnificationFactor": 0}, (0.4, 0.4, True)),
        (
            {"PixelSpacing": [0.3, 0.3], "EstimatedRadiographicMagnificationFactor": 1.25},
            (0.3, 0.3, False),
        ),
        ({"ImagerPixelSpacing": [-1, 1]}, None),
        ({"ImagerPixelSpacing": [0.4]}, None),
        (NO_DETECTOR, None),
        (NO_DETECTOR | {"PixelSpacing": [0, 0]}, None),
        # Its origin cannot be determined, so the size is an estimate.
        (NO_DETECTOR | {"PixelSpacing": [0.2, 0.2]}, (0.2, 0.2, True)),
        (NO_DETECTOR | {"PixelSpacing": [0.2, 0.2]} | FIDUCIAL, (0.2, 0.2, False)),
        # The image may have been resized since, as in the SIIM set.
        (SCANNED | {"PixelSpacing": [0.2, 0.2]}, None),
        (SCANNED | {"PixelSpacing": [0.2, 0.2]} | FIDUCIAL, (0.2, 0.2, False)),
        (SCANNED | {"ImagerPixelSpacing": [0.2, 0.2]}, None),
        (SCANNED | {"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.1, 0.1]}, None),
        (WRAPPED_BYTES | {"PixelSpacing": [0.2, 0.2]}, None),
        (WRAPPED_WORDS | {"PixelSpacing": [0.2, 0.2]}, None),
        (SCANNED | {"NominalScannedPixelSpacing": [0.2, 0.2]}, (0.2, 0.2, True)),
        (
            SCANNED | {"NominalScannedPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.2, 0.2]},
            (0.2, 0.2, True),
        ),
        (
            SCANNED | {"NominalScannedPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.18, 0.18]},
            (0.18, 0.18, False),
        ),
    ],
)
def test_a_spacing_is_used_only_if_it_is_known_to_hold(
    changes: dict[str, Any], wanted: Any
) -> None:
    spacing, notes = spacing_and_notes(whole(**changes))
    assert (spacing and (spacing.row_mm, spacing.column_mm, spacing.detector)) == wanted
    assert notes == ()


NOT_A_CHEST = "{} is not that of a chest and is ignored"
CONTRADICT = "PixelSpacing and {} contradict each other and are ignored"
PIXEL, IMAGER, FILM = "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"


@pytest.mark.parametrize(
    ("changes", "wanted", "note"),
    [
        # The placeholder of writers that do not know the spacing.
        ({PIXEL: [1, 1]}, (0.4, 0.4, True), NOT_A_CHEST.format(PIXEL)),
        ({PIXEL: [1, 1], "Rows": 512, "Columns": 512}, (0.4, 0.4, True), NOT_A_CHEST.format(PIXEL)),
        ({PIXEL: [1, 1]} | FIDUCIAL, (0.4, 0.4, True), NOT_A_CHEST.format(PIXEL)),
        (NO_DETECTOR | {PIXEL: [1, 1], "Rows": 400}, None, NOT_A_CHEST.format(PIXEL)),
        ({IMAGER: [1, 1], PIXEL: [0.3, 0.3]}, (0.3, 0.3, True), NOT_A_CHEST.format(IMAGER)),
        # Metres, centimetres, inches, 2.5 m, and a placeholder.
        ({PIXEL: [0.0004, 0.0004]}, (0.4, 0.4, True), NOT_A_CHEST.format(PIXEL)),
        ({PIXEL: [0.04, 0.04]} | GEOMETRY, (0.4, 0.4, True), NOT_A_CHEST.format(PIXEL)),
        ({PIXEL: [0.01, 0.01]}, (0.4, 0.4, True), NOT_A_CHEST.format(PIXEL)),
        (NO_DETECTOR | {PIXEL: [0.0143, 0.0143]}, None, NOT_A_CHEST.format(PIXEL)),
        (NO_DETECTOR | {PIXEL: [0.01, 0.01]} | FIDUCIAL, None, NOT_A_CHEST.format(PIXEL)),
        ({IMAGER: [2.5, 2.5]}, None, NOT_A_CHEST.format(IMAGER)),
        # Resized from 3072 x 3072 to 512 x 512, with only one spacing updated, or none.
        (
            {IMAGER: [0.14, 0.14], PIXEL: [0.84, 0.84], "Rows": 512, "Columns": 512},
            (0.84, 0.84, True),
            NOT_A_CHEST.format(IMAGER),
        ),
        (
            NO_DETECTOR | {PIXEL: [0.14, 0.14], "Rows": 512, "Columns": 512},
            None,
            NOT_A_CHEST.format(PIXEL),
        ),
        # The image may have been halved or not, and neither spacing can be confirmed.
        ({PIXEL: [0.8, 0.8]}, None, CONTRADICT.format(IMAGER)),
        ({PIXEL: [0.8, 0.8]} | FIDUCIAL, None, CONTRADICT.format(IMAGER)),
        ({PIXEL: [0.42, 0.42]}, None, CONTRADICT.format(IMAGER)),
        # A spacing too small for any patient position in front of the detector.
        ({PIXEL: [0.15, 0.15]}, None, CONTRADICT.format(IMAGER)),
        ({PIXEL: [0.15, 0.15]} | GEOMETRY, None, CONTRADICT.format(IMAGER)),
        # A magnification must be the same along rows and columns.
        ({PIXEL: [0.3, 0.2]}, None, CONTRADICT.format(IMAGER)),
        ({PIXEL: [0.4, 0.36]}, None, CONTRADICT.format(IMAGER)),
        ({IMAGER: [0.28, 0.14], PIXEL: [0.2, 0.2]}, None, CONTRADICT.format(IMAGER)),
        (SCANNED | {FILM: [0.2, 0.2], PIXEL: [0.5, 0.5]}, None, CONTRADICT.format(FILM)),
        (NO_DETECTOR | {FILM: [0.2, 0.2], PIXEL: [0.5, 0.5]}, None, CONTRADICT.format(FILM)),
        ({IMAGER: [1, 1], FILM: [0.2, 0.2]}, (0.2, 0.2, True), NOT_A_CHEST.format(IMAGER)),
    ],
)
def test_an_implausible_spacing_is_never_used_for_measurements(
    changes: dict[str, Any], wanted: Any, note: str
) -> None:
    spacing, notes = spacing_and_notes(whole(**changes))
    assert (spacing and (spacing.row_mm, spacing.column_mm, spacing.detector)) == wanted
    assert notes == (note,)


def test_an_ignored_spacing_is_noted(sample: bytes) -> None:
    image = decoded(changed(sample, PixelSpacing=[1, 1], ImagerPixelSpacing=[3.2, 3.2]))
    assert image.spacing == radiograph.Spacing(3.2, 3.2, detector=True)
    assert NOT_A_CHEST.format(PIXEL) in image.notes


def test_the_real_secondary_captures_have_no_millimetres(data: Path) -> None:
    # Their PixelSpacing belongs to the original, not to the 1024 x 1024 pixels after resizing.
    wrapped = [
        dcmread(path, stop_before_pixels=True)
        for path in sorted((data / "siim" / "dicom").glob("*.dcm"))
    ]
    assert sum("PixelSpacing" in dataset for dataset in wrapped) == 199
    assert {radiograph.spacing_of(dataset) for dataset in wrapped} == {None}


def test_files_without_meta_are_read(sample: bytes) -> None:
    dataset = dcmread(io.BytesIO(sample))
    bare = io.BytesIO()
    dataset.preamble = None
    del dataset.file_meta
    dataset.save_as(bare, implicit_vr=False, little_endian=True, enforce_file_format=False)
    parsed, _ = radiograph.parse(bare.getvalue())
    assert parsed.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(radiograph.decode(parsed).pixels, decoded(sample).pixels)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PixelData": None}, "undecodable"),
        ({"PixelData": b"\0" * 100}, "undecodable"),
        ({"PixelData": b"\7\0" * 128 * 128}, "blank"),
        ({"Rows": 65535, "Columns": 65535}, "undecodable"),
        ({"Rows": 0}, "undecodable"),
        ({"NumberOfFrames": 3}, "multi_frame"),
        ({"BitsAllocated": None}, "undecodable"),
    ],
)
def test_a_data_set_without_a_usable_picture_has_its_reason(
    sample: bytes, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsuitable) as caught:
        decoded(changed(sample, **changes))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"Rows": None}, r"Rows \(0028,0010\) is absent"),
        ({"Columns": None}, r"Columns \(0028,0011\) is absent"),
        ({"BitsStored": None}, r"BitsStored \(0028,0101\) is absent"),
        ({"BitsAllocated": [16, 16]}, r"BitsAllocated \(0028,0100\) is not one whole number"),
        ({"PhotometricInterpretation": None}, r"PhotometricInterpretation .* is absent or empty"),
        ({"PixelData": b"\0" * 100}, "100 bytes of Pixel Data for 32768 bytes of pixels"),
    ],
)
def test_an_undecodable_image_says_what_was_found_where(
    sample: bytes, changes: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(Unsuitable, match=wanted):
        decoded(changed(sample, **changes))


def test_a_grey_image_without_samples_per_pixel_has_one(sample: bytes) -> None:
    image = decoded(changed(sample, SamplesPerPixel=None))
    assert np.array_equal(image.pixels, decoded(sample).pixels)
    assert "SamplesPerPixel absent, one taken" in image.notes


@pytest.mark.parametrize(
    "data", [b"", b"hello", bytes(132) + b"DICM", bytes(200_000), b"\xff" * 1000]
)
def test_bytes_that_are_not_dicom_are_refused(data: bytes) -> None:
    with pytest.raises(Unsuitable) as caught:
        radiograph.parse(data)
    assert caught.value.reason == "not_dicom"


def test_a_deflated_file_is_bounded_and_may_be_cut_off(
    sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dcmread(io.BytesIO(sample))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = written(dataset)
    assert decoded(deflated).content_digest == decoded(sample).content_digest
    assert (
        radiograph.parse(deflated)[0].file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    )

    header, _ = radiograph.parse(deflated[:3000])
    assert header.Rows == 128
    with pytest.raises(Unsuitable, match="undecodable"):
        radiograph.decode(header)

    for broken in (deflated[:400] + b"\xff" * 200 + deflated[600:], deflated[:350] + bytes(10)):
        with pytest.raises(Unsuitable):
            decoded(broken)

    monkeypatch.setattr(radiograph, "_INFLATED_LIMIT_BYTES", 10_000)
    with pytest.raises(Unsuitable, match="not_dicom: the deflated data set is larger"):
        radiograph.parse(deflated)


@pytest.mark.parametrize("form", ["no group length", "group length 0", "no preamble", "no VR"])
def test_a_deflated_file_is_recognised_whatever_its_file_meta(
    sample: bytes, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pydicom would inflate the file without a size limit.
    dataset = dcmread(io.BytesIO(sample))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = written(dataset)
    after = whole[144 + int.from_bytes(whole[140:144], "little") :]
    without_vr = b"\2\0\x10\0\x16\0\0\0" + DeflatedExplicitVRLittleEndian.encode()
    data = {
        "no group length": whole[:132] + whole[144:],
        "group length 0": whole[:140] + bytes(4) + whole[144:],
        "no preamble": whole[132:],
        "no VR": whole[:132] + without_vr + after,
    }[form]

    assert decoded(data).content_digest == decoded(sample).content_digest
    assert radiograph.undecoded_digest(data) == radiograph.undecoded_digest(whole)

    monkeypatch.setattr(radiograph, "_INFLATED_LIMIT_BYTES", 10_000)
    with pytest.raises(Unsuitable, match="not_dicom: the deflated data set is larger"):
        radiograph.parse(data)


def test_a_stream_of_another_size_is_not_decoded(sample: bytes) -> None:
    for syntax in (JPEG2000Lossless, JPEGLSLossless):
        dataset = dcmread(io.BytesIO(sample))
        dataset.compress(syntax, generate_instance_uid=False)
        assert decoded(written(dataset)).content_digest == decoded(sample).content_digest
        dataset.Rows = 64
        with pytest.raises(Unsuitable, match=r"the stream holds \(128, 128, 1\)"):
            decoded(written(dataset))


def test_a_truncated_file_keeps_its_header_or_is_not_dicom(data: Path) -> None:
    whole = (data / "node" / "siim_relabelled_MONOCHROME1.dcm").read_bytes()
    seen = set()
    for cut in range(100, len(whole), len(whole) // 60):
        try:
            decoded(whole[:cut])
        except Unsuitable as unsuitable:
            seen.add(unsuitable.reason)
    assert seen == {"not_dicom", "undecodable"}


def test_one_broken_element_does_not_lose_the_image(sample: bytes) -> None:
    # An FL of two bytes is invalid.
    broken = sample.replace(b"\x20\x00\x10\x00SH\x02\x00", b"\x20\x00\x10\x00FL\x02\x00")
    assert broken != sample
    dataset, notes = radiograph.parse(broken)
    assert "StudyID" not in dataset
    assert notes == ("(0020,0010) unreadable",)
    assert decoded(broken).pixels.shape == (128, 128)


def test_a_broken_private_element_is_left_out_without_a_note(sample: bytes) -> None:
    dataset = dcmread(io.BytesIO(sample))
    dataset.private_block(0x0019, "A MAKER", create=True).add_new(1, "LO", "ab")
    element = b"\x19\x00\x01\x10"
    broken = written(dataset).replace(element + b"LO", element + b"FL")

    parsed, notes = radiograph.parse(broken)
    assert (0x0019, 0x1001) not in parsed
    assert notes == ()
    assert np.array_equal(decoded(broken).pixels, decoded(sample).pixels)
