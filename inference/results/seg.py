"""The DICOM Segmentation: the mask in the source's pixel matrix, a binary segment for each lesion.

PS3.3 A.51. The geometry is a viewer's, not the patient's: a projection has no position in space,
but a SEG without a frame of reference, orientation and position is drawn by no viewer tried, and
crashes one (docs/decisions.md).
"""

from __future__ import annotations

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.results import codes
from inference.results.case import NAMING_KEYWORDS, Case
from inference.results.identity import (
    TYPE_2_KEYWORDS,
    code,
    identify,
    record_lossy,
    reference_series,
)
from inference.results.kinds import KINDS
from inference.results.lesions import Lesion, lesions_of
from inference.results.limits import DISPLAY_COLOUR_CIELAB
from inference.results.source import lossy_history, orientation
from inference.results.uids import PLEURA_VERSION, derived_uid, frame_of_reference_uid
from inference.results.wording import CONTENT_DESCRIPTION, MANUFACTURER

KIND = "SEG"


def encode(case: Case) -> Dataset | None:
    """Build the SEG; None when nothing is segmented: an empty SEG reads like a negative."""
    mask = case.segmented
    if mask is None:
        return None

    segmentation = _segmentation(case, mask)
    for element in identify(case, KIND):
        segmentation.add(element)
    segmentation.ContentCreatorName = None  # type 2
    segmentation.PositionReferenceIndicator = None  # type 2
    record_lossy(segmentation, lossy_history(case.header))

    # highdicom makes this UID up; two builds of one case must be the same bytes.
    dimensions = derived_uid(case, "SEG dimensions")
    segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID = dimensions
    for item in segmentation.DimensionIndexSequence:
        item.DimensionOrganizationUID = dimensions

    # highdicom 0.28 pads to even length with an ASCII "0"; an OB is padded with a zero byte
    # (PS3.5 6.2). Frames follow each other without a gap.
    packed_bytes = -(-mask.size * len(lesions_of(case)) // 8)
    padding = b"\0" * (packed_bytes % 2)
    segmentation.PixelData = segmentation.PixelData[:packed_bytes] + padding

    segmentation.ReferencedSeriesSequence = [reference_series(case)]
    segmentation.PatientOrientation = orientation(case.header)
    return segmentation


def _segmentation(case: Case, mask: NDArray[np.bool_]) -> Dataset:
    """highdicom's object; identify() replaces the UIDs that are made up here."""
    return hd.seg.Segmentation(
        source_images=[_stand_in(case)],
        pixel_array=_numbered(case, mask)[None],  # (frames, rows, columns)
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(case, lesion) for lesion in lesions_of(case)],
        series_instance_uid="2.25.0",
        series_number=KINDS[KIND].series_number,
        sop_instance_uid="2.25.0",
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=case.model.id,
        software_versions=PLEURA_VERSION,
        device_serial_number=case.model.digest[:16],
        content_label="PNEUMOTHORAX",
        content_description=CONTENT_DESCRIPTION,
        transfer_syntax_uid=KINDS[KIND].transfer_syntax_uid,
    )


def _stand_in(case: Case) -> Dataset:
    """The source as far as highdicom needs it: it reads and logs no patient's value."""
    source = Dataset()
    for keyword in NAMING_KEYWORDS:
        setattr(source, keyword, str(case.header[keyword].value))
    for keyword in TYPE_2_KEYWORDS:
        setattr(source, keyword, None)

    assert case.pixels is not None  # Case holds the pixels of every finding
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
    for lesion in lesions_of(case)[1:]:
        top, left = lesion.corner
        bottom, right = top + lesion.part.shape[0], left + lesion.part.shape[1]
        numbers[top:bottom, left:right][lesion.part] = lesion.number
    return numbers


def _describe(case: Case, lesion: Lesion) -> hd.seg.SegmentDescription:
    description = hd.seg.SegmentDescription(
        segment_number=lesion.number,
        segment_label=lesion.tracking_id,
        segmented_property_category=hd.sr.CodedConcept(*codes.MORPHOLOGICALLY_ABNORMAL),
        segmented_property_type=hd.sr.CodedConcept(*codes.PNEUMOTHORAX),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=case.model.id,
            family=hd.sr.CodedConcept(*codes.ARTIFICIAL_INTELLIGENCE),
            version=case.model.version,
        ),
        tracking_id=lesion.tracking_id,
        tracking_uid=lesion.tracking_uid,
        anatomic_regions=[hd.sr.CodedConcept(*codes.LUNG)],
    )
    description.RecommendedDisplayCIELabValue = list(DISPLAY_COLOUR_CIELAB)

    # PS3.3 10.5: the side modifies the region.
    if lesion.side is not None:
        region = description.AnatomicRegionSequence[0]
        region.AnatomicRegionModifierSequence = [code(*codes.SIDES[lesion.side])]
    return description
