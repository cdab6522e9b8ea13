"""The gate by mutation, SR and presentation state: each case breaks one thing, and the gate must
refuse each.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from inference.finding import Result
from inference.results import Case, GateError, build, gate
from inference.results.wording import DISCLAIMER
from tests.unit.mutations import Change, broken, cut, drop, item, put, within
from tools.cases import header, negative, positive, refused

TWO = np.zeros((41, 37), dtype=bool)
TWO[3:13, 3:12] = True
# The second lesion has a hole.
TWO[6:8, 6:8] = False
TWO[20:26, 28:34] = True
RESCALE = {"RescaleSlope": 1, "RescaleIntercept": -5}
CASE = positive(
    header(
        PixelSpacing=None,
        ImagerPixelSpacing=[0.2, 0.2],
        WindowCenter=100,
        WindowWidth=200,
        **RESCALE,
    ),
    TWO,
)
NEGATIVE = negative()
GOOD = {result.kind: result for result in build(CASE, ["SEG", "SR", "PR"])}
# A source without a window and without a LUT.
PLAIN = positive(header(), TWO)
(GOOD_PLAIN,) = build(PLAIN, ["PR"])
WHOLE = positive(header(Rows=1024, Columns=512, PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.2]))
(GOOD_WHOLE,) = build(WHOLE, ["SR"])
(GOOD_NEGATIVE,) = build(NEGATIVE, ["SR"])
OTHER_IMAGE = Dataset()
OTHER_IMAGE.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
OTHER_IMAGE.ReferencedSOPInstanceUID = "2.25.666"


def shift(line: list[float], by: float) -> list[float]:
    return [float(value) + by for value in line]


def move_contour(dataset: Any) -> None:
    dataset.GraphicData = shift(dataset.GraphicData, 1.0)


def open_contour(dataset: Any) -> None:
    dataset.GraphicData = list(dataset.GraphicData)[:-2]


def transpose_contour(dataset: Any) -> None:
    dataset.GraphicData = np.reshape(dataset.GraphicData, (-1, 2))[:, ::-1].ravel().tolist()


def code(value: str, meaning: str) -> Change:
    return within("ConceptCodeSequence", put(CodeValue=value, CodeMeaning=meaning))


def add_to_evaluations(one: Dataset) -> Change:
    return item("Qualitative Evaluations", lambda found: found.ContentSequence.append(one))


def comment_item(value: str) -> Dataset:
    one = Dataset()
    one.RelationshipType = "CONTAINS"
    one.ValueType = "TEXT"
    one.TextValue = value
    name = Dataset()
    name.CodeValue = "121106"
    name.CodingSchemeDesignator = "DCM"
    name.CodeMeaning = "Comment"
    one.ConceptNameCodeSequence = [name]
    return one


def swap_groups(dataset: Any) -> None:
    item(
        "Imaging Measurements",
        lambda found: found.ContentSequence.append(found.ContentSequence.pop(0)),
    )(dataset)


def lose_a_lesion(dataset: Any) -> None:
    item(
        "Imaging Measurements", lambda found: put(ContentSequence=found.ContentSequence[:2])(found)
    )(dataset)


EVIDENCE = "CurrentRequestedProcedureEvidenceSequence"
COMMON: dict[str, Change] = {
    "another patient's ID": put(PatientID="P-2"),
    "no patient ID": put(PatientID=None),
    "another study": put(StudyInstanceUID="2.25.999"),
    "a UID that is not derived": put(SOPInstanceUID="2.25.5"),
    "the source's series": put(SeriesInstanceUID="2.25.13"),
    "a patient's address": put(PatientAddress="X"),
    "a name in the description": put(SeriesDescription=f"Gruen^Ada. {DISCLAIMER}"),
    "text where none belongs": put(ImageComments="Gruen"),
    "a name as the software": put(SoftwareVersions=["DOE JOHN", "model 1.2.3"]),
    "a name as the contribution": within(
        "ContributingEquipmentSequence", put(ContributionDescription="DOE JOHN")
    ),
    "a name at the root": put(TextValue="DOE JOHN"),
    "an operator": put(OperatorsName="Doe^Jane"),
    "the scanner's name": put(Manufacturer="Scanner"),
    "no device UID": within("ContributingEquipmentSequence", drop("DeviceUID")),
    "a code that means something else": within(
        "ContributingEquipmentSequence.PurposeOfReferenceCodeSequence", put(CodeMeaning="Gruen^Ada")
    ),
    "another modality": put(Modality="OT"),
    "an empty series number": put(SeriesNumber=None),
}
SR: dict[str, Change] = {
    "the clock's time": put(ContentTime="050608.000000"),
    "a final document": put(PreliminaryFlag="FINAL"),
    "a verified document": put(VerificationFlag="VERIFIED"),
    "another template": within("ContentTemplateSequence", put(TemplateIdentifier="2000")),
    "another title": within("ConceptNameCodeSequence", put(CodeValue="126001")),
    "no content": drop("ContentSequence"),
    "no evidence": drop(EVIDENCE),
    "evidence of another study": within(EVIDENCE, put(StudyInstanceUID="2.25.14")),
    "evidence without the SEG": within(EVIDENCE, lambda d: d.ReferencedSeriesSequence.pop()),
    "evidence of another image": within(
        f"{EVIDENCE}.ReferencedSeriesSequence",
        lambda d: put(ReferencedSOPSequence=[OTHER_IMAGE])(d),
    ),
    "a contour on another image": item(
        "Image Region",
        within("ContentSequence", lambda d: put(ReferencedSOPSequence=[OTHER_IMAGE])(d)),
    ),
    "a contour without an image reference": item("Image Region", drop("ContentSequence")),
    "a moved contour": item("Image Region", move_contour),
    "an open contour": item("Image Region", open_contour),
    "a transposed contour": item("Image Region", transpose_contour),
    "a contour that is a point": item(
        "Image Region", put(GraphicType="POINT", GraphicData=[5.0, 5.0])
    ),
    "no contour": cut("Image Region"),
    "another SEG": item(
        "Referenced Segmentation Frame",
        within("ReferencedSOPSequence", put(ReferencedSOPInstanceUID="2.25.7")),
    ),
    "another frame": item(
        "Referenced Segmentation Frame",
        within("ReferencedSOPSequence", put(ReferencedFrameNumber=2)),
    ),
    "frame and segment together": item(
        "Referenced Segmentation Frame",
        within("ReferencedSOPSequence", put(ReferencedSegmentNumber=1)),
    ),
    "no tracking UID": cut("Tracking Unique Identifier"),
    "another tracking UID": item("Tracking Unique Identifier", put(UID="2.25.8")),
    "lesions in another order": swap_groups,
    "a missing lesion": lose_a_lesion,
    "another finding": item("Finding", code("36118009", "Pneumothorax")),
    "the other side": item("Laterality", code("7771000", "Left")),
    "no finding site": cut("Finding Site"),
    "an empty algorithm": item("Algorithm Name", put(TextValue="")),
    "no algorithm version": cut("Algorithm Version"),
    "another operating point": item("Algorithm Parameters", put(TextValue="positive from 41 %")),
    "another score": item(
        "Certainty of Finding", within("MeasuredValueSequence", put(NumericValue="88"))
    ),
    "another area": item(
        "Area of defined region", within("MeasuredValueSequence", put(NumericValue="97"))
    ),
    "an area that claims to be exact": cut("Derivation"),
    "absent and present": item("Pneumothorax", code("272519000", "Absent")),
    "no sentence": cut("Comment"),
    "another sentence": item("Comment", put(TextValue="Pneumothorax excluded.")),
    "an additional sentence": add_to_evaluations(comment_item("Patient Gruen^Ada")),
    "another observer": item("Device Observer UID", put(UID="2.25.3")),
    "a person as the observer": item("Device Observer Name", put(TextValue="Gruen^Ada")),
    "another relationship type": item("Finding", put(RelationshipType="INFERRED FROM")),
    "an item without a name": item("Finding", drop("ConceptNameCodeSequence")),
    "no heading": cut("Qualitative Evaluations"),
}
# The image library states a spacing, so it exists only for a source whose spacing fits a chest.
OF_A_WHOLE_IMAGE: dict[str, Change] = {
    "another orientation in the library": item("Patient Orientation Row", put(TextValue="R")),
}
GRAPHICS, GRAPHIC = "GraphicAnnotationSequence", "GraphicAnnotationSequence.GraphicObjectSequence"
PR: dict[str, Change] = {
    "the clock's time": put(PresentationCreationTime="050608.000000"),
    "another series": within("ReferencedSeriesSequence", put(SeriesInstanceUID="2.25.14")),
    "another image": within(
        "ReferencedSeriesSequence.ReferencedImageSequence", put(ReferencedSOPInstanceUID="2.25.666")
    ),
    "graphics on another image": within(
        f"{GRAPHICS}.ReferencedImageSequence", put(ReferencedSOPClassUID="1.2.3")
    ),
    "graphics on a layer that is not there": within(GRAPHICS, put(GraphicLayer="OTHER")),
    "no layer": drop("GraphicLayerSequence"),
    "no graphics": drop("GraphicAnnotationSequence"),
    "a missing contour": within(GRAPHICS, lambda d: d.GraphicObjectSequence.pop()),
    "a moved contour": within(GRAPHIC, move_contour),
    "an open contour": within(
        GRAPHIC, lambda d: (open_contour(d), put(NumberOfGraphicPoints=len(d.GraphicData) // 2)(d))
    ),
    "a wrong number of points": within(GRAPHIC, put(NumberOfGraphicPoints=3)),
    "a filled contour": within(GRAPHIC, put(GraphicFilled="Y")),
    "contours in display units": within(GRAPHIC, put(GraphicAnnotationUnits="DISPLAY")),
    "another tracking UID": within(GRAPHIC, put(TrackingUID="2.25.8")),
    "no tracking": within(GRAPHIC, drop("TrackingID", "TrackingUID")),
    "a patient's name in the text": within(
        f"{GRAPHICS}.TextObjectSequence", put(UnformattedTextValue="Gruen^Ada")
    ),
    "a part of the image": within(
        "DisplayedAreaSelectionSequence", put(DisplayedAreaBottomRightHandCorner=[30, 41])
    ),
    "the polarity inverted": put(PresentationLUTShape="INVERSE"),
    "no polarity": drop("PresentationLUTShape"),
    "another window": within("SoftcopyVOILUTSequence", put(WindowCenter=90)),
    "another rescale": put(RescaleSlope=2),
    "another shutter": put(ShutterShape="CIRCULAR", RadiusOfCircularShutter=10),
    "a missing window": drop("SoftcopyVOILUTSequence"),
    "a missing rescale": drop("RescaleSlope", "RescaleIntercept", "RescaleType"),
}
AREA = "DisplayedAreaSelectionSequence"
TEXT = f"{GRAPHICS}.TextObjectSequence"


def aspect(**values: object) -> Change:
    return within(AREA, lambda d: (drop("PresentationPixelAspectRatio")(d), put(**values)(d)))


def through(keyword: str) -> Dataset:
    """A VOI or modality LUT that makes every pixel black."""
    table, item = Dataset(), Dataset()
    table.add_new(0x00283002, "US", [256, 0, 16])
    table.add_new(0x00283006, "OW", bytes(512))
    if keyword == "ModalityLUTSequence":
        table.ModalityLUTType = "US"
    setattr(item, keyword, [table])
    return item


WINDOW = Dataset()
WINDOW.WindowCenter = 10
WINDOW.WindowWidth = 20
PR_OF_A_PLAIN_IMAGE: dict[str, Change] = {
    "a black VOI LUT": lambda d: put(SoftcopyVOILUTSequence=[through("VOILUTSequence")])(d),
    "a black modality LUT": lambda d: d.update(through("ModalityLUTSequence")),
    "an invented window": lambda d: put(SoftcopyVOILUTSequence=[WINDOW])(d),
    "a rescale": put(RescaleSlope=1, RescaleIntercept=0, RescaleType="US"),
    "an invented spacing": aspect(PresentationPixelSpacing=[0.3, 0.4]),
    "another aspect": aspect(PresentationPixelAspectRatio=[1, 3]),
    "no aspect": aspect(),
    "true size": within(AREA, put(PresentationSizeMode="TRUE SIZE")),
    "the text over the lungs": within(
        TEXT,
        put(BoundingBoxTopLeftHandCorner=[0.3, 0.3], BoundingBoxBottomRightHandCorner=[0.7, 0.7]),
    ),
    "the text in image pixels": within(TEXT, put(BoundingBoxAnnotationUnits="PIXEL")),
    "an anchor": within(
        TEXT,
        put(AnchorPoint=[5.0, 5.0], AnchorPointVisibility="Y", AnchorPointAnnotationUnits="PIXEL"),
    ),
    "the image rotated": put(ImageRotation=90, ImageHorizontalFlip="Y"),
    "another colour": within(
        "GraphicLayerSequence", put(GraphicLayerRecommendedDisplayGrayscaleValue=0)
    ),
    "a name as the layer": within("GraphicLayerSequence", put(GraphicLayerDescription="DOE JOHN")),
}
ABSENT = comment_item("")
ABSENT.ValueType = "CODE"
del ABSENT.TextValue
ABSENT.ConceptNameCodeSequence[0].CodeValue = "36118008"
ABSENT.ConceptNameCodeSequence[0].CodingSchemeDesignator = "SCT"
ABSENT.ConceptNameCodeSequence[0].CodeMeaning = "Pneumothorax"
ABSENT.ConceptCodeSequence = [copy.deepcopy(ABSENT.ConceptNameCodeSequence[0])]
ABSENT.ConceptCodeSequence[0].CodeValue = "272519000"
ABSENT.ConceptCodeSequence[0].CodeMeaning = "Absent"
OF_A_NEGATIVE: dict[str, Change] = {
    "Absent without the site's permission": add_to_evaluations(ABSENT),
    "stated as suspected": item(
        "Comment", put(TextValue="Pneumothorax suspected by the algorithm.")
    ),
    "no disclaimer": item("Qualitative Evaluations", lambda found: found.ContentSequence.pop()),
}
MUTATIONS = [
    *((GOOD[kind], CASE, name, change) for kind in ("SR", "PR") for name, change in COMMON.items()),
    *((GOOD["SR"], CASE, name, change) for name, change in SR.items()),
    *((GOOD_WHOLE, WHOLE, name, change) for name, change in OF_A_WHOLE_IMAGE.items()),
    *((GOOD["PR"], CASE, name, change) for name, change in PR.items()),
    *((GOOD_PLAIN, PLAIN, name, change) for name, change in PR_OF_A_PLAIN_IMAGE.items()),
    *(
        (GOOD_NEGATIVE, NEGATIVE, f"not detected: {name}", change)
        for name, change in OF_A_NEGATIVE.items()
    ),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("good", "case", "name", "change"),
    MUTATIONS,
    ids=[f"{good.kind}: {name}" for good, _, name, _ in MUTATIONS],
)
def test_a_broken_object_is_refused(good: Result, case: Case, name: str, change: Change) -> None:
    result = broken(good, change)
    assert result.data != good.data
    with pytest.raises(GateError) as caught:
        gate.check(result, case)
    assert caught.value.kind == good.kind
    assert not any(value in caught.value.what for value in ("Grün", "Gruen", "P-1"))


@pytest.mark.parametrize("kind", ["SR", "PR", "SEG"])
def test_a_good_object_passes_also_when_rewritten(kind: str) -> None:
    gate.check(GOOD[kind], CASE)
    gate.check(broken(GOOD[kind], lambda dataset: None), CASE)


def second_segment(dataset: Any, **values: object) -> None:
    put(**values)(dataset.SegmentSequence[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [
        lambda d: second_segment(d, TrackingUID="2.25.8"),
        lambda d: second_segment(d, SegmentLabel="Pneumothorax"),
        lambda d: put(SegmentSequence=list(reversed(d.SegmentSequence)))(d),
        lambda d: put(PixelData=d.PixelData[190:] + d.PixelData[:190])(d),
        lambda d: within("PerFrameFunctionalGroupsSequence.SegmentIdentificationSequence",
                         put(ReferencedSegmentNumber=2))(d),
        lambda d: d.PerFrameFunctionalGroupsSequence.pop(),
    ],
    ids=["tracking", "label", "segments swapped", "frames swapped", "frame of another segment", "frame missing"],
)  # fmt: skip
def test_a_seg_that_mixes_up_two_lesions_is_refused(change: Change) -> None:
    with pytest.raises(GateError):
        gate.check(broken(GOOD["SEG"], change), CASE)


@pytest.mark.filterwarnings("ignore")
def test_swapped_frames_of_lesions_of_equal_area_are_refused() -> None:
    # A frame is a whole number of bytes, so that frames can be swapped bytewise.
    mask = np.zeros((48, 40), dtype=bool)
    mask[2:8, 2:8] = mask[30:36, 30:36] = True
    case = positive(header(Rows=48, Columns=40), mask)
    (good,) = build(case, ["SEG"])
    middle = mask.size // 8
    swapped = broken(good, lambda d: put(PixelData=d.PixelData[middle:] + d.PixelData[:middle])(d))
    with pytest.raises(GateError, match="does not hold its lesion"):
        gate.check(swapped, case)


def test_a_good_object_of_another_case_is_refused() -> None:
    others = [
        positive(header(PatientID="P-2"), TWO),
        positive(header(), np.roll(TWO, 1, axis=0)),
        NEGATIVE,
        refused(),
    ]
    for other in others:
        for kind in ("SR", "PR"):
            with pytest.raises(GateError):
                gate.check(GOOD[kind], other)
    with pytest.raises(GateError):
        gate.check(GOOD_NEGATIVE, refused())
