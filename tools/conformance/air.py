"""The table of docs/air.md: which primitive of IHE AI Results stands where in which of our objects."""

from __future__ import annotations

from pydicom.datadict import dictionary_description

from inference.results import KINDS
from tools.conformance import table
from tools.conformance.content import tree
from tools.conformance.objects import flat
from tools.conformance.sources import built

_GROUP = ("Imaging Measurements", "Measurement Group")
# Primitive -> kind of object -> where: concepts in an SR, keywords elsewhere. An empty one is not
# made.
PRIMITIVES: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "qualitative finding": {
        "SR": ((*_GROUP, "Finding"), (*_GROUP, "Pneumothorax"), ("Qualitative Evaluations", "Pneumothorax")),
    },
    "measurement": {"SR": ((*_GROUP, "Area of defined region"), (*_GROUP, "Certainty of Finding"))},
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
        kind: (("ContributingEquipmentSequence", "DeviceUID"),) for kind in KINDS if kind != "SR"
    }
    | {"SR": (("Device Observer UID",), (*_GROUP, "Algorithm Name"), (*_GROUP, "Algorithm Version"))},
}  # fmt: skip


def primitives() -> list[str]:
    """Each primitive with its places; each place is looked up in a positive's objects.

    Raises:
        LookupError: an object has no such place.
    """
    rows = []

    for primitive, objects in PRIMITIVES.items():
        for kind, paths in objects.items() or ((None, ()),):
            rows.append(
                (
                    primitive,
                    kind or "not made",
                    "; ".join(_place(kind, path) for path in paths if kind),
                )
            )

    return table(("primitive", "object", "where"), rows)


def _place(kind: str | None, path: tuple[str, ...]) -> str:
    dataset = built("base")[kind or ""]
    if kind == "SR":
        there = {
            tuple(concept.strip("()").split(", ", 2)[-1] for concept in each)
            for each, _, _ in tree(dataset)
        }
        words = path
    else:
        there = {each for each, _, _ in flat(dataset)}
        words = tuple(map(dictionary_description, path))
    if path not in there:
        raise LookupError(f"{kind} has no {' > '.join(path)}")
    return " > ".join(words)
