"""The gate's rules for a SEG: each yields what is wrong with what was read back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydicom import Dataset

from inference.results import content
from inference.results.identity import Case, frame_of_reference_uid
from inference.results.lesions import Lesion

# (attribute, functional group): ReferencedSegmentNumber, ImagePositionPatient
DIMENSIONS = [(0x0062000B, 0x0062000A), (0x00200032, 0x00209113)]


def _segmentation(dataset: Dataset, case: Case) -> Iterator[str]:
    mask = case.segmented
    if mask is None:
        yield "a SEG where nothing is segmented"
        return
    count = len(case.lesions)
    if (dataset.Rows, dataset.Columns, dataset.NumberOfFrames) != (*mask.shape, count):
        yield f"{dataset.Rows} x {dataset.Columns} x {dataset.NumberOfFrames} pixels, wanted {mask.shape} x {count}"
        return
    shape = (
        dataset.SegmentationType,
        dataset.SamplesPerPixel,
        dataset.BitsAllocated,
        dataset.BitsStored,
        dataset.HighBit,
    )
    if (
        shape != ("BINARY", 1, 1, 1, 0)
        or dataset.PixelRepresentation
        or dataset.PhotometricInterpretation != "MONOCHROME2"
    ):
        yield "the pixels are not described as one bit each"
    # PS3.5 8.1.1: packed from the least significant bit on, frame after frame, padded to even length.
    size = mask.size * count
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, dtype=np.uint8), bitorder="little")
    if bits[size:].any() or len(dataset.PixelData) != (size + 15) // 16 * 2:
        yield f"{len(dataset.PixelData)} bytes of Pixel Data, wanted {(size + 15) // 16 * 2}"
        return
    frames = bits[:size].reshape(count, *mask.shape).view(bool)
    if not np.array_equal(frames[0] if count == 1 else frames.sum(axis=0, dtype=np.uint8), mask):
        yield "the mask is not the one that was segmented"
    segments, groups = dataset.SegmentSequence, dataset.PerFrameFunctionalGroupsSequence
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if (len(segments), len(groups)) != (count, count):
        yield f"{len(segments)} segments in {len(groups)} frames, wanted {count}"
        return
    for lesion, segment, frame, group in zip(case.lesions, segments, frames, groups, strict=True):
        top, left = lesion.corner
        place = frame[top : top + lesion.part.shape[0], left : left + lesion.part.shape[1]]
        if np.count_nonzero(frame) != lesion.area_px or not np.array_equal(place, lesion.part):
            yield f"frame {lesion.number} does not hold its lesion"
        named = (
            group if "SegmentIdentificationSequence" in group else shared
        ).SegmentIdentificationSequence
        if [item.ReferencedSegmentNumber for item in named] != [lesion.number]:
            yield f"frame {lesion.number} is not of the segment of that number"
        yield from _segment(segment, lesion, case)


def _segment(segment: Dataset, lesion: Lesion, case: Case) -> Iterator[str]:
    for keyword, wanted in (
        ("SegmentedPropertyCategoryCodeSequence", content.MORPHOLOGICALLY_ABNORMAL),
        ("SegmentedPropertyTypeCodeSequence", content.PNEUMOTHORAX),
        ("AnatomicRegionSequence", content.LUNG),
    ):
        if [
            (item.CodeValue, item.CodingSchemeDesignator) for item in segment.get(keyword) or []
        ] != [wanted[:2]]:
            yield f"{keyword} is not {wanted[2]}"
    numbered = (segment.SegmentNumber, segment.SegmentAlgorithmType, segment.get("SegmentLabel"))
    if numbered != (lesion.number, "AUTOMATIC", lesion.tracking_id):
        yield f"the segment is not number {lesion.number}, AUTOMATIC, with its label"
    algorithms = segment.get("SegmentationAlgorithmIdentificationSequence") or [Dataset()]
    if (algorithms[0].get("AlgorithmName"), algorithms[0].get("AlgorithmVersion")) != (
        case.model.id,
        case.model.version,
    ):
        yield "SegmentationAlgorithmIdentificationSequence does not name the model and its version"
    if not segment.get("SegmentAlgorithmName"):
        yield "SegmentAlgorithmName is empty"
    if (segment.get("TrackingID"), segment.get("TrackingUID")) != (
        lesion.tracking_id,
        lesion.tracking_uid,
    ):
        yield "TrackingID or TrackingUID is not the lesion's"
    modifiers = segment.AnatomicRegionSequence[0].get("AnatomicRegionModifierSequence") or []
    if [item.CodeValue for item in modifiers] != (
        [content.SIDES[lesion.side][0]] if lesion.side else []
    ):
        yield "AnatomicRegionModifierSequence is not the side that was measured"


def _dimensions(dataset: Dataset, case: Case) -> Iterator[str]:
    """Each frame has one index for each dimension (PS3.3 C.7.6.17): its segment, and the one position there is."""
    dimensions = [
        (int(item.DimensionIndexPointer), int(item.FunctionalGroupPointer))
        for item in dataset.DimensionIndexSequence
    ]
    if dimensions != DIMENSIONS:
        yield "DimensionIndexSequence is not segment number and position"
    for lesion, frame in zip(case.lesions, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        (described,) = frame.get("FrameContentSequence") or [Dataset()]
        if described.get("DimensionIndexValues") != [lesion.number, 1]:
            yield f"DimensionIndexValues of frame {lesion.number} are not its segment number and 1"


def _viewer_geometry(dataset: Dataset, case: Case) -> Iterator[str]:
    """Without these a viewer shows nothing or falls over, though the object is valid."""
    if dataset.FrameOfReferenceUID != frame_of_reference_uid(case):
        yield "FrameOfReferenceUID is neither the source's nor the derived one"
    shared, frames = (
        dataset.SharedFunctionalGroupsSequence[0],
        dataset.PerFrameFunctionalGroupsSequence,
    )
    if list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) != [1, 0, 0, 0, 1, 0]:
        yield "ImageOrientationPatient is not 1\\0\\0\\0\\1\\0"
    wanted = (case.spacing.row_mm, case.spacing.column_mm) if case.spacing else (1.0, 1.0)
    if not np.allclose(
        [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing], wanted, rtol=1e-6
    ):
        yield "PixelSpacing is not the source's"
    for frame in frames:
        if list(frame.PlanePositionSequence[0].ImagePositionPatient) != [0, 0, 0]:
            yield "ImagePositionPatient is not 0\\0\\0 in each frame"
        elif not frame.DerivationImageSequence[0].SourceImageSequence:
            yield "a frame does not say which image it is derived from"


RULES = (_segmentation, _dimensions, _viewer_geometry)
