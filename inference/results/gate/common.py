"""The gate: an object is read back from its bytes and checked against its case before it may leave.

A validator's clean run is not enough (it passed a SEG that crashed a viewer), and archives take nearly anything. The
rules here do not share code with the encoders where it matters: they look at what was written. A complaint names tags
and UIDs, never a patient's value.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

from pydicom import Dataset, FileDataset, config, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.uid import (
    Comprehensive3DSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pydicom.valuerep import validate_value

from inference.finding import Result
from inference.radiograph import COPIED_KEYWORDS
from inference.results.gate import pr as gate_pr
from inference.results.gate import sc as gate_sc
from inference.results.gate import seg as gate_seg
from inference.results.gate import sr as gate_sr
from inference.results.gate import words as gate_words
from inference.results.gate.words import DESCRIPTIONS, items, same
from inference.results.identity import (
    DISCLAIMER,
    MANUFACTURER,
    TYPE_2_KEYWORDS,
    Case,
    derived_uid,
    series_uid,
)
from inference.results.source import FORMAL_VRS, copied, lossy_history, orientation

Rule = Callable[[Dataset, Case], Iterator[str]]  # yields what is wrong

# Of the copied attributes these decide whose image it is: they must be there as the source has them, even malformed.
IDENTIFYING_KEYWORDS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyInstanceUID",
)
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
    "SR": (
        "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber",
        "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "InstanceNumber",
        "ContentDate", "ContentTime", "CompletionFlag", "VerificationFlag", "PreliminaryFlag",
        "CurrentRequestedProcedureEvidenceSequence", "ValueType", "ConceptNameCodeSequence", "ContinuityOfContent",
        "ContentTemplateSequence", "ContentSequence",
    ),
    "PR": (
        "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber",
        "InstanceNumber", "ContentLabel", "PresentationCreationDate", "PresentationCreationTime",
        "ReferencedSeriesSequence", "DisplayedAreaSelectionSequence", "GraphicLayerSequence",
        "GraphicAnnotationSequence", "PresentationLUTShape",
    ),
}  # fmt: skip
OWN_TYPE_2_KEYWORDS = {
    "SR": ("ReferencedPerformedProcedureStepSequence", "PerformedProcedureCodeSequence"),
    "PR": ("ContentDescription", "ContentCreatorName"),
}
SOP_CLASSES = {
    "SEG": SegmentationStorage,
    "SC": SecondaryCaptureImageStorage,
    "SR": Comprehensive3DSRStorage,
    "PR": GrayscaleSoftcopyPresentationStateStorage,
}
MODALITIES = {"SEG": "SEG", "SC": "OT", "SR": "SR", "PR": "PR"}


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
    if (
        dataset.SOPClassUID != SOP_CLASSES[result.kind]
        or dataset.get("Modality") != MODALITIES[result.kind]
    ):
        raise GateError(
            result.kind, f"SOP Class {dataset.SOPClassUID} or Modality is another kind's"
        )
    missing = [
        keyword
        for keyword in TYPE_1_KEYWORDS[result.kind]
        if keyword not in dataset or dataset[keyword].is_empty
    ]
    empty_allowed = (*TYPE_2_KEYWORDS, *OWN_TYPE_2_KEYWORDS.get(result.kind, ()))
    missing += [keyword for keyword in empty_allowed if keyword not in dataset]
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
        if element.tag.is_private or element.VR not in (
            *dictionary_VR(element.tag).split(" or "),
            "OB",
        ):
            yield f"{element.tag} is private or has VR {element.VR}"
            continue
        if element.VR == "SQ" or element.is_empty or same(element, case.header):
            continue
        if element.VR == "UI" and element.value in (
            case.header.SOPInstanceUID,
            case.header.SOPClassUID,
        ):
            continue  # equipment that breaks PS3.5 9.1 (leading zeros) still has patients
        for value in element.value if element.VM > 1 else [element.value]:
            try:
                validate_value(
                    element.VR, str(value) if element.VR in FORMAL_VRS else value, config.RAISE
                )
            except ValueError:
                yield f"{element.tag} {element.keyword} has a value that VR {element.VR} does not allow"


def _patient_and_study(dataset: Dataset, case: Case) -> Iterator[str]:
    for keyword in COPIED_KEYWORDS:
        if keyword in dataset and not dataset[keyword].is_empty:
            if not same(dataset[keyword], case.header):
                yield f"{keyword} is not the source's"
        elif (
            keyword in IDENTIFYING_KEYWORDS
            and keyword in case.header
            and not case.header[keyword].is_empty
        ):
            yield f"{keyword} is missing, the source has one"
        elif copied(case.header, keyword) is not None:
            yield f"{keyword} was not carried on from the source"
    for element in dataset.iterall():
        if element.tag.group == 0x0010 and element.keyword not in COPIED_KEYWORDS:
            yield f"{element.tag} {element.keyword} tells of a patient and is not one of the copied attributes"


def _kind(dataset: Dataset) -> str:
    return next(kind for kind, sop_class in SOP_CLASSES.items() if sop_class == dataset.SOPClassUID)


def _uids(dataset: Dataset, case: Case) -> Iterator[str]:
    kind = _kind(dataset)
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
    for item in items(dataset):
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
    for prefix in (
        "Series",
        "PresentationCreation" if dataset.Modality == "PR" else "Content",
        "InstanceCreation",
    ):
        if (dataset.get(f"{prefix}Date"), dataset.get(f"{prefix}Time")) != (date, time):
            yield f"{prefix}Date and Time are not the result's"
    said = f"Pneumothorax {DESCRIPTIONS[_kind(dataset)]}. {DISCLAIMER}"
    if dataset.get("SeriesDescription") != said:
        yield f"SeriesDescription does not say {said!r}"


def _lossy_history(dataset: Dataset, case: Case) -> Iterator[str]:
    """What the source went through is carried on; the overlay adds its own step (PS3.3 C.7.6.1.1.5)."""
    steps = lossy_history(case.header)
    found = {}
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        element = dataset[keyword] if keyword in dataset else None  # noqa: SIM401 - get() gives the value
        values = [] if element is None else element.value if element.VM > 1 else [element.value]
        found[keyword] = [str(value) for value in values]
    if dataset.SOPClassUID == SecondaryCaptureImageStorage:
        own = (found["LossyImageCompressionRatio"] or ["0"])[-1]
        if not 1 < float(own) < 1000:
            yield "LossyImageCompressionRatio is not this picture's"
        steps = [*steps, (own, "ISO_10918_1")]
    if dataset.get("LossyImageCompression") != ("01" if steps else "00"):
        yield "LossyImageCompression does not say what happened to the pixels"
    for position, keyword in enumerate(found):
        wanted = [step[position] for step in steps]
        if found[keyword] != (wanted if any(wanted) else []):
            yield f"{keyword} does not carry the source's history on"


def _orientation(dataset: Dataset, case: Case) -> Iterator[str]:
    element = dataset["PatientOrientation"]
    if (None if element.is_empty else element.value) != orientation(case.header):
        yield "PatientOrientation is not the source's"


COMMON: tuple[Rule, ...] = (
    _uids,
    _patient_and_study,
    _values_allowed,
    *gate_words.RULES,
    _equipment,
    _times_and_words,
)
OF_IMAGES: tuple[Rule, ...] = (_references, _lossy_history, _orientation)
RULES: dict[str, tuple[Rule, ...]] = {
    "SEG": (*COMMON, *OF_IMAGES, *gate_seg.RULES),
    "SC": (*COMMON, *OF_IMAGES, *gate_sc.RULES),
    "SR": (*COMMON, *gate_sr.RULES),
    "PR": (*COMMON, *gate_pr.RULES),
}
