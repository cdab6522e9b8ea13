"""The gate's rules for a SEG: each yields what is wrong with what was read back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydicom import Dataset

from inference.results import seg
from inference.results.identity import Case, derived_uid, frame_of_reference_uid


def _segmentation(dataset: Dataset, case: Case) -> Iterator[str]:
    mask = case.segmented
    if mask is None:
        yield "a SEG where nothing is segmented"
        return
    if (dataset.Rows, dataset.Columns, dataset.NumberOfFrames) != (*mask.shape, 1):
        yield f"{dataset.Rows} x {dataset.Columns} x {dataset.NumberOfFrames} pixels, wanted {mask.shape} x 1"
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
    # PS3.5 8.1.1: packed from the least significant bit on, padded to even length.
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, dtype=np.uint8), bitorder="little")
    if bits.size < mask.size or not np.array_equal(bits[: mask.size].astype(bool), mask.ravel()):
        yield "the mask is not the one that was segmented"
    if bits[mask.size :].any() or len(dataset.PixelData) != (mask.size + 15) // 16 * 2:
        yield f"{len(dataset.PixelData)} bytes of Pixel Data, wanted {(mask.size + 15) // 16 * 2}"
    if len(dataset.SegmentSequence) != 1:
        yield f"{len(dataset.SegmentSequence)} segments, wanted 1"
        return
    yield from _segment(dataset.SegmentSequence[0], case)


def _segment(segment: Dataset, case: Case) -> Iterator[str]:
    for keyword, wanted in (
        ("SegmentedPropertyCategoryCodeSequence", seg.CATEGORY),
        ("SegmentedPropertyTypeCodeSequence", seg.PNEUMOTHORAX),
        ("AnatomicRegionSequence", seg.LUNG),
    ):
        if [(item.CodeValue, item.CodingSchemeDesignator) for item in segment.get(keyword) or []] != [wanted[:2]]:
            yield f"{keyword} is not {wanted[2]}"
    if segment.SegmentNumber != 1 or segment.SegmentAlgorithmType != "AUTOMATIC" or not segment.get("SegmentLabel"):
        yield "the segment is not number 1, AUTOMATIC, with a label"
    algorithms = segment.get("SegmentationAlgorithmIdentificationSequence") or [Dataset()]
    if (algorithms[0].get("AlgorithmName"), algorithms[0].get("AlgorithmVersion")) != (
        case.model.id,
        case.model.version,
    ):
        yield "SegmentationAlgorithmIdentificationSequence does not name the model and its version"
    if not segment.get("SegmentAlgorithmName"):
        yield "SegmentAlgorithmName is empty"
    if not segment.get("TrackingID") or segment.get("TrackingUID") != derived_uid(case, "tracking"):
        yield "TrackingID or TrackingUID is not the finding's"
    measurement = case.finding.measurement if case.finding else None
    side = measurement.laterality if measurement else None
    modifiers = segment.AnatomicRegionSequence[0].get("AnatomicRegionModifierSequence") or []
    if [item.CodeValue for item in modifiers] != ([seg.SIDES[side][0]] if side else []):
        yield "AnatomicRegionModifierSequence is not the side that was measured"


def _viewer_geometry(dataset: Dataset, case: Case) -> Iterator[str]:
    """Without these a viewer shows nothing or falls over, though the object is valid."""
    if dataset.FrameOfReferenceUID != frame_of_reference_uid(case):
        yield "FrameOfReferenceUID is neither the source's nor the derived one"
    shared, frames = dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence
    if list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) != [1, 0, 0, 0, 1, 0]:
        yield "ImageOrientationPatient is not 1\\0\\0\\0\\1\\0"
    wanted = (case.spacing.row_mm, case.spacing.column_mm) if case.spacing else (1.0, 1.0)
    if not np.allclose([float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing], wanted, rtol=1e-6):
        yield "PixelSpacing is not the source's"
    if len(frames) != 1 or list(frames[0].PlanePositionSequence[0].ImagePositionPatient) != [0, 0, 0]:
        yield "ImagePositionPatient is not 0\\0\\0 in one frame"
    elif not frames[0].DerivationImageSequence[0].SourceImageSequence:
        yield "the frame does not say which image it is derived from"


RULES = (_segmentation, _viewer_geometry)
