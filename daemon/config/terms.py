"""DICOM's defined terms for the attributes that `admission` compares, and a check against them.

A typo here would exclude every image in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection


def _terms(text: str) -> frozenset[str]:
    return frozenset(text.split())


# PS3.3 C.7.3.1.1.1, Modality: terms of images and of derived objects.
MODALITIES = _terms(
    """
    ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC
    HD IO IOL IVOCT IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA
    PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN
    RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC
    """
)

# The modalities under which plain radiographs travel. OT: films that were scanned.
RADIOGRAPHIC = frozenset({"CR", "DX", "RF", "RG", "XA", "OT"})

# PS3.16 Annex L, Body Part Examined: the terms that X-ray systems send.
BODY_PARTS = _terms(
    """
    ABDOMEN ABDOMENPELVIS ACJOINT ADRENAL ANKLE ANUS AORTA ARM AXILLA BACK BLADDER BODY BRAIN BREAST
    BRONCHUS BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN
    CHESTABDPELVIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DIAPHRAGM DUODENUM EAR
    ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD
    HEADNECK HEART HIP HUMERUS ILEUM ILIUM IAC JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE
    LSSPINE LUMEN LUNG MANDIBLE MASTOID MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN
    NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PLEURA PROSTATE
    RADIUS RADIUSULNA RECTUM RIB SACRUM SCALP SCAPULA SCLERA SCROTUM SELLA SHOULDER SIJOINT SINUS
    SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH THORAX THUMB THYMUS THYROID
    TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA URETER URETHRA UTERUS VAGINA VULVA
    WHOLEBODY WRIST ZYGOMA
    """
)

# What consoles write for a chest beside the defined terms.
CHEST_WORDS = frozenset({"TORAX", "TORACE", "CXR", "LUNGS", "RIBS", "LUNGE", "POUMON", "PULMON"})

# PS3.3 C.8.1.1 and C.8.7.5, View Position, split by what the networks can read.
FRONTAL_VIEWS = frozenset({"AP", "PA", "RLD", "LLD"})
OTHER_VIEWS = {
    "LL": "a left lateral view",
    "RL": "a right lateral view",
    "RLO": "a right oblique view",
    "LLO": "a left oblique view",
}

# Below this likeness (difflib) a word counts as a site's own word, not as a typo.
_TYPO_LIKENESS = 0.7


def closest(word: str, known: Collection[str], likeness: float = _TYPO_LIKENESS) -> str | None:
    """The known word that `word` is most like, or None where it is like none of them."""
    matches = difflib.get_close_matches(word, sorted(known), n=1, cutoff=likeness)
    return matches[0] if matches else None


def check_modality(term: str) -> str:
    """The term, if radiographs travel under it.

    Raises:
        ValueError: an unknown modality, or one without radiographs.
    """
    if term in RADIOGRAPHIC:
        return term

    allowed = ", ".join(sorted(RADIOGRAPHIC))
    if term in MODALITIES:
        raise ValueError(f"a modality of radiographs: {allowed}; {term} images are never analysed")
    raise ValueError(f"a defined term of Modality (PS3.3 C.7.3.1.1.1) of radiographs: {allowed}")


def check_body_part(term: str) -> str:
    """The term, unless it looks like a typo of a defined term.

    A word that resembles no defined term is a site's own word, which headers may really hold.

    Raises:
        ValueError: a likely typo.
    """
    if term in BODY_PARTS or term in CHEST_WORDS:
        return term

    meant = closest(term, BODY_PARTS | CHEST_WORDS)
    if meant:
        raise ValueError(
            f"a defined term of Body Part Examined (PS3.16 Annex L); did you mean {meant}?"
        )
    return term


def check_view(term: str) -> str:
    """The term, if it is a frontal view.

    Raises:
        ValueError: another view, or an unknown term.
    """
    if term in FRONTAL_VIEWS:
        return term

    allowed = ", ".join(sorted(FRONTAL_VIEWS))
    if term in OTHER_VIEWS:
        raise ValueError(
            f"frontal views: {allowed}; {term} is {OTHER_VIEWS[term]}, which the networks never see"
        )
    raise ValueError(f"a defined term of View Position for frontal views: {allowed}")


def doubtful_body_parts(terms: Collection[str]) -> list[str]:
    """Admitted body parts under which no chest X-ray is expected, for `pleura doctor` to report."""
    chest = {"CHEST", "THORAX", "LUNG", "RIB", "PLEURA", "MEDIASTINUM", "STERNUM", "HEART"}
    combined = {part for part in BODY_PARTS if "CHEST" in part}
    return [term for term in terms if term not in chest | combined | CHEST_WORDS]
