"""The Comprehensive 3D SR: what was found, as a Measurement Report (PS3.3 A.35.13, PS3.16 TID 1500).

A lesion is a measurement group with its contour (TID 1410), and a second one of the same tracking UID that refers to
its frame in the SEG. What is said of the whole image stands in Qualitative Evaluations (TID 1500 row 12), with or
without lesions: a measurement group without a region blanks a viewer's page (docs/decisions.md). highdicom writes
neither that row nor a reference to a frame that dciodvfy takes, so the items are our own; tests read them with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian, SegmentationStorage

from inference.finding import Finding, Measurement, State
from inference.results import content, seg
from inference.results.content import ACQUISITION, CONTAINS, CONTEXT, MODIFIER, SELECTED
from inference.results.identity import (
    DISCLAIMER,
    MANUFACTURER,
    Case,
    derived_uid,
    identify,
    reference,
    series_uid,
)
from inference.results.lesions import Lesion
from inference.results.source import copied, orientation

KIND = "SR"
TRANSFER_SYNTAX_UID = ExplicitVRLittleEndian
SERIES_NUMBER = 9003
NOT_DETECTED = "Pneumothorax not detected by the algorithm; does not exclude pneumothorax."


def encode(case: Case) -> Dataset:
    """Build the report: every answer has one, positive, not detected or not analysed."""
    dataset = identify(case, KIND, SERIES_NUMBER, "Pneumothorax report")
    dataset.SOPClassUID = Comprehensive3DSRStorage
    dataset.Modality = "SR"
    dataset.ReferencedPerformedProcedureStepSequence = []  # type 2
    # SR Document General module, PS3.3 C.17.2
    dataset.CompletionFlag = "COMPLETE"
    dataset.VerificationFlag = "UNVERIFIED"
    dataset.PreliminaryFlag = "PRELIMINARY"
    dataset.PerformedProcedureCodeSequence = []  # type 2
    dataset.CurrentRequestedProcedureEvidenceSequence = [_evidence(case)]
    items = list(_context(case))
    if case.lesions:
        items += _library(case)
        groups = [group for lesion in case.lesions for group in _lesion(case, lesion)]
        items.append(content.container(CONTAINS, content.MEASUREMENTS, groups))
    items.append(content.container(CONTAINS, content.EVALUATIONS, _evaluations(case)))
    dataset.update(content.container("", title(case), items, template="1500"))
    return dataset


def title(case: Case) -> content.Code:
    """What the document is called."""
    return content.REPORT if case.lesions else content.REPORT_WITHOUT_MEASUREMENTS


def refers_to_segmentation(case: Case) -> bool:
    """Is there a SEG of this case where its SR goes?"""
    return case.appearance.refer_to_segmentation and bool(case.lesions)


def statements(case: Case) -> list[str]:
    """What is said of the image in sentences, each a text of its own."""
    if case.finding is None:
        assert case.refusal is not None  # one of the two: Case says so
        what = "Analysis failed" if case.refusal.state is State.FAILED else "Not analysed"
        said = [
            f"{what}: {case.refusal.sentence.rstrip('.')}. No statement about pneumothorax is made."
        ]
    elif not case.finding.positive:
        said = [NOT_DETECTED]
    elif not case.lesions:
        said = ["Pneumothorax suspected by the algorithm; no region could be outlined."]
    else:
        said = ["Pneumothorax suspected by the algorithm."]
    if case.finding is not None:
        score, threshold = percent(case.finding.probability), percent(case.finding.threshold)
        said.append(
            f"Score of the whole image {score} %, positive from {threshold} %; not calibrated."
        )
        if case.lesions and case.finding.measurement is not None:
            said.append(_in_words(case.finding.measurement))
    return [*said, *(f"Note: {note}" for note in case.notes), f"{DISCLAIMER}."]


def _in_words(measured: Measurement) -> str:
    """Figures of all regions together that no code stands for."""
    column, row = measured.centroid_px
    words = [
        f"{measured.regions} region{'s' if measured.regions > 1 else ''}, {measured.area_px} pixels"
    ]
    words.append(f"centroid at column {column:.1f}, row {row:.1f}")
    if measured.extent_px is not None:
        top, left, bottom, right = measured.extent_px
        words.append(f"columns {left} to {right}, rows {top} to {bottom}")
    if measured.spread_px is not None:
        words.append(
            f"standard deviation {measured.spread_px[1]:.1f} columns, {measured.spread_px[0]:.1f} rows"
        )
    return f"{'; '.join(words)}. Pixels are counted from 0."


def percent(part: float) -> str:
    return f"{part * 100:.4f}".rstrip("0").rstrip(".")


def area_mm2(case: Case, lesion: Lesion) -> str | None:
    """The lesion's area as a decimal string; None where no spacing is known."""
    if case.spacing is None:
        return None
    return f"{lesion.area_px * case.spacing.row_mm * case.spacing.column_mm:.2f}"


def _context(case: Case) -> Iterator[Dataset]:
    """Language (TID 1204), the device that observed (TID 1001, 1004), and the procedure."""
    yield content.coded(MODIFIER, content.LANGUAGE, content.ENGLISH)
    yield content.coded(CONTEXT, content.OBSERVER_TYPE, content.DEVICE)
    yield content.uid(CONTEXT, content.DEVICE_UID, case.model.device_uid)
    yield content.text(CONTEXT, content.DEVICE_NAME, "Pleura")
    yield content.text(CONTEXT, content.DEVICE_MANUFACTURER, MANUFACTURER)
    yield content.text(CONTEXT, content.DEVICE_MODEL, case.model.id)
    yield content.text(CONTEXT, content.DEVICE_SERIAL, case.model.digest[:16])
    yield content.coded(MODIFIER, content.PROCEDURE, content.CHEST_XRAY)


def _library(case: Case) -> Iterator[Dataset]:
    """The source and how it lies (TID 1600 to 1603), where its header tells what TID 1603 wants of a projection.

    Beside measurements only: its entry has no concept name, and OHIF's text view of other reports breaks on that.
    """
    directions, spacing = orientation(case.header), copied(case.header, "ImagerPixelSpacing")
    modality = content.MODALITIES.get(str(case.header.get("Modality")))
    if (
        directions is None
        or spacing is None
        or spacing.VM != 2
        or modality is None
        or case.spacing is None
    ):
        return
    described = [
        content.coded(ACQUISITION, content.MODALITY, modality),
        content.coded(ACQUISITION, content.TARGET_REGION, content.CHEST),
        content.text(ACQUISITION, content.ORIENTATION_ROW, directions[0]),
        content.text(ACQUISITION, content.ORIENTATION_COLUMN, directions[1]),
        content.number(ACQUISITION, content.HORIZONTAL_SPACING, str(spacing.value[1]), content.MM),
        content.number(ACQUISITION, content.VERTICAL_SPACING, str(spacing.value[0]), content.MM),
    ]
    for keyword, name in (("Rows", content.PIXEL_ROWS), ("Columns", content.PIXEL_COLUMNS)):
        if isinstance(case.header.get(keyword), int):
            described.append(
                content.number(ACQUISITION, name, str(case.header[keyword].value), content.PIXELS)
            )
    entry = content.image(CONTAINS, None, reference(case), described)
    group = content.container(CONTAINS, content.LIBRARY_GROUP, [entry])
    yield content.container(CONTAINS, content.LIBRARY, [group])


def _lesion(case: Case, lesion: Lesion) -> Iterator[Dataset]:
    """The groups (TID 1410) of one lesion: its contour and measures, and its frame of the SEG."""
    finding = case.finding
    assert finding is not None  # it has lesions
    site = (
        [content.coded(MODIFIER, content.LATERALITY, content.SIDES[lesion.side])]
        if lesion.side
        else []
    )
    tracking = [
        content.text(CONTEXT, content.TRACKING_ID, lesion.tracking_id),
        content.uid(CONTEXT, content.TRACKING_UID, lesion.tracking_uid),
        content.coded(CONTAINS, content.FINDING, content.PNEUMOTHORAX),
    ]
    region = content.polyline(
        CONTAINS,
        content.REGION,
        lesion.outlines[0],
        [content.image(SELECTED, content.SOURCE, reference(case))],
    )
    items = [
        *tracking,
        region,
        content.coded(MODIFIER, content.FINDING_SITE, content.LUNG, site),
        *_algorithm(case, finding),
        *_measures(case, finding, lesion),
        content.coded(CONTAINS, content.PNEUMOTHORAX, content.PRESENT),
    ]
    yield content.container(CONTAINS, content.GROUP, items, template="1410")
    if refers_to_segmentation(case):
        yield content.container(
            CONTAINS, content.GROUP, [*tracking, *_frame(case, lesion)], template="1410"
        )


def _algorithm(case: Case, finding: Finding) -> Iterator[Dataset]:
    """TID 4019."""
    yield content.text(MODIFIER, content.ALGORITHM, case.model.id)
    yield content.text(MODIFIER, content.ALGORITHM_VERSION, case.model.version)
    yield content.text(
        MODIFIER, content.ALGORITHM_PARAMETERS, f"positive from {percent(finding.threshold)} %"
    )


def _measures(case: Case, finding: Finding, lesion: Lesion) -> Iterator[Dataset]:
    """The classifier's score, which is the image's, and the lesion's area."""
    yield content.number(CONTAINS, content.CERTAINTY, percent(finding.probability), content.PERCENT)
    yield content.number(CONTAINS, content.AREA, str(lesion.area_px), content.PIXELS)
    area = area_mm2(case, lesion)
    if area is not None and case.spacing is not None:
        # At the detector's front plane all is magnified (PS3.3 10.7.1.3).
        derived = (
            [content.coded(MODIFIER, content.DERIVATION, content.ESTIMATED)]
            if case.spacing.detector
            else []
        )
        yield content.number(CONTAINS, content.AREA, area, content.MM2, derived)


def _frame(case: Case, lesion: Lesion) -> Iterator[Dataset]:
    """The lesion's frame in the SEG. Frame and segment number together are an error (PS3.3 C.18.4.1)."""
    frame = Dataset()
    frame.ReferencedSOPClassUID = SegmentationStorage
    frame.ReferencedSOPInstanceUID = derived_uid(case, seg.KIND)
    frame.ReferencedFrameNumber = lesion.number
    yield content.image(CONTAINS, content.SEGMENTATION_FRAME, frame)
    yield content.image(CONTAINS, content.SEGMENTATION_SOURCE, reference(case))


def _evaluations(case: Case) -> Iterator[Dataset]:
    """What is said of the image as a whole, by whom."""
    yield content.text(MODIFIER, content.ALGORITHM, case.model.id)
    yield content.text(MODIFIER, content.ALGORITHM_VERSION, case.model.version)
    if case.finding is not None and case.finding.positive:
        yield content.coded(CONTAINS, content.PNEUMOTHORAX, content.PRESENT)
    elif case.finding is not None and case.appearance.report_absent:
        yield content.coded(CONTAINS, content.PNEUMOTHORAX, content.ABSENT)
    for said in statements(case):
        yield content.text(CONTAINS, content.COMMENT, said)


def _evidence(case: Case) -> Dataset:
    """Every object that the content refers to, by study and series (PS3.3 C.17.2.3)."""
    series = [(str(case.header.SeriesInstanceUID), reference(case))]
    if refers_to_segmentation(case):
        segmentation = Dataset()
        segmentation.ReferencedSOPClassUID = SegmentationStorage
        segmentation.ReferencedSOPInstanceUID = derived_uid(case, seg.KIND)
        series.append((series_uid(case, seg.KIND), segmentation))
    study = Dataset()
    study.StudyInstanceUID = str(case.header.StudyInstanceUID)
    study.ReferencedSeriesSequence = []
    for series_instance_uid, referenced in series:
        item = Dataset()
        item.SeriesInstanceUID = series_instance_uid
        item.ReferencedSOPSequence = [referenced]
        study.ReferencedSeriesSequence.append(item)
    return study
