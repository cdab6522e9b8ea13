"""The DICOM Segmentation: the mask in the source's pixel matrix, a binary segment for each lesion.

PS3.3 A.51. The geometry is a viewer's, not the patient's: a projection has no position in space,
but a SEG without a frame of reference, orientation and position is drawn by no viewer tried, and
crashes one (docs/decisions.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.valuerep import format_number_as_ds

from inference.results import codes
from inference.results.case import Case
from inference.results.identity import (
    add_code,
    code,
    identify,
    record_lossy,
    reference,
    reference_series,
)
from inference.results.lesions import Lesion, lesions_of
from inference.results.limits import DISPLAY_COLOUR_CIELAB
from inference.results.source import lossy_history, orientation
from inference.results.uids import derived_uid, frame_of_reference_uid
from inference.results.wording import CONTENT_DESCRIPTION

KIND = "SEG"

# A dimension's attribute, the functional group that holds it, and its name.
DIMENSIONS = (
    ("ReferencedSegmentNumber", "SegmentIdentificationSequence", "Referenced Segment Number"),
    ("ImagePositionPatient", "PlanePositionSequence", "Image Position Patient"),
)


def encode(case: Case) -> Dataset | None:
    """Build the SEG; None when nothing is segmented: an empty SEG reads like a negative."""
    mask = case.segmented
    if mask is None:
        return None

    lesions = lesions_of(case)
    dataset = identify(case, KIND)
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ContentLabel = "PNEUMOTHORAX"
    dataset.ContentDescription = CONTENT_DESCRIPTION
    dataset.ContentCreatorName = None  # type 2
    dataset.PatientOrientation = orientation(case.header)
    dataset.SourceImageSequence = [reference(case)]
    dataset.ReferencedSeriesSequence = [reference_series(case)]
    record_lossy(dataset, lossy_history(case.header))

    dataset.FrameOfReferenceUID = frame_of_reference_uid(case)
    dataset.PositionReferenceIndicator = None  # type 2
    _add_dimensions(dataset, case)

    dataset.SegmentationType = "BINARY"
    dataset.SegmentsOverlap = "NO"
    dataset.SegmentSequence = [_segment(case, lesion) for lesion in lesions]
    _add_functional_groups(dataset, case, lesions)
    _add_pixels(dataset, mask.shape, lesions)
    return dataset


def _add_dimensions(dataset: Dataset, case: Case) -> None:
    """The segment is the first dimension, the position the second (PS3.3 C.7.6.17)."""
    organization_uid = derived_uid(case, "SEG dimensions")
    organization = Dataset()
    organization.DimensionOrganizationUID = organization_uid
    dataset.DimensionOrganizationSequence = [organization]

    dataset.DimensionIndexSequence = []
    for keyword, group, label in DIMENSIONS:
        item = Dataset()
        item.DimensionOrganizationUID = organization_uid
        item.DimensionIndexPointer = tag_for_keyword(keyword)
        item.FunctionalGroupPointer = tag_for_keyword(group)
        item.DimensionDescriptionLabel = label
        dataset.DimensionIndexSequence.append(item)


def _segment(case: Case, lesion: Lesion) -> Dataset:
    """PS3.3 C.8.20.4."""
    item = Dataset()
    item.SegmentNumber = lesion.number
    item.SegmentLabel = lesion.tracking_id
    item.TrackingID = lesion.tracking_id
    item.TrackingUID = lesion.tracking_uid
    add_code(item, "SegmentedPropertyCategoryCodeSequence", codes.MORPHOLOGICALLY_ABNORMAL)
    add_code(item, "SegmentedPropertyTypeCodeSequence", codes.PNEUMOTHORAX)
    item.RecommendedDisplayCIELabValue = list(DISPLAY_COLOUR_CIELAB)

    # PS3.3 10.5: the side modifies the region.
    region = code(*codes.LUNG)
    if lesion.side is not None:
        region.AnatomicRegionModifierSequence = [code(*codes.SIDES[lesion.side])]
    item.AnatomicRegionSequence = [region]

    item.SegmentAlgorithmType = "AUTOMATIC"
    item.SegmentAlgorithmName = case.model.id
    algorithm = Dataset()
    add_code(algorithm, "AlgorithmFamilyCodeSequence", codes.ARTIFICIAL_INTELLIGENCE)
    algorithm.AlgorithmName = case.model.id
    algorithm.AlgorithmVersion = case.model.version
    item.SegmentationAlgorithmIdentificationSequence = [algorithm]
    return item


# The functional groups (PS3.3 C.7.6.16)


def _add_functional_groups(dataset: Dataset, case: Case, lesions: tuple[Lesion, ...]) -> None:
    """What all frames share, and what each has for itself."""
    shared = Dataset()
    shared.PixelMeasuresSequence = [_pixel_measures(case)]
    plane = Dataset()
    plane.ImageOrientationPatient = ["1.0", "0.0", "0.0", "0.0", "1.0", "0.0"]
    shared.PlaneOrientationSequence = [plane]

    frames = [_frame(case, lesion) for lesion in lesions]
    for lesion, frame in zip(lesions, frames, strict=True):
        identification = Dataset()
        identification.ReferencedSegmentNumber = lesion.number
        # A group that is the same for all frames is shared.
        holder = shared if len(lesions) == 1 else frame
        holder.SegmentIdentificationSequence = [identification]

    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = frames


def _pixel_measures(case: Case) -> Dataset:
    """A thickness of 1 mm, which viewers ask for; the spacing is 1 mm where none is known."""
    item = Dataset()
    item.PixelSpacing = ["1.0", "1.0"]
    if case.spacing is not None:
        sides_mm = (case.spacing.row_mm, case.spacing.column_mm)
        item.PixelSpacing = [format_number_as_ds(float(side)) for side in sides_mm]
    item.SliceThickness = "1.0"
    item.SpacingBetweenSlices = "1.0"
    return item


def _frame(case: Case, lesion: Lesion) -> Dataset:
    """From which image the frame is derived, its indices, and its position."""
    source = reference(case)
    source.SpatialLocationsPreserved = "YES"
    add_code(source, "PurposeOfReferenceCodeSequence", codes.SOURCE_IMAGE)
    derivation = Dataset()
    derivation.SourceImageSequence = [source]
    add_code(derivation, "DerivationCodeSequence", codes.SEGMENTATION)

    content = Dataset()
    content.DimensionIndexValues = [lesion.number, 1]
    position = Dataset()
    position.ImagePositionPatient = ["0.0", "0.0", "0.0"]

    item = Dataset()
    item.DerivationImageSequence = [derivation]
    item.FrameContentSequence = [content]
    item.PlanePositionSequence = [position]
    return item


# The pixels (PS3.3 C.8.20.2)


def _add_pixels(dataset: Dataset, shape: tuple[int, ...], lesions: tuple[Lesion, ...]) -> None:
    dataset.NumberOfFrames = len(lesions)
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.BitsAllocated = 1
    dataset.BitsStored = 1
    dataset.HighBit = 0
    dataset.PixelRepresentation = 0
    dataset.add_new("PixelData", "OB", _packed(shape, lesions))


def _packed(shape: tuple[int, ...], lesions: tuple[Lesion, ...]) -> bytes:
    """A frame of bits for each lesion, one after another without a gap, from the least significant
    bit on (PS3.5 8.1.1), padded to an even number of bytes with zeros.
    """
    size = shape[0] * shape[1]
    packed = np.zeros(-(-size * len(lesions) // 16) * 2, dtype=np.uint8)

    for number, lesion in enumerate(lesions):
        # Only the rows that hold it: whole frames of twenty small lesions take twice the time.
        top, left = lesion.corner
        height, width = lesion.part.shape
        first, bit = divmod(number * size + top * shape[1], 8)
        bits = np.zeros(bit + height * shape[1], dtype=bool)
        rows: NDArray[np.bool_] = bits[bit:].reshape(height, shape[1])
        rows[:, left : left + width] = lesion.part

        # Two frames may share a byte.
        some = np.packbits(bits, bitorder="little")
        packed[first : first + len(some)] |= some

    return packed.tobytes()
