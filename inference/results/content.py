"""SR content items (PS3.3 C.17.3), one function for each value type, and the codes that our reports speak in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.finding import Laterality
from inference.results.identity import code

Code = tuple[str, str, str]  # value, scheme, meaning

# What is found, where: shared with the SEG.
MORPHOLOGICALLY_ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
PNEUMOTHORAX = ("36118008", "SCT", "Pneumothorax")
LUNG = ("39607008", "SCT", "Lung")
SIDES: dict[Laterality, Code] = {
    "R": ("24028007", "SCT", "Right"),
    "L": ("7771000", "SCT", "Left"),
    "B": ("51440002", "SCT", "Right and left"),
}
ARTIFICIAL_INTELLIGENCE = ("123110", "DCM", "Artificial Intelligence")

# TID 1500, 1001, 1004, 1204: the document and its context
REPORT = ("126000", "DCM", "Imaging Measurement Report")
# For a report that measures nothing: OHIF 3.13 takes the first measurement of every report of the other title, and its
# viewport goes black without one. CID 7021 is a Defined Context Group: it may be extended.
REPORT_WITHOUT_MEASUREMENTS = ("112000", "DCM", "Chest CAD Report")
LANGUAGE = ("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH = ("en", "RFC5646", "English")
OBSERVER_TYPE = ("121005", "DCM", "Observer Type")
DEVICE = ("121007", "DCM", "Device")
DEVICE_UID = ("121012", "DCM", "Device Observer UID")
DEVICE_NAME = ("121013", "DCM", "Device Observer Name")
DEVICE_MANUFACTURER = ("121014", "DCM", "Device Observer Manufacturer")
DEVICE_MODEL = ("121015", "DCM", "Device Observer Model Name")
DEVICE_SERIAL = ("121016", "DCM", "Device Observer Serial Number")
PROCEDURE = ("121058", "DCM", "Procedure reported")
CHEST_XRAY = ("399208008", "SCT", "Plain chest X-ray")
MEASUREMENTS = ("126010", "DCM", "Imaging Measurements")
EVALUATIONS = ("C0034375", "UMLS", "Qualitative Evaluations")
COMMENT = ("121106", "DCM", "Comment")

# TID 1600 to 1603: the image library
LIBRARY = ("111028", "DCM", "Image Library")
LIBRARY_GROUP = ("126200", "DCM", "Image Library Group")
MODALITY = ("121139", "DCM", "Modality")
MODALITIES = {
    "CR": ("CR", "DCM", "Computed Radiography"),
    "DX": ("DX", "DCM", "Digital Radiography"),
}
TARGET_REGION = ("123014", "DCM", "Target Region")
CHEST = ("816094009", "SCT", "Chest")
PIXEL_ROWS = ("110910", "DCM", "Pixel Data Rows")
PIXEL_COLUMNS = ("110911", "DCM", "Pixel Data Columns")
ORIENTATION_ROW = ("111044", "DCM", "Patient Orientation Row")
ORIENTATION_COLUMN = ("111043", "DCM", "Patient Orientation Column")
HORIZONTAL_SPACING = ("111026", "DCM", "Horizontal Pixel Spacing")
VERTICAL_SPACING = ("111066", "DCM", "Vertical Pixel Spacing")

# TID 1410, 1419, 4019: a lesion
GROUP = ("125007", "DCM", "Measurement Group")
TRACKING_ID = ("112039", "DCM", "Tracking Identifier")
TRACKING_UID = ("112040", "DCM", "Tracking Unique Identifier")
FINDING = ("121071", "DCM", "Finding")
FINDING_SITE = ("363698007", "SCT", "Finding Site")
LATERALITY = ("272741003", "SCT", "Laterality")
ALGORITHM = ("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION = ("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS = ("111002", "DCM", "Algorithm Parameters")
SOURCE = ("260753009", "SCT", "Source")
REGION = ("111030", "DCM", "Image Region")
SEGMENTATION_FRAME = ("121214", "DCM", "Referenced Segmentation Frame")
SEGMENTATION_SOURCE = ("121233", "DCM", "Source image for segmentation")
CERTAINTY = ("111012", "DCM", "Certainty of Finding")
AREA = ("131184002", "SCT", "Area of defined region")
DERIVATION = ("121401", "DCM", "Derivation")
ESTIMATED = ("414135002", "SCT", "Estimated")
PRESENT = ("52101004", "SCT", "Present")
ABSENT = ("272519000", "SCT", "Absent")

PERCENT = ("%", "UCUM", "percent")
PIXELS = ("{pixels}", "UCUM", "pixels")
MM2 = ("mm2", "UCUM", "square millimeter")
MM = ("mm", "UCUM", "millimeter")

# Relationships (PS3.3 C.17.3.2.4)
CONTAINS, CONTEXT, MODIFIER = "CONTAINS", "HAS OBS CONTEXT", "HAS CONCEPT MOD"
ACQUISITION, SELECTED = "HAS ACQ CONTEXT", "SELECTED FROM"

Items = Iterable[Dataset]


def container(relation: str, name: Code, items: Items, template: str = "") -> Dataset:
    """A heading over `items`; `template` is the TID it follows, where it is the root of one."""
    item = _item(relation, "CONTAINER", name, items)
    item.ContinuityOfContent = "SEPARATE"
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
    item.ConceptCodeSequence = [code(*value)]
    return item


def number(relation: str, name: Code, value: str, unit: Code, items: Items = ()) -> Dataset:
    """`value` is a decimal string of at most 16 characters."""
    item = _item(relation, "NUM", name, items)
    measured = Dataset()
    measured.MeasurementUnitsCodeSequence = [code(*unit)]
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
    item.GraphicData = graphic_data(line)
    return item


def graphic_data(line: NDArray[np.float64]) -> list[float]:
    """Column and row of each vertex, as SR and presentation state count them.

    The upper left corner of the upper left pixel is 0\\0 and its lower right corner 1\\1, so a pixel's centre lies at
    a half: PS3.3 C.18.6.1.1 for an SR, C.10.5 (annotation units PIXEL) for a presentation state.
    """
    values: list[float] = (
        (line[:, ::-1] + 0.5).astype(np.float32).ravel().tolist()
    )  # FL is single precision
    return values


def _item(relation: str, value_type: str, name: Code | None, items: Items = ()) -> Dataset:
    item = Dataset()
    if relation:  # the root has none
        item.RelationshipType = relation
    item.ValueType = value_type
    if name is not None:
        item.ConceptNameCodeSequence = [code(*name)]
    children = list(items)
    if children:
        item.ContentSequence = children
    return item
