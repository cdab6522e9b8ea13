"""The Grayscale Softcopy Presentation State: the contours as graphics over the source itself (PS3.3 A.33.1).

A presentation state replaces all that the image says of its own display, so that is carried on: modality LUT, window,
polarity, shutter. highdicom's own class takes the first three from the image too, but knows no shutter, and needs
values that must not reach a log; the few attributes are our own. Where the image has a LUT that cannot be carried on,
there is no presentation state: it would show another grey.
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, GrayscaleSoftcopyPresentationStateStorage

from inference import display
from inference.results import seg
from inference.results.content import graphic_data
from inference.results.identity import DISCLAIMER, Case, identify, reference
from inference.results.lesions import Lesion
from inference.results.source import copied

KIND = "PR"
TRANSFER_SYNTAX_UID = ExplicitVRLittleEndian
SERIES_NUMBER = 9004
LAYER = "PNEUMOTHORAX"
RESCALE_TYPES = (
    "OD",
    "HU",
    "US",
    "MGML",
    "Z_EFF",
    "ED",
    "EDW",
    "HU_MOD",
    "PCT",
)  # C.11.1.1.2; US: unspecified
SHUTTERS: dict[str, tuple[str, ...]] = {  # PS3.3 C.7.6.11
    "RECTANGULAR": (
        "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge", "ShutterUpperHorizontalEdge",
        "ShutterLowerHorizontalEdge",
    ),
    "CIRCULAR": ("CenterOfCircularShutter", "RadiusOfCircularShutter"),
    "POLYGONAL": ("VerticesOfThePolygonalShutter",),
}  # fmt: skip


class _NotCarriedError(Exception):
    """The image is shown through a LUT that a presentation state cannot hold."""


def encode(case: Case) -> Dataset | None:
    """Build the presentation state, or None where nothing is outlined, or the image's own grey would be lost."""
    if not case.lesions:
        return None
    dataset = identify(case, KIND, SERIES_NUMBER, "Pneumothorax contours")
    dataset.SOPClassUID = GrayscaleSoftcopyPresentationStateStorage
    dataset.Modality = "PR"
    # Presentation State Identification, PS3.3 C.11.10: its own date and time in place of the content's
    dataset.PresentationCreationDate, dataset.PresentationCreationTime = (
        dataset.ContentDate,
        dataset.ContentTime,
    )
    del dataset.ContentDate, dataset.ContentTime
    dataset.ContentLabel = LAYER
    dataset.ContentDescription = f"Pneumothorax, automatic. {DISCLAIMER}"
    dataset.ContentCreatorName = None  # type 2
    body_part = copied(case.header, "BodyPartExamined")
    if body_part is not None:
        dataset.add(body_part)
    if body_part is None or body_part.value != "CHEST":
        dataset.Laterality = (
            None  # type 2C, PS3.3 C.7.3.1: wanted unless the body part is known to be unpaired
        )
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


def text(case: Case) -> str:
    """What stands beside the anatomy. Lines end with CR LF (PS3.5 6.1.3)."""
    assert case.finding is not None  # it has lesions
    return f"Pneumothorax suspected by {case.model.id} {case.model.version}\r\n{DISCLAIMER}"


def _annotation(case: Case) -> Dataset:
    """PS3.3 C.10.5."""
    item = Dataset()
    item.ReferencedImageSequence = [reference(case)]
    item.GraphicLayer = LAYER
    words = Dataset()
    words.BoundingBoxAnnotationUnits = (
        "DISPLAY"  # parts of the displayed area: the lower left corner, off the lungs
    )
    words.UnformattedTextValue = text(case)
    words.BoundingBoxTopLeftHandCorner = [0.01, 0.94]
    words.BoundingBoxBottomRightHandCorner = [0.6, 0.99]
    words.BoundingBoxTextHorizontalJustification = "LEFT"
    item.TextObjectSequence = [words]
    item.GraphicObjectSequence = [
        _graphic(lesion, graphic_data(line)) for lesion in case.lesions for line in lesion.outlines
    ]
    return item


def _graphic(lesion: Lesion, data: list[float]) -> Dataset:
    item = Dataset()
    item.GraphicAnnotationUnits = "PIXEL"
    item.GraphicDimensions = 2
    item.NumberOfGraphicPoints = len(data) // 2
    item.GraphicData = data
    item.GraphicType = "POLYLINE"
    item.GraphicFilled = "N"
    item.TrackingID = lesion.tracking_id
    item.TrackingUID = lesion.tracking_uid
    return item


def _layer() -> Dataset:
    """PS3.3 C.10.7: colour is the layer's."""
    item = Dataset()
    item.GraphicLayer = LAYER
    item.GraphicLayerOrder = 1
    item.GraphicLayerRecommendedDisplayGrayscaleValue = 0xFFFF
    item.GraphicLayerRecommendedDisplayCIELabValue = seg.DISPLAY_COLOUR_CIELAB
    item.GraphicLayerDescription = "Pneumothorax, automatic"
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
        item.PresentationPixelSpacing = [
            f"{side:.10g}" for side in (case.spacing.row_mm, case.spacing.column_mm)
        ]
    else:
        item.PresentationPixelAspectRatio = (
            ratio.value if ratio is not None and ratio.VM == 2 else [1, 1]
        )
    return item


def _shutter(dataset: Dataset, case: Case) -> None:
    """The source's own shutter, where it is complete: without it a bright border would be back."""
    shape = copied(case.header, "ShutterShape")
    shapes = [] if shape is None else list(shape.value) if shape.VM > 1 else [shape.value]
    elements = [
        copied(case.header, keyword)
        for name in shapes
        for keyword in SHUTTERS.get(name, ("ShutterShape",))
    ]
    if shape is None or any(name not in SHUTTERS for name in shapes) or None in elements:
        return
    for element in (shape, *elements):
        if element is not None:
            dataset.add(element)
    dataset.ShutterPresentationValue = 0  # type 1C, PS3.3 C.11.12: black


def _grey(dataset: Dataset, case: Case) -> None:
    """From stored values to grey: modality LUT (C.11.1), window or VOI LUT (C.11.8), polarity (C.11.6)."""
    header = case.header
    slope, intercept = copied(header, "RescaleSlope"), copied(header, "RescaleIntercept")
    if header.get("ModalityLUTSequence"):
        lut = _lut(header, "ModalityLUTSequence")
        if lut is None:
            raise _NotCarriedError
        lut.ModalityLUTType = "US"  # type 1; what the numbers are is not stated here
        dataset.ModalityLUTSequence = [lut]
    elif slope is not None and intercept is not None:
        dataset.update({one.tag: one for one in (slope, intercept)})
        kind = header.get("RescaleType")
        dataset.RescaleType = kind if kind in RESCALE_TYPES else "US"
    voi = Dataset()
    lut = _lut(header, "VOILUTSequence")
    if lut is not None:
        voi.VOILUTSequence = [lut]
    else:
        center, width, function = (
            copied(header, keyword) for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction")
        )
        # PS3.3 C.11.2.1.2.1: a width is at least 1; what a viewer makes of another is anybody's guess.
        widths = [] if width is None else width.value if width.VM > 1 else [width.value]
        if (
            center is not None
            and width is not None
            and center.VM == width.VM
            and min(map(float, widths)) >= 1
        ):
            for element in (center, width, *([function] if function is not None else [])):
                voi.add(element)
    if voi:
        dataset.SoftcopyVOILUTSequence = [voi]
    dataset.PresentationLUTShape = polarity(header)


def polarity(header: Dataset) -> str:
    """IDENTITY, or INVERSE where low values are bright (PS3.3 C.11.6)."""
    return "INVERSE" if display.inverse(header) else "IDENTITY"


def _lut(header: Dataset, keyword: str) -> Dataset | None:
    """The first LUT of the source as the image is shown with it, packed as the standard has it.

    None where the image is shown without it: it is not there, or cannot be applied.

    Raises:
        _NotCarriedError: the image is shown with it, and no item can hold it (PS3.3 C.11.1.1, C.11.2.1.1).
    """
    signed = header.get("PixelRepresentation") == 1
    if keyword == "VOILUTSequence" and header.get("ModalityLUTSequence"):
        signed = False  # of what that gives nothing is negative
    look_up = display.lut_of(header, keyword, signed)
    if look_up is None:
        return None
    entries, first, bits = (int(value) for value in header[keyword].value[0].LUTDescriptor)
    entries %= 65536
    rescaled = "RescaleSlope" in header or "RescaleIntercept" in header
    if (
        first > 32767
        and keyword == "VOILUTSequence"
        and rescaled
        and not header.get("ModalityLUTSequence")
    ):
        raise _NotCarriedError  # SS written as US, or not: that takes the pixels to tell
    if signed and first > 32767:
        first -= 65536
    table, largest = look_up(np.arange(entries or 65536, dtype=np.float64) + first)
    if keyword == "VOILUTSequence":
        # The same greys in words of 16 bits: dciodvfy takes no other number between 8 and 16 here.
        table, bits = np.round(np.minimum(table, largest) * (65535 / largest)), 16
    elif table.max() > 2**bits - 1:
        bits = 16
    if table.min() < 0 or table.max() > 65535 or bits < 8:
        raise _NotCarriedError
    if not (first >= 0 or (first >= -32768 and entries < 32768)):
        raise _NotCarriedError  # the descriptor is US or SS as a whole
    item = Dataset()
    item.add_new(0x00283002, "US" if first >= 0 else "SS", [entries, first, bits])
    # 8-bit entries are packed two to a word (PS3.3 C.11.1.1.1). US could not hold 65536 words (PS3.5 7.1.2).
    data = table.astype("u1" if bits == 8 else "<u2").tobytes()
    item.add_new(0x00283006, "OW", data + b"\0" * (len(data) % 2))
    return item
