"""The gate against encoders that are themselves wrong.

test_gate breaks an object after it was made. Here a faulty encoder makes a consistent object: the
real encoder works on another case than the given one (another patient, a mask shifted by one
pixel), or its lines, figures and words are corrupted on their way into the object. It keeps the
UIDs of the true case, as a faulty encoder would. The gate must find each fault from its own
computation on the true case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from inference.finding import Result
from inference.measure import measure
from inference.radiograph import Spacing
from inference.results import KINDS, Case, GateError, RenderSettings, build, gate, wording, write
from inference.results.limits import MAX_LESIONS
from inference.results.uids import derived_uid, frame_of_reference_uid, series_uid, tracking_uid
from tests.unit.mutations import content
from tools.cases import header, negative, positive, refused

ALL = ("SEG", "SC", "SR", "PR")
# Square, so that a transposed mask keeps its shape.
SIDE = 48


def two_lesions() -> NDArray[np.bool_]:
    """A large lesion with a hole on the patient's right, and a small lesion on the left."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[5:20, 4:15] = True
    mask[9:12, 8:10] = False
    mask[30:37, 36:41] = True
    return mask


SOURCE = header(
    Rows=SIDE,
    Columns=SIDE,
    PixelSpacing=None,
    ImagerPixelSpacing=[0.2, 0.3],
    WindowCenter=100,
    WindowWidth=200,
    RescaleSlope=1,
    RescaleIntercept=-5,
    ShutterShape="RECTANGULAR",
    ShutterLeftVerticalEdge=2,
    ShutterRightVerticalEdge=47,
    ShutterUpperHorizontalEdge=3,
    ShutterLowerHorizontalEdge=46,
    LossyImageCompression="01",
    LossyImageCompressionRatio="8",
    LossyImageCompressionMethod="ISO_10918_1",
    AcquisitionDate="20260303",
    AcquisitionTime="101300",
)
CASE = positive(SOURCE, two_lesions())
NEGATIVE = negative(SOURCE)
REFUSED = refused(SOURCE)

Belief = Callable[[Case], Case]
Spoil = Callable[[Any, Case], object]


# ---- faulty encoders


def made(case: Case, kind: str, believed: Case, spoil: Spoil | None = None) -> Result:
    """The object that the encoder of this kind makes when it takes `case` for `believed`."""
    dataset = KINDS[kind].encode(believed)
    assert dataset is not None
    names = dict(zip(_names(believed), _names(case), strict=False))
    for element in dataset.iterall():
        if element.VR == "UI" and element.value in names:
            element.value = names[element.value]

    if spoil is not None:
        spoil(dataset, case)
    return write(dataset, KINDS[kind])


def _names(case: Case) -> Iterator[str]:
    """The UIDs that are derived from a case, in a fixed order."""
    for kind in (*KINDS, "SEG dimensions"):
        yield derived_uid(case, kind)
    for kind in KINDS:
        yield series_uid(case, kind)
    yield frame_of_reference_uid(case)
    if case.finding is not None:
        yield from (tracking_uid(case, number) for number in range(1, MAX_LESIONS + 1))


def source(**changes: object) -> Belief:
    """An encoder that reads wrong values from the source's header."""

    def believe(case: Case) -> Case:
        wrong = copy.deepcopy(case.header)
        for keyword, value in changes.items():
            setattr(wrong, keyword, value)
        return replace(case, header=wrong)

    return believe


def mask(change: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]) -> Belief:
    """An encoder that changes the mask, and measures the changed mask."""

    def believe(case: Case) -> Case:
        assert case.finding is not None
        assert case.finding.mask is not None
        wrong = np.ascontiguousarray(change(case.finding.mask))
        measured = measure(wrong, case.spacing, case.header.PatientOrientation)
        return replace(case, finding=replace(case.finding, mask=wrong, measurement=measured))

    return believe


def finding(**changes: object) -> Belief:
    def believe(case: Case) -> Case:
        assert case.finding is not None
        return replace(case, finding=replace(case.finding, **changes))  # type: ignore[arg-type]

    return believe


def measurement(**changes: object) -> Belief:
    def believe(case: Case) -> Case:
        assert case.finding is not None
        assert case.finding.measurement is not None
        wrong = replace(case.finding.measurement, **changes)  # type: ignore[arg-type]
        return replace(case, finding=replace(case.finding, measurement=wrong))

    return believe


def spacing(row_mm: float, column_mm: float, detector: bool = True) -> Belief:
    """An encoder that measures with another spacing."""

    def believe(case: Case) -> Case:
        assert case.finding is not None
        assert case.finding.mask is not None
        wrong = Spacing(row_mm, column_mm, detector)
        measured = measure(case.finding.mask, wrong, case.header.PatientOrientation)
        return replace(case, spacing=wrong, finding=replace(case.finding, measurement=measured))

    return believe


def pixels(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Belief:
    def believe(case: Case) -> Case:
        assert case.pixels is not None
        return replace(case, pixels=np.ascontiguousarray(change(case.pixels)))

    return believe


def lines(move: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Spoil:
    """An encoder whose contours are moved on their way into GraphicData; (n, 2) column and row."""

    def spoil(dataset: Any, _: Case) -> None:
        for item in _graphics(dataset):
            points = move(np.reshape(item.GraphicData, (-1, 2)).astype(np.float64))
            item.GraphicData = points.astype(np.float32).ravel().tolist()
            if "NumberOfGraphicPoints" in item:
                item.NumberOfGraphicPoints = len(points)

    return spoil


def _graphics(dataset: Any) -> Iterator[Any]:
    for annotation in dataset.get("GraphicAnnotationSequence") or []:
        yield from annotation.GraphicObjectSequence
    for item in content(dataset):
        if "GraphicData" in item:
            yield item


def boxed(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The bounding box of the line instead of the line."""
    (left, top) = points.min(axis=0)
    (right, bottom) = points.max(axis=0)
    corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return np.array(corners)


def shrunk(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((points - points.mean(axis=0)) * 0.9 + points.mean(axis=0))


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    whole = mask.copy()
    whole[9:12, 8:10] = True
    return whole


def without_the_small_lesion(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rest = mask.copy()
    rest[25:] = False
    return rest


def with_one_more_pixel(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    more = mask.copy()
    more[20, 8] = True
    return more


BELIEFS: dict[str, tuple[Belief, tuple[str, ...]]] = {
    # Identity of the patient.
    "another patient's name": (source(PatientName="Grün^Eva"), ALL),
    "a name that is a part of the patient's": (source(PatientName="Grün"), ("PR",)),
    "the patient's name in capitals": (source(PatientName="GRÜN^ADA"), ("SR",)),
    "another patient's ID": (source(PatientID="P-2"), ALL),
    "an ID with the same number": (source(PatientID="P-01"), ("PR",)),
    "another birth date": (source(PatientBirthDate="19700102"), ("SC",)),
    "the other sex": (source(PatientSex="M"), ("SEG",)),
    "another study": (source(StudyInstanceUID="2.25.99"), ALL),
    "another accession number": (source(AccessionNumber="A2"), ("PR",)),
    "another study date": (source(StudyDate="20260302"), ("SR",)),
    # Identity of the image.
    "another image of the study": (source(SOPInstanceUID="2.25.111"), ALL),
    "another series of the study": (source(SeriesInstanceUID="2.25.131"), ALL),
    "another class of image": (source(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1"), ALL),
    # The mask.
    "the mask a row too low": (mask(lambda mask: np.roll(mask, 1, axis=0)), ALL),
    "the mask a row too high": (mask(lambda mask: np.roll(mask, -1, axis=0)), ALL),
    "the mask a column too far right": (mask(lambda mask: np.roll(mask, 1, axis=1)), ALL),
    "the mask a column too far left": (mask(lambda mask: np.roll(mask, -1, axis=1)), ALL),
    "the mask transposed": (mask(np.transpose), ALL),
    "the mask mirrored": (mask(np.fliplr), ALL),
    "the mask upside down": (mask(np.flipud), ALL),
    "the mask rotated by 180 degrees": (mask(lambda mask: np.rot90(mask, 2)), ALL),
    "the mask inverted": (mask(np.logical_not), ALL),
    "the mask a pixel wider": (mask(ndimage.binary_dilation), ALL),
    "the mask a pixel narrower": (mask(ndimage.binary_erosion), ALL),
    "the mask with its hole filled": (mask(filled), ALL),
    "a lesion left out": (mask(without_the_small_lesion), ALL),
    "an additional pixel": (mask(with_one_more_pixel), ALL),
    # Figures.
    "an area one pixel too large": (measurement(area_px=195), ("SC", "SR")),
    "an area ten times as large": (measurement(area_mm2=114.0), ("SC",)),
    "an area that claims to be exact": (measurement(area_estimated=False), ("SC",)),
    "an area without millimetres": (measurement(area_mm2=None), ("SC",)),
    "an additional region": (measurement(regions=3), ("SC", "SR")),
    "the centroid's row and column swapped": (measurement(centroid_px=(15.2, 14.1)), ("SR",)),
    "the extent one pixel too large": (measurement(extent_px=(5, 4, 37, 41)), ("SR",)),
    "the spread's row and column swapped": (measurement(spread_px=(11.4, 8.2)), ("SR",)),
    "no figures": (finding(measurement=None), ("SC", "SR")),
    # The side.
    "the other side of the patient": (measurement(laterality="L"), ("SC",)),
    "a side not stated": (measurement(laterality=None), ("SC",)),
    "sides read in a mirrored image": (source(PatientOrientation=["R", "F"]), ("SEG", "SC", "SR")),
    "no side of any lesion": (finding(sided=False), ("SEG", "SR")),
    # The spacing.
    "row and column spacing swapped": (spacing(0.3, 0.2), ("SEG", "PR")),
    "a spacing in centimetres": (spacing(0.02, 0.03), ("SEG", "SC", "SR", "PR")),
    "a spacing of square pixels": (spacing(0.2, 0.2), ALL),
    "a spacing stated as the patient's": (spacing(0.2, 0.3, detector=False), ("SC", "SR")),
    # The score.
    "another score": (finding(probability=0.86), ("SC", "SR")),
    "score and threshold swapped": (finding(probability=0.42, threshold=0.87), ("SC", "SR")),
    "another threshold": (finding(threshold=0.41), ("SC", "SR")),
    "a score that claims to be calibrated": (finding(calibrated=False), ("SR",)),
    "a score as a percentage": (finding(probability=0.0087), ("SC", "SR")),
    "not detected": (lambda _: NEGATIVE, ("SC", "SR")),
    "not analysed": (lambda _: REFUSED, ("SC", "SR")),
    # Picture and grey.
    "the picture mirrored": (pixels(np.fliplr), ("SC",)),
    "the picture transposed": (pixels(np.transpose), ("SC",)),
    "the picture inverted": (pixels(lambda pixels: 1 - pixels), ("SC",)),
    "a black picture": (pixels(np.zeros_like), ("SC",)),
    "another window": (source(WindowCenter=101), ("PR",)),
    "a narrower window": (source(WindowWidth=199), ("PR",)),
    "another rescale": (source(RescaleIntercept=-4), ("PR",)),
    "another shutter": (source(ShutterLeftVerticalEdge=3), ("PR",)),
    "no lossy history": (source(LossyImageCompression="00"), ("SEG", "SC")),
    "another lossy history": (source(LossyImageCompressionRatio="9"), ("SEG", "SC")),
    "another date of acquisition": (source(AcquisitionDate="20260304"), ("SC",)),
    # Equipment and time.
    "another model": (
        lambda case: replace(case, model=replace(case.model, version="1.2.4")), ALL
    ),
    "another device": (
        lambda case: replace(case, model=replace(case.model, device_uid="2.25.77")), ALL
    ),
    "another minute": (
        lambda case: replace(case, result_time=case.result_time.replace(minute=7)), ALL
    ),
    "a note that the case does not have": (lambda case: replace(case, notes=("turned",)), ("SC", "SR")),
}  # fmt: skip


def shifted(right: float, down: float) -> Spoil:
    return lines(lambda points: points + np.array([right, down]))


SHIFTS = {
    "0.5 px right": shifted(0.5, 0),
    "0.5 px left": shifted(-0.5, 0),
    "0.5 px down": shifted(0, 0.5),
    "0.5 px up": shifted(0, -0.5),
    "0.5 px diagonally": shifted(0.5, 0.5),
    "1 px right": shifted(1, 0),
    "1 px up": shifted(0, -1),
    "1 px diagonally": shifted(1, 1),
    "3 px left": shifted(-3, 0),
    "10 px diagonally": shifted(10, 10),
}
LINES: dict[str, Spoil] = {
    **{f"contours {name}": spoil for name, spoil in SHIFTS.items()},
    "contours with row and column swapped": lines(lambda points: points[:, ::-1]),
    "contours mirrored": lines(lambda points: points * np.array([-1, 1]) + np.array([SIDE, 0])),
    "contours of another scale": lines(lambda points: points * 1.1),
    "contours shrunk": lines(shrunk),
    "boxes instead of contours": lines(boxed),
    "contours in whole pixels": lines(np.round),
    "contours that miss every other vertex": lines(
        lambda points: np.concatenate([points[:-1:2], points[:1]])
    ),
}


def swap_contours(dataset: Any, _: Case) -> None:
    """Swap the contours of the first and the last lesion, so that each is under the other's
    tracking UID.
    """
    graphics = list(_graphics(dataset))
    first, last = graphics[0], graphics[-1]
    first.GraphicData, last.GraphicData = last.GraphicData, first.GraphicData
    for item in (first, last):
        if "NumberOfGraphicPoints" in item:
            item.NumberOfGraphicPoints = len(item.GraphicData) // 2


def turn_bits(dataset: Any, _: Case) -> None:
    """Pack the pixels from the most significant bit instead of the least."""
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    dataset.PixelData = np.packbits(np.unpackbits(packed, bitorder="little")).tobytes()


def without_disclaimer(keyword: str) -> Spoil:
    """Remove the words "research use only"."""

    def spoil(dataset: Any, _: Case) -> None:
        labels = [
            element
            for element in dataset.iterall()
            if element.keyword == keyword and wording.DISCLAIMER in str(element.value)
        ]
        assert labels
        for element in labels:
            rest = str(element.value).replace(wording.DISCLAIMER, "").strip(". \r\n")
            element.value = rest or wording.SUSPECTED

    return spoil


SPOILT: list[tuple[str, str, Spoil]] = [
    *((kind, name, spoil) for kind in ("SR", "PR") for name, spoil in LINES.items()),
    ("SR", "contours of the lesions swapped", swap_contours),
    ("PR", "contours of the lesions swapped", swap_contours),
    ("SEG", "bits in the other order", turn_bits),
    *(
        (kind, f"no disclaimer in {keyword}", without_disclaimer(keyword))
        for kind, keyword in (
            *((kind, "SeriesDescription") for kind in ALL),
            ("SEG", "ContentDescription"),
            ("PR", "ContentDescription"),
            ("PR", "UnformattedTextValue"),
            ("SR", "TextValue"),
        )
    ),
]
FAULTS = [
    *((kind, name, belief, None) for name, (belief, kinds) in BELIEFS.items() for kind in kinds),
    *((kind, name, lambda case: case, spoil) for kind, name, spoil in SPOILT),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "name", "belief", "spoil"),
    FAULTS,
    ids=[f"{kind}: {name}" for kind, name, *_ in FAULTS],
)
def test_an_object_from_a_faulty_encoder_is_refused(
    kind: str, name: str, belief: Belief, spoil: Spoil | None
) -> None:
    result = made(CASE, kind, belief(CASE), spoil)

    with pytest.raises(GateError) as refusal:
        gate.check(result, CASE)

    assert refusal.value.kind == kind
    assert "cannot be examined" not in refusal.value.what
    assert not any(word in refusal.value.what for word in ("Grün", "GRÜN", "P-1", "P-2"))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("case", [CASE, NEGATIVE, REFUSED], ids=["positive", "negative", "refused"])
def test_an_object_from_the_true_encoder_passes(kind: str, case: Case) -> None:
    if KINDS[kind].encode(case) is not None:
        gate.check(made(case, kind, case), case)


# ---- the overlay's contour at the size of a real radiograph


def large(side: int) -> Case:
    """A crescent along the chest wall, drawn at two thirds of the source's size."""
    row, column = np.mgrid[:side, :side] / side
    outer = (row - 0.4) ** 2 + (column - 0.4) ** 2 < 0.3**2
    inner = (row - 0.4) ** 2 + (column - 0.45) ** 2 < 0.3**2
    source = header(Rows=side, Columns=side)
    return positive(source, outer & ~inner, appearance=RenderSettings(side * 2 // 3, 90))


LARGE = large(768)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("move", [(0, 1), (0, -1), (1, 0), (-1, 0), (2, -2)])
def test_a_contour_drawn_a_pixel_beside_the_mask_is_refused(move: tuple[int, int]) -> None:
    assert LARGE.finding is not None
    assert LARGE.finding.mask is not None
    moved = np.roll(LARGE.finding.mask, move, axis=(0, 1))
    believed = replace(LARGE, finding=replace(LARGE.finding, mask=moved))

    with pytest.raises(GateError, match=r"lies -?[\d.]+ pixels below and -?[\d.]+ right of"):
        gate.check(made(LARGE, "SC", believed), LARGE)


def test_a_finding_without_the_figures_of_its_mask_gives_no_object() -> None:
    assert CASE.finding is not None
    case = replace(CASE, finding=replace(CASE.finding, measurement=None))
    for kind in ALL:
        with pytest.raises(GateError, match="no figures"):
            build(case, [kind])
