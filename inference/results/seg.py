"""The DICOM Segmentation: the mask in the source's exact pixel matrix, one binary segment.

PS3.3 A.51. The geometry is a viewer's, not the patient's: a projection has no position in space, but a SEG without a
frame of reference, orientation and position is drawn by no viewer tried, and crashes one (docs/decisions.md).
"""

from __future__ import annotations

import highdicom as hd
from pydicom import DataElement, Dataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from inference.finding import Laterality
from inference.results.identity import (
    DISCLAIMER,
    MANUFACTURER,
    PLEURA_VERSION,
    Case,
    code,
    copied,
    derived_uid,
    frame_of_reference_uid,
    identify,
    lossy_history,
    record_lossy,
    reference_series,
)

KIND = "SEG"
TRANSFER_SYNTAX_UID = ExplicitVRLittleEndian
SERIES_NUMBER = 9001
ALGORITHM_FAMILY = ("123110", "DCM", "Artificial Intelligence")
CATEGORY = ("49755003", "SCT", "Morphologically Abnormal Structure")
PNEUMOTHORAX = ("36118008", "SCT", "Pneumothorax")
LUNG = ("39607008", "SCT", "Lung")
SIDES: dict[Laterality, tuple[str, str, str]] = {
    "R": ("24028007", "SCT", "Right"),
    "L": ("7771000", "SCT", "Left"),
    "B": ("51440002", "SCT", "Right and left"),
}
DISPLAY_COLOUR_CIELAB = [53000, 38000, 53000]  # amber, as in the overlay; 16-bit scaled, PS3.3 C.10.7.1.1


def encode(case: Case) -> Dataset | None:
    """Build the SEG, or None when there is nothing to segment: an empty SEG says nothing and reads like a negative."""
    mask = case.segmented
    if mask is None:
        return None
    segmentation = hd.seg.Segmentation(
        source_images=[_stand_in(case)],
        pixel_array=mask[None].astype("uint8"),  # (frames, rows, columns)
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(case)],
        series_instance_uid="2.25.0",  # the identity comes from identify(), below
        series_number=SERIES_NUMBER,
        sop_instance_uid="2.25.0",
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=case.model.id,
        software_versions=PLEURA_VERSION,
        device_serial_number=case.model.digest[:16],
        content_label="PNEUMOTHORAX",
        content_description=f"Pneumothorax, automatic. {DISCLAIMER}",
        transfer_syntax_uid=TRANSFER_SYNTAX_UID,
    )
    for element in identify(case, KIND, SERIES_NUMBER, "Pneumothorax region"):
        segmentation.add(element)
    segmentation.SOPClassUID = SegmentationStorage
    segmentation.ContentCreatorName = None  # type 2
    segmentation.PositionReferenceIndicator = None  # type 2
    record_lossy(segmentation, lossy_history(case.header))
    # highdicom makes this UID up; two builds of one case must be the same bytes.
    dimensions = derived_uid(case, "SEG dimensions")
    segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID = dimensions
    for item in segmentation.DimensionIndexSequence:
        item.DimensionOrganizationUID = dimensions
    packed_bytes = -(-mask.size // 8)
    # highdicom 0.28 pads to even length with an ASCII "0"; an OB is padded with a zero byte (PS3.5 6.2).
    segmentation.PixelData = segmentation.PixelData[:packed_bytes] + b"\0" * (packed_bytes % 2)
    segmentation.ReferencedSeriesSequence = [reference_series(case)]
    segmentation.add(copied(case.header, "PatientOrientation") or DataElement(0x00200020, "CS", None))
    return segmentation


def _stand_in(case: Case) -> Dataset:
    """What highdicom has to know of the source, and no more: it reads and logs no patient's value."""
    source = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(source, keyword, str(case.header[keyword].value))
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber",
    ):  # fmt: skip
        setattr(source, keyword, None)
    assert case.pixels is not None  # a finding has its pixels: Case says so
    source.Rows, source.Columns = case.pixels.shape
    source.Modality = "CR"
    source.FrameOfReferenceUID = frame_of_reference_uid(case)
    # A geometry for viewers (module docstring); highdicom carries it into the functional groups.
    source.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    source.ImagePositionPatient = [0, 0, 0]
    source.PixelSpacing = [case.spacing.row_mm, case.spacing.column_mm] if case.spacing else [1, 1]
    source.SliceThickness = 1
    return source


def _describe(case: Case) -> hd.seg.SegmentDescription:
    finding = case.finding
    assert finding is not None
    side = finding.measurement.laterality if finding.measurement else None
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Pneumothorax",
        segmented_property_category=hd.sr.CodedConcept(*CATEGORY),
        segmented_property_type=hd.sr.CodedConcept(*PNEUMOTHORAX),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=case.model.id, family=hd.sr.CodedConcept(*ALGORITHM_FAMILY), version=case.model.version
        ),
        tracking_id="Pneumothorax",
        tracking_uid=derived_uid(case, "tracking"),  # the same in every object about this finding
        anatomic_regions=[hd.sr.CodedConcept(*LUNG)],
    )
    description.RecommendedDisplayCIELabValue = DISPLAY_COLOUR_CIELAB
    if side is not None:
        # PS3.3 10.5: the side modifies the region.
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [code(*SIDES[side])]
    return description
