"""The Grayscale Softcopy Presentation State: the contours as graphics over the source (PS3.3
A.33.1).

A presentation state replaces everything that the image says of its own display, so that is carried
on: modality LUT, window, polarity, shutter. highdicom's own class takes the first three from the
image too, but knows no shutter, and needs values that must not reach a log; the few attributes are
our own. Where the image has a LUT that cannot be carried on, there is no presentation state: it
would show another grey.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset

from inference import display
from inference.header_numbers import first_number
from inference.results.case import Case
from inference.results.content import add_graphic_data
from inference.results.identity import add_body_part, identify, reference
from inference.results.lesions import Lesion, lesions_of
from inference.results.limits import DISPLAY_COLOUR_CIELAB, GRAPHIC_LAYER, RESCALE_TYPES, SHUTTERS
from inference.results.source import copied
from inference.results.wording import CONTENT_DESCRIPTION, GRAPHIC_TEXT, LAYER_DESCRIPTION

KIND = "PR"


class _NotCarriedError(Exception):
    """The image is shown through a LUT that a presentation state cannot hold."""


def encode(case: Case) -> Dataset | None:
    """Build the state; None where nothing is outlined, or the image's own grey would be lost."""
    if not lesions_of(case):
        return None

    dataset = identify(case, KIND)
    dataset.ContentLabel = GRAPHIC_LAYER
    dataset.ContentDescription = CONTENT_DESCRIPTION
    dataset.ContentCreatorName = None  # type 2
    add_body_part(dataset, case)

    series = Dataset()
    series.SeriesInstanceUID = str(case.header.SeriesInstanceUID)
    series.ReferencedImageSequence = [reference(case)]
    dataset.ReferencedSeriesSequence = [series]

    _shutter(dataset, case)
    dataset.DisplayedAreaSelectionSequence = [_displayed_area(case)]
    dataset.GraphicLayerSequence = [_layer()]
    dataset.GraphicAnnotationSequence = [_annotation(case)]
    try:
        _grey(dataset, case)
    except _NotCarriedError:
        return None
    return dataset


def _annotation(case: Case) -> Dataset:
    """PS3.3 C.10.5."""
    item = Dataset()
    item.ReferencedImageSequence = [reference(case)]
    item.GraphicLayer = GRAPHIC_LAYER

    # DISPLAY units are parts of the displayed area: the text is in its lower left corner, off the
    # lungs.
    words = Dataset()
    words.BoundingBoxAnnotationUnits = "DISPLAY"
    words.UnformattedTextValue = GRAPHIC_TEXT.format(
        model=case.model.id, version=case.model.version
    )
    words.BoundingBoxTopLeftHandCorner = [0.01, 0.94]
    words.BoundingBoxBottomRightHandCorner = [0.6, 0.99]
    words.BoundingBoxTextHorizontalJustification = "LEFT"
    item.TextObjectSequence = [words]

    item.GraphicObjectSequence = [
        _graphic(lesion, line) for lesion in lesions_of(case) for line in lesion.outlines
    ]
    return item


def _graphic(lesion: Lesion, line: NDArray[np.float64]) -> Dataset:
    item = Dataset()
    item.GraphicAnnotationUnits = "PIXEL"
    item.GraphicDimensions = 2
    item.NumberOfGraphicPoints = len(line)
    add_graphic_data(item, line)
    item.GraphicType = "POLYLINE"
    item.GraphicFilled = "N"
    item.TrackingID = lesion.tracking_id
    item.TrackingUID = lesion.tracking_uid
    return item


def _layer() -> Dataset:
    """PS3.3 C.10.7: colour is the layer's."""
    item = Dataset()
    item.GraphicLayer = GRAPHIC_LAYER
    item.GraphicLayerOrder = 1
    item.GraphicLayerRecommendedDisplayGrayscaleValue = 0xFFFF
    item.GraphicLayerRecommendedDisplayCIELabValue = list(DISPLAY_COLOUR_CIELAB)
    item.GraphicLayerDescription = LAYER_DESCRIPTION
    return item


def _displayed_area(case: Case) -> Dataset:
    """The whole image, to fit the window (PS3.3 C.10.4); its corners are pixels counted from 1."""
    assert case.pixels is not None  # it has lesions
    rows, columns = case.pixels.shape
    item = Dataset()
    item.DisplayedAreaTopLeftHandCorner = [1, 1]
    item.DisplayedAreaBottomRightHandCorner = [columns, rows]
    item.PresentationSizeMode = "SCALE TO FIT"

    ratio = copied(case.header, "PixelAspectRatio")
    if case.spacing is not None and case.spacing.row_mm != case.spacing.column_mm:
        sides_mm = (case.spacing.row_mm, case.spacing.column_mm)
        item.PresentationPixelSpacing = [f"{side:.10g}" for side in sides_mm]
    elif ratio is not None and ratio.VM == 2:
        item.PresentationPixelAspectRatio = ratio.value
    else:
        item.PresentationPixelAspectRatio = [1, 1]
    return item


def _shutter(dataset: Dataset, case: Case) -> None:
    """The source's own shutter, where it is complete: without it a bright border would be back."""
    shape = copied(case.header, "ShutterShape")
    if shape is None:
        return

    shapes = _values(shape)
    if any(name not in SHUTTERS for name in shapes):
        return

    keywords = [keyword for name in shapes for keyword in SHUTTERS[name]]
    elements = [copied(case.header, keyword) for keyword in keywords]
    if None in elements:
        return

    dataset.add(shape)
    for element in elements:
        if element is not None:
            dataset.add(element)
    dataset.ShutterPresentationValue = 0  # type 1C, PS3.3 C.11.12: black


def _grey(dataset: Dataset, case: Case) -> None:
    """From stored values to grey: modality LUT (C.11.1), window or VOI LUT (C.11.8), polarity.

    Raises:
        _NotCarriedError: the image is shown through a LUT that no item can hold.
    """
    header = case.header
    slope, intercept = copied(header, "RescaleSlope"), copied(header, "RescaleIntercept")
    if header.get("ModalityLUTSequence"):
        lut = _lut(header, "ModalityLUTSequence")
        if lut is None:
            raise _NotCarriedError
        # Type 1; the meaning of the numbers is not stated here.
        lut.ModalityLUTType = "US"
        dataset.ModalityLUTSequence = [lut]
    elif slope is not None and intercept is not None:
        dataset.add(slope)
        dataset.add(intercept)
        kind = header.get("RescaleType")
        dataset.RescaleType = kind if kind in RESCALE_TYPES else "US"

    voi = _voi(header)
    if voi is not None:
        dataset.SoftcopyVOILUTSequence = [voi]
    dataset.PresentationLUTShape = "INVERSE" if display.inverse(header) else "IDENTITY"


def _voi(header: Dataset) -> Dataset | None:
    """The source's VOI LUT, else its windows, as an item; None where neither can be used."""
    item = Dataset()
    lut = _lut(header, "VOILUTSequence")
    if lut is not None:
        item.VOILUTSequence = [lut]
        return item

    center, width = copied(header, "WindowCenter"), copied(header, "WindowWidth")
    if center is None or width is None or center.VM != width.VM:
        return None
    function = copied(header, "VOILUTFunction")
    if not _widths_suit(function, [float(each) for each in _values(width)]):
        return None

    item.add(center)
    item.add(width)
    if function is not None:
        item.add(function)
    return item


def _widths_suit(function: DataElement | None, widths: list[float]) -> bool:
    """Whether the widths are at least 1, PS3.3 C.11.2.1.2.1; other functions take any above 0."""
    name = "LINEAR" if function is None else str(function.value).strip()
    if name in ("LINEAR_EXACT", "SIGMOID"):
        return min(widths) > 0
    return min(widths) >= 1


def _values(element: DataElement) -> list[str]:
    """The values of an element that has at least one."""
    return list(element.value) if element.VM > 1 else [element.value]


def _lut(header: Dataset, keyword: str) -> Dataset | None:
    """The first LUT of the source as the image is shown with it, packed as in the standard.

    None where the image is shown without it: it is absent, or cannot be applied.

    Raises:
        _NotCarriedError: the image is shown with it, and no item can hold it (PS3.3 C.11.1.1,
            C.11.2.1.1).
    """
    is_voi = keyword == "VOILUTSequence"
    after_lut = is_voi and bool(header.get("ModalityLUTSequence"))
    levels = _levels(header)
    inputs = _rescaled(header, levels) if is_voi else levels
    # No output of a modality LUT is negative.
    signed = not after_lut and min(inputs) < 0

    look_up = display.lut_of(header, keyword, signed)
    if look_up is None:
        return None

    entries, first, bits = (int(value) for value in header[keyword].value[0].LUTDescriptor)
    entries %= 65536
    rescaled = "RescaleSlope" in header or "RescaleIntercept" in header
    if first > 32767 and is_voi and rescaled and not after_lut:
        # SS written as US, or not: only the pixels could tell.
        raise _NotCarriedError
    if signed and first > 32767:
        first -= 65536

    table, largest = look_up(np.arange(entries or 65536, dtype=np.float64) + first)
    if is_voi:
        # The same greys in words of 16 bits: dciodvfy takes no other number between 8 and 16 here.
        table = np.round(np.minimum(table, largest) * (65535 / largest))
        bits = 16
    if bits < 8 or table.min() < 0 or table.max() > 65535:
        raise _NotCarriedError
    # PS3.3 C.11.1.1.1: a modality LUT has 8 or 16 bits.
    if bits != 8 or table.max() > 255:
        bits = 16
    if first < -32768 or (first < 0 and entries >= 32768):
        # The descriptor is US or SS as a whole.
        raise _NotCarriedError

    # 8-bit entries are packed two to a word (PS3.3 C.11.1.1.1). US could not hold 65536 words
    # (PS3.5 7.1.2).
    item = Dataset()
    item.add_new(0x00283002, "US" if first >= 0 else "SS", [entries, first, bits])
    data = table.astype("u1" if bits == 8 else "<u2").tobytes()
    item.add_new(0x00283006, "OW", data + b"\0" * (len(data) % 2))
    return item


def _levels(header: Dataset) -> tuple[int, int]:
    """The least and the largest value that a stored pixel can have."""
    bits = header.get("BitsStored")
    if not isinstance(bits, int) or not 1 <= bits <= 16:
        bits = 16
    if header.get("PixelRepresentation") == 1:
        half = 1 << bits - 1
        return -half, half - 1
    return 0, (1 << bits) - 1


def _rescaled(header: Dataset, levels: tuple[int, int]) -> tuple[float, float]:
    """The levels after slope and intercept: a VOI LUT takes those (PS3.3 C.11.2.1.1)."""
    slope = first_number(header, "RescaleSlope") or 1.0
    intercept = first_number(header, "RescaleIntercept") or 0.0
    return levels[0] * slope + intercept, levels[1] * slope + intercept
