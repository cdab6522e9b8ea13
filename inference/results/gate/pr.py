"""The gate's rules for a presentation state: the contours, and the image displayed as it was."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from pydicom import Dataset
from pydicom.valuerep import DSfloat

from inference import display
from inference.results.case import Case
from inference.results.gate import common, grey
from inference.results.gate.contours import all_contours
from inference.results.gate.expected import Expected, Rule
from inference.results.gate.header import element_of, has_usable, singles, values_of
from inference.results.gate.words import graphic_text
from inference.results.limits import DISPLAY_COLOUR_CIELAB, GRAPHIC_LAYER, RESCALE_TYPES, SHUTTERS
from inference.results.wording import LAYER_DESCRIPTION

# The groups in which attributes change what is shown: shutters, pixels and LUTs, graphics,
# overlays.
SHOWN_GROUPS = (0x0018, 0x0028, 0x0070, 0x2050, *range(0x6000, 0x6020, 2))
SHUTTER_KEYWORDS = ("ShutterShape", *(keyword for each in SHUTTERS.values() for keyword in each))
SHOWN_KEYWORDS = {
    *SHUTTER_KEYWORDS, "ShutterPresentationValue", "ModalityLUTSequence", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "SoftcopyVOILUTSequence", "PresentationLUTShape",
    "ContentLabel", "ContentDescription", "ContentCreatorName", "PresentationCreationDate",
    "PresentationCreationTime", "DisplayedAreaSelectionSequence", "GraphicLayerSequence",
    "GraphicAnnotationSequence", "BodyPartExamined", "DeviceSerialNumber", "SoftwareVersions",
    "ContributingEquipmentSequence",
}  # fmt: skip

# The text stands in the lower left corner of the displayed area, off the lungs.
TEXT_BOX = {
    "BoundingBoxAnnotationUnits": "DISPLAY",
    "BoundingBoxTopLeftHandCorner": [0.01, 0.94],
    "BoundingBoxBottomRightHandCorner": [0.6, 0.99],
    "BoundingBoxTextHorizontalJustification": "LEFT",
}
LAYER = {
    "GraphicLayer": GRAPHIC_LAYER,
    "GraphicLayerOrder": 1,
    "GraphicLayerRecommendedDisplayGrayscaleValue": 0xFFFF,
    "GraphicLayerRecommendedDisplayCIELabValue": list(DISPLAY_COLOUR_CIELAB),
    "GraphicLayerDescription": LAYER_DESCRIPTION,
}


def _references(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """One series with one image, the source, in the presentation state and in its annotations."""
    series = [
        (item.SeriesInstanceUID, [_pair(image) for image in item.ReferencedImageSequence])
        for item in dataset.ReferencedSeriesSequence
    ]
    if series != [(expected.case.header.SeriesInstanceUID, [expected.source])]:
        yield "ReferencedSeriesSequence does not name the source, and it alone"

    for item in dataset.GraphicAnnotationSequence:
        images = [_pair(image) for image in item.get("ReferencedImageSequence") or []]
        if images != [expected.source]:
            yield "ReferencedImageSequence of the graphics does not name the source, and it alone"


def _pair(item: Dataset) -> tuple[str, str]:
    return str(item.get("ReferencedSOPClassUID")), str(item.get("ReferencedSOPInstanceUID"))


def _graphics(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """Every contour of every lesion, on one layer, with one text."""
    if [_plain(item) for item in dataset.GraphicLayerSequence] != [LAYER]:
        yield f"GraphicLayerSequence is not the one layer {GRAPHIC_LAYER} in its colour"
    annotations = dataset.GraphicAnnotationSequence
    if [item.GraphicLayer for item in annotations] != [GRAPHIC_LAYER]:
        yield f"the graphics are not on the one layer {GRAPHIC_LAYER}"
        return

    (annotation,) = annotations
    text = TEXT_BOX | {"UnformattedTextValue": graphic_text(expected.case)}
    if [_plain(item) for item in annotation.TextObjectSequence] != [text]:
        yield "the text is not ours, or not in its place"
    yield from _contours(annotation.GraphicObjectSequence, expected)


def _contours(graphics: list[Dataset], expected: Expected) -> Iterator[str]:
    for item in graphics:
        described = (
            item.GraphicAnnotationUnits,
            item.GraphicDimensions,
            item.GraphicType,
            item.get("GraphicFilled"),
        )
        counted = item.NumberOfGraphicPoints * 2 == len(singles(item, "GraphicData"))
        if described != ("PIXEL", 2, "POLYLINE", "N") or not counted:
            yield (
                "a contour is not an open area's POLYLINE in PIXEL units with as many points as "
                "it says"
            )
            return

    def tracking(item: Dataset) -> tuple[str, str]:
        return str(item.get("TrackingID")), str(item.get("TrackingUID"))

    groups = [(tracked, list(items)) for tracked, items in groupby(graphics, tracking)]
    wanted = [(region.tracking_id, region.tracking_uid) for region in expected.regions]
    if [tracked for tracked, _ in groups] != wanted:
        yield "TrackingID and TrackingUID of the contours are not those of the lesions, in order"
        return

    for (_, items), region in zip(groups, expected.regions, strict=True):
        yield from all_contours([singles(item, "GraphicData") for item in items], region)


def _displayed_area(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """The whole image to fit the window, its pixels in their true proportions."""
    case = expected.case
    assert case.pixels is not None  # it has lesions
    rows, columns = case.pixels.shape
    wanted: dict[str, object] = {
        "DisplayedAreaTopLeftHandCorner": [1, 1],
        "DisplayedAreaBottomRightHandCorner": [columns, rows],
        "PresentationSizeMode": "SCALE TO FIT",
    }

    if case.spacing is not None and case.spacing.row_mm != case.spacing.column_mm:
        sides_mm = (case.spacing.row_mm, case.spacing.column_mm)
        wanted["PresentationPixelSpacing"] = [f"{side:.10g}" for side in sides_mm]
    else:
        wanted["PresentationPixelAspectRatio"] = _aspect(case)
    if [_plain(item) for item in dataset.DisplayedAreaSelectionSequence] != [wanted]:
        yield "DisplayedAreaSelectionSequence is not the whole image in its own proportions"


def _aspect(case: Case) -> list[int]:
    """The source's PixelAspectRatio, else square pixels."""
    values = values_of(element_of(case.header, "PixelAspectRatio"))
    if len(values) != 2 or not has_usable(case.header, "PixelAspectRatio"):
        return [1, 1]
    return [int(str(value)) for value in values]


def _shutter(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """The source's shutter is carried on whole, or not at all where it is incomplete."""
    header = expected.case.header
    shapes = [str(value) for value in values_of(element_of(header, "ShutterShape"))]
    wanted = {"ShutterShape"}
    for shape in shapes:
        wanted |= {*SHUTTERS.get(shape, ("",))}
    complete = bool(shapes) and all(key and has_usable(header, key) for key in wanted)

    found = {keyword for keyword in SHUTTER_KEYWORDS if keyword in dataset}
    if found != (wanted if complete else set()):
        yield "the shutter is not the source's"
    for keyword in sorted(found):
        if dataset[keyword].value != header.get(keyword):
            yield f"{keyword} is not the source's"
    if dataset.get("ShutterPresentationValue") != (0 if complete else None):
        yield "ShutterPresentationValue is not black"


def _shown(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """Nothing else changes the display."""
    for element in dataset:
        if element.tag.group in SHOWN_GROUPS and element.keyword not in SHOWN_KEYWORDS:
            yield f"{element.keyword or element.tag} changes how the image is shown"

    header = expected.case.header
    rescaled = any(
        values_of(element_of(header, f"Rescale{name}")) for name in ("Slope", "Intercept")
    )

    if "RescaleSlope" in dataset and not rescaled:
        yield "a rescale, and the source has none"
    if dataset.get("RescaleType", "US") not in RESCALE_TYPES:
        yield "RescaleType is not a defined term"
    if ("RescaleSlope" in dataset) != ("RescaleType" in dataset):
        yield "RescaleType without a rescale, or the reverse"


def _modality_bits(dataset: Dataset, _: Expected) -> Iterator[str]:
    """A modality LUT gives numbers of 8 or 16 bits (PS3.3 C.11.1.1.1)."""
    for item in dataset.get("ModalityLUTSequence") or []:
        if item.LUTDescriptor[2] not in (8, 16):
            yield "the modality LUT's descriptor says neither 8 nor 16 bits"


def _grey(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """Every stored value has the grey that it has in the source's own display."""
    header = expected.case.header
    polarity = "INVERSE" if display.inverse(header) else "IDENTITY"
    if dataset.PresentationLUTShape != polarity:
        yield "PresentationLUTShape turns the image's polarity"

    levels = grey.levels_of(header)
    values, wanted = grey.of_source(header, levels)
    found_values, found = grey.of_state(dataset, levels)
    if wanted is None or found is None:
        if not np.allclose(found_values, values):
            yield "the rescale or modality LUT is not the source's"
        if (wanted is None) != (found is None):
            yield "the window or VOI LUT is lost, or the source has none"
        return

    if float(np.abs(found - wanted).max()) > grey.TOLERANCE:
        yield "the image has other greys than in its own display"


def _plain(item: Dataset) -> dict[str, object]:
    """The item's values by keyword: one value, or a list where there are several."""
    plain: dict[str, object] = {}
    for element in item:
        values = [_plain_value(value) for value in values_of(element)]
        if element.VM > 1:
            plain[element.keyword] = values
        else:
            plain[element.keyword] = values[0] if values else None
    return plain


def _plain_value(value: object) -> object:
    """Decimal strings as text; single-precision numbers to six digits."""
    if isinstance(value, DSfloat):
        return str(value)
    return round(value, 6) if isinstance(value, float) else value


RULES: tuple[Rule, ...] = (
    *common.RULES,
    _references,
    _graphics,
    _displayed_area,
    _shutter,
    _shown,
    _modality_bits,
    _grey,
)
