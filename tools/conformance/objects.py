"""The tables of created objects: every attribute of what is built from varied sources, and what it
follows.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from highdicom._standard_utils import (
    get_iod_module_map,
    get_module_attribute_map,
    get_sop_class_iod_map,
)
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_description, tag_for_keyword

from inference.results.kinds import KINDS
from tools.conformance import table
from tools.conformance.sources import CHANGES, objects, sources

# Keywords, or concepts, from the outside in.
Path = tuple[str, ...]
# The values at each path, of all items that have it, in order.
Values = Mapping[Path, tuple[Any, ...]]
# Characters of a fixed value that is shown.
_LONGEST = 70
CONTENT = "ContentSequence"
_OF_CODES = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")


@dataclass(frozen=True)
class Attribute:
    """An attribute, at its place, in all objects of a kind."""

    path: Path
    vr: str
    presence: str
    value: str

    @property
    def tag(self) -> str:
        """Group and element, as the standard writes them."""
        tag = tag_for_keyword(self.path[-1])
        assert tag is not None
        return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


# ---- what an attribute follows


def follows(values: Mapping[str, tuple[Any, ...]], copied: Callable[[str, str], str]) -> str:
    """Of what the values are: fixed, copied (`copied` says of what, "" for nothing), or made from
    what.
    """
    shown = {name: text for name, items in values.items() if (text := _shown(items))}
    changed = _changed(shown)

    if changed == ["source"] and "base" in shown:
        copy = copied("base", shown["base"])
        if copy and copied("source", shown.get("source", "")) == copy:
            bare = shown.get("bare", "")
            if bare and copied("bare", bare) != copy:
                return f"{copy}, else {_without_source(bare)}"
            return copy

    different = dict.fromkeys(shown.values())
    if changed and not all(text.startswith("(") and len(text) <= _LONGEST for text in different):
        return f"AUTO ({', '.join(changed)})"
    return " or ".join(map(_brief, different))


def _changed(shown: Mapping[str, str]) -> list[str]:
    """The things whose change changes the value, of those in CHANGES."""
    # A value that a single source has follows what is special about that source.
    if len(shown) == 1 and "base" not in shown:
        return [CHANGES[name][1] for name in shown]

    pairs = {name: change for name, change in CHANGES.items() if {name, change[0]} <= {*shown}}
    changed = (thing for name, (other, thing) in pairs.items() if shown[name] != shown[other])
    return list(dict.fromkeys(changed))


def _without_source(value: str) -> str:
    """What stands in place of a copy where the source has nothing to copy."""
    return "AUTO" if value.startswith("2.25.") else _brief(value)


def presence(values: Mapping[str, tuple[Any, ...]], names: Iterable[str]) -> str:
    """PS3.2's words: ALWAYS, VNAP (the value not always), ANAP (the attribute not always) or EMPTY,
    among the sources of these names.
    """
    sources_asked = list(names)
    filled = [_filled(values[name]) for name in sources_asked if name in values]

    if not any(filled):
        return "EMPTY"
    if len(filled) < len(sources_asked):
        return "ANAP"
    return "ALWAYS" if all(filled) else "VNAP"


def _filled(values: tuple[Any, ...]) -> bool:
    return any(value not in ("", None, 0) or value == "0" for value in values)


def _shown(values: tuple[Any, ...]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _brief(text: str) -> str:
    if not text:
        return ""
    return f"`{text}`" if len(text) <= _LONGEST else "fixed"


def _text(element: DataElement) -> str:
    if isinstance(element.value, bytes):
        return hashlib.sha256(element.value).hexdigest() if element.value else ""
    if element.VR == "SQ":
        return "; ".join(code_text(item) for item in element.value)
    if element.is_empty:
        return ""

    values = element.value if element.VM > 1 else [element.value]
    return "\\".join(f"{value:.6g}" if type(value) is float else str(value) for value in values)


def code_text(item: Dataset) -> str:
    """An item of a code sequence."""
    return f"({item.CodeValue}, {item.CodingSchemeDesignator}, {item.CodeMeaning})"


def _is_coded(element: DataElement) -> bool:
    return element.VR == "SQ" and len(element.value) > 0 and "CodeValue" in element.value[0]


# ---- attributes


def flat(dataset: Dataset, at: Path = ()) -> Iterator[tuple[Path, str, Any]]:
    """(path, VR, value) of each element at any depth; a code is one value; an SR's content is left
    out.
    """
    for element in dataset:
        if element.tag.is_private:
            raise AssertionError(f"{element.tag} is private")

        path = (*at, element.keyword)
        if element.VR != "SQ":
            yield path, element.VR, _text(element)
            continue

        yield path, "SQ", _text(element) if _is_coded(element) else len(element.value)
        for item in element.value if element.keyword != CONTENT else ():
            yield from (row for row in flat(item, path) if row[0][-1] not in _OF_CODES)


def gathered(rows: Iterable[tuple[Path, str, Any]]) -> Values:
    """The values at each path, of all items together."""
    values: dict[Path, tuple[Any, ...]] = {}
    for path, _, value in rows:
        values[path] = (*values.get(path, ()), value)
    return values


@cache
def attributes(kind: str) -> tuple[Attribute, ...]:
    """Every attribute of an object of this kind, in the order of tags."""
    by_source = {name: gathered(flat(dataset)) for name, dataset in objects(kind).items()}
    vrs = {path: vr for dataset in objects(kind).values() for path, vr, _ in flat(dataset)}
    by_tag = []

    for path in sorted(vrs, key=_tags):
        values = {name: items[path] for name, items in by_source.items() if path in items}
        # Of the objects that have an item around it.
        around = [
            name
            for name, items in by_source.items()
            if len(path) == 1 or _filled(items.get(path[:-1], ()))
        ]

        all_values = set(itertools.chain.from_iterable(values.values()))
        if vrs[path] == "SQ" and all(isinstance(value, int) for value in all_values):
            origin = _items_in_words(path, all_values)
        else:
            origin = follows(values, partial(copy_of, keyword=path[-1]))
        by_tag.append(Attribute(path, vrs[path], presence(values, around), origin))

    return tuple(by_tag)


def _tags(path: Path) -> list[int]:
    """The order of attributes in an object."""
    return [tag_for_keyword(keyword) or 0 for keyword in path]


def _items_in_words(path: Path, counts: set[int]) -> str:
    """The items of a sequence that is no code, by all counts that occur."""
    if path[-1] == CONTENT:
        return "its content is below"
    if counts == {0}:
        return "no item"
    return "1 item" if counts == {1} else "1 item or more"


def copy_of(source: str, value: str, keyword: str) -> str:
    """COPY where the source's attribute of that name has the value; else COPY and the attribute
    that alone has it; else nothing.
    """
    header = sources()[source].header
    if keyword in header and _text(header[keyword]) == value:
        return "COPY"
    same = [
        element.keyword
        for element in header
        if element.VR != "SQ" and value and _text(element) == value
    ]
    return f"COPY of {dictionary_description(same[0])}" if len(same) == 1 else ""


@cache
def _common() -> tuple[Attribute, ...]:
    first, *others = (set(attributes(kind)) for kind in KINDS)
    shared = first.intersection(*others)
    return tuple(attribute for attribute in attributes("SEG") if attribute in shared)


def _attribute_table(listed: Iterable[Attribute]) -> list[str]:
    """A row for all attributes that are alike at one place: the page is for reading."""
    alike: dict[tuple[object, ...], list[Attribute]] = {}
    for attribute in listed:
        place = attribute.path if attribute.vr == "SQ" else attribute.path[:-1]
        key = (place, attribute.presence, attribute.value)
        alike.setdefault(key, []).append(attribute)

    rows = []
    for group in sorted(alike.values(), key=lambda group: _tags(group[0].path)):
        first = group[0]
        names = ", ".join(map(_in_words, group))
        rows.append((">" * (len(first.path) - 1) + names, first.presence, first.value))

    return table(("attribute, tag, VR", "presence", "value"), rows)


def _in_words(attribute: Attribute) -> str:
    return f"{dictionary_description(attribute.path[-1])} {attribute.tag} {attribute.vr}"


def common() -> list[str]:
    """The table of the attributes that all kinds of object have alike."""
    return _attribute_table(_common())


def own(kind: str) -> Callable[[], list[str]]:
    """The table of what an object of this kind has beside what all have."""

    def rows() -> list[str]:
        of_this_kind = [attribute for attribute in attributes(kind) if attribute not in _common()]
        return _attribute_table(_brief_references(of_this_kind))

    return rows


def _brief_references(listed: Sequence[Attribute]) -> Iterator[Attribute]:
    """The same with the two UIDs of each reference to the source image told at its sequence."""
    by_path = {attribute.path: attribute.value for attribute in listed}
    to_source = {
        path[:-1]
        for path, value in by_path.items()
        if path[-1] == "ReferencedSOPInstanceUID" and value == "COPY of SOP Instance UID"
        if by_path[*path[:-1], "ReferencedSOPClassUID"] == "COPY of SOP Class UID"
    }

    uids = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
    for attribute in listed:
        *around, keyword = attribute.path
        if attribute.path in to_source:
            yield replace(attribute, value=f"{attribute.value}: the source image")
        elif tuple(around) not in to_source or keyword not in uids:
            yield attribute


# ---- modules


def modules() -> list[str]:
    """Which modules of the IODs (PS3.3 Annex A) are there, each with its usage."""
    rows = []
    for kind in KINDS:
        listed = get_iod_module_map()[get_sop_class_iod_map()[str(KINDS[kind].sop_class_uid)]]
        present = [module for module in listed if _is_present(kind, module["key"], module["usage"])]
        words = [f"{module['key'].replace('-', ' ')} {module['usage']}" for module in present]
        rows.append((kind, ", ".join(words)))

    return table(("kind", "modules: mandatory (M), conditional (C), user option (U)"), rows)


def _is_present(kind: str, module: str, usage: str) -> bool:
    """Whether an object of this kind has the attributes by which a module is known."""
    top = _top_keywords(kind)
    listed = [entry for entry in get_module_attribute_map()[module] if not entry["path"]]
    required = {entry["keyword"] for entry in listed if entry["type"] in ("1", "2")}

    if required and usage != "M":
        return required <= top
    return any(entry["keyword"] in top for entry in listed)


def _top_keywords(kind: str) -> set[str]:
    """The attributes of an object of this kind that lie in no sequence."""
    return {attribute.path[0] for attribute in attributes(kind) if len(attribute.path) == 1}


def extensions(kind: str) -> list[str]:
    """The keywords of attributes outside the IOD, in the order of tags.

    With any, the SOP class is a Standard Extended SOP class (PS3.2 3.11).
    """
    iod = get_sop_class_iod_map()[str(KINDS[kind].sop_class_uid)]
    known = {
        entry["keyword"]
        for module in get_iod_module_map()[iod]
        for entry in get_module_attribute_map()[module["key"]]
        if not entry["path"]
    }
    return sorted(_top_keywords(kind) - known, key=lambda keyword: tag_for_keyword(keyword) or 0)


# Sources by the answer that they stand for.
_ANSWERS = {
    "base": "positive",
    "no region": "positive without a region",
    "negative": "not detected",
    "refused": "not analysed, failed",
}


def classes() -> list[str]:
    """The kinds of object, each with its SOP class and the answers that it is made for."""
    rows = []
    for name, kind in KINDS.items():
        beyond = ", ".join(extensions(name))
        answers = [answer for source, answer in _ANSWERS.items() if source in objects(name)]
        row = (
            name,
            kind.sop_class_uid.name,
            kind.modality,
            kind.transfer_syntax_uid.name,
            f"Standard Extended: {beyond}" if beyond else "Standard",
            ", ".join(answers),
        )
        rows.append(row)

    heads = ("kind", "SOP class", "Modality", "transfer syntax", "conformance", "made for")
    return table(heads, rows)
