"""The gate's rules for an SR: each item is in its place and says what the finding says."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset

from inference.results import codes, wording
from inference.results.case import Case
from inference.results.gate import common
from inference.results.gate.contours import outer_contour
from inference.results.gate.expected import Expected, Rule
from inference.results.gate.header import directions_of, has_value, singles
from inference.results.gate.regions import Region
from inference.results.gate.words import percent, sentences

Name = tuple[str, str]  # code value and scheme of a concept name
Items = dict[Name, list[Dataset]]  # content items by their concept name

# (parent, relationship) -> children, of PS3.3 Table A.35.13-1 what these reports use.
RELATIONS = {
    ("CONTAINER", "CONTAINS"): {"CONTAINER", "CODE", "TEXT", "NUM", "SCOORD", "IMAGE"},
    ("CONTAINER", "HAS OBS CONTEXT"): {"CODE", "TEXT", "UIDREF"},
    ("CONTAINER", "HAS CONCEPT MOD"): {"CODE", "TEXT"},
    ("IMAGE", "HAS ACQ CONTEXT"): {"CODE", "TEXT", "NUM"},
    ("SCOORD", "SELECTED FROM"): {"IMAGE"},
    ("CODE", "HAS CONCEPT MOD"): {"CODE"},
    ("NUM", "HAS CONCEPT MOD"): {"CODE"},
}
VALUES = {
    "CODE": "ConceptCodeSequence", "TEXT": "TextValue", "NUM": "MeasuredValueSequence",
    "UIDREF": "UID",
    "IMAGE": "ReferencedSOPSequence", "SCOORD": "GraphicData", "CONTAINER": "ContinuityOfContent",
}  # fmt: skip


def _document(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """PS3.3 C.17.2: complete, and verified by nobody yet."""
    flags = (dataset.CompletionFlag, dataset.VerificationFlag, dataset.PreliminaryFlag)
    if flags != ("COMPLETE", "UNVERIFIED", "PRELIMINARY"):
        yield f"the document is {flags}, wanted COMPLETE, UNVERIFIED, PRELIMINARY"
    if "VerifyingObserverSequence" in dataset or "AuthorObserverSequence" in dataset:
        yield "the document names a person"

    title = codes.REPORT if expected.regions else codes.REPORT_WITHOUT_MEASUREMENTS
    templates = [item.TemplateIdentifier for item in dataset.get("ContentTemplateSequence") or []]
    root = (dataset.ValueType, _name(dataset), templates)
    if root != ("CONTAINER", title[:2], ["1500"]):
        yield f"the root is not a {title[2]} after TID 1500"


def _tree(dataset: Dataset, _: Expected) -> Iterator[str]:
    """Each item belongs where it stands, has its value, and a name: a viewer asks each for it."""
    for parent, item in _descend(dataset):
        value_type, relation = item.get("ValueType"), item.get("RelationshipType")
        if value_type not in RELATIONS.get((parent.ValueType, str(relation)), ()):
            yield f"a {value_type} below a {parent.ValueType} as {relation}"
            continue
        if not has_value(item, VALUES[value_type]):
            yield f"a {value_type} without {VALUES[value_type]}"
        if "ConceptNameCodeSequence" not in item and _name(parent) != codes.LIBRARY_GROUP[:2]:
            yield f"a {value_type} without a concept name"


def _headings(dataset: Dataset, expected: Expected) -> Iterator[str]:
    containers = [item for item in dataset.ContentSequence if item.ValueType == "CONTAINER"]
    found = [_name(item) for item in containers if _name(item) != codes.LIBRARY[:2]]
    wanted = [codes.EVALUATIONS[:2]]
    if expected.regions:
        wanted.insert(0, codes.MEASUREMENTS[:2])
    if found != wanted:
        yield (
            "the headings are not Imaging Measurements, where there are lesions, and Qualitative "
            "Evaluations"
        )

    others = [item for item in dataset.ContentSequence if item.ValueType != "CONTAINER"]
    devices = [item.get("UID") for item in others if _name(item) == codes.DEVICE_UID[:2]]
    if devices != [expected.case.model.device_uid]:
        yield "the observer is not the model's device"


def _references(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """Each reference is to the source or to this case's SEG, and the evidence names just those."""
    case = expected.case
    study_uid, series_uid = str(case.header.StudyInstanceUID), str(case.header.SeriesInstanceUID)
    allowed = [expected.source]
    wanted = [(study_uid, series_uid, *expected.source)]
    if case.refers_to_segmentation:
        allowed.append(expected.segmentation)
        wanted.append((study_uid, expected.segmentation_series_uid, *expected.segmentation))

    for _, item in _descend(dataset):
        for referenced in item.get("ReferencedSOPSequence") or []:
            sop_class_uid = referenced.get("ReferencedSOPClassUID")
            sop_instance_uid = referenced.get("ReferencedSOPInstanceUID")
            if (sop_class_uid, sop_instance_uid) not in allowed:
                yield (
                    f"ReferencedSOPInstanceUID {sop_instance_uid} is neither the source nor its SEG"
                )
            if "ReferencedSegmentNumber" in referenced:
                yield "ReferencedSegmentNumber beside a frame number"

    evidence = [
        (
            study.StudyInstanceUID,
            series.SeriesInstanceUID,
            referenced.ReferencedSOPClassUID,
            referenced.ReferencedSOPInstanceUID,
        )
        for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or []
        for series in study.ReferencedSeriesSequence
        for referenced in series.ReferencedSOPSequence
    ]
    if evidence != wanted:
        yield (
            "CurrentRequestedProcedureEvidenceSequence is not the source and, where it is sent, "
            "the SEG"
        )


def _lesions(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """A group with its contour for each lesion, and a group for its frame where there is a SEG."""
    groups = [
        group
        for heading in dataset.ContentSequence
        if _name(heading) == codes.MEASUREMENTS[:2]
        for group in heading.get("ContentSequence") or []
    ]
    each = 2 if expected.case.refers_to_segmentation else 1
    if len(groups) != each * len(expected.regions):
        yield (
            f"{len(groups)} measurement groups, wanted {each} for each of "
            f"{len(expected.regions)} lesions"
        )
        return

    for position, group in enumerate(groups):
        region = expected.regions[position // each]
        items = _by_name(group)
        yield from _tracked(group, items, region)
        if position % each == 0:
            yield from _measured(items, region, expected.case)
        else:
            yield from _frame(items, region, expected)


def _tracked(group: Dataset, items: Items, region: Region) -> Iterator[str]:
    """The items that both groups of a lesion have."""
    templates = [item.TemplateIdentifier for item in group.get("ContentTemplateSequence") or []]
    if templates != ["1410"]:
        yield "a measurement group that is not after TID 1410"
    if _values(items, codes.TRACKING_ID) != [region.tracking_id]:
        yield f"the Tracking Identifier is not that of lesion {region.number}"
    if _values(items, codes.TRACKING_UID) != [region.tracking_uid]:
        yield f"the Tracking Unique Identifier is not that of lesion {region.number}"
    if _values(items, codes.FINDING) != [codes.PNEUMOTHORAX[:2]]:
        yield "the finding is not Pneumothorax"


def _measured(items: Items, region: Region, case: Case) -> Iterator[str]:
    """The contour, the score, the area and the side of a lesion."""
    contours = items.get(codes.REGION[:2], [])
    if len(contours) != 1 or contours[0].GraphicType != "POLYLINE":
        yield "a group does not hold one contour"
        return

    (contour,) = contours
    yield from outer_contour(singles(contour, "GraphicData"), region)
    selected = contour.get("ContentSequence") or []
    drawn_on = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in selected]
    if drawn_on != [case.header.SOPInstanceUID]:
        yield "the contour is not drawn on the source"

    yield from _figures(items, region, case)
    yield from _site(items, region)
    if _values(items, codes.PNEUMOTHORAX) != [codes.PRESENT[:2]]:
        yield "a lesion's pneumothorax is not present"
    yield from _algorithm(items, case)


def _figures(items: Items, region: Region, case: Case) -> Iterator[str]:
    """The score of the image and the area of the lesion, each with its unit."""
    assert case.finding is not None  # it has lesions
    areas = [(float(region.area_px), "{pixels}", False)]
    if case.spacing is not None:
        area_mm2 = round(region.area_px * case.spacing.row_mm * case.spacing.column_mm, 2)
        areas.append((area_mm2, "mm2", case.spacing.detector))
    # Only a calibrated probability is a certainty.
    scores = [(float(percent(case.finding.probability)), "%", False)]
    if not case.finding.calibrated:
        scores = []

    for name, wanted in ((codes.CERTAINTY, scores), (codes.AREA, areas)):
        if [_number(item) for item in items.get(name[:2], [])] != wanted:
            yield f"{name[2]} is not that of the finding"


def _site(items: Items, region: Region) -> Iterator[str]:
    """Each area says where it is; the group does not, for a viewer shows the code of its name."""
    if codes.FINDING_SITE[:2] in items:
        yield "the finding site is a child of the group"

    wanted_sides = [codes.SIDES[region.side][:2]] if region.side else []
    for area in items.get(codes.AREA[:2], []):
        sites = _by_name(area).get(codes.FINDING_SITE[:2], [])
        organs = [_code(site.ConceptCodeSequence[0]) for site in sites]
        sides = [
            _code(item.ConceptCodeSequence[0])
            for site in sites
            for item in site.get("ContentSequence") or []
        ]
        if organs != [codes.LUNG[:2]] or sides != wanted_sides:
            yield "the finding site is not the lung on the side of the lesion"


def _frame(items: Items, region: Region, expected: Expected) -> Iterator[str]:
    frames = [item.ReferencedSOPSequence[0] for item in items.get(codes.SEGMENTATION_FRAME[:2], [])]
    sop_class_uid, _ = expected.segmentation
    found = [(frame.ReferencedSOPClassUID, frame.get("ReferencedFrameNumber")) for frame in frames]
    if found != [(sop_class_uid, region.number)]:
        yield f"the group does not refer to frame {region.number} of the SEG"
    if len(items.get(codes.SEGMENTATION_SOURCE[:2], [])) != 1:
        yield "the group does not say which image was segmented"


def _statements(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """The statements about the image are those of this answer, and no others."""
    case = expected.case
    evaluations = [item for item in dataset.ContentSequence if _name(item) == codes.EVALUATIONS[:2]]
    items = _by_name(evaluations[0]) if evaluations else {}
    if _values(items, codes.COMMENT) != sentences(expected):
        yield "the sentences are not this answer's"

    wanted = []
    if case.finding is not None and case.finding.positive:
        wanted = [codes.PRESENT[:2]]
    elif case.finding is not None and case.appearance.report_absent:
        wanted = [codes.ABSENT[:2]]
    if _values(items, codes.PNEUMOTHORAX) != wanted:
        yield "Pneumothorax is coded otherwise than the answer and the site allow"
    yield from _algorithm(items, case)


def _texts(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """Every text of the tree is a sentence of the answer or a name of the model."""
    case = expected.case
    observer = {"Pleura", case.model.id, case.model.digest[:16]}
    context = [item for item in dataset.ContentSequence if item.ValueType == "TEXT"]
    if any(item.TextValue not in observer for item in context):
        yield "the observer is described in words that are not ours"

    names = {region.tracking_id for region in expected.regions}
    known = {*sentences(expected), *observer, *names, case.model.version}
    operating_point = None
    if case.finding is not None:
        threshold = percent(case.finding.threshold)
        operating_point = wording.OPERATING_POINT.format(threshold=threshold)

    for parent, item in _descend(dataset):
        if item.ValueType != "TEXT" or item.TextValue in known or parent.ValueType == "IMAGE":
            continue
        if _name(item) != codes.ALGORITHM_PARAMETERS[:2]:
            yield "a text that is not one of our sentences"
        elif item.TextValue != operating_point:
            yield "Algorithm Parameters is not the operating point"


def _library(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """The orientation in the image library is that of the source's header."""
    for parent, item in _descend(dataset):
        if parent.ValueType != "IMAGE" or item.ValueType != "TEXT":
            continue
        position = (codes.ORIENTATION_ROW[:2], codes.ORIENTATION_COLUMN[:2]).index(_name(item))
        directions = directions_of(expected.case.header)
        if directions is None or item.TextValue != directions[position]:
            yield "the image library's orientation is not the source's"


def _algorithm(items: Items, case: Case) -> Iterator[str]:
    for name, wanted in (
        (codes.ALGORITHM, case.model.id),
        (codes.ALGORITHM_VERSION, case.model.version),
    ):
        if _values(items, name) != [wanted]:
            yield f"{name[2]} is not the model's"


def _descend(item: Dataset) -> Iterator[tuple[Dataset, Dataset]]:
    """(parent, child) of the whole content tree."""
    for child in item.get("ContentSequence") or []:
        yield item, child
        yield from _descend(child)


def _by_name(group: Dataset) -> Items:
    named: Items = {}
    for item in group.get("ContentSequence") or []:
        named.setdefault(_name(item), []).append(item)
    return named


def _values(items: Items, name: codes.Code) -> list[object]:
    return [
        _code(item.ConceptCodeSequence[0])
        if item.ValueType == "CODE"
        else item[VALUES[item.ValueType]].value
        for item in items.get(name[:2], [])
    ]


def _number(item: Dataset) -> tuple[float, str, bool]:
    """(value, unit, whether it is marked as estimated) of a NUM item."""
    (measured,) = item.MeasuredValueSequence
    unit = str(measured.MeasurementUnitsCodeSequence[0].CodeValue)
    derivation = [
        _code(each.ConceptCodeSequence[0])
        for each in item.get("ContentSequence") or []
        if _name(each) != codes.FINDING_SITE[:2]
    ]
    return float(measured.NumericValue), unit, derivation == [codes.ESTIMATED[:2]]


def _name(item: Dataset) -> Name:
    names = item.get("ConceptNameCodeSequence")
    return _code(names[0]) if names else ("", "")


def _code(item: Dataset) -> Name:
    return str(item.CodeValue), str(item.CodingSchemeDesignator)


RULES: tuple[Rule, ...] = (
    *common.RULES,
    _document,
    _tree,
    _headings,
    _references,
    _lesions,
    _statements,
    _texts,
    _library,
)
