"""The gate: an object is read back from its bytes and checked against its case before it may leave.

A validator's clean run is not enough (it passed a SEG that crashed a viewer), and archives take nearly anything. The
rules here do not share code with the encoders where it matters: they look at what was written. A complaint names tags
and UIDs, never a patient's value.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from pydicom import DataElement, Dataset, FileDataset, config, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.encaps import generate_frames
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage
from pydicom.valuerep import validate_value

from inference.finding import Result
from inference.radiograph import COPIED_KEYWORDS
from inference.results import overlay, seg
from inference.results.identity import (
    DISCLAIMER,
    FORMAL_VRS,
    MANUFACTURER,
    TYPE_2_KEYWORDS,
    Case,
    copied,
    derived_uid,
    frame_of_reference_uid,
    lossy_history,
    series_uid,
)

Rule = Callable[[Dataset, Case], Iterator[str]]  # yields what is wrong

# Of the copied attributes these decide whose image it is: they must be there as the source has them, even malformed.
IDENTIFYING_KEYWORDS = ("PatientName", "PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyInstanceUID")
TYPE_1_KEYWORDS = {
    "SEG": (
        "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber",
        "FrameOfReferenceUID", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
        "InstanceNumber", "ContentDate", "ContentTime", "ImageType", "ContentLabel", "SamplesPerPixel",
        "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "LossyImageCompression",
        "SegmentationType", "SegmentSequence", "NumberOfFrames", "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence", "DimensionIndexSequence",
        "ReferencedSeriesSequence", "PixelData",
    ),
    "SC": (
        "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber",
        "ConversionType", "InstanceNumber", "ImageType", "SamplesPerPixel", "PhotometricInterpretation", "Rows",
        "Columns", "BitsAllocated", "BitsStored", "PlanarConfiguration", "BurnedInAnnotation", "SourceImageSequence",
        "DerivationDescription", "DerivationCodeSequence", "ReferencedSeriesSequence", "PixelData",
    ),
}  # fmt: skip
SOP_CLASSES = {"SEG": SegmentationStorage, "SC": SecondaryCaptureImageStorage}
MODALITIES = {"SEG": "SEG", "SC": "OT"}
# How far the radiograph in the overlay may be from the case's, as a mean over 64 x 64 cells of 0..1. JPEG and contour
# stay below 0.01; the nearest stranger among 248 chests is 0.05 away.
PICTURE_TOLERANCE = 0.02


class GateError(Exception):
    """The object must not leave. `what` says what is wrong with it, in tags and UIDs."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind} does not pass the gate: {what}; it was not sent")
        self.kind = kind
        self.what = what


def check(result: Result, case: Case) -> None:
    """Return if the object may leave.

    Raises:
        GateError: the first thing found wrong.
    """
    if result.kind not in RULES:
        raise GateError(result.kind, f"no rules for this kind; wanted one of {', '.join(RULES)}")
    try:
        dataset = _read(result)
        for rule in RULES[result.kind]:
            for complaint in rule(dataset, case):
                raise GateError(result.kind, complaint)
    except GateError:
        raise
    except Exception as error:  # a broken object may break any line above: that is the finding
        raise GateError(result.kind, f"it cannot be examined ({type(error).__name__})") from error


def _read(result: Result) -> FileDataset:
    """Parse the bytes as a stranger would, and hold them against what a second writing gives."""
    dataset = dcmread(io.BytesIO(result.data))
    meta = dataset.file_meta
    for found, wanted, name in (
        (meta.MediaStorageSOPClassUID, result.sop_class_uid, "MediaStorageSOPClassUID"),
        (dataset.SOPClassUID, result.sop_class_uid, "SOPClassUID"),
        (meta.MediaStorageSOPInstanceUID, result.sop_instance_uid, "MediaStorageSOPInstanceUID"),
        (dataset.SOPInstanceUID, result.sop_instance_uid, "SOPInstanceUID"),
        (meta.TransferSyntaxUID, result.transfer_syntax_uid, "TransferSyntaxUID"),
    ):
        if found != wanted:
            raise GateError(result.kind, f"{name} {found}, wanted {wanted}")
    if dataset.SOPClassUID != SOP_CLASSES[result.kind] or dataset.get("Modality") != MODALITIES[result.kind]:
        raise GateError(result.kind, f"SOP Class {dataset.SOPClassUID} or Modality is another kind's")
    missing = [
        keyword for keyword in TYPE_1_KEYWORDS[result.kind] if keyword not in dataset or dataset[keyword].is_empty
    ]
    missing += [keyword for keyword in TYPE_2_KEYWORDS if keyword not in dataset]
    if missing:
        raise GateError(result.kind, f"required and not there: {', '.join(missing)}")
    again = io.BytesIO()
    dcmwrite(again, dataset, enforce_file_format=True)
    if again.getvalue() != result.data:
        raise GateError(result.kind, "reading and writing it again gives other bytes")
    return dataset


def _values_allowed(dataset: Dataset, case: Case) -> Iterator[str]:
    """Each value is one its VR allows (PS3.5 6.2); text that is the source's own is the source's business."""
    for element in dataset.iterall():
        if element.tag.is_private or element.VR not in (dictionary_VR(element.tag), "OB"):
            yield f"{element.tag} is private or has VR {element.VR}"
            continue
        if element.VR == "SQ" or element.is_empty or _same(element, case.header):
            continue
        for value in element.value if element.VM > 1 else [element.value]:
            try:
                validate_value(element.VR, str(value) if element.VR in FORMAL_VRS else value, config.RAISE)
            except ValueError:
                yield f"{element.tag} {element.keyword} has a value that VR {element.VR} does not allow"


def _patient_and_study(dataset: Dataset, case: Case) -> Iterator[str]:
    for keyword in COPIED_KEYWORDS:
        if keyword in dataset and not dataset[keyword].is_empty:
            if not _same(dataset[keyword], case.header):
                yield f"{keyword} is not the source's"
        elif keyword in IDENTIFYING_KEYWORDS and keyword in case.header and not case.header[keyword].is_empty:
            yield f"{keyword} is missing, the source has one"
        elif copied(case.header, keyword) is not None:
            yield f"{keyword} was not carried on from the source"
    for element in dataset.iterall():
        if element.tag.group == 0x0010 and element.keyword not in COPIED_KEYWORDS:
            yield f"{element.tag} {element.keyword} tells of a patient and is not one of the copied attributes"


def _uids(dataset: Dataset, case: Case) -> Iterator[str]:
    kind = next(kind for kind, sop_class in SOP_CLASSES.items() if sop_class == dataset.SOPClassUID)
    if dataset.SOPInstanceUID != derived_uid(case, kind):
        yield f"SOPInstanceUID {dataset.SOPInstanceUID} is not the one derived from the case"
    if (
        dataset.SeriesInstanceUID != series_uid(case, kind)
        or dataset.SeriesInstanceUID == case.header.SeriesInstanceUID
    ):
        yield f"SeriesInstanceUID {dataset.SeriesInstanceUID} is not the one derived from the case"


def _references(dataset: Dataset, case: Case) -> Iterator[str]:
    """Whatever the object refers to is its source, by instance, class and series."""
    count = 0
    for item in _items(dataset):
        if "ReferencedSOPInstanceUID" in item or "ReferencedSOPClassUID" in item:
            count += 1
            if item.get("ReferencedSOPInstanceUID") != case.header.SOPInstanceUID:
                yield f"ReferencedSOPInstanceUID {item.get('ReferencedSOPInstanceUID')} is not the source"
            if item.get("ReferencedSOPClassUID") != case.header.SOPClassUID:
                yield f"ReferencedSOPClassUID {item.get('ReferencedSOPClassUID')} is not the source's"
    series = dataset.ReferencedSeriesSequence
    if [item.get("SeriesInstanceUID") for item in series] != [case.header.SeriesInstanceUID]:
        yield "ReferencedSeriesSequence does not name the source's series, and it alone"
    if len(series[0].get("ReferencedInstanceSequence") or []) != 1 or count < 2:
        yield "the source is not referred to as series and as source image"


def _equipment(dataset: Dataset, case: Case) -> Iterator[str]:
    """The node knows its own results by DeviceUID: without it one would come back to be analysed."""
    if dataset.Manufacturer != MANUFACTURER or dataset.ManufacturerModelName != case.model.id:
        yield "Manufacturer or ManufacturerModelName is not ours"
    items = dataset.get("ContributingEquipmentSequence") or []
    if [item.get("DeviceUID") for item in items] != [case.model.device_uid]:
        yield "ContributingEquipmentSequence does not hold the model's DeviceUID, and it alone"
    elif items[0].PurposeOfReferenceCodeSequence[0].CodeValue != "109102":
        yield "ContributingEquipmentSequence has another purpose than Processing Equipment"


def _times_and_words(dataset: Dataset, case: Case) -> Iterator[str]:
    date, time = case.local_time.strftime("%Y%m%d"), case.local_time.strftime("%H%M%S.%f")
    for prefix in ("Series", "Content", "InstanceCreation"):
        if (dataset.get(f"{prefix}Date"), dataset.get(f"{prefix}Time")) != (date, time):
            yield f"{prefix}Date and Time are not the result's"
    if not str(dataset.get("SeriesDescription")).endswith(DISCLAIMER):
        yield f"SeriesDescription does not say {DISCLAIMER!r}"


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


def _segmentation_lossy(dataset: Dataset, case: Case) -> Iterator[str]:
    yield from _lossy(dataset, lossy_history(case.header))


def _picture(dataset: Dataset, case: Case) -> Iterator[str]:
    described = (dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit)
    if described != (3, 8, 8, 7) or dataset.PixelRepresentation or dataset.PlanarConfiguration:
        yield "the pixels are not described as three interleaved samples of 8 bits"
    if dataset.PhotometricInterpretation != "YBR_FULL_422":
        yield f"PhotometricInterpretation {dataset.PhotometricInterpretation}, wanted YBR_FULL_422"
    if "PixelSpacing" in dataset or "ImagerPixelSpacing" in dataset:
        yield "a spacing invites measuring on a picture"
    if dataset.BurnedInAnnotation != ("NO" if case.header.get("BurnedInAnnotation") == "NO" else "YES"):
        yield "BurnedInAnnotation is not the source's"
    fragments = list(generate_frames(dataset.PixelData, number_of_frames=1))
    panel = overlay.place(case)
    with Image.open(io.BytesIO(fragments[0]), formats=("JPEG",)) as jpeg:
        if len(fragments) != 1 or jpeg.size != (dataset.Columns, dataset.Rows) or jpeg.mode != "RGB":
            yield f"a JPEG of {jpeg.size}, wanted one of {(dataset.Columns, dataset.Rows)} in colour"
            return
        if "progressive" in jpeg.info:
            yield "the JPEG is progressive, wanted baseline"
        if jpeg.width != panel.canvas_width or jpeg.height < panel.height + panel.canvas_width // 12:
            yield f"a picture of {jpeg.size} has no banner below {panel.height} rows of radiograph"
            return
        full = jpeg.size
        jpeg.draft("RGB", (full[0] // 8, full[1] // 8))  # the decoder reads it all and gives every 8th pixel
        grey = jpeg.convert("L")
    across, down = grey.width / full[0], grey.height / full[1]
    box = (panel.left * across, 0.0, (panel.left + panel.width) * across, panel.height * down)
    shown = np.asarray(grey.resize((64, 64), Image.Resampling.BOX, box), dtype=np.float32) / 255
    if case.pixels is None:
        wanted = np.full((64, 64), np.mean(overlay.NO_IMAGE) / 255, dtype=np.float32)
    else:
        source = Image.fromarray((case.pixels * 255).astype(np.uint8))
        wanted = np.asarray(source.resize((64, 64), Image.Resampling.BOX, reducing_gap=2), dtype=np.float32) / 255
    if float(np.abs(shown - wanted).mean()) > PICTURE_TOLERANCE:
        yield "the picture does not show the source's pixels"
    banner = np.asarray(grey.crop((0, round(panel.height * down) + 1, grey.width, grey.height)), dtype=np.float32)
    if float(banner.max()) < 60 or float(banner.std()) < 4:
        yield "the banner holds no text"


def _picture_lossy(dataset: Dataset, case: Case) -> Iterator[str]:
    ratios = dataset.get("LossyImageCompressionRatio")
    own = str(ratios if not isinstance(ratios, list) and dataset["LossyImageCompressionRatio"].VM == 1 else ratios[-1])
    if not 1 < float(own) < 1000:
        yield "LossyImageCompressionRatio is not this picture's"
    yield from _lossy(dataset, [*lossy_history(case.header), (own, "ISO_10918_1")])


def _lossy(dataset: Dataset, steps: list[tuple[str, str]]) -> Iterator[str]:
    if dataset.LossyImageCompression != ("01" if steps else "00"):
        yield "LossyImageCompression does not say what happened to the pixels"
    for position, keyword in enumerate(("LossyImageCompressionRatio", "LossyImageCompressionMethod")):
        wanted = [step[position] for step in steps]
        element = dataset.get(keyword) if keyword not in dataset else dataset[keyword]
        found = [] if element is None else [str(v) for v in (element.value if element.VM > 1 else [element.value])]
        if found != (wanted if any(wanted) else []):
            yield f"{keyword} does not carry the source's history on"


def _items(dataset: Dataset) -> Iterator[Dataset]:
    """Every item of every sequence, at any depth."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _items(item)


def _same(element: DataElement, header: Dataset) -> bool:
    return element.tag in header and str(header[element.tag].value) == str(element.value)


COMMON: tuple[Rule, ...] = (_uids, _patient_and_study, _values_allowed, _references, _equipment, _times_and_words)
RULES: dict[str, tuple[Rule, ...]] = {
    "SEG": (*COMMON, _segmentation, _viewer_geometry, _segmentation_lossy),
    "SC": (*COMMON, _picture, _picture_lossy),
}
