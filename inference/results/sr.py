"""The Comprehensive 3D SR: a Measurement Report (PS3.3 A.35.13, PS3.16 TID 1500).

A lesion is a measurement group with its contour (TID 1410), and a second group of the same tracking
UID that refers to its frame in the SEG. Statements about the whole image stand in Qualitative
Evaluations (TID 1500 row 12), with or without lesions: a measurement group without a region blanks
a viewer's page (docs/decisions.md). highdicom writes neither that row nor a reference to a frame
that dciodvfy takes, so the items are our own; tests read them with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from inference.finding import Finding, Measurement, State
from inference.results import codes, content, wording
from inference.results.case import Case
from inference.results.content import ACQUISITION, CONTAINS, CONTEXT, MODIFIER, SELECTED
from inference.results.identity import identify, reference
from inference.results.lesions import Lesion, lesions_of
from inference.results.source import copied, orientation
from inference.results.uids import derived_uid, series_uid
from inference.spacing import detector_spacing

KIND = "SR"
SEGMENTATION = "SEG"


def encode(case: Case) -> Dataset:
    """Build the report: every answer has one, positive, not detected or not analysed."""
    dataset = identify(case, KIND)
    dataset.ReferencedPerformedProcedureStepSequence = []  # type 2
    # SR Document General module, PS3.3 C.17.2
    dataset.CompletionFlag = "COMPLETE"
    dataset.VerificationFlag = "UNVERIFIED"
    dataset.PreliminaryFlag = "PRELIMINARY"
    dataset.PerformedProcedureCodeSequence = []  # type 2
    dataset.CurrentRequestedProcedureEvidenceSequence = [_evidence(case)]

    lesions = lesions_of(case)
    items = list(_context(case))
    if lesions:
        items += _library(case)
        groups = [group for lesion in lesions for group in _lesion(case, lesion)]
        items.append(content.container(CONTAINS, codes.MEASUREMENTS, groups))
    items.append(content.container(CONTAINS, codes.EVALUATIONS, _evaluations(case)))

    title = codes.REPORT if lesions else codes.REPORT_WITHOUT_MEASUREMENTS
    dataset.update(content.container("", title, items, template="1500"))
    return dataset


def statements(case: Case) -> list[str]:
    """The sentences about the image, each a separate text."""
    sentences = [_answer(case)]
    if case.finding is not None:
        finding = case.finding
        words = wording.PROBABILITY if finding.calibrated else wording.SCORE
        score, threshold = percent(finding.probability), percent(finding.threshold)
        sentences.append(words.format(score=score, threshold=threshold))
        if case.segmented is not None and finding.measurement is not None:
            sentences.append(_measured(finding.measurement))

    sentences += [wording.NOTE.format(note=note) for note in case.notes]
    sentences.append(f"{wording.DISCLAIMER}.")
    return sentences


def _answer(case: Case) -> str:
    """The first sentence: positive, not detected, not analysed or failed."""
    if case.finding is None:
        assert case.no_finding is not None  # Case holds one of the two
        failed = case.no_finding.state is State.FAILED
        return wording.WITHOUT_FINDING.format(
            what=wording.FAILED if failed else wording.NOT_ANALYSED,
            sentence=case.no_finding.sentence.rstrip("."),
        )

    if not case.finding.positive:
        return wording.NOT_DETECTED
    if case.segmented is None:
        return wording.SUSPECTED_WITHOUT_REGION
    return wording.SUSPECTED


def _measured(measured: Measurement) -> str:
    """Figures of all regions together that have no code."""
    column, row = measured.centroid_px
    phrases = [
        wording.REGIONS.format(
            regions=measured.regions,
            plural="s" if measured.regions > 1 else "",
            area_px=measured.area_px,
        ),
        wording.CENTROID.format(column=column, row=row),
    ]

    if measured.extent_px is not None:
        top, left, bottom, right = measured.extent_px
        phrases.append(wording.EXTENT.format(left=left, right=right, top=top, bottom=bottom))
    if measured.spread_px is not None:
        rows, columns = measured.spread_px
        phrases.append(wording.SPREAD.format(columns=columns, rows=rows))

    return f"{'; '.join(phrases)}. {wording.COUNTED_FROM}"


def percent(part: float) -> str:
    """A fraction as per cent, with at most four decimals."""
    return f"{part * 100:.4f}".rstrip("0").rstrip(".")


def _area_mm2(case: Case, lesion: Lesion) -> str | None:
    """The lesion's area as a decimal string; None where no spacing is known."""
    if case.spacing is None:
        return None
    return f"{lesion.area_px * case.spacing.row_mm * case.spacing.column_mm:.2f}"


def _context(case: Case) -> Iterator[Dataset]:
    """Language (TID 1204), the device that observed (TID 1001, 1004), and the procedure."""
    yield content.coded(MODIFIER, codes.LANGUAGE, codes.ENGLISH)
    yield content.coded(CONTEXT, codes.OBSERVER_TYPE, codes.DEVICE)
    yield content.uid(CONTEXT, codes.DEVICE_UID, case.model.device_uid)
    yield content.text(CONTEXT, codes.DEVICE_NAME, "Pleura")
    yield content.text(CONTEXT, codes.DEVICE_MANUFACTURER, wording.MANUFACTURER)
    yield content.text(CONTEXT, codes.DEVICE_MODEL, case.model.id)
    yield content.text(CONTEXT, codes.DEVICE_SERIAL, case.model.digest[:16])
    yield content.coded(MODIFIER, codes.PROCEDURE, codes.CHEST_XRAY)


def _library(case: Case) -> Iterator[Dataset]:
    """The source and its orientation (TID 1600 to 1603), where its header has what TID 1603 wants.

    Beside measurements only: its entry has no concept name, and OHIF's text view of other reports
    breaks on that.
    """
    directions = orientation(case.header)
    spacing = copied(case.header, "ImagerPixelSpacing")
    modality = codes.MODALITIES.get(str(case.header.get("Modality")))
    if directions is None or modality is None or case.spacing is None:
        return
    if spacing is None or detector_spacing(case.header) is None:
        return

    described = [
        content.coded(ACQUISITION, codes.MODALITY, modality),
        content.coded(ACQUISITION, codes.TARGET_REGION, codes.CHEST),
        content.text(ACQUISITION, codes.ORIENTATION_ROW, directions[0]),
        content.text(ACQUISITION, codes.ORIENTATION_COLUMN, directions[1]),
        content.number(ACQUISITION, codes.HORIZONTAL_SPACING, str(spacing.value[1]), codes.MM),
        content.number(ACQUISITION, codes.VERTICAL_SPACING, str(spacing.value[0]), codes.MM),
    ]
    for keyword, name in (("Rows", codes.PIXEL_ROWS), ("Columns", codes.PIXEL_COLUMNS)):
        if isinstance(case.header.get(keyword), int):
            pixels = str(case.header[keyword].value)
            described.append(content.number(ACQUISITION, name, pixels, codes.PIXELS))

    entry = content.image(CONTAINS, None, reference(case), described)
    group = content.container(CONTAINS, codes.LIBRARY_GROUP, [entry])
    yield content.container(CONTAINS, codes.LIBRARY, [group])


def _lesion(case: Case, lesion: Lesion) -> Iterator[Dataset]:
    """The groups (TID 1410) of a lesion: its contour and measures, and its frame of the SEG."""
    finding = case.finding
    assert finding is not None  # it has lesions
    tracking = [
        content.text(CONTEXT, codes.TRACKING_ID, lesion.tracking_id),
        content.uid(CONTEXT, codes.TRACKING_UID, lesion.tracking_uid),
        content.coded(CONTAINS, codes.FINDING, codes.PNEUMOTHORAX),
    ]

    source = content.image(SELECTED, codes.SOURCE, reference(case))
    items = [
        *tracking,
        content.polyline(CONTAINS, codes.REGION, lesion.outlines[0], [source]),
        *_algorithm(case, finding),
        *_measures(case, finding, lesion),
        content.coded(CONTAINS, codes.PNEUMOTHORAX, codes.PRESENT),
    ]
    yield content.container(CONTAINS, codes.GROUP, items, template="1410")

    if case.refers_to_segmentation:
        items = [*tracking, *_frame(case, lesion)]
        yield content.container(CONTAINS, codes.GROUP, items, template="1410")


def _algorithm(case: Case, finding: Finding) -> Iterator[Dataset]:
    """TID 4019."""
    operating_point = wording.OPERATING_POINT.format(threshold=percent(finding.threshold))
    yield content.text(MODIFIER, codes.ALGORITHM, case.model.id)
    yield content.text(MODIFIER, codes.ALGORITHM_VERSION, case.model.version)
    yield content.text(MODIFIER, codes.ALGORITHM_PARAMETERS, operating_point)


def _measures(case: Case, finding: Finding, lesion: Lesion) -> Iterator[Dataset]:
    """The image's probability, where the model is calibrated, and the lesion's area.

    An uncalibrated score is not a probability: it appears only in the sentences.
    """
    if finding.calibrated:
        certainty = percent(finding.probability)
        yield content.number(CONTAINS, codes.CERTAINTY, certainty, codes.PERCENT)
    area_px = str(lesion.area_px)
    yield content.number(CONTAINS, codes.AREA, area_px, codes.PIXELS, [_site(lesion)])

    area = _area_mm2(case, lesion)
    if area is not None and case.spacing is not None:
        derived = [_site(lesion)]
        # At the detector's front plane everything is magnified (PS3.3 10.7.1.1).
        if case.spacing.detector:
            derived.append(content.coded(MODIFIER, codes.DERIVATION, codes.ESTIMATED))
        yield content.number(CONTAINS, codes.AREA, area, codes.MM2, derived)


def _site(lesion: Lesion) -> Dataset:
    """The lung, and its side where it is known, as a modifier of a measurement (TID 1419).

    As a child of the group (TID 1410), OHIF would show it as "363698007: Lung".
    """
    side = []
    if lesion.side is not None:
        side.append(content.coded(MODIFIER, codes.LATERALITY, codes.SIDES[lesion.side]))
    return content.coded(MODIFIER, codes.FINDING_SITE, codes.LUNG, side)


def _frame(case: Case, lesion: Lesion) -> Iterator[Dataset]:
    """The lesion's frame in the SEG; frame and segment number together are an error (C.18.4.1)."""
    frame = _segmentation(case)
    frame.ReferencedFrameNumber = lesion.number
    yield content.image(CONTAINS, codes.SEGMENTATION_FRAME, frame)
    yield content.image(CONTAINS, codes.SEGMENTATION_SOURCE, reference(case))


def _evaluations(case: Case) -> Iterator[Dataset]:
    """The statements about the whole image, and the algorithm that makes them."""
    yield content.text(MODIFIER, codes.ALGORITHM, case.model.id)
    yield content.text(MODIFIER, codes.ALGORITHM_VERSION, case.model.version)

    if case.finding is not None and case.finding.positive:
        yield content.coded(CONTAINS, codes.PNEUMOTHORAX, codes.PRESENT)
    elif case.finding is not None and case.appearance.report_absent:
        yield content.coded(CONTAINS, codes.PNEUMOTHORAX, codes.ABSENT)

    for sentence in statements(case):
        yield content.text(CONTAINS, codes.COMMENT, sentence)


def _evidence(case: Case) -> Dataset:
    """Every object that the content refers to, by study and series (PS3.3 C.17.2.3)."""
    series = [(str(case.header.SeriesInstanceUID), reference(case))]
    if case.refers_to_segmentation:
        series.append((series_uid(case, SEGMENTATION), _segmentation(case)))

    study = Dataset()
    study.StudyInstanceUID = str(case.header.StudyInstanceUID)
    study.ReferencedSeriesSequence = []
    for series_instance_uid, referenced in series:
        item = Dataset()
        item.SeriesInstanceUID = series_instance_uid
        item.ReferencedSOPSequence = [referenced]
        study.ReferencedSeriesSequence.append(item)
    return study


def _segmentation(case: Case) -> Dataset:
    """The SEG of this case as an item that refers to it."""
    item = Dataset()
    item.ReferencedSOPClassUID = SegmentationStorage
    item.ReferencedSOPInstanceUID = derived_uid(case, SEGMENTATION)
    return item
