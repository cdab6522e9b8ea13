"""Words in headers for chest, other regions and views, in the languages of consoles.

Free text and coded values are compared in capitals and without accents.
"""

from __future__ import annotations

import re
import unicodedata

from pydicom import Dataset
from pydicom.multival import MultiValue

ANIMALS = {"CANINE", "FELINE", "EQUINE", "BOVINE", "VETERINARY"}
# Words for the chest or the lungs: English, then in the languages of other consoles.
_CHEST_WORDS = {
    "CHEST", "THORAX", "TORAX", "TORACE", "THORACIC", "LUNG", "LUNGS", "RIBS", "CXR",
    "BRUST", "BRUSTKORB", "LUNGE", "LUNGEN", "POITRINE", "POUMON", "POUMONS", "THORACIQUE",
    "PULMON", "PULMONES", "PECHO", "TORACICA", "TORACICO", "PULMAO", "PULMOES", "PEITO",
    "POLMONE", "POLMONI", "PETTO", "BORST", "BORSTKAS", "LONGEN", "LUNGOR", "LUNGER",
    "KEUHKOT", "HRUDNIK", "PLICE", "MELLKAS", "TUDO", "AKCIGER", "GOGUS", "PLUCA",
}  # fmt: skip
# These name the chest even beside a spine; "THORACIC SPINE" does not.
_CHEST_ITSELF = _CHEST_WORDS - {"THORACIC", "THORACIQUE", "TORACICA", "TORACICO", "RIBS"}
# A word that begins like this names the chest: "CHESTPA", "THORAX2".
_CHEST_BEGINNINGS = ("CHEST", "THORAX", "TORAX", "TORACE")
# For languages without spaces or with inflection: a word that contains one of these names the
# chest.
_CHEST_PARTS = (
    "\u80f8",  # chest: Chinese, Japanese
    "\u80ba",  # lung: Chinese, Japanese
    "\ud749\ubd80",  # chest: Korean
    "\ud3d0",  # lung: Korean
    "\u0413\u0420\u0423\u0414",  # chest: Russian
    "\u041b\u0415\u0413\u041a",  # lungs: Russian
    "\u0398\u03a9\u03a1\u0391",  # thorax: Greek
    "\u0635\u062f\u0631",  # chest: Arabic
    "\u05d7\u05d6\u05d4",  # chest: Hebrew
)
# PS3.16 annex L.
_SPINES = {
    "SPINE", "CSPINE", "CTSPINE", "TSPINE", "TLSPINE", "LSPINE", "LSSPINE", "SSPINE",
    "THORACOLUMBAR",
}  # fmt: skip
# The defined terms of PS3.16 annex L for other regions, and a few other words.
OTHER_BODY_PARTS = {
    *_SPINES,
    "TEETH", "TOOTH", "DENTAL", "SKULL", "ABDOMEN", "PELVIS", "HIP", "KNEE", "ANKLE", "FOOT",
    "HAND", "WRIST", "ELBOW", "SHOULDER", "FEMUR", "TIBIA", "HUMERUS", "EXTREMITY",
    "ABDOMENPELVIS", "ADRENAL", "AORTA", "ARM", "AXILLA", "BACK", "BLADDER", "BRAIN", "BREAST",
    "BUTTOCK", "CALCANEUS", "CALF", "CAROTID", "CHEEK", "CHESTABDOMEN", "CHESTABDPELVIS",
    "CLAVICLE", "COCCYX", "COLON", "DUODENUM", "EAR", "ESOPHAGUS", "EYE", "FIBULA", "FINGER",
    "FOREARM", "HEAD", "HEADNECK", "HEEL", "ILIUM", "JAW", "KIDNEY", "LARYNX", "LEG", "LIVER",
    "LOWERLEG", "MANDIBLE", "MAXILLA", "MOUTH", "NASAL", "NECK", "NOSE", "ORBIT", "PATELLA",
    "PHARYNX", "RADIUS", "RECTUM", "SACRUM", "SCAPULA", "SINUS", "STOMACH", "THIGH", "THUMB",
    "THYROID", "TMJ", "TOE", "ULNA", "UTERUS", "WHOLEBODY", "ZYGOMA",
    "KNIE", "HUFTE", "SCHULTER", "SCHADEL", "BECKEN", "GENOU", "HANCHE", "EPAULE", "CRANE",
    "RODILLA", "CADERA", "HOMBRO", "CRANEO", "JOELHO", "OMBRO", "CRANIO", "GINOCCHIO", "ANCA",
}  # fmt: skip

_LATERAL_WORDS = {
    "LATERAL", "LAT", "LATERALE", "LATEROLATERAL", "SEITLICH", "SEITE", "PROFIL", "PERFIL",
    "PROFILO",
}  # fmt: skip
# Side view: Chinese, Japanese, Korean, Russian.
_LATERAL_PARTS = ("\u4fa7", "\u5074", "\uce21\uba74", "\u0411\u041e\u041a")
PROJECTIONS = {"POSTERO": "PA", "POSTEROANTERIOR": "PA", "ANTERO": "AP", "ANTEROPOSTERIOR": "AP"}
# A lateral decubitus view is frontal.
FRONTAL_WORDS = {*PROJECTIONS, "PA", "AP", "FRONTAL", "DECUBITUS", "FACE", "FRENTE"}
# Other defined terms of View Position (PS3.3 C.8.1.1, C.8.11.5), and the oblique views.
OTHER_VIEWS = {
    "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LPO", "RPO", "LAO", "RAO", "OBLIQUE", "OBL", "CC",
    "MLO", "ML", "LM", "AXIAL", "TANGENTIAL",
}  # fmt: skip

# Consoles write these if no value was entered.
PLACEHOLDERS = ("UNKNOWN", "UNSPECIFIED", "UNDEFINED", "OTHER", "NONE", "N/A", "NA")
# Terms that a log may quote: any other value may be a patient's name in the wrong attribute.
_KNOWN_TERMS = {
    *OTHER_BODY_PARTS,
    *OTHER_VIEWS,
    "AP", "PA",
    "CT", "MR", "US", "NM", "PT", "XA", "RF", "MG", "SC", "OT", "SR", "PR", "SEG", "DX", "CR",
    "IO", "PX", "KO", "DOC",
    "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR", "MONOCHROME1",
    "MONOCHROME2",
}  # fmt: skip


def is_chest(words: set[str]) -> bool:
    """Whether one of these words names the chest, and none names a spine instead."""
    if any(part in word for word in words for part in _CHEST_PARTS):
        return True
    if any(word.startswith(_CHEST_BEGINNINGS) for word in words - OTHER_BODY_PARTS):
        return True
    return bool(words & (_CHEST_ITSELF if words & _SPINES else _CHEST_WORDS))


def is_lateral(words: set[str]) -> bool:
    """Whether one of these words names a side view."""
    is_coded = any(part in word for word in words for part in _LATERAL_PARTS)
    return is_coded or bool(words & _LATERAL_WORDS)


def meaning_words(header: Dataset, keyword: str) -> set[str]:
    """The words of a code sequence's meanings.

    Type 1 in DX, where plain attributes may be absent.
    """
    return {word for item in header.get(keyword) or [] for word in words_in(item, ("CodeMeaning",))}


def words_in(header: Dataset, keywords: tuple[str, ...]) -> set[str]:
    """The words of several attributes."""
    return {word for keyword in keywords for word in words_of(text_of(header, keyword))}


def words_of(text: str) -> set[str]:
    """Words without their accents: "TÓRAX" is a thorax, "P.A." a PA."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    joined = re.sub(r"\b([AP])[-./]([AP])\b", r"\1\2", plain)
    return set(re.findall(r"[^\W\d_]+", joined))


def text_of(header: Dataset, keyword: str) -> str:
    """An attribute's text in capitals, rejoined if a backslash split it: "CHEST\\LAT"."""
    value = header.get(keyword)
    values = value if isinstance(value, MultiValue) else [value]
    return " ".join(part.strip() for part in values if isinstance(part, str)).upper()


def stated_value(header: Dataset, keyword: str) -> str:
    """A coded value; "" if it is absent or a placeholder."""
    value = text_of(header, keyword)
    return "" if value in PLACEHOLDERS else value


def loggable(value: str) -> str:
    """A coded header value for a log: a known term, or "another value"."""
    if value in _KNOWN_TERMS:
        return value
    return "another value" if value else "nothing"
