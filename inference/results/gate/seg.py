"""The gate's rules for a SEG."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.results import codes
from inference.results.case import Case
from inference.results.gate import common, images
from inference.results.gate.expected import Expected, Rule
from inference.results.gate.regions import Region
from inference.results.uids import frame_of_reference_uid

# (attribute, functional group): ReferencedSegmentNumber, ImagePositionPatient
DIMENSIONS = [(0x0062000B, 0x0062000A), (0x00200032, 0x00209113)]


def _pixels(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """The frames together are the mask, bit by bit."""
    mask = expected.case.segmented
    if mask is None:
        yield "a SEG where nothing is segmented"
        return

    count = len(expected.regions)
    matrix = (dataset.Rows, dataset.Columns, dataset.NumberOfFrames)
    if matrix != (*mask.shape, count):
        yield f"{matrix} rows, columns and frames, wanted {mask.shape} and {count}"
        return

    described = (
        dataset.SegmentationType,
        dataset.SamplesPerPixel,
        dataset.BitsAllocated,
        dataset.BitsStored,
        dataset.HighBit,
        dataset.PixelRepresentation,
        dataset.PhotometricInterpretation,
    )
    if described != ("BINARY", 1, 1, 1, 0, 0, "MONOCHROME2"):
        yield "the pixels are not described as one bit each"

    size_bytes = (mask.size * count + 15) // 16 * 2
    # A single frame is the mask, of which each bit is compared at once.
    if count == 1 and dataset.PixelData == _bits(mask).ljust(size_bytes, b"\0"):
        return

    frames = _frames(dataset, count)
    if frames is None:
        yield f"{len(dataset.PixelData)} bytes of Pixel Data, wanted {size_bytes} with zero padding"
    elif not np.array_equal(_together(frames), mask):
        yield "the mask is not the one that was segmented"


def _bits(mask: NDArray[np.bool_]) -> bytes:
    """The pixels as bits, from the least significant on (PS3.5 8.1.1)."""
    return np.packbits(mask, axis=None, bitorder="little").tobytes()


def _together(frames: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """How many of the (frames, rows, columns) hold each pixel."""
    counts = frames.view(np.uint8)
    return counts[0] if len(frames) == 1 else np.asarray(counts.sum(axis=0, dtype=np.uint8))


def _frames(dataset: Dataset, count: int) -> NDArray[np.bool_] | None:
    """(frames, rows, columns), or None where the length is wrong or the padding is not zero.

    PS3.5 8.1.1: packed from the least significant bit on, frame after frame, padded to even length.
    """
    size = dataset.Rows * dataset.Columns * count
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, dtype=np.uint8), bitorder="little")
    if bits[size:].any() or len(dataset.PixelData) != (size + 15) // 16 * 2:
        return None
    return bits[:size].reshape(count, dataset.Rows, dataset.Columns).view(bool)


def _segments(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """A segment and a frame for each lesion, and each frame holds its lesion."""
    count = len(expected.regions)
    segments, groups = dataset.SegmentSequence, dataset.PerFrameFunctionalGroupsSequence
    if (len(segments), len(groups)) != (count, count):
        yield f"{len(segments)} segments in {len(groups)} frames, wanted {count}"
        return

    frames = _frames(dataset, count)
    assert frames is not None  # _pixels found its length right
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for region, segment, frame, group in zip(
        expected.regions, segments, frames, groups, strict=True
    ):
        top, left = region.corner
        bottom, right = top + region.mask.shape[0], left + region.mask.shape[1]
        whole = np.count_nonzero(frame) == region.area_px
        if not whole or not np.array_equal(frame[top:bottom, left:right], region.mask):
            yield f"frame {region.number} does not hold its lesion"

        holder = group if "SegmentIdentificationSequence" in group else shared
        numbers = [item.ReferencedSegmentNumber for item in holder.SegmentIdentificationSequence]
        if numbers != [region.number]:
            yield f"frame {region.number} is not of the segment of that number"
        yield from _segment(segment, region, expected.case)


def _segment(segment: Dataset, region: Region, case: Case) -> Iterator[str]:
    for keyword, wanted in (
        ("SegmentedPropertyCategoryCodeSequence", codes.MORPHOLOGICALLY_ABNORMAL),
        ("SegmentedPropertyTypeCodeSequence", codes.PNEUMOTHORAX),
        ("AnatomicRegionSequence", codes.LUNG),
    ):
        coded = segment.get(keyword) or []
        found = [(item.CodeValue, item.CodingSchemeDesignator) for item in coded]
        if found != [wanted[:2]]:
            yield f"{keyword} is not {wanted[2]}"

    numbered = (segment.SegmentNumber, segment.SegmentAlgorithmType, segment.get("SegmentLabel"))
    if numbered != (region.number, "AUTOMATIC", region.tracking_id):
        yield f"the segment is not number {region.number}, AUTOMATIC, with its label"

    algorithm = (segment.get("SegmentationAlgorithmIdentificationSequence") or [Dataset()])[0]
    named = (algorithm.get("AlgorithmName"), algorithm.get("AlgorithmVersion"))
    if named != (case.model.id, case.model.version):
        yield "SegmentationAlgorithmIdentificationSequence does not name the model and its version"
    if not segment.get("SegmentAlgorithmName"):
        yield "SegmentAlgorithmName is empty"

    tracked = (segment.get("TrackingID"), segment.get("TrackingUID"))
    if tracked != (region.tracking_id, region.tracking_uid):
        yield "TrackingID or TrackingUID is not the lesion's"

    modifiers = segment.AnatomicRegionSequence[0].get("AnatomicRegionModifierSequence") or []
    sides = [codes.SIDES[region.side][0]] if region.side else []
    if [item.CodeValue for item in modifiers] != sides:
        yield "AnatomicRegionModifierSequence is not the side of the lesion"


def _dimensions(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """Each frame has an index for each dimension: its segment, and the one position there is.

    PS3.3 C.7.6.17.
    """
    dimensions = [
        (int(item.DimensionIndexPointer), int(item.FunctionalGroupPointer))
        for item in dataset.DimensionIndexSequence
    ]
    if dimensions != DIMENSIONS:
        yield "DimensionIndexSequence is not segment number and position"

    frames = dataset.PerFrameFunctionalGroupsSequence
    for region, frame in zip(expected.regions, frames, strict=True):
        (described,) = frame.get("FrameContentSequence") or [Dataset()]
        if described.get("DimensionIndexValues") != [region.number, 1]:
            yield f"DimensionIndexValues of frame {region.number} are not its segment number and 1"


def _viewer_geometry(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """Without these a viewer shows nothing or crashes, though the object is valid."""
    case = expected.case
    if dataset.FrameOfReferenceUID != frame_of_reference_uid(case):
        yield "FrameOfReferenceUID is neither the source's nor the derived one"

    shared = dataset.SharedFunctionalGroupsSequence[0]
    if list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) != [1, 0, 0, 0, 1, 0]:
        yield "ImageOrientationPatient is not 1\\0\\0\\0\\1\\0"

    wanted = (case.spacing.row_mm, case.spacing.column_mm) if case.spacing else (1.0, 1.0)
    spacing = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
    if not np.allclose(spacing, wanted, rtol=1e-6):
        yield "PixelSpacing is not the source's"

    for frame in dataset.PerFrameFunctionalGroupsSequence:
        if list(frame.PlanePositionSequence[0].ImagePositionPatient) != [0, 0, 0]:
            yield "ImagePositionPatient is not 0\\0\\0 in each frame"
        elif not frame.DerivationImageSequence[0].SourceImageSequence:
            yield "a frame does not say which image it is derived from"


RULES: tuple[Rule, ...] = (
    *common.RULES,
    *images.RULES,
    _pixels,
    _segments,
    _dimensions,
    _viewer_geometry,
)
