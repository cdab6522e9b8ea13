"""Admission: which images are analysed, and the reason given for each image that is not."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
)

from inference.admission import REASONS, Exclusion, Rules, judge
from inference.age import age_years

# The rules must accept values that violate their VR, about which pydicom warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*nvalid value for VR:UserWarning")


def chest(**changes: Any) -> Dataset:
    header = Dataset()
    values = {
        "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": "1.2.3",
        "StudyInstanceUID": "1.2.4",
        "SeriesInstanceUID": "1.2.5",
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientAge": "060Y",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
    }

    for keyword, value in (values | changes).items():
        if value is not None:
            setattr(header, keyword, value)
    return header


def reason(header: Dataset, rules: Rules | None = None) -> str | None:
    verdict = judge(header, rules or Rules(), lambda uid: uid == "9.9")
    return verdict.reason if isinstance(verdict, Exclusion) else None


def item(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


OURS = item(
    PurposeOfReferenceCodeSequence=[item(CodeValue="109102")],
    Manufacturer="Pleura",
    DeviceUID="2.25.1",
)
SCANNER = item(
    PurposeOfReferenceCodeSequence=[item(CodeValue="109102")],
    Manufacturer="Scanner AG",
    DeviceUID="1.2",
)

GREYS = b"\0\1" * 8
PALETTE = {
    "PhotometricInterpretation": "PALETTE COLOR",
    "RedPaletteColorLookupTableData": GREYS,
    "GreenPaletteColorLookupTableData": GREYS,
    "BluePaletteColorLookupTableData": GREYS,
}

LATERAL, FRONTAL = item(CodeMeaning="left lateral"), item(CodeMeaning="postero-anterior")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, None),
        # The standard requires DERIVED of a lossy copy of a real radiograph.
        ({"ImageType": ["DERIVED", "PRIMARY"]}, None),
        ({"ContributingEquipmentSequence": [SCANNER]}, None),
        ({"BodyPartExamined": None, "ViewPosition": None, "PatientAge": None}, None),
        ({"BodyPartExamined": " chest "}, None),
        ({"PatientAge": "152Y"}, None),
        ({"SeriesDescription": "THORAX LATERAL DECUBITUS", "ViewPosition": None}, None),
        ({"StudyDescription": "CHEST PA AND LATERAL", "ViewPosition": None}, None),
        ({"StudyDescription": "CHEST AND SHOULDER", "BodyPartExamined": None}, None),
        ({"BodyPartExamined": "CHEST PA"}, None),
        ({"BodyPartExamined": "LUNG"}, None),
        ({"BodyPartExamined": None, "StudyDescription": "RX TORAX Y ABDOMEN"}, None),
        ({"PatientSpeciesDescription": "Unknown", "PatientBreedDescription": "N/A"}, None),
        ({"PatientAge": "000Y"}, None),
        ({"ViewPosition": None, "ViewCodeSequence": [item(CodeMeaning="postero-anterior")]}, None),
        ({"ViewPosition": None, "ViewCodeSequence": [item(CodeMeaning="left lateral")]}, "view"),
        (
            {
                "ViewPosition": None,
                "ViewCodeSequence": [LATERAL],
                "SeriesDescription": "CHEST PA/LAT",
            },
            "view",
        ),
        (
            {"ViewPosition": None, "ViewCodeSequence": [FRONTAL], "SeriesDescription": "CHEST LAT"},
            None,
        ),
        ({"ViewPosition": None, "SeriesDescription": "CHEST PA/LAT"}, None),
        (
            {"BodyPartExamined": None, "AnatomicRegionSequence": [item(CodeMeaning="Knee")]},
            "body_part",
        ),
        ({"SOPInstanceUID": "9.9"}, "own_output"),
        ({"ContributingEquipmentSequence": [OURS]}, "own_output"),
        ({"SegmentSequence": [item()]}, "foreign_result"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "foreign_result"),
        ({"StudyInstanceUID": None}, "no_identity"),
        ({"SOPInstanceUID": "ID_abc"}, "no_identity"),
        ({"Modality": "CT"}, "modality"),
        ({"Modality": None}, "modality"),
        ({"SOPClassUID": CTImageStorage}, "sop_class"),
        ({"SOPClassUID": DigitalXRayImageStorageForProcessing}, "for_processing"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"PresentationIntentType": "FOR PRESENTATION"}, None),
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"NumberOfFrames": 1}, None),
        (
            {
                "SOPClassUID": MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
                "NumberOfFrames": 1,
            },
            None,
        ),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "foreign_result"),
        (PALETTE | {"BluePaletteColorLookupTableData": bytes(16)}, "foreign_result"),
        (PALETTE | {"SamplesPerPixel": 3}, "foreign_result"),
        # A grey palette: a radiograph that the decoder cannot read.
        (PALETTE, None),
        ({"ViewPosition": "AP ERECT"}, None),
        ({"ViewPosition": "PORTABLE AP"}, None),
        ({"ViewPosition": "AP LATERAL"}, "view"),
        ({"ViewPosition": "FRONTAL"}, None),
        ({"ViewPosition": "POSTERO-ANTERIOR"}, None),
        ({"ViewPosition": "ANTEROPOSTERIOR"}, None),
        ({"ViewPosition": "P.A."}, None),
        # A backslash splits the value into several values.
        ({"ViewPosition": ["PA", "LAT"]}, "view"),
        ({"ViewPosition": "UNKNOWN"}, None),
        ({"ViewPosition": "UNKNOWN", "SeriesDescription": "CHEST LAT"}, "view"),
        ({"ViewPosition": None, "SeriesDescription": ["CHEST", "LAT"]}, "view"),
        ({"ViewPosition": None, "SeriesDescription": "Thorax seitlich"}, "view"),
        ({"ViewPosition": None, "SeriesDescription": "THORAX PROFIL"}, "view"),
        ({"ViewPosition": None, "SeriesDescription": "THORAX FACE ET PROFIL"}, None),
        ({"BodyPartExamined": "T\u00d3RAX"}, None),
        ({"BodyPartExamined": "OTHER"}, None),
        ({"BodyPartExamined": ["CHEST", "ABDOMEN"]}, None),
        ({"BodyPartExamined": ["HIP", "KNEE"]}, "body_part"),
        ({"BodyPartExamined": "UNKNOWN", "SeriesDescription": "LEFT KNEE"}, "body_part"),
        ({"ViewPosition": None, "PatientOrientation": ["A", "F"]}, "view"),
        ({"ViewPosition": None, "PatientOrientation": ["PL", "F"]}, "view"),
        ({"ViewPosition": None, "PatientOrientation": ["L", "F"]}, None),
        # Words for the patient's position are not directions. They must not exclude a frontal
        # chest.
        ({"ViewPosition": None, "PatientOrientation": ["AP", "ERECT"]}, None),
        ({"ViewPosition": None, "PatientOrientation": ["PORTRAIT", "F"]}, None),
        ({"ViewPosition": None, "PatientOrientation": ["PA", "F"]}, None),
        # The coded view position outweighs the patient orientation.
        ({"ViewPosition": "PA", "PatientOrientation": ["A", "F"]}, None),
        ({"BodyPartExamined": "HIP"}, "body_part"),
        (
            {"BodyPartExamined": None, "ViewPosition": None, "StudyDescription": "LEFT KNEE"},
            "body_part",
        ),
        # A study holds several images, so the image's own view and descriptions outweigh the study
        # description.
        ({"BodyPartExamined": None, "StudyDescription": "HIP FRACTURE PREOP"}, None),
        (
            {"BodyPartExamined": None, "PerformedProcedureStepDescription": "HIP FRACTURE PREOP"},
            None,
        ),
        (
            {
                "BodyPartExamined": None,
                "ViewPosition": None,
                "SeriesDescription": "CHEST",
                "StudyDescription": "HIP FRACTURE PREOP",
            },
            None,
        ),
        (
            {
                "BodyPartExamined": None,
                "SeriesDescription": "HIP AP",
                "StudyDescription": "CHEST AND HIP",
            },
            "body_part",
        ),
        ({"BodyPartExamined": "THORACIC SPINE"}, "body_part"),
        ({"BodyPartExamined": "TSPINE"}, "body_part"),
        ({"BodyPartExamined": "LSPINE"}, "body_part"),
        ({"BodyPartExamined": "CHEST SPINE"}, None),
        ({"BodyPartExamined": "THORACIC"}, None),
        ({"BodyPartExamined": None, "SeriesDescription": "THORACIC SPINE AP"}, "body_part"),
        ({"BodyPartExamined": None, "SeriesDescription": "T-SPINE AP"}, "body_part"),
        ({"BodyPartExamined": None, "SeriesDescription": "CSPINE AP"}, "body_part"),
        ({"BodyPartExamined": None, "SeriesDescription": "CHEST AND THORACIC SPINE AP"}, None),
        (
            {
                "BodyPartExamined": None,
                "ViewPosition": None,
                "StudyDescription": "THORACIC SPINE 2 VIEWS",
            },
            "body_part",
        ),
        ({"ViewPosition": "LL"}, "view"),
        ({"ViewPosition": None, "SeriesDescription": "chest lat"}, "view"),
        ({"PatientSpeciesDescription": "Canis lupus familiaris"}, "species"),
        ({"PatientSpeciesDescription": "Homo sapiens"}, None),
        ({"ProtocolName": "CANINE THORAX"}, "species"),
        ({"PatientAge": "017Y"}, "under_age"),
        (
            {"PatientAge": "152Y", "PatientBirthDate": "20150101", "StudyDate": "20200101"},
            "under_age",
        ),
        ({"PatientAge": "011M"}, "under_age"),
        ({"PatientAge": "5"}, "under_age"),
        ({"PatientAge": "017Y", "BodyPartExamined": "HIP"}, "body_part"),
    ],
)
def test_admission_decides_which_image_is_analysed(
    changes: dict[str, Any], wanted: str | None
) -> None:
    assert reason(chest(**changes)) == wanted
    assert wanted is None or wanted in REASONS


def test_the_ledger_is_not_asked_about_a_uid_that_no_result_can_have() -> None:
    def ask(uid: str) -> bool:
        # PostgreSQL's text type cannot hold NUL.
        raise AssertionError(f"asked about {uid!r}")

    for uid in ("1.2.3\x004.5", "1.2\\1.3", "", "x" * 99):
        judge(chest(SOPInstanceUID=uid), Rules(), ask)


def test_a_strict_site_refuses_images_with_absent_attributes() -> None:
    strict = Rules(when_absent="refuse")
    assert reason(chest(), strict) is None
    assert reason(chest(BodyPartExamined=None), strict) == "body_part"
    assert reason(chest(ViewPosition=None), strict) == "view"
    assert reason(chest(PatientAge=None), strict) == "age_unknown"


def test_raw_images_are_analysed_when_the_settings_allow_it() -> None:
    wanting = Rules(for_processing=True)
    assert (
        reason(chest(SOPClassUID=DigitalXRayImageStorageForProcessing, Modality="DX"), wanting)
        is None
    )
    assert reason(chest(PresentationIntentType="FOR PROCESSING"), wanting) is None
    assert reason(chest(SOPClassUID=CTImageStorage), wanting) == "sop_class"


def test_absent_attributes_are_noted() -> None:
    verdict = judge(chest(ViewPosition=None, PatientAge="999Y"), Rules(), lambda _: False)
    assert verdict == ("ViewPosition absent", "PatientAge absent or implausible")


@pytest.mark.parametrize(
    ("changes", "years"),
    [
        ({"PatientAge": "018Y"}, 18),
        ({"PatientAge": "024M"}, 2),
        ({"PatientAge": "62"}, 62),
        ({"PatientAge": "413Y"}, None),
        ({"PatientAge": "152Y", "PatientBirthDate": "20150101", "StudyDate": "20200101"}, 5),
        ({"PatientAge": None, "PatientBirthDate": "20000101", "StudyDate": "20200101"}, 20),
        ({"PatientAge": None, "PatientBirthDate": "20300101", "StudyDate": "20200101"}, None),
        ({"PatientAge": None, "PatientBirthDate": "20150101", "AcquisitionDate": "20200101"}, 5),
        ({"PatientAge": None, "PatientBirthDate": "2015.01.01", "StudyDate": "20200101"}, 5),
    ],
)
def test_age_comes_from_the_age_or_the_dates(changes: dict[str, Any], years: float | None) -> None:
    assert age_years(chest(**changes)) == years


@pytest.mark.parametrize(
    ("age", "born", "wanted"),
    [
        ("064Y", "20210101", "age_unknown"),
        ("018Y", "20080101", "age_unknown"),
        ("018Y", "20060601", None),
        ("003Y", "19600101", "under_age"),
        # A placeholder of an unknown patient.
        ("064Y", "19000101", None),
        ("064Y", "18500101", None),
        ("064Y", "20240302", None),
        ("064Y", "", None),
    ],
)
def test_an_adults_age_with_a_childs_birth_date_is_not_known(
    age: str, born: str, wanted: str | None
) -> None:
    header = chest(PatientAge=age, PatientBirthDate=born, StudyDate="20240301")
    verdict = judge(header, Rules(), lambda _: False)
    assert (verdict.reason if isinstance(verdict, Exclusion) else None) == wanted

    everyone = Rules(minimum_age_years=0)
    assert not isinstance(judge(header, everyone, lambda _: False), Exclusion)


@pytest.mark.parametrize(
    "keyword",
    [
        "Modality",
        "BodyPartExamined",
        "ViewPosition",
        "StudyDescription",
        "PatientSpeciesDescription",
    ],
)
def test_a_refusal_never_quotes_free_text(keyword: str) -> None:
    changes = {"BodyPartExamined": None, "ViewPosition": None, keyword: "Jane Doe KNEE"}
    verdict = judge(chest(**changes), Rules(), lambda _: False)
    assert isinstance(verdict, Exclusion)
    assert "jane" not in str(verdict).lower()
