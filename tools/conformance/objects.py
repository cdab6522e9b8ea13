"""The tables of created objects: every attribute of objects built from varied sources, and the
origin of its value.
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

# Keywords or concepts, from the outermost to the innermost.
Path = tuple[str, ...]
# The values at each path, in order, of all items that have the path.
Values = Mapping[Path, tuple[Any, ...]]
# The most characters of a fixed value that the table shows.
_LONGEST = 70
CONTENT = "ContentSequence"
_OF_CODES = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")


@dataclass(frozen=True)
class Attribute:
    """An attribute at one place in all objects of a kind."""

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


# ---- the origin of a value


def follows(values: Mapping[str, tuple[Any, ...]], copied: Callable[[str, str], str]) -> str:
    """The origin of the values: fixed, copied, or derived from what.

    `copied(source, value)` returns the copied attribute, or "" if the value is not a copy.
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
    """The things in CHANGES whose change changes the value."""
    # A value that only one source has depends on what is special about that source.
    if len(shown) == 1 and "base" not in shown:
        return [CHANGES[name][1] for name in shown]

    pairs = {name: change for name, change in CHANGES.items() if {name, change[0]} <= {*shown}}
    changed = (thing for name, (other, thing) in pairs.items() if shown[name] != shown[other])
    return list(dict.fromkeys(changed))


def _without_source(value: str) -> str:
    """The value in place of a copy if the source has nothing to copy."""
    return "AUTO" if value.startswith("2.25.") else _brief(value)


def presence(values: Mapping[str, tuple[Any, ...]], names: Iterable[str]) -> str:
    """The presence in PS3.2's terms among the sources of these names.

    One of ALWAYS, VNAP (the value may be absent), ANAP (the attribute may be absent) and EMPTY.
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
    """(path, VR, value) of each element at any depth, without an SR's content.

    A code is one value.
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
        # Presence counts only the objects that have the enclosing item.
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
    """The sort key that puts attributes in the order of an object."""
    return [tag_for_keyword(keyword) or 0 for keyword in path]


def _items_in_words(path: Path, counts: set[int]) -> str:
    """The number of items of a sequence that is not a code, from all counts that occur."""
    if path[-1] == CONTENT:
        return "its content is below"
    if counts == {0}:
        return "no item"
    return "1 item" if counts == {1} else "1 item or more"


def copy_of(source: str, value: str, keyword: str) -> str:
    """ "COPY" if the source's attribute of that name has the value; "COPY of" an attribute if it is
    the only one with the value; else "".
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
    """The table, in which attributes at one place with the same presence and value share a row."""
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
    """The table of the attributes that are the same in all kinds of object."""
    return _attribute_table(_common())


def own(kind: str) -> Callable[[], list[str]]:
    """The table of the attributes of an object of this kind that not all kinds have."""

    def rows() -> list[str]:
        of_this_kind = [attribute for attribute in attributes(kind) if attribute not in _common()]
        return _attribute_table(_brief_references(of_this_kind))

    return rows


def _brief_references(listed: Sequence[Attribute]) -> Iterator[Attribute]:
    """The same, but a reference to the source image is one row, not a sequence and two UIDs."""
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
    """The modules of each IOD (PS3.3 Annex A) that its objects have, with their usage."""
    rows = []
    for kind in KINDS:
        listed = get_iod_module_map()[get_sop_class_iod_map()[str(KINDS[kind].sop_class_uid)]]
        present = [module for module in listed if _is_present(kind, module["key"], module["usage"])]
        words = [f"{module['key'].replace('-', ' ')} {module['usage']}" for module in present]
        rows.append((kind, ", ".join(words)))

    return table(("kind", "modules: mandatory (M), conditional (C), user option (U)"), rows)


def _is_present(kind: str, module: str, usage: str) -> bool:
    """True if an object of this kind has the attributes that identify a module."""
    top = _top_keywords(kind)
    listed = [entry for entry in get_module_attribute_map()[module] if not entry["path"]]
    required = {entry["keyword"] for entry in listed if entry["type"] in ("1", "2")}

    if required and usage != "M":
        return required <= top
    return any(entry["keyword"] in top for entry in listed)


def _top_keywords(kind: str) -> set[str]:
    """The attributes of an object of this kind that are not in a sequence."""
    return {attribute.path[0] for attribute in attributes(kind) if len(attribute.path) == 1}


def extensions(kind: str) -> list[str]:
    """The keywords of attributes outside the IOD, in the order of tags.

    If there are any, the SOP class is a Standard Extended SOP class (PS3.2 3.11).
    """
    iod = get_sop_class_iod_map()[str(KINDS[kind].sop_class_uid)]
    known = {
        entry["keyword"]
        for module in get_iod_module_map()[iod]
        for entry in get_module_attribute_map()[module["key"]]
        if not entry["path"]
    }
    return sorted(_top_keywords(kind) - known, key=lambda keyword: tag_for_keyword(keyword) or 0)


# Source -> the answer that it represents.
_ANSWERS = {
    "base": "positive",
    "no region": "positive without a region",
    "negative": "not detected",
    "refused": "not analysed, failed",
}


def classes() -> list[str]:
    """The kinds of object, each with its SOP class and the answers for which it is made."""
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
