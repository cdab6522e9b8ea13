"""The table of docs/air.md: where our objects hold the primitives of IHE AI Results."""

from __future__ import annotations

from pydicom.datadict import dictionary_description

from inference.results import KINDS
from tools.conformance import table
from tools.conformance.content import tree
from tools.conformance.objects import flat
from tools.conformance.sources import built

_GROUP = ("Imaging Measurements", "Measurement Group")
# Primitive -> kind of object -> its places: paths of concepts in an SR, of keywords elsewhere. A
# primitive without places is not made.
PRIMITIVES: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "qualitative finding": {
        "SR": (
            (*_GROUP, "Finding"),
            (*_GROUP, "Pneumothorax"),
            ("Qualitative Evaluations", "Pneumothorax"),
        ),
    },
    "measurement": {
        "SR": ((*_GROUP, "Area of defined region"), (*_GROUP, "Certainty of Finding")),
    },
    "location (a point)": {},
    "region": {
        "SR": ((*_GROUP, "Image Region"), (*_GROUP, "Referenced Segmentation Frame")),
        "SEG": (("SegmentSequence",), ("PixelData",)),
    },
    "parametric map": {},
    "tracking identifier": {
        "SR": ((*_GROUP, "Tracking Identifier"), (*_GROUP, "Tracking Unique Identifier")),
        "SEG": (("SegmentSequence", "TrackingID"), ("SegmentSequence", "TrackingUID")),
    },
    "image reference": {
        "SR": ((*_GROUP, "Image Region", "Source"), (*_GROUP, "Source image for segmentation")),
        "SEG": (
            ("SourceImageSequence", "ReferencedSOPInstanceUID"),
            ("PerFrameFunctionalGroupsSequence", "DerivationImageSequence", "SourceImageSequence"),
        ),
    },
    "key images (a Key Object Selection)": {},
    "which algorithm (6.5.3.1)": {
        **{
            kind: (("ContributingEquipmentSequence", "DeviceUID"),)
            for kind in KINDS
            if kind != "SR"
        },
        "SR": (
            ("Device Observer UID",),
            (*_GROUP, "Algorithm Name"),
            (*_GROUP, "Algorithm Version"),
        ),
    },
}


def primitives() -> list[str]:
    """Each primitive with its places; each place is looked up in a positive's objects.

    Raises:
        LookupError: an object has no such place.
    """
    rows = []

    for primitive, objects in PRIMITIVES.items():
        if not objects:
            rows.append((primitive, "not made", ""))
        for kind, paths in objects.items():
            rows.append((primitive, kind, "; ".join(_place(kind, path) for path in paths)))

    return table(("primitive", "object", "where"), rows)


def _place(kind: str, path: tuple[str, ...]) -> str:
    """A path in words. Raises LookupError if the object of this kind has no such path."""
    dataset = built("base")[kind]

    if kind == "SR":
        words = path
        present = {tuple(map(_meaning, concepts)) for concepts, _, _ in tree(dataset)}
    else:
        words = tuple(map(dictionary_description, path))
        present = {keywords for keywords, _, _ in flat(dataset)}

    if path not in present:
        raise LookupError(f"{kind} has no {' > '.join(path)}")
    return " > ".join(words)


def _meaning(code: str) -> str:
    """The meaning in a code as `code_text` writes it."""
    return code.strip("()").split(", ", 2)[-1]
