"""Results as DICOM objects: identity, reproducible bytes, copied attributes, and the picture of the
overlay.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames

from inference.finding import Finding, ModelIdentity, Result, State
from inference.results import Case, NoFinding, RenderSettings, banner, build, derived_uid, overlay
from tools.cases import AT, MODEL, blob, header, negative, positive, real, refused

KINDS = ("SEG", "SC", "SR", "PR")
REAL = [
    # JPEG Baseline, class SC.
    "siim/dicom/1.2.276.0.7230010.3.1.4.8323329.13666.1517875247.117800.dcm",
    # JPEG-LS, no ages, empty dates.
    "siim/dicom/1.2.276.0.7230010.3.1.4.8323329.1000.1517875165.878027.dcm",
    # 15-bit MONOCHROME1, lossy with a ratio but no method, PixelSpacing 0\0.
    "node/RG1_J2KI.dcm",
    "node/RG1_JLSN.dcm",
    # No body part, no Frame of Reference.
    "node/Issue44_Monochrome1-Jpeg.dcm",
    # Modality DX in an SC class, six type 2 attributes missing, age without a unit.
    "node/nih_wrapped_DX.dcm",
]


def read(result: Result) -> Any:
    return dcmread(io.BytesIO(result.data))


def picture(result: Result) -> Image.Image:
    return Image.open(io.BytesIO(next(generate_frames(read(result).PixelData, number_of_frames=1))))


@pytest.mark.parametrize(
    ("case", "kinds"),
    [
        (positive(), ["SEG", "SC", "SR", "PR"]),
        (positive(mask=np.zeros((41, 37), dtype=bool)), ["SC", "SR"]),
        (negative(), ["SC", "SR"]),
        (refused(), ["SC", "SR"]),
        (refused(pixels=None), ["SC", "SR"]),
        (refused(no_finding=NoFinding(State.FAILED, "analysis_error", "it broke")), ["SC", "SR"]),
    ],
    ids=[
        "positive",
        "positive without region",
        "not detected",
        "not analysed",
        "undecodable",
        "failed",
    ],
)
def test_every_outcome_has_its_objects(case: Case, kinds: list[str]) -> None:
    results = build(case, KINDS)
    assert [result.kind for result in results] == kinds
    assert all(read(result).SOPInstanceUID == result.sop_instance_uid for result in results)


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="SEG, SC, SR, PR"):
        build(negative(), ["RTSTRUCT"])


@pytest.mark.parametrize("name", REAL)
def test_pydicom_and_highdicom_read_the_segmentation_pixel_for_pixel(name: str, data: Path) -> None:
    case = real(data / name)
    (seg,) = build(case, ["SEG"])
    assert case.segmented is not None
    assert np.array_equal(read(seg).pixel_array.astype(bool), case.segmented)
    again = hd.seg.segread(io.BytesIO(seg.data))
    frames = again.get_pixels_by_source_instance(
        [case.header.SOPInstanceUID], ignore_spatial_locations=False
    )
    assert np.array_equal(frames[0, ..., 0].astype(bool), case.segmented)


def test_builds_are_reproducible_at_any_time_and_in_any_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = build(positive(), KINDS)
    script = (
        "import sys, time, datetime, hashlib\n"
        "from tools.cases import positive\n"
        "from inference.results import build\n"
        "for result in build(positive(), ('SEG', 'SC', 'SR', 'PR')): print(hashlib.sha256(result.data).hexdigest())\n"
    )

    root = Path(__file__).resolve().parents[2]
    environment = {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "77", "PATH": "/usr/bin:/bin"}
    there = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert there.stdout.split() == [hashlib.sha256(result.data).hexdigest() for result in first]

    now = time.time()
    # Wait until the clock shows another second.
    while int(time.time()) == int(now):
        time.sleep(0.05)

    assert [result.data for result in build(positive(), KINDS)] == [result.data for result in first]


def test_the_uid_changes_exactly_with_the_content() -> None:
    base = positive()
    assert base.finding is not None
    other_threshold = replace(base, finding=replace(base.finding, threshold=0.5))

    others = [
        other_threshold,
        positive(header(SOPInstanceUID="2.25.99")),
        replace(base, content_digest="d0" * 32),
        replace(base, model=ModelIdentity("pleura-default", "1.2.3", "cd" * 32, "2.25.1")),
        replace(base, appearance=RenderSettings(longest_side=1024)),
        negative(),
        refused(),
        refused(no_finding=NoFinding(State.NOT_ANALYSED, "blank", "the image is blank")),
        refused(no_finding=NoFinding(State.FAILED, "blank", "the image is blank")),
    ]
    others += [
        positive(header(BodyPartExamined="THORAX")),
        positive(header(FrameOfReferenceUID="1.2.3")),
    ]
    others += [replace(base, notes=("ViewPosition absent",)), replace(base, spacing=None)]

    uids = {derived_uid(case, "SC") for case in [base, *others]} | {
        derived_uid(base, kind) for kind in KINDS
    }
    assert len(uids) == len(others) + len(KINDS)

    absent = replace(base, appearance=RenderSettings(report_absent=True))
    alone = replace(base, appearance=RenderSettings(refer_to_segmentation=False))
    assert len({derived_uid(case, "SR") for case in (base, absent, alone)}) == 3
    for kind in ("SEG", "SC", "PR"):
        assert len({derived_uid(case, kind) for case in (base, absent, alone)}) == 1

    assert derived_uid(
        replace(base, appearance=RenderSettings(longest_side=1024)), "SEG"
    ) == derived_uid(base, "SEG")

    later = replace(base, result_time=AT + timedelta(days=1))
    assert derived_uid(later, "SC") == derived_uid(base, "SC")
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)


def test_patient_and_study_are_copied_and_never_invented() -> None:
    source = header(
        PatientAge="81", PatientSex="female", StudyTime="25:99", AccessionNumber=None, StudyID=None
    )

    for result in build(positive(source), KINDS):
        written = read(result)
        for keyword in (
            "PatientName",
            "PatientID",
            "PatientBirthDate",
            "StudyInstanceUID",
            "StudyDate",
        ):
            assert written[keyword].value == source[keyword].value
        # A value that its VR forbids is not copied; a type 2 attribute stays, empty.
        assert "PatientAge" not in written
        for keyword in ("PatientSex", "StudyTime", "AccessionNumber", "StudyID"):
            assert written[keyword].is_empty
        assert written.Manufacturer == "Pleura"
        assert written.SeriesInstanceUID != source.SeriesInstanceUID
        assert written.SeriesDescription.endswith("Research use only - not for diagnosis")
        assert len(written.SeriesDescription) <= 64
        assert written.ContributingEquipmentSequence[0].DeviceUID == MODEL.device_uid

    # The source is unchanged.
    assert source.PatientAge == "81"
    assert source.StudyInstanceUID == "2.25.12"


def test_hostile_headers_give_objects_and_log_no_patient(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = header(
        PatientName="SECRET" * 40,
        PatientID="SECRET\\ID\n" + "x" * 100,
        StudyDate="SECRET",
        PatientBirthDate="19700101-19800101",
        SpecificCharacterSet="ISO_IR SECRET",
        BodyPartExamined="secret; drop",
        StudyDescription="SECRET" * 20,
    )

    case = positive(source)
    caplog.clear()
    # Any warning would fail here, because pytest turns warnings into errors.
    results = build(case, KINDS)

    assert "SECRET" not in caplog.text
    assert len(results) == 4

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seg = read(results[0])
        assert seg.PatientID == source.PatientID
        assert seg["StudyDate"].is_empty
        assert seg["PatientBirthDate"].is_empty


def test_times_are_the_results_in_the_sources_utc_offset() -> None:
    aware = datetime(2026, 3, 4, 23, 30, tzinfo=timezone(timedelta(hours=1)))
    plain, shifted = (
        read(
            build(
                replace(negative(header(TimezoneOffsetFromUTC=offset)), result_time=aware), ["SC"]
            )[0]
        )
        for offset in (None, "+0530")
    )

    assert (plain.ContentDate, plain.ContentTime[:4]) == ("20260304", "2330")
    assert (shifted.ContentDate, shifted.ContentTime[:4]) == ("20260305", "0400")
    assert shifted.TimezoneOffsetFromUTC == "+0530"
    assert (
        shifted.ContributingEquipmentSequence[0].ContributionDateTime
        == "20260305040000.000000+0530"
    )
    assert "TimezoneOffsetFromUTC" not in plain


@pytest.mark.parametrize(
    ("offset", "words"), [(None, "2026-03-04 23:30"), ("+0530", "2026-03-05 04:00 +0530")]
)
def test_the_banner_states_the_offset_of_its_time_where_the_image_states_it(
    offset: str | None, words: str
) -> None:
    aware = datetime(2026, 3, 4, 23, 30, tzinfo=timezone(timedelta(hours=1)))
    case = replace(negative(header(TimezoneOffsetFromUTC=offset)), result_time=aware)
    assert ("Processed", words) in banner.message(case).right


def test_the_segmentation_has_the_attributes_that_viewers_need() -> None:
    seg = read(build(positive(header(FrameOfReferenceUID=None)), ["SEG"])[0])
    assert seg.FrameOfReferenceUID.startswith("2.25.")

    segment = seg.SegmentSequence[0]
    assert (
        segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence[0].CodeMeaning == "Right"
    )
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.2.3"
    assert (
        read(build(positive(header(FrameOfReferenceUID="1.2.3")), ["SEG"])[0]).FrameOfReferenceUID
        == "1.2.3"
    )

    silent = read(build(positive(header(PatientOrientation=None)), ["SEG"])[0])
    assert (
        "AnatomicRegionModifierSequence" not in silent.SegmentSequence[0].AnatomicRegionSequence[0]
    )

    spacing = {
        0.2: {},
        0.14: {"PixelSpacing": None, "ImagerPixelSpacing": [0.14, 0.14]},
        1.0: {"PixelSpacing": [0, 0]},
    }
    for wanted, changes in spacing.items():
        groups = read(
            build(positive(header(**changes)), ["SEG"])[0]
        ).SharedFunctionalGroupsSequence[0]
        assert groups.PixelMeasuresSequence[0].PixelSpacing == [wanted, wanted]


def test_the_lossy_history_is_copied_and_the_overlay_adds_its_step() -> None:
    seg, sc = (
        read(result)
        for result in build(
            positive(
                header(
                    LossyImageCompression="01",
                    LossyImageCompressionRatio=["10", "12.5"],
                    LossyImageCompressionMethod=["ISO_15444_1"],
                )
            ),
            ["SEG", "SC"],
        )
    )
    assert (seg.LossyImageCompression, list(seg.LossyImageCompressionRatio)) == ("01", [10, 12.5])
    assert list(seg.LossyImageCompressionMethod) == ["ISO_15444_1", ""]
    assert len(sc.LossyImageCompressionRatio) == 3
    assert list(sc.LossyImageCompressionMethod) == ["ISO_15444_1", "", "ISO_10918_1"]

    seg, sc = (read(result) for result in build(positive(), ["SEG", "SC"]))
    assert (seg.LossyImageCompression, sc.LossyImageCompression) == ("00", "01")
    assert "LossyImageCompressionMethod" not in seg


@pytest.mark.parametrize("shape", [(169, 211), (41, 37), (1024, 1024), (3000, 2500), (500, 1900)])
def test_the_overlay_keeps_the_radiograph_and_writes_below_it(
    shape: tuple[int, int],
) -> None:
    source = header(Rows=shape[0], Columns=shape[1])
    case = negative(source)

    image = picture(build(case, ["SC"])[0])
    panel = overlay.place(case)
    assert max(panel.width, panel.height) <= 2048
    assert panel.scale in (1, 2, 4, 16) or panel.scale < 1
    assert image.width >= 760
    assert image.height - panel.banner_top >= image.width // 8

    shown = np.asarray(
        image.crop((panel.left, 0, panel.left + panel.width, panel.height)), dtype=float
    )
    # Grey pixels stay grey.
    assert np.ptp(shown, axis=2).max() <= 3

    assert case.pixels is not None
    middle = case.pixels[shape[0] // 2, shape[1] // 2] * 255
    assert abs(shown[panel.height // 2, panel.width // 2].mean() - middle) < 6
    assert "PixelSpacing" not in read(build(case, ["SC"])[0])


def test_only_the_contour_along_the_masks_edge_is_coloured() -> None:
    source = header(Rows=600, Columns=700)
    mask = blob(source)
    case = positive(source, mask)
    panel = overlay.place(case)
    shown = np.asarray(picture(build(case, ["SC"])[0]), dtype=int)[
        : panel.height, panel.left : panel.left + panel.width
    ]

    coloured = (shown[..., 0] - shown[..., 2] > 80)[:: int(panel.scale), :: int(panel.scale)]
    inside = np.pad(mask, 4)
    edge = np.zeros_like(mask)
    for down in range(-4, 5):
        for across in range(-4, 5):
            edge |= mask != inside[4 + down : 604 + down, 4 + across : 704 + across]

    assert coloured.sum() > 800
    assert not (coloured & ~edge).any()


@pytest.mark.parametrize("wrong", ["", "not a uid", "1" * 65, None])
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_a_source_without_valid_uids_gives_no_case(keyword: str, wrong: str | None) -> None:
    with pytest.raises(ValueError, match=keyword):
        refused(header(**{keyword: wrong}))


def test_a_case_needs_one_answer_of_the_images_size() -> None:
    with pytest.raises(ValueError, match="either"):
        negative(no_finding=NoFinding(State.FAILED, "x", "y"))
    with pytest.raises(ValueError, match="pixels"):
        negative(pixels=np.zeros((3, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="mask"):
        replace(positive(), finding=Finding(0.9, 0.5, True, np.zeros((3, 3), dtype=bool)))


def test_the_source_header_is_unchanged() -> None:
    source = header()
    before = str(source)
    build(positive(source), KINDS)
    assert str(source) == before
    assert isinstance(source, Dataset)
