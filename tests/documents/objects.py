"""The tables of created objects: every attribute of what is built from varied sources, and what it follows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from inference.results import ENCODERS, gate
from tests.documents import table
from tests.documents.sources import CHANGES, objects, sources

Path = tuple[str, ...]  # keywords, or concepts, from the outside in
Values = Mapping[Path, tuple[Any, ...]]  # of all items that have it, in order
_LONGEST = 70  # of a fixed value that is shown
_CONTENT = "ContentSequence"
_OF_CODES = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")


@dataclass(frozen=True)
class Attribute:
    """One attribute, at its place, in all objects of a kind."""

    path: Path
    vr: str
    presence: str
    value: str

    @property
    def tag(self) -> str:
        tag = tag_for_keyword(self.path[-1])
        assert tag is not None
        return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


# ---- what an attribute follows


def follows(values: Mapping[str, tuple[Any, ...]], copied: Callable[[str, str], str]) -> str:
    """Of what the values are: fixed, copied (`copied` says of what, "" for nothing), or made from what."""
    shown = {name: text for name, each in values.items() if (text := _shown(each))}
    pairs = [(name, *CHANGES[name]) for name in CHANGES if name in shown and CHANGES[name][0] in shown]
    changed = dict.fromkeys(what for name, other, what in pairs if shown[name] != shown[other])
    found = copied("base", shown["base"]) if [*changed] == ["source"] and "base" in shown else ""
    if found and copied("source", shown.get("source", "")) == found:
        if shown.get("bare", "") and copied("bare", shown["bare"]) != found:
            return f"{found}, else {'AUTO' if shown['bare'].startswith('2.25.') else _brief(shown['bare'])}"
        return found
    return f"AUTO ({', '.join(changed)})" if changed else " or ".join(map(_brief, dict.fromkeys(shown.values())))


def presence(values: Mapping[str, tuple[Any, ...]], names: Iterable[str]) -> str:
    """PS3.2's words: ALWAYS, VNAP (the value not always), ANAP (the attribute not always), EMPTY."""
    there = [values[name] for name in names if name in values]
    if not any(_filled(each) for each in there):
        return "EMPTY"
    if len(there) < len(list(names)):
        return "ANAP"
    return "ALWAYS" if all(_filled(each) for each in there) else "VNAP"


def _filled(values: tuple[Any, ...]) -> bool:
    return any(value not in ("", None, 0) or value == "0" for value in values)


def _shown(values: tuple[Any, ...]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _brief(text: str) -> str:
    return f"`{text}`" if 0 < len(text) <= _LONGEST else "fixed" if text else ""


def _text(element: DataElement) -> str:
    if isinstance(element.value, bytes):
        return hashlib.sha256(element.value).hexdigest() if element.value else ""
    if element.VR == "SQ":
        return "; ".join(_code(item) for item in element.value)
    values = [] if element.is_empty else element.value if element.VM > 1 else [element.value]
    return "\\".join(f"{value:.6g}" if type(value) is float else str(value) for value in values)


def _code(item: Dataset) -> str:
    return f"({item.CodeValue}, {item.CodingSchemeDesignator}, {item.CodeMeaning})"


def _is_coded(element: DataElement) -> bool:
    return element.VR == "SQ" and len(element.value) > 0 and "CodeValue" in element.value[0]


# ---- attributes


def flat(dataset: Dataset, at: Path = ()) -> Iterator[tuple[Path, str, Any]]:
    """(path, VR, value) of each element at any depth; a code is one value; an SR's content is left out."""
    for element in dataset:
        if element.tag.is_private:
            raise AssertionError(f"{element.tag} is private")
        path = (*at, element.keyword)
        if element.VR != "SQ":
            yield path, element.VR, _text(element)
            continue
        yield path, "SQ", _text(element) if _is_coded(element) else len(element.value)
        for item in element.value if element.keyword != _CONTENT else ():
            yield from (row for row in flat(item, path) if row[0][-1] not in _OF_CODES)


def _gathered(rows: Iterable[tuple[Path, str, Any]]) -> Values:
    found: dict[Path, tuple[Any, ...]] = {}
    for path, _, value in rows:
        found[path] = (*found.get(path, ()), value)
    return found


@cache
def attributes(kind: str) -> tuple[Attribute, ...]:
    """Every attribute of an object of this kind, in the order of tags."""
    by_source = {name: _gathered(flat(dataset)) for name, dataset in objects(kind).items()}
    vrs = {path: vr for dataset in objects(kind).values() for path, vr, _ in flat(dataset)}
    found = []
    for path in sorted(vrs, key=lambda path: [tag_for_keyword(keyword) or 0 for keyword in path]):
        values = {name: each[path] for name, each in by_source.items() if path in each}
        around = [name for name, each in by_source.items() if len(path) == 1 or _filled(each.get(path[:-1], ()))]
        if vrs[path] == "SQ" and all(isinstance(one, int) for each in values.values() for one in each):
            counts = {one for each in values.values() for one in each}
            said = "no item" if counts == {0} else "1 item" if counts == {1} else "1 item or more"
            said = "its content is below" if path[-1] == _CONTENT else said
        else:
            said = follows(values, lambda source, value, path=path: _copy(source, value, path[-1]))  # type: ignore[misc]
        found.append(Attribute(path, vrs[path], presence(values, around), said))
    return tuple(found)


def _copy(source: str, value: str, keyword: str) -> str:
    """COPY where the source's attribute of that name has the value; else of which attribute it is one."""
    header = sources()[source].header
    if keyword in header and _text(header[keyword]) == value:
        return "COPY"
    same = [element.keyword for element in header if element.VR != "SQ" and value and _text(element) == value]
    return f"COPY of {dictionary_description(same[0])}" if len(same) == 1 else ""


@cache
def _common() -> tuple[Attribute, ...]:
    first, *others = (set(attributes(kind)) for kind in ENCODERS)
    shared = first.intersection(*others)
    return tuple(one for one in attributes("SEG") if one in shared)


def _attribute_table(found: Iterable[Attribute]) -> list[str]:
    """A row for each attribute, and one for all that are alike at one place: the page is for reading."""
    alike: dict[tuple[object, ...], list[Attribute]] = {}
    for one in found:
        is_sequence = one.vr == "SQ"
        alike.setdefault((one.path[: None if is_sequence else -1], one.vr, one.presence, one.value), []).append(one)
    rows = []
    for group in sorted(alike.values(), key=lambda group: [tag_for_keyword(keyword) or 0 for keyword in group[0].path]):
        names = ", ".join(f"{dictionary_description(one.path[-1])} {one.tag}" for one in group)
        rows.append((">" * (len(group[0].path) - 1) + names, group[0].vr, group[0].presence, group[0].value))
    return table(("attribute", "VR", "presence", "value"), rows)


def common() -> list[str]:
    return _attribute_table(_common())


def own(kind: str) -> Callable[[], list[str]]:
    """The table of what an object of this kind has beside what all have."""

    def rows() -> list[str]:
        return _attribute_table(_brief_references([one for one in attributes(kind) if one not in _common()]))

    return rows


def _brief_references(found: Sequence[Attribute]) -> Iterator[Attribute]:
    """The same with the two UIDs of each reference to the source image said at its sequence."""
    by_path = {one.path: one.value for one in found}
    to_source = {
        path[:-1]
        for path, value in by_path.items()
        if path[-1] == "ReferencedSOPInstanceUID" and value == "COPY of SOP Instance UID"
        if by_path[*path[:-1], "ReferencedSOPClassUID"] == "COPY of SOP Class UID"
    }
    for one in found:
        if one.path in to_source:
            yield replace(one, value=f"{one.value}: the source image")
        elif one.path[:-1] not in to_source or one.path[-1] not in (
            "ReferencedSOPClassUID",
            "ReferencedSOPInstanceUID",
        ):
            yield one


# ---- modules


def modules() -> list[str]:
    """Which modules of the IODs (PS3.3 Annex A) are there, each with its usage."""
    rows = []
    for kind in ENCODERS:
        listed = get_iod_module_map()[get_sop_class_iod_map()[str(gate.SOP_CLASSES[kind])]]
        there = [module for module in listed if _is_present(kind, module["key"], module["usage"])]
        rows.append((kind, ", ".join(f"{module['key'].replace('-', ' ')} {module['usage']}" for module in there)))
    return table(("kind", "modules: mandatory (M), conditional (C), user option (U)"), rows)


def _is_present(kind: str, module: str, usage: str) -> bool:
    top = {one.path[0] for one in attributes(kind) if len(one.path) == 1}
    listed = [each for each in get_module_attribute_map()[module] if not each["path"]]
    required = {each["keyword"] for each in listed if each["type"] in ("1", "2")}
    if required and usage != "M":
        return required <= top
    return any(each["keyword"] in top for each in listed)


def extensions(kind: str) -> list[str]:
    """The keywords of attributes outside the IOD: with any, the SOP class is a Standard Extended one (PS3.2 3.11)."""
    iod = get_sop_class_iod_map()[str(gate.SOP_CLASSES[kind])]
    known = {
        each["keyword"]
        for module in get_iod_module_map()[iod]
        for each in get_module_attribute_map()[module["key"]]
        if not each["path"]
    }
    return [one.path[0] for one in attributes(kind) if len(one.path) == 1 and one.path[0] not in known]


def classes() -> list[str]:
    rows = []
    for kind, encoder in ENCODERS.items():
        beyond = ", ".join(extensions(kind))
        rows.append(
            (
                kind,
                UID(gate.SOP_CLASSES[kind]).name,
                gate.MODALITIES[kind],
                encoder.transfer_syntax_uid.name,
                f"Standard Extended: {beyond}" if beyond else "Standard",
                ", ".join(name for name in ("base", "no region", "negative", "refused") if name in objects(kind)),
            )
        )
    words = {"base": "positive", "no region": "positive without a region", "negative": "not detected"}
    words["refused"] = "not analysed, failed"
    said = [(*row[:-1], ", ".join(words[name] for name in row[-1].split(", "))) for row in rows]
    return table(("kind", "SOP class", "Modality", "transfer syntax", "conformance", "made for"), said)


# ---- the SR's content


def tree(dataset: Dataset, at: Path = ()) -> Iterator[tuple[Path, str, Any]]:
    """(concepts from the outside in, relationship and value type, value) of each content item below the root."""
    for item in dataset.get(_CONTENT) or []:
        names = item.get("ConceptNameCodeSequence")
        path = (*at, _code(names[0]) if names else "(no name)")
        yield path, f"{item.RelationshipType}|{item.ValueType}", _value(item)
        yield from tree(item, path)


def _value(item: Dataset) -> str:
    if item.ValueType == "CODE":
        return _code(item.ConceptCodeSequence[0])
    if item.ValueType == "NUM":
        measured = item.MeasuredValueSequence[0]
        return f"{measured.NumericValue} {_code(measured.MeasurementUnitsCodeSequence[0])}"
    if item.ValueType == "SCOORD":
        return f"{item.GraphicType} {list(item.GraphicData)}"
    if item.ValueType == "IMAGE":
        return str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    if item.ValueType == "CONTAINER":
        template = item.get("ContentTemplateSequence")
        return f"TID {template[0].TemplateIdentifier}" if template else ""
    return str(item.get("TextValue", item.get("UID", "")))


def content_tree() -> list[str]:
    by_source = {name: _gathered(tree(dataset)) for name, dataset in objects("SR").items()}
    kinds = {path: kind for name in ("base", *by_source) for path, kind, _ in tree(objects("SR")[name])}
    rows = []
    for path in _in_order(by_source):
        values = {name: each[path] for name, each in by_source.items() if path in each}
        around = [name for name, each in by_source.items() if len(path) == 1 or path[:-1] in each]
        relation, value_type = kinds[path].split("|")
        said = follows(values, lambda source, value: _copy(source, value, ""))
        if value_type == "NUM" and said.startswith("AUTO"):
            units = {one[one.index("(") :] for each in values.values() for one in each}
            said += f", in {', '.join(sorted(units))}"
        here = presence({name: tuple("there" for _ in each) for name, each in values.items()}, around)
        rows.append((f"{'>' * (len(path) - 1)}{path[-1]}", relation, value_type, here, said))
    return table(("concept", "relationship", "type", "presence", "value"), rows)


def _in_order(by_source: Mapping[str, Values]) -> list[Path]:
    """Every path, each below the one around it, as the fullest report has them."""
    paths: dict[Path, None] = {}
    for each in by_source.values():
        paths |= dict.fromkeys(each)

    def below(at: Path) -> Iterator[Path]:
        for path in [one for one in paths if one[:-1] == at]:
            yield path
            yield from below(path)

    return list(below(()))


# ---- codes

# Where a code stands (an attribute, or the concept whose value it is) and the context groups that the standard names.
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
    """Code -> place where it stands -> kinds, over all objects. Names of SR content items are not among them."""
    found: dict[str, dict[str, set[str]]] = {}
    for kind in ENCODERS:
        for dataset in objects(kind).values():
            for place, code in _codes(dataset):
                found.setdefault(code, {}).setdefault(place, set()).add(kind)
    return found


def _codes(dataset: Dataset, in_content: bool = False) -> Iterator[tuple[str, str]]:
    for element in dataset:
        if element.VR != "SQ" or (in_content and element.keyword == "ConceptNameCodeSequence"):
            continue
        place = element.keyword
        if place == "ConceptCodeSequence":
            place = str(dataset.ConceptNameCodeSequence[0].CodeMeaning)
        for item in element.value:
            if "CodeValue" in item:
                yield place, _code(item)
            yield from _codes(item, in_content or element.keyword == _CONTENT)


def code_table() -> list[str]:
    rows = []
    for code, places in sorted(coded().items(), key=lambda each: (each[0].split(", ")[1], each[0])):
        kinds = ", ".join(kind for kind in ENCODERS if any(kind in each for each in places.values()))
        where = sorted({_words(place) for place in places})
        rows.append((code, kinds, "; ".join(where), _group(code, places)))
    return table(("code", "in", "as", "context group"), rows)


def _words(place: str) -> str:
    tag = tag_for_keyword(place)
    return dictionary_description(tag) if tag and place != "Modality" else place


def _group(code: str, places: Iterable[str]) -> str:
    """The groups asked for at these places that hold the code, and those that it extends."""
    asked = sorted({group for place in places for group in _GROUPS.get(place, ())})
    value, scheme, _ = code.strip("()").split(", ", 2)
    holding = [group for group in asked if (value, scheme) in _members(group)]
    if holding:
        return ", ".join(f"CID {group}" for group in holding)
    return f"not in CID {', '.join(map(str, asked))}" if asked else ""


@cache
def _members(group: int) -> frozenset[tuple[str, str]]:
    collection = getattr(codes, f"cid{group}")
    return frozenset((one.value, one.scheme_designator) for one in collection.concepts.values())
