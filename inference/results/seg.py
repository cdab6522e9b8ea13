"""The DICOM Segmentation: the mask in the source's exact pixel matrix, one binary segment for each lesion.

PS3.3 A.51. The geometry is a viewer's, not the patient's: a projection has no position in space, but a SEG without a
frame of reference, orientation and position is drawn by no viewer tried, and crashes one (docs/decisions.md).
"""

from __future__ import annotations

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from inference.results import content
from inference.results.identity import (
    DISCLAIMER,
    MANUFACTURER,
    PLEURA_VERSION,
    Case,
    code,
    derived_uid,
    frame_of_reference_uid,
    identify,
    record_lossy,
    reference_series,
)
from inference.results.lesions import Lesion
from inference.results.source import lossy_history, orientation

KIND = "SEG"
TRANSFER_SYNTAX_UID = ExplicitVRLittleEndian
SERIES_NUMBER = 9001
DISPLAY_COLOUR_CIELAB = [
    46273,
    37131,
    52089,
]  # orange, as in the overlay; 16-bit scaled, PS3.3 C.10.7.1.1


def encode(case: Case) -> Dataset | None:
    """Build the SEG, or None when there is nothing to segment: an empty SEG says nothing and reads like a negative."""
    mask = case.segmented
    if mask is None:
        return None
    segmentation = hd.seg.Segmentation(
        source_images=[_stand_in(case)],
        pixel_array=_numbered(case, mask)[None],  # (frames, rows, columns)
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(case, lesion) for lesion in case.lesions],
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
    packed_bytes = -(-mask.size * len(case.lesions) // 8)  # frames follow each other without a gap
    # highdicom 0.28 pads to even length with an ASCII "0"; an OB is padded with a zero byte (PS3.5 6.2).
    segmentation.PixelData = segmentation.PixelData[:packed_bytes] + b"\0" * (packed_bytes % 2)
    segmentation.ReferencedSeriesSequence = [reference_series(case)]
    segmentation.PatientOrientation = orientation(case.header)
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


def _numbered(case: Case, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The (rows, columns) mask with each lesion's number in place of True."""
    numbers = mask.astype(np.uint8)
    for lesion in case.lesions[1:]:
        top, left = lesion.corner
        numbers[top : top + lesion.part.shape[0], left : left + lesion.part.shape[1]][
            lesion.part
        ] = lesion.number
    return numbers


def _describe(case: Case, lesion: Lesion) -> hd.seg.SegmentDescription:
    description = hd.seg.SegmentDescription(
        segment_number=lesion.number,
        segment_label=lesion.tracking_id,
        segmented_property_category=hd.sr.CodedConcept(*content.MORPHOLOGICALLY_ABNORMAL),
        segmented_property_type=hd.sr.CodedConcept(*content.PNEUMOTHORAX),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=case.model.id,
            family=hd.sr.CodedConcept(*content.ARTIFICIAL_INTELLIGENCE),
            version=case.model.version,
        ),
        tracking_id=lesion.tracking_id,
        tracking_uid=lesion.tracking_uid,
        anatomic_regions=[hd.sr.CodedConcept(*content.LUNG)],
    )
    description.RecommendedDisplayCIELabValue = DISPLAY_COLOUR_CIELAB
    if lesion.side is not None:
        # PS3.3 10.5: the side modifies the region.
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [
            code(*content.SIDES[lesion.side])
        ]
    return description
