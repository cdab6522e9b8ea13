"""Is this image to be analysed, and if not, why.

Pure rules over the header, and the table of reasons.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from inference.finding import State

# DCM, ContributingEquipmentSequence purpose
_PROCESSING_EQUIPMENT = "109102"
_ALGORITHM_KEYWORDS = ("SegmentSequence", "ContentSequence", "GraphicAnnotationSequence")
_SOP_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
    # of one frame: what some gateways wrap X-rays in
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)

# Free text decides only where the coded attribute is absent, and a chest word outweighs every
# other. A study holds several images, so what describes it tells of one of them only where nothing
# nearer says anything.
_SERIES_DESCRIPTIONS = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
)
_STUDY_DESCRIPTIONS = ("StudyDescription", "PerformedProcedureStepDescription")
_DESCRIPTIONS = (*_SERIES_DESCRIPTIONS, *_STUDY_DESCRIPTIONS)
_ANIMALS = {"CANINE", "FELINE", "EQUINE", "BOVINE", "VETERINARY"}
_CHEST_WORDS = {"CHEST", "THORAX", "TORAX", "TORACE", "THORACIC", "LUNG", "LUNGS", "RIBS", "CXR"}
# beside a spine: "THORACIC SPINE" is no chest
_CHEST_ITSELF = {
    "CHEST",
    "THORAX",
    "TORAX",
    "TORACE",
    "CXR",
}
# PS3.16 annex L
_SPINES = {
    "SPINE",
    "CSPINE",
    "CTSPINE",
    "TSPINE",
    "TLSPINE",
    "LSPINE",
    "LSSPINE",
    "SSPINE",
}
_OTHER_BODY_PARTS = {
    *_SPINES,
    "TEETH", "TOOTH", "DENTAL", "SKULL", "ABDOMEN", "PELVIS", "HIP", "KNEE", "ANKLE", "FOOT", "HAND", "WRIST", "ELBOW",
    "SHOULDER", "FEMUR", "TIBIA", "HUMERUS", "EXTREMITY",
}  # fmt: skip
_LATERAL_WORDS = {"LATERAL", "LAT", "LATERALE", "SEITLICH", "PROFIL", "PERFIL"}
_PROJECTIONS = {"POSTERO": "PA", "POSTEROANTERIOR": "PA", "ANTERO": "AP", "ANTEROPOSTERIOR": "AP"}
# a lateral decubitus view is frontal
_FRONTAL_WORDS = {
    *_PROJECTIONS, "PA", "AP", "FRONTAL", "DECUBITUS", "FACE", "FRENTE",
}  # fmt: skip
# What stands where a console was told nothing.
_PLACEHOLDERS = ("UNKNOWN", "UNSPECIFIED", "UNDEFINED", "OTHER", "NONE", "N/A", "NA")
_KNOWN_TERMS = {
    *_OTHER_BODY_PARTS,
    # PS3.3 C.8.1.1: View Position
    "LL", "RL", "RLD", "LLD", "RLO", "LLO", "AP", "PA",
    "CT", "MR", "US", "NM", "PT", "XA", "RF", "MG", "SC", "OT", "SR", "PR", "SEG", "DX", "CR", "IO", "PX", "KO", "DOC",
    "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR", "MONOCHROME1", "MONOCHROME2",
}  # fmt: skip


@dataclass(frozen=True)
class Reason:
    """Why an image was not analysed.

    `sent`: whether the archive is told by a Secondary Capture (design, section 1).
    """

    state: State
    sent: bool
    # what the banner and the log say; no patient value
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
    "age_unknown": Reason(
        State.NOT_ANALYSED, True, "the patient's age is unknown and this site refuses that"
    ),
    "blank": Reason(State.NOT_ANALYSED, True, "the image is blank"),
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
    """What a site admits; the YAML key `admission`."""

    modalities: tuple[str, ...] = ("CR", "DX")
    body_parts: tuple[str, ...] = ("CHEST", "THORAX")
    views: tuple[str, ...] = ("AP", "PA")
    minimum_age_years: int = 18
    when_absent: Literal["admit", "refuse"] = "admit"
    # raw detector data, which its sender also sends as a picture (PS3.3 A.26)
    for_processing: bool = False


@dataclass(frozen=True)
class Refusal:
    """A header that is not analysed: a code of REASONS, and what was found where."""

    reason: str
    detail: str


def judge(
    header: Dataset, rules: Rules, is_ours: Callable[[str], bool]
) -> Refusal | tuple[str, ...]:
    """A Refusal, or the notes on what was absent or implausible and admitted all the same.

    `is_ours` tells whether a SOP Instance UID is one of our own results. Never-sent reasons come
    before sent ones, so that a child's hip is a hip.
    """
    notes: list[str] = []

    for check in (_origin, _identity, _kind, _anatomy):
        refusal = check(header, rules, is_ours, notes)
        if refusal is not None:
            return refusal

    return _age(header, rules, notes) or tuple(notes)


_Check = Refusal | None


def _origin(header: Dataset, _: Rules, is_ours: Callable[[str], bool], __: list[str]) -> _Check:
    uid = str(header.get("SOPInstanceUID", ""))
    # ours always are; what else a peer puts there, no database need hold
    if usable_uid(uid) and is_ours(uid):
        return Refusal("own_output", "the SOP Instance UID is in the ledger's results")

    for item in header.get("ContributingEquipmentSequence") or []:
        if _code(item, "PurposeOfReferenceCodeSequence") != _PROCESSING_EQUIPMENT:
            continue
        # Design, section 1: our own DeviceUID. Every Pleura has its own by model, so the maker's
        # name decides.
        if str(item.get("Manufacturer", "")) == "Pleura" and "DeviceUID" in item:
            return Refusal("own_output", "ContributingEquipmentSequence (0018,A001) names Pleura")

    for keyword in _ALGORITHM_KEYWORDS:
        if keyword in header:
            return Refusal(
                "foreign_result", f"{keyword} is present: annotations or segments, not a radiograph"
            )

    return None


def _identity(header: Dataset, _: Rules, __: Callable[[str], bool], ___: list[str]) -> _Check:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not usable_uid(str(header.get(keyword) or "")):
            return Refusal(
                "no_identity",
                f"{keyword} is absent or no UID (PS3.5 9.1): no result could name its image",
            )
    return None


def _kind(header: Dataset, rules: Rules, _: Callable[[str], bool], __: list[str]) -> _Check:
    sop_class_uid, modality = str(header.get("SOPClassUID", "")), _text(header, "Modality")
    if modality not in rules.modalities:
        return Refusal(
            "modality",
            f"Modality (0008,0060) found {_shown(modality)}, admitted {_list(rules.modalities)}",
        )

    raw = sop_class_uid == DigitalXRayImageStorageForProcessing
    if (
        raw or _text(header, "PresentationIntentType") == "FOR PROCESSING"
    ) and not rules.for_processing:
        return Refusal("for_processing", "DX for processing, and admission.for_processing is false")

    if sop_class_uid not in _SOP_CLASSES and not raw:
        shown = sop_class_uid if usable_uid(sop_class_uid) else "no UID"
        return Refusal(
            "sop_class",
            f"SOP Class UID {shown} is not CR, DX for presentation or Secondary Capture",
        )

    photometric = _text(header, "PhotometricInterpretation")
    if header.get("SamplesPerPixel") not in (1, None) or photometric not in (
        "MONOCHROME1",
        "MONOCHROME2",
        "",
    ):
        # A radiograph is grey; in colour it is somebody's rendering (design, section 1, "Foreign").
        return Refusal(
            "foreign_result", f"colour: PhotometricInterpretation (0028,0004) {_shown(photometric)}"
        )

    if not re.fullmatch(r"|0*[01](\.0*)?", str(header.get("NumberOfFrames") or "").strip()):
        return Refusal("multi_frame", "NumberOfFrames (0028,0008) is not 1")

    return None


def _anatomy(header: Dataset, rules: Rules, _: Callable[[str], bool], notes: list[str]) -> _Check:
    if _species_is_animal(header) or _words(header, _DESCRIPTIONS) & _ANIMALS:
        return Refusal(
            "species", "PatientSpecies, PatientBreed or a description tells of an animal"
        )

    of_series, coded_view = (
        _words(header, _SERIES_DESCRIPTIONS),
        _meaning_words(header, "ViewCodeSequence"),
    )
    described = of_series | _meaning_words(header, "AnatomicRegionSequence")
    if not described and not coded_view and not _stated(header, "ViewPosition"):
        described = _words(header, _STUDY_DESCRIPTIONS)

    if (
        not _stated(header, "BodyPartExamined")
        and described & _OTHER_BODY_PARTS
        and not _is_chest(described)
    ):
        return Refusal(
            "body_part", "BodyPartExamined is absent and a description names another body part"
        )

    view = coded_view if coded_view & (_LATERAL_WORDS | _FRONTAL_WORDS) else of_series
    if not _stated(header, "ViewPosition") and view & _LATERAL_WORDS and not view & _FRONTAL_WORDS:
        return Refusal(
            "view",
            "ViewPosition is absent and the view's code or the series' description says lateral",
        )

    if not _stated(header, "ViewPosition") and _runs_through_the_chest(header):
        return Refusal(
            "view", "ViewPosition is absent and PatientOrientation (0020,0020) is a lateral view's"
        )

    return _one_of(header, "BodyPartExamined", "body_part", rules, notes) or _one_of(
        header, "ViewPosition", "view", rules, notes
    )


def _is_chest(words: set[str]) -> bool:
    return bool(words & (_CHEST_ITSELF if words & _SPINES else _CHEST_WORDS))


def _runs_through_the_chest(header: Dataset) -> bool:
    """Whether rows or columns run mainly from front to back of the patient (PS3.3 C.7.6.1.1.1).

    Seen from the side.
    """
    orientation = header.get("PatientOrientation")
    if orientation is None or isinstance(orientation, str):
        return False
    return any(str(direction).strip().upper()[:1] in ("A", "P") for direction in orientation)


def _species_is_animal(header: Dataset) -> bool:
    species = _text(header, "PatientSpeciesDescription")
    code = _code(header, "PatientSpeciesCodeSequence")
    # SCT, SRT "Homo sapiens"
    if species in ("HOMO SAPIENS", "HUMAN") or code in (
        "337915000",
        "L-85B00",
    ):
        return False
    # A breed alone is an empty field that somebody filled in ("N/A").
    return bool(code) or species not in ("", *_PLACEHOLDERS)


def _meaning_words(header: Dataset, keyword: str) -> set[str]:
    """What a code sequence means, in words.

    In DX it is type 1 where the plain attribute may be absent.
    """
    return {word for item in header.get(keyword) or [] for word in _words(item, ("CodeMeaning",))}


def _words(header: Dataset, keywords: tuple[str, ...]) -> set[str]:
    return {word for keyword in keywords for word in _words_of(_text(header, keyword))}


def _words_of(text: str) -> set[str]:
    """Words without their accents: "TÓRAX" is a thorax, "P.A." a PA."""
    plain = "".join(
        letter
        for letter in unicodedata.normalize("NFKD", text)
        if not unicodedata.combining(letter)
    )
    return set(re.findall(r"[A-Z]+", re.sub(r"\b([AP])[-./]([AP])\b", r"\1\2", plain)))


def _one_of(header: Dataset, keyword: str, reason: str, rules: Rules, notes: list[str]) -> _Check:
    admitted = rules.body_parts if reason == "body_part" else rules.views

    found = _stated(header, keyword)
    if not found:
        if rules.when_absent == "refuse":
            return Refusal(reason, f"{keyword} is absent and when_absent is refuse")
        notes.append(f"{keyword} absent")
        return None

    words = _words_of(found)
    if reason == "body_part" and (words & set(admitted) or _is_chest(words)):
        # "CHEST PA", "LUNG": a chest by another name
        return None

    views = words | {_PROJECTIONS[word] for word in words & _PROJECTIONS.keys()}
    if (
        reason == "view"
        and (views & set(admitted) or "FRONTAL" in words)
        and not words & _LATERAL_WORDS
    ):
        # "AP ERECT", "PORTABLE AP", "POSTERO-ANTERIOR"
        return None

    if found not in admitted:
        return Refusal(reason, f"{keyword} found {_shown(found)}, admitted {_list(admitted)}")

    return None


def _age(header: Dataset, rules: Rules, notes: list[str]) -> _Check:
    age = age_years(header)
    if age is None:
        if rules.when_absent == "refuse":
            return Refusal(
                "age_unknown", "PatientAge is absent or implausible and when_absent is refuse"
            )

        notes.append("PatientAge absent or implausible")
        return None

    if age < rules.minimum_age_years:
        return Refusal(
            "under_age", f"PatientAge is under the minimum of {rules.minimum_age_years} years"
        )

    return None


def age_years(header: Dataset) -> float | None:
    """Years from PatientAge (AS, PS3.5 6.2: nnnD, nnnW, nnnM, nnnY; digits alone are taken as
    years), else from the birth date to the study's or the image's date, also where PatientAge is
    implausible (over 130); None where neither tells."""
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", str(header.get("PatientAge") or "").strip().upper())
    # what a console writes that was told nothing
    if match and match[0] != "000Y":
        years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0, "": 1.0}[match[2]]
        if years <= 130:
            return years

    born = _year(header, "PatientBirthDate")

    for keyword in ("StudyDate", "AcquisitionDate", "SeriesDate", "ContentDate"):
        taken = _year(header, keyword)
        if born is not None and taken is not None:
            return taken - born if 0 <= taken - born <= 130 else None

    return None


def _year(header: Dataset, keyword: str) -> float | None:
    """A date as a year with its fraction; PS3.5 6.2 knows yyyy.mm.dd of old files too."""
    match = re.fullmatch(r"(\d{4})(\.?)(\d\d)\2(\d\d)", str(header.get(keyword) or "").strip())
    return int(match[1]) + (int(match[3]) - 1) / 12 + (int(match[4]) - 1) / 365 if match else None


def usable_uid(value: str) -> bool:
    """Whether a result can name its image by this UID: 1 to 64 digits and dots.

    PS3.5 9.1 also forbids leading zeros in a component; equipment that breaks that rule still has
    patients.
    """
    return re.fullmatch(r"[0-9][0-9.]{0,63}", value) is not None


def _text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    # also text with a backslash in it: "CHEST\\LAT"
    values = value if isinstance(value, MultiValue) else [value]
    return " ".join(each.strip() for each in values if isinstance(each, str)).upper()


def _stated(header: Dataset, keyword: str) -> str:
    """A coded value; "" where it is absent, or there only because something had to be."""
    value = _text(header, keyword)
    return "" if value in _PLACEHOLDERS else value


def _code(item: Dataset, keyword: str) -> str:
    sequence = item.get(keyword) or []
    return str(sequence[0].get("CodeValue", "")) if len(sequence) else ""


def _shown(value: str) -> str:
    """A coded header value in a log.

    Only a term we know, for any other may be a patient's name in the wrong place.
    """
    return value if value in _KNOWN_TERMS else "another value" if value else "nothing"


def _list(values: tuple[str, ...]) -> str:
    return ", ".join(values)
