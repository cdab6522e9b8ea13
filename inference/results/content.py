"""SR content items (PS3.3 C.17.3): one function for each value type."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.as_sent import as_bytes
from inference.results.codes import Code
from inference.results.identity import add_code, add_term

# Relationships (PS3.3 C.17.3.2.4)
CONTAINS, CONTEXT, MODIFIER = "CONTAINS", "HAS OBS CONTEXT", "HAS CONCEPT MOD"
ACQUISITION, SELECTED = "HAS ACQ CONTEXT", "SELECTED FROM"

Items = Iterable[Dataset]


def container(relation: str, name: Code, items: Items, template: str = "") -> Dataset:
    """A heading over `items`; `template` is the TID of which it is the root, if any."""
    item = _item(relation, "CONTAINER", name, items)
    add_term(item, "ContinuityOfContent", "SEPARATE")
    if template:
        identification = Dataset()
        identification.MappingResource = "DCMR"
        identification.TemplateIdentifier = template
        item.ContentTemplateSequence = [identification]
    return item


def text(relation: str, name: Code, value: str) -> Dataset:
    item = _item(relation, "TEXT", name)
    item.TextValue = value
    return item


def coded(relation: str, name: Code, value: Code, items: Items = ()) -> Dataset:
    item = _item(relation, "CODE", name, items)
    add_code(item, "ConceptCodeSequence", value)
    return item


def number(relation: str, name: Code, value: str, unit: Code, items: Items = ()) -> Dataset:
    """`value` is a decimal string of at most 16 characters."""
    item = _item(relation, "NUM", name, items)
    measured = Dataset()
    add_code(measured, "MeasurementUnitsCodeSequence", unit)
    measured.NumericValue = value
    item.MeasuredValueSequence = [measured]
    return item


def uid(relation: str, name: Code, value: str) -> Dataset:
    item = _item(relation, "UIDREF", name)
    item.UID = value
    return item


def image(relation: str, name: Code | None, referenced: Dataset, items: Items = ()) -> Dataset:
    """`referenced` is an item of ReferencedSOPSequence."""
    item = _item(relation, "IMAGE", name, items)
    item.ReferencedSOPSequence = [referenced]
    return item


def polyline(relation: str, name: Code, line: NDArray[np.float64], items: Items) -> Dataset:
    """A closed line, (n, 2) of (row, column) with pixel centres at whole numbers."""
    item = _item(relation, "SCOORD", name, items)
    item.GraphicType = "POLYLINE"
    add_graphic_data(item, line)
    return item


def add_graphic_data(item: Dataset, line: NDArray[np.float64]) -> None:
    """Add column and row of each vertex, as SR and presentation state count them.

    The upper left corner of the upper left pixel is 0\\0 and its lower right corner 1\\1, so a
    pixel's centre lies at a half: PS3.3 C.18.6.1.1 for an SR, C.10.5 (annotation units PIXEL) for a
    presentation state.
    """
    # FL is single precision.
    element = as_bytes("GraphicData", (line[:, ::-1] + 0.5).astype("<f4").tobytes())
    item[element.tag] = element


def _item(relation: str, value_type: str, name: Code | None, items: Items = ()) -> Dataset:
    item = Dataset()
    # The root has no relationship.
    if relation:
        add_term(item, "RelationshipType", relation)
    add_term(item, "ValueType", value_type)
    if name is not None:
        add_code(item, "ConceptNameCodeSequence", name)

    children = list(items)
    if children:
        item.ContentSequence = children
    return item
