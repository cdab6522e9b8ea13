"""The tables of an SR's content items, and of the codes of all objects."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.sr.codedict import codes

from inference.results import KINDS
from tools.conformance import table
from tools.conformance.objects import (
    CONTENT,
    Path,
    Values,
    code_text,
    copy_of,
    follows,
    gathered,
    presence,
)
from tools.conformance.sources import objects


def tree(dataset: Dataset, at: Path = ()) -> Iterator[tuple[Path, str, Any]]:
    """(concepts from the outside in, relationship and value type, value) of each content item below
    the root.
    """
    for item in dataset.get(CONTENT) or []:
        names = item.get("ConceptNameCodeSequence")
        path = (*at, code_text(names[0]) if names else "(no name)")
        yield path, f"{item.RelationshipType}|{item.ValueType}", _value(item)
        yield from tree(item, path)


def _value(item: Dataset) -> str:
    if item.ValueType == "CODE":
        return code_text(item.ConceptCodeSequence[0])
    if item.ValueType == "NUM":
        measured = item.MeasuredValueSequence[0]
        return f"{measured.NumericValue} {code_text(measured.MeasurementUnitsCodeSequence[0])}"
    if item.ValueType == "SCOORD":
        return f"{item.GraphicType} {list(item.GraphicData)}"
    if item.ValueType == "IMAGE":
        return str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    if item.ValueType == "CONTAINER":
        template = item.get("ContentTemplateSequence")
        return f"TID {template[0].TemplateIdentifier}" if template else ""
    return str(item.get("TextValue", item.get("UID", "")))


def content_tree() -> list[str]:
    """Each content item of the reports, with its presence and the origin of its value."""
    reports = objects("SR")
    by_source = {name: gathered(tree(dataset)) for name, dataset in reports.items()}
    kinds = {path: kind for name in ("base", *by_source) for path, kind, _ in tree(reports[name])}
    rows = []

    for path in _in_order(by_source):
        values = {name: items[path] for name, items in by_source.items() if path in items}
        relation, value_type = kinds[path].split("|")
        origin = follows(values, lambda source, value: copy_of(source, value, ""))
        if value_type == "NUM" and origin.startswith("AUTO"):
            origin += f", in {', '.join(_units(values))}"

        # Presence counts only the reports that have the parent item.
        around = [name for name, items in by_source.items() if not path[:-1] or path[:-1] in items]
        items_there = {name: tuple("there" for _ in items) for name, items in values.items()}
        here = presence(items_there, around)

        rows.append((f"{'>' * (len(path) - 1)}{path[-1]}", relation, value_type, here, origin))

    return table(("concept", "relationship", "type", "presence", "value"), rows)


def _units(values: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The codes of units in numeric values; a unit follows its number."""
    texts = itertools.chain.from_iterable(values.values())
    return sorted({text[text.index("(") :] for text in texts})


def _in_order(by_source: Mapping[str, Values]) -> list[Path]:
    """Every path, each after its parent's path, in the order of the fullest report."""
    paths: dict[Path, None] = {}
    for items in by_source.values():
        paths |= dict.fromkeys(items)

    def below(around: Path) -> Iterator[Path]:
        for path in [path for path in paths if path[:-1] == around]:
            yield path
            yield from below(path)

    return list(below(()))


# ---- codes

# The place of a code (an attribute, or the concept whose value it is), and the context groups that
# the standard names for it.
_GROUPS = {
    "ConceptNameCodeSequence": (7021,),
    "PurposeOfReferenceCodeSequence": (7005, 7202),
    "SegmentedPropertyCategoryCodeSequence": (7150,),
    "SegmentedPropertyTypeCodeSequence": (7151,),
    "AnatomicRegionSequence": (4,),
    "AnatomicRegionModifierSequence": (2, 244),
    "AlgorithmFamilyCodeSequence": (7162,),
    "DerivationCodeSequence": (7203,),
    "MeasurementUnitsCodeSequence": (7181,),
    "Observer Type": (270,),
    "Procedure reported": (100,),
    "Modality": (29,),
    "Target Region": (4031,),
    "Derivation": (7464,),
    "Laterality": (244,),
}


@cache
def coded() -> dict[str, dict[str, set[str]]]:
    """Code -> its place -> kinds of object. Without the names of SR content items."""
    places: dict[str, dict[str, set[str]]] = {}
    for kind in KINDS:
        for dataset in objects(kind).values():
            for place, code in _codes(dataset):
                places.setdefault(code, {}).setdefault(place, set()).add(kind)
    return places


def _codes(dataset: Dataset, in_content: bool = False) -> Iterator[tuple[str, str]]:
    """(place, code) of each code at any depth."""
    for element in dataset:
        if element.VR != "SQ" or (in_content and element.keyword == "ConceptNameCodeSequence"):
            continue

        place = element.keyword
        if place == "ConceptCodeSequence":
            place = str(dataset.ConceptNameCodeSequence[0].CodeMeaning)

        for item in element.value:
            if "CodeValue" in item:
                yield place, code_text(item)
            yield from _codes(item, in_content or element.keyword == CONTENT)


def code_table() -> list[str]:
    """Each code in the order of schemes, with its kinds of object, places and context groups."""
    rows = []
    for code in sorted(coded(), key=lambda code: (code.split(", ")[1], code)):
        places = coded()[code]
        used = set().union(*places.values())
        kinds = ", ".join(kind for kind in KINDS if kind in used)
        where = sorted({_words(place) for place in places})
        rows.append((code, kinds, "; ".join(where), _group(code, places)))

    return table(("code", "in", "as", "context group"), rows)


def _words(place: str) -> str:
    tag = tag_for_keyword(place)
    return dictionary_description(tag) if tag and place != "Modality" else place


def _group(code: str, places: Iterable[str]) -> str:
    """The context groups of these places that contain the code; else those that lack it."""
    asked = sorted({group for place in places for group in _GROUPS.get(place, ())})
    value, scheme, _ = code.strip("()").split(", ", 2)
    holding = [group for group in asked if (value, scheme) in _members(group)]

    if holding:
        return ", ".join(f"CID {group}" for group in holding)
    return f"not in CID {', '.join(map(str, asked))}" if asked else ""


@cache
def _members(group: int) -> frozenset[tuple[str, str]]:
    collection = getattr(codes, f"cid{group}")
    concepts = collection.concepts.values()
    return frozenset((concept.value, concept.scheme_designator) for concept in concepts)
