"""Whether an image is analysed, and if not, why: rules over the header, and the table of reasons.

A new rule is a function that returns an Exclusion or None, a line in `_RULES` at its place in the
order, and, where no reason fits, a row of `REASONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pydicom import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from inference.age import age_years, has_unreadable_age, years_by_dates
from inference.finding import State
from inference.luts import has_grey_palette
from inference.orientation import directions
from inference.terms import (
    ANIMALS,
    FRONTAL_WORDS,
    OTHER_BODY_PARTS,
    OTHER_VIEWS,
    PLACEHOLDERS,
    PROJECTIONS,
    is_chest,
    is_lateral,
    loggable,
    meaning_words,
    stated_value,
    text_of,
    words_in,
    words_of,
)

# DCM code, the purpose of an item of ContributingEquipmentSequence.
_PROCESSING_EQUIPMENT = "109102"
_ALGORITHM_KEYWORDS = ("SegmentSequence", "ContentSequence", "GraphicAnnotationSequence")
_SOP_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
    # With one frame: some gateways wrap X-rays in these classes.
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)

# Free text decides only if the coded attribute is absent, and a chest word outweighs every other
# word. A study holds several images, so its description is used only if the attributes of the image
# and the series say nothing.
_SERIES_DESCRIPTIONS = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
)
_STUDY_DESCRIPTIONS = ("StudyDescription", "PerformedProcedureStepDescription")
_DESCRIPTIONS = (*_SERIES_DESCRIPTIONS, *_STUDY_DESCRIPTIONS)

# PatientAge is a whole number, and consoles round it in both directions.
_ROUNDED_AGE_YEARS = 1.0

_HUMAN_CODES = ("337915000", "L-85B00")  # SCT and SRT, "Homo sapiens"


@dataclass(frozen=True)
class Reason:
    """Why an image was not analysed, and whether the archive is told (docs/rules.md)."""

    state: State
    # True where a Secondary Capture tells the archive.
    sent: bool
    # For the banner and the log; never contains a patient's value.
    text: str


REASONS: dict[str, Reason] = {
    "own_output": Reason(State.NOT_ANALYSED, False, "one of this node's own results"),
    "foreign_result": Reason(
        State.NOT_ANALYSED, False, "a result of another system, not a radiograph"
    ),
    "sop_class": Reason(State.NOT_ANALYSED, False, "not a radiograph's SOP class"),
    "for_processing": Reason(
        State.NOT_ANALYSED, False, "raw data for processing, not for presentation"
    ),
    "multi_frame": Reason(State.NOT_ANALYSED, False, "more than one frame, not one radiograph"),
    "modality": Reason(State.NOT_ANALYSED, False, "another modality"),
    "species": Reason(State.NOT_ANALYSED, False, "not a human patient"),
    "body_part": Reason(State.NOT_ANALYSED, False, "another body part"),
    "view": Reason(State.NOT_ANALYSED, False, "not a frontal view"),
    "not_a_frontal_chest": Reason(State.NOT_ANALYSED, False, "not a frontal chest by its picture"),
    "no_identity": Reason(State.NOT_ANALYSED, False, "no usable Study, Series or SOP Instance UID"),
    "under_age": Reason(State.NOT_ANALYSED, True, "the patient is younger than the minimum age"),
    "age_unknown": Reason(State.NOT_ANALYSED, True, "the patient's age cannot be told"),
    "blank": Reason(State.NOT_ANALYSED, True, "the image is blank"),
    "too_small": Reason(State.NOT_ANALYSED, True, "the image has too few pixels"),
    "undecodable": Reason(State.NOT_ANALYSED, True, "the pixels cannot be decoded"),
    "not_dicom": Reason(State.FAILED, False, "the bytes are not a DICOM object"),
    "bytes_missing": Reason(State.FAILED, False, "the spool no longer holds the whole image"),
    "uid_mismatch": Reason(
        State.FAILED, False, "the data set is another instance than the one announced"
    ),
    "analysis_error": Reason(State.FAILED, True, "the analysis broke repeatedly"),
    "result_invalid": Reason(
        State.FAILED, True, "a result object failed its own check and was not sent"
    ),
}


@dataclass(frozen=True)
class Rules:
    """The images that a site admits: the YAML key `admission`."""

    modalities: tuple[str, ...] = ("CR", "DX")
    body_parts: tuple[str, ...] = ("CHEST", "THORAX")
    views: tuple[str, ...] = ("AP", "PA")
    minimum_age_years: int = 18
    when_absent: Literal["admit", "refuse"] = "admit"
    # Raw detector data; the sender also sends the image for presentation (PS3.3 A.26).
    for_processing: bool = False


@dataclass(frozen=True)
class Exclusion:
    """The image is not analysed: a code of REASONS, and what was found where."""

    reason: str
    detail: str


@dataclass(frozen=True)
class _Candidate:
    """The header to judge, and notes on what was absent but admitted."""

    header: Dataset
    rules: Rules
    is_ours: Callable[[str], bool]
    notes: list[str] = field(default_factory=list)


def judge(
    header: Dataset, rules: Rules, is_ours: Callable[[str], bool]
) -> Exclusion | tuple[str, ...]:
    """An Exclusion, or notes on what was absent or implausible but admitted.

    Rules that exclude without telling the archive come first: a child's hip is excluded as a hip,
    not as a child's.

    Args:
        header: the image's data set; its pixels are not read.
        rules: what the site admits.
        is_ours: whether a SOP Instance UID belongs to one of our own results.
    """
    candidate = _Candidate(header, rules, is_ours)

    for rule in _RULES:
        exclusion = rule(candidate)
        if exclusion is not None:
            return exclusion

    return tuple(candidate.notes)


# ---- origin and identity


def _own_output(image: _Candidate) -> Exclusion | None:
    # Our own UIDs are always usable, so unusable strings of a peer are not looked up in the
    # database.
    uid = str(image.header.get("SOPInstanceUID", ""))
    if usable_uid(uid) and image.is_ours(uid):
        return Exclusion("own_output", "the SOP Instance UID is in the ledger's results")

    for item in image.header.get("ContributingEquipmentSequence") or []:
        if _code(item, "PurposeOfReferenceCodeSequence") != _PROCESSING_EQUIPMENT:
            continue
        # Each model has its own DeviceUID, so the maker's name decides (docs/rules.md).
        if str(item.get("Manufacturer", "")) == "Pleura" and "DeviceUID" in item:
            return Exclusion("own_output", "ContributingEquipmentSequence (0018,A001) names Pleura")
    return None


def _annotations(image: _Candidate) -> Exclusion | None:
    for keyword in _ALGORITHM_KEYWORDS:
        if keyword in image.header:
            detail = f"{keyword} is present: annotations or segments, not a radiograph"
            return Exclusion("foreign_result", detail)
    return None


def _identity(image: _Candidate) -> Exclusion | None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not usable_uid(str(image.header.get(keyword) or "")):
            detail = f"{keyword} is absent or no UID (PS3.5 9.1): no result could name its image"
            return Exclusion("no_identity", detail)
    return None


# ---- kind of image


def _modality(image: _Candidate) -> Exclusion | None:
    found = text_of(image.header, "Modality")
    admitted = image.rules.modalities
    if found in admitted:
        return None
    detail = f"Modality (0008,0060) found {loggable(found)}, admitted {_list(admitted)}"
    return Exclusion("modality", detail)


def _is_for_processing(header: Dataset) -> bool:
    return str(header.get("SOPClassUID", "")) == DigitalXRayImageStorageForProcessing


def _raw_data(image: _Candidate) -> Exclusion | None:
    intent = text_of(image.header, "PresentationIntentType")
    raw = _is_for_processing(image.header) or intent == "FOR PROCESSING"
    if raw and not image.rules.for_processing:
        detail = "DX for processing, and admission.for_processing is false"
        return Exclusion("for_processing", detail)
    return None


def _sop_class(image: _Candidate) -> Exclusion | None:
    found = str(image.header.get("SOPClassUID", ""))
    if found in _SOP_CLASSES or _is_for_processing(image.header):
        return None
    shown = found if usable_uid(found) else "no UID"
    detail = f"SOP Class UID {shown} is not CR, DX for presentation or Secondary Capture"
    return Exclusion("sop_class", detail)


def _colour(image: _Candidate) -> Exclusion | None:
    # A radiograph is greyscale; a colour image is a rendering of it (docs/rules.md).
    photometric = text_of(image.header, "PhotometricInterpretation")
    is_grey = photometric in ("MONOCHROME1", "MONOCHROME2", "")
    # The decoder does not support palettes, so the archive is told.
    is_grey |= photometric == "PALETTE COLOR" and has_grey_palette(image.header)
    if is_grey and image.header.get("SamplesPerPixel") in (1, None):
        return None
    detail = f"colour: PhotometricInterpretation (0028,0004) {loggable(photometric)}"
    return Exclusion("foreign_result", detail)


def _frames(image: _Candidate) -> Exclusion | None:
    frames = str(image.header.get("NumberOfFrames") or "").strip()
    if re.fullmatch(r"|0*[01](\.0*)?", frames):
        return None
    return Exclusion("multi_frame", "NumberOfFrames (0028,0008) is not 1")


# ---- anatomy


def _species(image: _Candidate) -> Exclusion | None:
    described = words_in(image.header, _DESCRIPTIONS)
    if _species_is_animal(image.header) or described & ANIMALS:
        detail = "PatientSpecies, PatientBreed or a description tells of an animal"
        return Exclusion("species", detail)
    return None


def _described_body_part(image: _Candidate) -> Exclusion | None:
    """Another body part in a description, if BodyPartExamined says nothing."""
    header = image.header
    if _stated_body_part(image):
        return None

    described = words_in(header, _SERIES_DESCRIPTIONS)
    described |= meaning_words(header, "AnatomicRegionSequence")
    coded_view = meaning_words(header, "ViewCodeSequence")
    if not described and not coded_view and not _stated_view(image):
        described = words_in(header, _STUDY_DESCRIPTIONS)

    if described & OTHER_BODY_PARTS and not is_chest(described):
        detail = "BodyPartExamined is absent and a description names another body part"
        return Exclusion("body_part", detail)
    return None


def _described_view(image: _Candidate) -> Exclusion | None:
    """A lateral view by its code, its description or its orientation, without ViewPosition."""
    header = image.header
    if _stated_view(image):
        return None

    coded = meaning_words(header, "ViewCodeSequence")
    says_view = is_lateral(coded) or coded & FRONTAL_WORDS
    words = coded if says_view else words_in(header, _SERIES_DESCRIPTIONS)
    if is_lateral(words) and not words & FRONTAL_WORDS:
        detail = (
            "ViewPosition is absent and the view's code or the series' description says lateral"
        )
        return Exclusion("view", detail)

    if _runs_through_the_chest(header):
        detail = "ViewPosition is absent and PatientOrientation (0020,0020) is a lateral view's"
        return Exclusion("view", detail)
    return None


def _body_part(image: _Candidate) -> Exclusion | None:
    found = _stated_body_part(image)
    if not found:
        return _absent(image, "BodyPartExamined", "body_part")

    # "CHEST PA", "LUNG": a chest by another name.
    admitted = image.rules.body_parts
    words = words_of(found)
    if words & set(admitted) or is_chest(words) or found in admitted:
        return None
    detail = f"BodyPartExamined found {loggable(found)}, admitted {_list(admitted)}"
    return Exclusion("body_part", detail)


def _view(image: _Candidate) -> Exclusion | None:
    found = _stated_view(image)
    if not found:
        return _absent(image, "ViewPosition", "view")

    # "AP ERECT", "PORTABLE AP", "POSTERO-ANTERIOR".
    admitted = image.rules.views
    words = words_of(found)
    views = words | {PROJECTIONS[word] for word in words & PROJECTIONS.keys()}
    frontal = views & set(admitted) or "FRONTAL" in words
    if (frontal and not is_lateral(words)) or found in admitted:
        return None
    detail = f"ViewPosition found {loggable(found)}, admitted {_list(admitted)}"
    return Exclusion("view", detail)


def _absent(image: _Candidate, keyword: str, reason: str) -> Exclusion | None:
    """Admit or exclude an image whose attribute is absent or not understood."""
    is_unknown = bool(stated_value(image.header, keyword))
    what = "is not a known term" if is_unknown else "is absent"
    if image.rules.when_absent == "refuse":
        return Exclusion(reason, f"{keyword} {what} and when_absent is refuse")
    image.notes.append(f"{keyword} {what}" if is_unknown else f"{keyword} absent")
    return None


def _stated_body_part(image: _Candidate) -> str:
    """BodyPartExamined; "" if it is absent, a placeholder, or has no known word.

    An unknown word must not silently exclude an image: it may mean the chest in another language.
    The plausibility network examines the picture in any case.
    """
    found = stated_value(image.header, "BodyPartExamined")
    admitted = image.rules.body_parts
    words = words_of(found)
    is_known = words & {*admitted, *OTHER_BODY_PARTS} or is_chest(words) or found in admitted
    return found if is_known else ""


def _stated_view(image: _Candidate) -> str:
    """ViewPosition; "" if it is absent, a placeholder, or names no view.

    "PORTABLE", "SUPINE" and "ERECT" describe the patient's position, not the projection.
    """
    found = stated_value(image.header, "ViewPosition")
    admitted = image.rules.views
    words = words_of(found)
    known = {*admitted, *OTHER_VIEWS, *FRONTAL_WORDS, *OTHER_BODY_PARTS}
    return found if words & known or is_lateral(words) or found in admitted else ""


def _runs_through_the_chest(header: Dataset) -> bool:
    """Whether rows or columns run from the patient's front to back: seen from the side.

    PS3.3 C.7.6.1.1.1.
    """
    stated = directions(header.get("PatientOrientation"))
    return stated is not None and any(direction[0] in ("A", "P") for direction in stated)


def _species_is_animal(header: Dataset) -> bool:
    species = text_of(header, "PatientSpeciesDescription")
    code = _code(header, "PatientSpeciesCodeSequence")
    if species in ("HOMO SAPIENS", "HUMAN") or code in _HUMAN_CODES:
        return False
    # A breed without a species is a placeholder that somebody typed ("N/A").
    return bool(code) or species not in ("", *PLACEHOLDERS)


# ---- age


def _age(image: _Candidate) -> Exclusion | None:
    if has_unreadable_age(image.header):
        detail = (
            "PatientAge begins with a number and cannot be read (PS3.5 6.2: nnnD, nnnW, nnnM, nnnY)"
        )
        return Exclusion("age_unknown", detail)

    age = age_years(image.header)
    if age is None:
        if image.rules.when_absent == "refuse":
            detail = "PatientAge is absent or implausible and when_absent is refuse"
            return Exclusion("age_unknown", detail)
        image.notes.append("PatientAge absent or implausible")
        return None

    minimum = image.rules.minimum_age_years
    if age < minimum:
        return Exclusion("under_age", f"PatientAge is under the minimum of {minimum} years")

    by_dates = years_by_dates(image.header)
    if by_dates is not None and by_dates < minimum and age - by_dates > _ROUNDED_AGE_YEARS:
        detail = f"PatientAge reaches the minimum of {minimum} years, but not by the birth date"
        return Exclusion("age_unknown", detail)
    return None


# Rules that exclude without telling the archive come first.
_RULES: tuple[Callable[[_Candidate], Exclusion | None], ...] = (
    _own_output, _annotations, _identity,
    _modality, _raw_data, _sop_class, _colour, _frames,
    _species, _described_body_part, _described_view, _body_part, _view,
    _age,
)  # fmt: skip


# ---- reading a header


def usable_uid(value: str) -> bool:
    """Whether a result can name its image by this UID: 1 to 64 digits and dots.

    PS3.5 9.1 also forbids leading zeros in a component; but some equipment breaks that rule, and
    its patients count too.
    """
    return re.fullmatch(r"[0-9][0-9.]{0,63}", value) is not None


def _code(item: Dataset, keyword: str) -> str:
    sequence = item.get(keyword) or []
    return str(sequence[0].get("CodeValue", "")) if len(sequence) else ""


def _list(values: tuple[str, ...]) -> str:
    return ", ".join(values)
