"""The tables of created objects: every attribute of what is built from varied sources, and what it
follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
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

Path = tuple[str, ...]  # keywords, or concepts, from the outside in
Values = Mapping[Path, tuple[Any, ...]]  # of all items that have it, in order
_LONGEST = 70  # of a fixed value that is shown
CONTENT = "ContentSequence"
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
    """Of what the values are: fixed, copied (`copied` says of what, "" for nothing), or made from
    what.
    """
    shown = {name: text for name, each in values.items() if (text := _shown(each))}

    pairs = [
        (name, *CHANGES[name]) for name in CHANGES if name in shown and CHANGES[name][0] in shown
    ]
    changed = dict.fromkeys(what for name, other, what in pairs if shown[name] != shown[other])
    found = copied("base", shown["base"]) if [*changed] == ["source"] and "base" in shown else ""

    if found and copied("source", shown.get("source", "")) == found:
        if shown.get("bare", "") and copied("bare", shown["bare"]) != found:
            return f"{found}, else {'AUTO' if shown['bare'].startswith('2.25.') else _brief(shown['bare'])}"
        return found

    if len(shown) == 1 and not {"base"} & {*shown}:
        changed = dict.fromkeys(CHANGES[name][1] for name in shown)

    different = dict.fromkeys(shown.values())
    if changed and not all(text.startswith("(") and len(text) <= _LONGEST for text in different):
        return f"AUTO ({', '.join(changed)})"
    return " or ".join(map(_brief, different))


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
        return "; ".join(code_text(item) for item in element.value)
    values = [] if element.is_empty else element.value if element.VM > 1 else [element.value]
    return "\\".join(f"{value:.6g}" if type(value) is float else str(value) for value in values)


def code_text(item: Dataset) -> str:
    """One item of a code sequence."""
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
    found: dict[Path, tuple[Any, ...]] = {}
    for path, _, value in rows:
        found[path] = (*found.get(path, ()), value)
    return found


@cache
def attributes(kind: str) -> tuple[Attribute, ...]:
    """Every attribute of an object of this kind, in the order of tags."""
    by_source = {name: gathered(flat(dataset)) for name, dataset in objects(kind).items()}
    vrs = {path: vr for dataset in objects(kind).values() for path, vr, _ in flat(dataset)}
    found = []

    for path in sorted(vrs, key=lambda path: [tag_for_keyword(keyword) or 0 for keyword in path]):
        values = {name: each[path] for name, each in by_source.items() if path in each}
        around = [
            name
            for name, each in by_source.items()
            if len(path) == 1 or _filled(each.get(path[:-1], ()))
        ]

        if vrs[path] == "SQ" and all(
            isinstance(one, int) for each in values.values() for one in each
        ):
            counts = {one for each in values.values() for one in each}
            said = "no item" if counts == {0} else "1 item" if counts == {1} else "1 item or more"
            said = "its content is below" if path[-1] == CONTENT else said
        else:
            said = follows(
                values, lambda source, value, path=path: copy_of(source, value, path[-1])
            )  # type: ignore[misc]

        found.append(Attribute(path, vrs[path], presence(values, around), said))

    return tuple(found)


def copy_of(source: str, value: str, keyword: str) -> str:
    """COPY where the source's attribute of that name has the value; else of which attribute it is
    one.
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
    return tuple(one for one in attributes("SEG") if one in shared)


def _attribute_table(found: Iterable[Attribute]) -> list[str]:
    """A row for each attribute, and one for all that are alike at one place: the page is for
    reading.
    """
    alike: dict[tuple[object, ...], list[Attribute]] = {}
    for one in found:
        place = one.path if one.vr == "SQ" else one.path[:-1]
        alike.setdefault((place, one.presence, one.value), []).append(one)

    rows = []
    for group in sorted(
        alike.values(),
        key=lambda group: [tag_for_keyword(keyword) or 0 for keyword in group[0].path],
    ):
        names = ", ".join(
            f"{dictionary_description(one.path[-1])} {one.tag} {one.vr}" for one in group
        )
        rows.append((">" * (len(group[0].path) - 1) + names, group[0].presence, group[0].value))

    return table(("attribute, tag, VR", "presence", "value"), rows)


def common() -> list[str]:
    return _attribute_table(_common())


def own(kind: str) -> Callable[[], list[str]]:
    """The table of what an object of this kind has beside what all have."""

    def rows() -> list[str]:
        return _attribute_table(
            _brief_references([one for one in attributes(kind) if one not in _common()])
        )

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
    for kind in KINDS:
        listed = get_iod_module_map()[get_sop_class_iod_map()[str(KINDS[kind].sop_class_uid)]]
        there = [module for module in listed if _is_present(kind, module["key"], module["usage"])]

        rows.append(
            (
                kind,
                ", ".join(
                    f"{module['key'].replace('-', ' ')} {module['usage']}" for module in there
                ),
            )
        )

    return table(("kind", "modules: mandatory (M), conditional (C), user option (U)"), rows)


def _is_present(kind: str, module: str, usage: str) -> bool:
    top = {one.path[0] for one in attributes(kind) if len(one.path) == 1}
    listed = [each for each in get_module_attribute_map()[module] if not each["path"]]
    required = {each["keyword"] for each in listed if each["type"] in ("1", "2")}
    if required and usage != "M":
        return required <= top
    return any(each["keyword"] in top for each in listed)


def extensions(kind: str) -> list[str]:
    """The keywords of attributes outside the IOD: with any, the SOP class is a Standard Extended
    one (PS3.2 3.11).
    """
    iod = get_sop_class_iod_map()[str(KINDS[kind].sop_class_uid)]
    known = {
        each["keyword"]
        for module in get_iod_module_map()[iod]
        for each in get_module_attribute_map()[module["key"]]
        if not each["path"]
    }
    return [
        one.path[0] for one in attributes(kind) if len(one.path) == 1 and one.path[0] not in known
    ]


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
