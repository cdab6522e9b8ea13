"""The kinds of result: one record each, from which every other table of kinds derives.

To add a kind: write its encoder (`inference/results/<name>.py`) and its gate module
(`inference/results/gate/<name>.py`), and add one record to KINDS. Encoding, gate, identity, service
classes and conformance tables follow from the record; a test holds `daemon.config.ResultKind`,
which may not import this module, equal to the names here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

if TYPE_CHECKING:
    from inference.results.case import Case
    from inference.results.gate.expected import Rule

# Type 1 in every IOD: SOP Common, General Study, series and instance.
_REQUIRED_OF_ALL = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "SeriesNumber", "InstanceNumber",
)  # fmt: skip
_REQUIRED_EQUIPMENT = (
    "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
)  # fmt: skip
_REQUIRED_PIXELS = (
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "PixelData",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One kind of result object.

    `encoder` and `rules` are "module:name" references, resolved at first use, so that this table
    imports neither encoders nor gate and both may import it.
    """

    name: str  # as in `destinations[].results`
    sop_class_uid: UID
    modality: str
    series_number: int
    noun: str  # SeriesDescription reads "Pneumothorax <noun>. <disclaimer>"
    transfer_syntax_uid: UID
    encoder: str  # Callable[[Case], Dataset | None]; None where the case gives nothing to encode
    rules: str  # tuple of gate rules (gate/expected.py: Rule)
    required: tuple[str, ...]  # keywords that the gate wants present and filled (type 1)
    required_or_empty: tuple[str, ...] = ()  # ... present (type 2), beside those of all kinds
    settings: tuple[str, ...] = ()  # fields of RenderSettings that change this kind's content
    # Attributes that hold when the content was made: Date and Time follow the prefix.
    content_time_prefix: str = "Content"

    def encode(self, case: Case) -> Dataset | None:
        """The object of this kind about the case; None where the case gives nothing to encode."""
        encode: Callable[[Case], Dataset | None] = _resolved(self.encoder)
        return encode(case)

    @property
    def gate_rules(self) -> tuple[Rule, ...]:
        """The rules that the gate applies to objects of this kind, in order."""
        rules: tuple[Rule, ...] = _resolved(self.rules)
        return rules

    @property
    def series_description(self) -> str:
        """The first words of SeriesDescription; the disclaimer follows."""
        return f"Pneumothorax {self.noun}"


def _resolved(reference: str) -> Any:
    """The object that a "module:name" reference names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def _records() -> Iterator[Kind]:
    yield Kind(
        name="SEG",
        sop_class_uid=SegmentationStorage,
        modality="SEG",
        series_number=9001,
        noun="region",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        encoder="inference.results.seg:encode",
        rules="inference.results.gate.seg:RULES",
        required=(
            *_REQUIRED_OF_ALL, *_REQUIRED_EQUIPMENT, *_REQUIRED_PIXELS, "FrameOfReferenceUID",
            "ContentDate", "ContentTime", "ImageType", "ContentLabel", "LossyImageCompression",
            "SegmentationType", "SegmentSequence", "NumberOfFrames",
            "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
            "DimensionOrganizationSequence", "DimensionIndexSequence", "ReferencedSeriesSequence",
        ),
    )  # fmt: skip

    yield Kind(
        name="SC",
        sop_class_uid=SecondaryCaptureImageStorage,
        modality="OT",
        series_number=9002,
        noun="overlay",
        transfer_syntax_uid=JPEGBaseline8Bit,
        encoder="inference.results.sc:encode",
        rules="inference.results.gate.sc:RULES",
        required=(
            *_REQUIRED_OF_ALL, *_REQUIRED_PIXELS, "ConversionType", "ImageType",
            "PlanarConfiguration", "BurnedInAnnotation", "SourceImageSequence",
            "DerivationDescription", "DerivationCodeSequence", "ReferencedSeriesSequence",
        ),
        settings=("longest_side", "jpeg_quality"),
    )  # fmt: skip

    # After the SEG: an SR refers to the SEG only when that has passed the gate.
    yield Kind(
        name="SR",
        sop_class_uid=Comprehensive3DSRStorage,
        modality="SR",
        series_number=9003,
        noun="report",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        encoder="inference.results.sr:encode",
        rules="inference.results.gate.sr:RULES",
        required=(
            *_REQUIRED_OF_ALL, *_REQUIRED_EQUIPMENT, "ContentDate", "ContentTime",
            "CompletionFlag", "VerificationFlag", "PreliminaryFlag",
            "CurrentRequestedProcedureEvidenceSequence", "ValueType", "ConceptNameCodeSequence",
            "ContinuityOfContent", "ContentTemplateSequence", "ContentSequence",
        ),
        required_or_empty=(
            "ReferencedPerformedProcedureStepSequence", "PerformedProcedureCodeSequence",
        ),
        settings=("report_absent", "refer_to_segmentation"),
    )  # fmt: skip

    yield Kind(
        name="PR",
        sop_class_uid=GrayscaleSoftcopyPresentationStateStorage,
        modality="PR",
        series_number=9004,
        noun="contours",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        encoder="inference.results.pr:encode",
        rules="inference.results.gate.pr:RULES",
        required=(
            *_REQUIRED_OF_ALL, "ContentLabel", "PresentationCreationDate",
            "PresentationCreationTime", "ReferencedSeriesSequence",
            "DisplayedAreaSelectionSequence", "GraphicLayerSequence", "GraphicAnnotationSequence",
            "PresentationLUTShape",
        ),
        required_or_empty=("ContentDescription", "ContentCreatorName"),
        content_time_prefix="PresentationCreation",
    )  # fmt: skip


# By name, in the order in which objects are made.
KINDS: dict[str, Kind] = {kind.name: kind for kind in _records()}
