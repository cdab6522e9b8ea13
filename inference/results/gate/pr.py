"""The gate's rules for a presentation state, and for contours: each yields what is wrong with what was read back."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from pydicom import DataElement, Dataset, dcmread, dcmwrite
from pydicom.datadict import keyword_for_tag
from pydicom.tag import BaseTag

from inference.contours import LARGEST_DISTANCE_PX
from inference.results import pr
from inference.results.identity import Case
from inference.results.lesions import Lesion
from inference.results.source import copied

# Carried on from the image as it is, or not at all.
CARRIED_KEYWORDS = (
    "RescaleSlope",
    "RescaleIntercept",
    "ShutterShape",
    *(k for ks in pr.SHUTTERS.values() for k in ks),
)

# Where attributes say how an image is shown: shutters, pixels and LUTs, presentation, polarity.
SHOWN_GROUPS = (0x0018, 0x0028, 0x0070, 0x2050, *range(0x6000, 0x6020, 2))


def contour_is_of(values: Sequence[float], lesion: Lesion, outline: int) -> Iterator[str]:
    """The column\\row pairs of one closed contour are that outline of the lesion, and that lies along its mask."""
    line = (
        np.asarray(values, dtype=np.float64).reshape(-1, 2)[:, ::-1] - 0.5
    )  # (n, 2) of (row, column)
    if len(line) < 4 or not np.array_equal(line[0], line[-1]):
        yield f"a contour of lesion {lesion.number} is not closed"
        return
    drawn = lesion.outlines[outline]
    if (
        line.shape != drawn.shape or np.abs(line - drawn).max() > 0.01
    ):  # FL holds a coordinate to 0.0005
        yield f"contour {outline + 1} of lesion {lesion.number} is not the one that was found"
    if outline:
        return
    # The outer contour against the mask itself: it lies within its bounds and reaches all of them.
    rows, columns = np.flatnonzero(lesion.part.any(axis=1)), np.flatnonzero(lesion.part.any(axis=0))
    low = np.array([rows[0], columns[0]]) + lesion.corner - 0.5
    high = np.array([rows[-1], columns[-1]]) + lesion.corner + 0.5
    off = np.abs(np.stack([line.min(axis=0) - low, line.max(axis=0) - high]))
    if len(lesion.outlines) == 1 and off.max() > LARGEST_DISTANCE_PX:
        yield f"the contour of lesion {lesion.number} is not around its mask"


def _references(dataset: Dataset, case: Case) -> Iterator[str]:
    """One series with one image, the source, in the presentation state and in its annotations."""
    series = [
        (item.SeriesInstanceUID, [_pair(one) for one in item.ReferencedImageSequence])
        for item in dataset.ReferencedSeriesSequence
    ]
    source = (str(case.header.SOPClassUID), str(case.header.SOPInstanceUID))
    if series != [(case.header.SeriesInstanceUID, [source])]:
        yield "ReferencedSeriesSequence does not name the source, and it alone"
    for item in dataset.GraphicAnnotationSequence:
        if [_pair(one) for one in item.get("ReferencedImageSequence") or []] != [source]:
            yield "ReferencedImageSequence of the graphics does not name the source, and it alone"


def _graphics(dataset: Dataset, case: Case) -> Iterator[str]:
    layers = [item.GraphicLayer for item in dataset.GraphicLayerSequence]
    if (
        layers != [pr.LAYER]
        or [item.GraphicLayer for item in dataset.GraphicAnnotationSequence] != layers
    ):
        yield f"the graphics are not on the one layer {pr.LAYER}"
        return
    (annotation,) = dataset.GraphicAnnotationSequence
    wanted = [(lesion, number) for lesion in case.lesions for number in range(len(lesion.outlines))]
    found = annotation.GraphicObjectSequence
    if len(found) != len(wanted):
        yield f"{len(found)} contours, wanted {len(wanted)}"
        return
    for item, (lesion, number) in zip(found, wanted, strict=True):
        described = (
            item.GraphicAnnotationUnits,
            item.GraphicDimensions,
            item.GraphicType,
            item.get("GraphicFilled"),
        )
        if described != ("PIXEL", 2, "POLYLINE", "N") or item.NumberOfGraphicPoints * 2 != len(
            item.GraphicData
        ):
            yield "a contour is not an open area's POLYLINE in PIXEL units with as many points as it says"
            continue
        if (item.get("TrackingID"), item.get("TrackingUID")) != (
            lesion.tracking_id,
            lesion.tracking_uid,
        ):
            yield f"TrackingID or TrackingUID is not that of lesion {lesion.number}"
        yield from contour_is_of(item.GraphicData, lesion, number)
    if [item.UnformattedTextValue for item in annotation.TextObjectSequence] != [pr.text(case)]:
        yield "the text is not ours"


def _display(dataset: Dataset, case: Case) -> Iterator[str]:
    """The image looks as it did: nothing of its own display is lost or made up."""
    assert case.pixels is not None  # it has lesions
    rows, columns = case.pixels.shape
    areas = [
        (list(item.DisplayedAreaTopLeftHandCorner), list(item.DisplayedAreaBottomRightHandCorner))
        for item in dataset.DisplayedAreaSelectionSequence
    ]
    if areas != [([1, 1], [columns, rows])]:
        yield "the displayed area is not the whole image"
    if dataset.PresentationLUTShape != pr.polarity(case.header):
        yield "PresentationLUTShape turns the image's polarity"
    yield from _as_made(dataset, case)
    for keyword in CARRIED_KEYWORDS:
        if keyword in dataset and dataset[keyword].value != case.header.get(keyword):
            yield f"{keyword} is not the source's"
    if dataset.get("RescaleType", "US") not in pr.RESCALE_TYPES:
        yield "RescaleType is no defined term"
    for item in dataset.get("SoftcopyVOILUTSequence") or []:
        for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            if keyword in item and item[keyword].value != case.header.get(keyword):
                yield f"{keyword} is not the source's"


def _as_made(dataset: Dataset, case: Case) -> Iterator[str]:
    """LUTs, windows, spacing, shutter, layer and text box are what the encoder makes of the case, and no more."""
    made = pr.encode(case)
    if made is None:
        yield "a presentation state of an image that can have none"
        return
    file = io.BytesIO()  # written and read again: numbers are as their VRs hold them
    dcmwrite(file, made, implicit_vr=False, little_endian=True)
    wanted = _shown(dcmread(file, force=True))
    found = _shown(dataset)
    for tag in sorted({*found, *wanted}):
        if found.get(tag) != wanted.get(tag):
            yield f"{keyword_for_tag(tag) or tag} is not what the image's own display gives"


def _shown(dataset: Dataset) -> dict[BaseTag, DataElement]:
    return {
        element.tag: element
        for element in dataset
        if element.tag.group in SHOWN_GROUPS and not element.is_empty
    }


def _kept(dataset: Dataset, case: Case) -> Iterator[str]:
    """A presentation state replaces what the image says: what it leaves out is lost on the screen."""
    for names, place, table in (
        (("RescaleSlope", "RescaleIntercept"), dataset, "ModalityLUTSequence"),
        (
            ("WindowCenter", "WindowWidth"),
            (dataset.get("SoftcopyVOILUTSequence") or [Dataset()])[0],
            "VOILUTSequence",
        ),
    ):
        own = [copied(case.header, keyword) for keyword in names]
        if None in own or any(keyword in place for keyword in (table, *names)):
            continue
        if names[1] != "WindowWidth" or all(
            float(each) >= 1 for each in np.atleast_1d(case.header[names[1]].value)
        ):
            yield f"{names[0]} and {names[1]} of the source are lost"


def _pair(item: Dataset) -> tuple[str, str]:
    return str(item.get("ReferencedSOPClassUID")), str(item.get("ReferencedSOPInstanceUID"))


RULES = (_references, _graphics, _display, _kept)
