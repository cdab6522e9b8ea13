"""SR and presentation state as other software reads them, and the properties that all kinds share."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage

from inference.contours import contours
from inference.finding import Result, State
from inference.results import (
    Case,
    GateError,
    NoFinding,
    RenderSettings,
    build,
    build_what_passes,
    lesions,
)
from inference.results import seg as seg_module
from inference.results.lesions import lesions_of
from inference.results.source import orientation
from tests.unit.mutations import content
from tools.cases import header, negative, positive, refused

KINDS = ("SEG", "SR", "PR")
TWO = np.zeros((41, 37), dtype=bool)
TWO[3:9, 3:9] = True
# The second lesion has a hole.
TWO[5, 5] = False
TWO[20:32, 28:34] = True


def read(result: Result) -> Any:
    return dcmread(io.BytesIO(result.data))


def report(case: Case) -> Any:
    return read(build(case, ["SR"])[0])


def meanings(dataset: Any) -> list[str]:
    return [item.ConceptNameCodeSequence[0].CodeMeaning for item in content(dataset)]


def words(dataset: Any) -> str:
    return " ".join(item.TextValue for item in content(dataset) if item.ValueType == "TEXT")


def groups(result: Result) -> list[hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations]:
    return list(hd.sr.srread(io.BytesIO(result.data)).content.get_planar_roi_measurement_groups())


def test_a_lesion_has_the_same_tracking_uid_in_seg_sr_and_presentation_state() -> None:
    case = positive(mask=TWO)
    seg, sr, pr = build(case, KINDS)
    uids = [lesion.tracking_uid for lesion in lesions_of(case)]
    assert len(set(uids)) == 2

    segments = read(seg).SegmentSequence
    assert [segment.TrackingUID for segment in segments] == uids
    assert [segment.SegmentLabel for segment in segments] == [
        "Pneumothorax region 1",
        "Pneumothorax region 2",
    ]

    assert [group.tracking_uid for group in groups(sr)] == [uids[0], uids[0], uids[1], uids[1]]
    drawn = [one.TrackingUID for one in read(pr).GraphicAnnotationSequence[0].GraphicObjectSequence]
    # The hole has a contour of its own.
    assert drawn == [uids[0], uids[1], uids[1]]

    sides = [
        segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence[0].CodeMeaning
        for segment in segments
    ]
    assert sides == ["Left", "Right"]


def test_an_uncalibrated_score_is_not_stated_as_certainty() -> None:
    case = positive(mask=TWO)
    assert case.finding is not None
    _, sr, _ = build(replace(case, finding=replace(case.finding, calibrated=False)), KINDS)
    for contour in groups(sr)[::2]:
        assert contour.get_measurements(codes.SCT.AreaOfDefinedRegion)
        assert not contour.get_measurements(codes.DCM.CertaintyOfFinding)
    assert b"not calibrated" in sr.data


def test_highdicom_reads_contour_frame_and_measurements_of_the_report() -> None:
    case = positive(mask=TWO)
    seg, sr, _ = build(case, KINDS)
    frames = read(seg).pixel_array.astype(bool)
    found = groups(sr)

    for lesion, contour, frame in zip(lesions_of(case), found[::2], found[1::2], strict=True):
        assert contour.reference_type == codes.DCM.ImageRegion
        assert contour.roi is not None
        # (n, 2) columns and rows; the origin is the outer corner of the first pixel.
        line = contour.roi.value
        assert np.array_equal(line[0], line[-1])
        rows, columns = np.nonzero(frames[lesion.number - 1])
        assert np.abs(line.min(axis=0) - (columns.min(), rows.min())).max() < 0.7
        assert np.abs(line.max(axis=0) - (columns.max() + 1, rows.max() + 1)).max() < 0.7

        measured = {
            m.unit.value: m.value for m in contour.get_measurements(codes.SCT.AreaOfDefinedRegion)
        }
        area = frames[lesion.number - 1].sum()
        assert measured == {"{pixels}": area, "mm2": pytest.approx(area * 0.04)}
        (certainty,) = contour.get_measurements(codes.DCM.CertaintyOfFinding)
        assert (certainty.value, certainty.unit.value) == (87, "%")
        assert contour.finding_type == hd.sr.CodedConcept("36118008", "SCT", "Pneumothorax")

        # OHIF would show a group's Finding Site by the code of its concept name.
        assert not contour.finding_sites
        for area_of_lesion in contour.get_measurements(codes.SCT.AreaOfDefinedRegion):
            (site,) = area_of_lesion.finding_sites
            assert site.value.meaning == "Lung"
            assert site.laterality.meaning == ("Left" if lesion.number == 1 else "Right")

        assert frame.reference_type == codes.DCM.ReferencedSegmentationFrame
        reference = frame.referenced_segmentation_frame
        assert reference is not None
        assert reference.referenced_sop_instance_uid == seg.sop_instance_uid
        (one,) = reference[0].ReferencedSOPSequence
        assert one.ReferencedFrameNumber == lesion.number
        # Together with a frame number, this attribute is an error (PS3.3 C.18.4.1).
        assert "ReferencedSegmentNumber" not in one


@pytest.mark.parametrize("kinds", [KINDS, ("SR",)])
def test_every_tracking_uid_of_a_report_has_a_contour(kinds: tuple[str, ...]) -> None:
    sr = next(result for result in build(positive(mask=TWO), kinds) if result.kind == "SR")
    found = groups(sr)
    assert len(found) == (4 if "SEG" in kinds else 2)
    assert {group.tracking_uid for group in found} == {
        group.tracking_uid for group in found if group.roi is not None
    }
    assert all("ConceptNameCodeSequence" in item for item in read(sr).ContentSequence)


def test_a_report_references_no_seg_that_is_not_built_with_it() -> None:
    case = positive()
    seg, with_seg = build(case, ["SEG", "SR"])
    (without,) = build(case, ["SR"])
    (of_a_site,) = build(
        replace(case, appearance=RenderSettings(refer_to_segmentation=False)), ["SR"]
    )
    assert seg.sop_instance_uid.encode() in with_seg.data
    assert seg.sop_instance_uid.encode() not in without.data
    assert without == of_a_site
    assert without.sop_instance_uid != with_seg.sop_instance_uid


def test_not_detected_is_reported_as_absent_only_if_the_site_opts_in() -> None:
    plain = report(negative())
    assert "does not exclude pneumothorax" in words(plain)
    assert "Research use only" in words(plain)
    assert not {"Finding", "Imaging Measurements", "Pneumothorax"} & set(meanings(plain))
    opted = report(negative(appearance=RenderSettings(report_absent=True)))
    (coded,) = [
        item
        for item in content(opted)
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Pneumothorax"
    ]
    assert coded.ConceptCodeSequence[0].CodeValue == "272519000"
    assert "does not exclude pneumothorax" in words(opted)


def test_a_report_of_an_unanalysed_image_has_only_the_reason() -> None:
    for case, wanted in (
        (refused(), "Not analysed: the patient is younger than the minimum age"),
        (
            refused(no_finding=NoFinding(State.FAILED, "x", "it broke"), pixels=None),
            "Analysis failed: it broke",
        ),
        (
            refused(appearance=RenderSettings(report_absent=True)),
            "No statement about pneumothorax is made",
        ),
    ):
        made = report(case)
        assert wanted in words(made)
        assert not {"Finding", "Pneumothorax", "Imaging Measurements"} & set(meanings(made))


def test_a_positive_without_a_region_is_stated_and_has_no_group() -> None:
    made = report(positive(mask=np.zeros((41, 37), dtype=bool)))
    assert "suspected" in words(made)
    assert "no region could be outlined" in words(made)
    assert "Imaging Measurements" not in meanings(made)


def test_millimetres_are_stated_only_if_known_and_estimates_are_marked() -> None:
    unknown = report(positive(header(PixelSpacing=None)))
    assert meanings(unknown).count("Area of defined region") == 1
    estimated = report(positive(header(PixelSpacing=None, ImagerPixelSpacing=[0.1, 0.1])))
    assert "Derivation" in meanings(estimated)
    calibrated = report(positive(header(PixelSpacing=[0.2, 0.2], ImagerPixelSpacing=[0.22, 0.22])))
    assert meanings(calibrated).count("Area of defined region") == 2
    assert "Derivation" not in meanings(calibrated)


def test_the_image_library_is_present_if_the_source_has_its_attributes() -> None:
    both = {"Rows": 1024, "Columns": 1024, "PixelSpacing": [0.1, 0.2]}
    both |= {"ImagerPixelSpacing": [0.1, 0.2]}
    full = report(positive(header(**both)))
    by_name = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in content(full)}
    assert by_name["Horizontal Pixel Spacing"].MeasuredValueSequence[0].NumericValue == 0.2
    assert by_name["Patient Orientation Column"].TextValue == "F"

    for lack in (
        {"ImagerPixelSpacing": None},
        # A placeholder spacing, which is not used for measurements.
        {"ImagerPixelSpacing": [1, 1]},
        {"ImagerPixelSpacing": [1, 1], "PixelSpacingCalibrationType": None},
        {"PatientOrientation": None},
        {"PatientOrientation": ["DOE JANE", "F"]},
        {"Modality": "OT"},
        # An image that may have been resized.
        {"SOPClassUID": SecondaryCaptureImageStorage, "PixelSpacingCalibrationType": None},
    ):
        assert "Image Library" not in meanings(report(positive(header(**(both | lack)))))


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 144", "Люкceмбypг"),
    ],
)
def test_names_keep_their_bytes_in_every_character_set(charset: Any, name: str) -> None:
    written = io.BytesIO()
    source = header(
        SpecificCharacterSet=charset,
        PatientName=name,
        ReferringPhysicianName=None,
        StudyDescription="胸部" if "王" in name else None,
    )
    source.save_as(written, implicit_vr=False, little_endian=True)

    parsed = dcmread(written, force=True)
    for kind, result in zip(
        (*KINDS, "SR"),
        (*build(positive(parsed), KINDS), *build(negative(parsed), ["SR"])),
        strict=True,
    ):
        again = read(result)
        assert str(again.PatientName) == name, kind
        assert again.PatientName.original_string == parsed.PatientName.original_string
        assert again.get("StudyDescription") == source.get("StudyDescription")


def test_the_presentation_state_keeps_the_display_of_the_image() -> None:
    (plain,) = (read(result) for result in build(positive(), ["PR"]))
    assert plain.PresentationLUTShape == "IDENTITY"

    assert "SoftcopyVOILUTSequence" not in plain
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = list(range(0, 65536, 256))
    source = header(
        PhotometricInterpretation="MONOCHROME1", WindowCenter=["40", "50"], WindowWidth=["400", "350"],
        RescaleSlope=2, RescaleIntercept=-5, ShutterShape="RECTANGULAR", ShutterLeftVerticalEdge=2,
        ShutterRightVerticalEdge=30, ShutterUpperHorizontalEdge=3, ShutterLowerHorizontalEdge=39,
    )  # fmt: skip
    # A value that is not a defined term may contain anything, such as a name.
    source.RescaleType = "Gruen^Ada"

    (shown,) = (read(result) for result in build(positive(source), ["PR"]))
    assert shown.PresentationLUTShape == "INVERSE"
    assert list(shown.SoftcopyVOILUTSequence[0].WindowCenter) == [40, 50]
    assert (shown.RescaleSlope, shown.RescaleIntercept, shown.RescaleType) == (2, -5, "US")
    assert (shown.ShutterRightVerticalEdge, shown.ShutterPresentationValue) == (30, 0)

    # An incomplete shutter is not copied.
    del source.ShutterRightVerticalEdge
    source.VOILUTSequence = [table]
    (shown,) = (read(result) for result in build(positive(source), ["PR"]))
    assert "ShutterShape" not in shown
    assert "WindowCenter" not in shown.SoftcopyVOILUTSequence[0]
    assert len(shown.SoftcopyVOILUTSequence[0].VOILUTSequence[0].LUTData) == 512


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["L", "F"], ["L", "F"]),
        (["LH", "FAR"], ["LH", "FAR"]),
        ("DOE JOHN", None),
        (["L", "F", "DOE JOHN"], None),
        (["L", "DOE JOHN"], None),
        (["L", ""], None),
        ("L", None),
        (["LF", "l"], None),
        (["L", "R"], None),
        (["LR", "F"], None),
        (["RIGHT", "FOOT"], None),
    ],
)
def test_only_a_valid_orientation_is_copied(given: Any, wanted: list[str] | None) -> None:
    source = header(
        Rows=1024, Columns=1024, PatientOrientation=given, ImagerPixelSpacing=[0.2, 0.2]
    )
    seg, sc, sr = build(positive(source), ["SEG", "SC", "SR"])
    for result in (seg, sc):
        assert (read(result).PatientOrientation or None) == wanted
        assert b"DOE" not in result.data
    assert ("Image Library" in meanings(read(sr))) == (wanted is not None)
    assert orientation(source) == wanted


def test_a_failed_seg_blocks_no_other_object_and_is_not_referenced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = build(positive(), KINDS)
    packed = seg_module._packed
    monkeypatch.setattr(seg_module, "_packed", lambda *frames: packed(*frames)[::-1])
    built = build_what_passes(positive(), KINDS)
    assert [result.kind for result in built.results] == ["SR", "PR"]
    assert [(problem.kind, problem.what) for problem in built.problems] == [
        ("SEG", "the mask is not the one that was segmented")
    ]
    assert whole[0].sop_instance_uid.encode() not in built.results[0].data
    with pytest.raises(GateError, match="SEG does not pass"):
        build(positive(), KINDS)

    def broken(*_: object) -> None:
        raise RuntimeError("Grün^Ada")

    monkeypatch.setattr(seg_module, "_packed", broken)
    (problem,) = build_what_passes(positive(), KINDS).problems
    assert problem.what == "it cannot be made (RuntimeError)"


@settings(deadline=None, max_examples=60)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)))
def test_lesions_partition_the_mask(mask: np.ndarray) -> None:  # type: ignore[type-arg]
    found = lesions.find(mask, contours(mask), None, str)
    together = np.zeros(mask.shape, dtype=int)
    for lesion in found:
        top, left = lesion.corner
        together[top : top + lesion.part.shape[0], left : left + lesion.part.shape[1]] += (
            lesion.part
        )
        assert lesion.area_px == lesion.part.sum() > 0
        assert len(lesion.outlines) >= 1
    assert np.array_equal(together, mask)
    assert len(found) <= lesions.MAX_LESIONS
    areas = [lesion.area_px for lesion in found[: lesions.MAX_LESIONS - 1]]
    assert areas == sorted(areas, reverse=True)


def test_very_many_regions_give_few_lesions_and_valid_objects() -> None:
    mask = np.zeros((41, 37), dtype=bool)
    mask[::4, ::4] = True
    seg, sr, pr = build(positive(mask=mask), KINDS)
    assert len(read(seg).SegmentSequence) == lesions.MAX_LESIONS
    assert np.array_equal(read(seg).pixel_array.any(axis=0), mask)
    assert len(groups(sr)) == 2 * lesions.MAX_LESIONS
    assert len(read(pr).GraphicAnnotationSequence[0].GraphicObjectSequence) == mask.sum()
