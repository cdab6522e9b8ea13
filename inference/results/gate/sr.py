"""The gate's rules for an SR: each yields what is wrong with what was read back."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from inference.results import content, seg, sr
from inference.results.gate import pr as gate_pr
from inference.results.identity import Case, derived_uid, series_uid
from inference.results.lesions import Lesion

# What may stand below what, and how it belongs there: of PS3.3 Table A.35.13-1, what these reports use.
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
    "CODE": "ConceptCodeSequence", "TEXT": "TextValue", "NUM": "MeasuredValueSequence", "UIDREF": "UID",
    "IMAGE": "ReferencedSOPSequence", "SCOORD": "GraphicData", "CONTAINER": "ContinuityOfContent",
}  # fmt: skip


def _document(dataset: Dataset, case: Case) -> Iterator[str]:
    """PS3.3 C.17.2: finished, and seen by nobody yet."""
    flags = (dataset.CompletionFlag, dataset.VerificationFlag, dataset.PreliminaryFlag)
    if flags != ("COMPLETE", "UNVERIFIED", "PRELIMINARY"):
        yield f"the document is {flags}, wanted COMPLETE, UNVERIFIED, PRELIMINARY"
    if "VerifyingObserverSequence" in dataset or "AuthorObserverSequence" in dataset:
        yield "the document names a person"
    templates = [item.TemplateIdentifier for item in dataset.get("ContentTemplateSequence") or []]
    if (
        templates != ["1500"]
        or _name(dataset) != sr.title(case)[:2]
        or dataset.ValueType != "CONTAINER"
    ):
        yield f"the root is not a {sr.title(case)[2]} after TID 1500"


def _tree(dataset: Dataset, _: Case) -> Iterator[str]:
    """Each item belongs where it stands, has its value, and a name: a viewer asks each for it."""
    for parent, item in _descend(dataset):
        value_type, relation = item.get("ValueType"), item.get("RelationshipType")
        if value_type not in RELATIONS.get((parent.ValueType, str(relation)), ()):
            yield f"a {value_type} below a {parent.ValueType} as {relation}"
            continue
        if VALUES[value_type] not in item or item[VALUES[value_type]].is_empty:
            yield f"a {value_type} without {VALUES[value_type]}"
        if "ConceptNameCodeSequence" not in item and _name(parent) != content.LIBRARY_GROUP[:2]:
            yield f"a {value_type} without a concept name"


def _headings(dataset: Dataset, case: Case) -> Iterator[str]:
    found = [_name(item) for item in dataset.ContentSequence if item.ValueType == "CONTAINER"]
    wanted = [content.MEASUREMENTS[:2]] * bool(case.lesions) + [content.EVALUATIONS[:2]]
    if [name for name in found if name != content.LIBRARY[:2]] != wanted:
        yield "the headings are not Imaging Measurements, where there are lesions, and Qualitative Evaluations"
    context = {
        _name(item): item for item in dataset.ContentSequence if item.ValueType != "CONTAINER"
    }
    device = context.get(content.DEVICE_UID[:2])
    if device is None or device.get("UID") != case.model.device_uid:
        yield "the observer is not the model's device"


def _references(dataset: Dataset, case: Case) -> Iterator[str]:
    """Each reference leads to the source or to this case's SEG, and the evidence names just those."""
    source = (str(case.header.SOPClassUID), str(case.header.SOPInstanceUID))
    segmentation = (str(SegmentationStorage), derived_uid(case, seg.KIND))
    allowed = [source] + [segmentation] * sr.refers_to_segmentation(case)
    referenced = set()
    for _, item in _descend(dataset):
        for one in item.get("ReferencedSOPSequence") or []:
            pair = (one.get("ReferencedSOPClassUID"), one.get("ReferencedSOPInstanceUID"))
            referenced.add(pair)
            if pair not in allowed:
                yield f"ReferencedSOPInstanceUID {pair[1]} is neither the source nor its SEG"
            if "ReferencedSegmentNumber" in one:
                yield "ReferencedSegmentNumber beside a frame number"
    studies = dataset.get("CurrentRequestedProcedureEvidenceSequence") or []
    evidence = [
        (
            study.StudyInstanceUID,
            series.SeriesInstanceUID,
            one.ReferencedSOPClassUID,
            one.ReferencedSOPInstanceUID,
        )
        for study in studies
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    ]
    study_uid = str(case.header.StudyInstanceUID)
    wanted = [(study_uid, str(case.header.SeriesInstanceUID), *source)]
    if sr.refers_to_segmentation(case):
        wanted.append((study_uid, series_uid(case, seg.KIND), *segmentation))
    if evidence != wanted or not referenced <= {item[2:] for item in evidence}:
        yield "CurrentRequestedProcedureEvidenceSequence is not the source and, where it is sent, the SEG"


def _lesions(dataset: Dataset, case: Case) -> Iterator[str]:
    """A group with its contour for each lesion, and one for its frame where there is a SEG."""
    groups = [
        group
        for heading in dataset.ContentSequence
        if _name(heading) == content.MEASUREMENTS[:2]
        for group in heading.get("ContentSequence") or []
    ]
    each = 1 + sr.refers_to_segmentation(case)
    if len(groups) != each * len(case.lesions):
        yield f"{len(groups)} measurement groups, wanted {each} for each of {len(case.lesions)} lesions"
        return
    for position, group in enumerate(groups):
        lesion = case.lesions[position // each]
        items = _by_name(group)
        if [t.TemplateIdentifier for t in group.get("ContentTemplateSequence") or []] != ["1410"]:
            yield "a measurement group that is not after TID 1410"
        if _values(items, content.TRACKING_ID) != [lesion.tracking_id]:
            yield f"the Tracking Identifier is not that of lesion {lesion.number}"
        if _values(items, content.TRACKING_UID) != [lesion.tracking_uid]:
            yield f"the Tracking Unique Identifier is not that of lesion {lesion.number}"
        if _values(items, content.FINDING) != [content.PNEUMOTHORAX[:2]]:
            yield "the finding is not Pneumothorax"
        yield from _frame(items, lesion) if position % each else _measured(items, lesion, case)


def _measured(
    items: dict[tuple[str, str], list[Dataset]], lesion: Lesion, case: Case
) -> Iterator[str]:
    regions = items.get(content.REGION[:2], [])
    if len(regions) != 1 or regions[0].GraphicType != "POLYLINE":
        yield "a group does not hold one contour"
        return
    yield from gate_pr.contour_is_of(regions[0].GraphicData, lesion, 0)
    selected = regions[0].get("ContentSequence") or []
    if len(selected) != 1 or selected[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID != (
        case.header.SOPInstanceUID
    ):
        yield "the contour is not drawn on the source"
    assert case.finding is not None  # it has lesions
    areas = [(str(lesion.area_px), "{pixels}", False)]
    if (mm2 := sr.area_mm2(case, lesion)) is not None and case.spacing is not None:
        areas.append((mm2, "mm2", case.spacing.detector))
    for name, wanted in (
        (content.CERTAINTY, [(sr.percent(case.finding.probability), "%", False)]),
        (content.AREA, areas),
    ):
        found = [_measure(item) for item in items.get(name[:2], [])]
        if [(float(value), unit, estimated) for value, unit, estimated in found] != [
            (float(value), unit, estimated) for value, unit, estimated in wanted
        ]:
            yield f"{name[2]} is not what was measured"
    sites = items.get(content.FINDING_SITE[:2], [])
    sides = [
        _code(item.ConceptCodeSequence[0])
        for site in sites
        for item in site.get("ContentSequence") or []
    ]
    if [_code(site.ConceptCodeSequence[0]) for site in sites] != [content.LUNG[:2]] or sides != (
        [content.SIDES[lesion.side][:2]] if lesion.side else []
    ):
        yield "the finding site is not the lung on the side that was measured"
    if _values(items, content.PNEUMOTHORAX) != [content.PRESENT[:2]]:
        yield "a lesion's pneumothorax is not present"
    yield from _algorithm(items, case)


def _frame(items: dict[tuple[str, str], list[Dataset]], lesion: Lesion) -> Iterator[str]:
    frames = [
        item.ReferencedSOPSequence[0] for item in items.get(content.SEGMENTATION_FRAME[:2], [])
    ]
    if [(one.ReferencedSOPClassUID, one.get("ReferencedFrameNumber")) for one in frames] != [
        (SegmentationStorage, lesion.number)
    ]:
        yield f"the group does not refer to frame {lesion.number} of the SEG"
    if len(items.get(content.SEGMENTATION_SOURCE[:2], [])) != 1:
        yield "the group does not say which image was segmented"


def _said(dataset: Dataset, case: Case) -> Iterator[str]:
    """What is said of the image is this answer, and no more than this answer."""
    evaluations = [
        item for item in dataset.ContentSequence if _name(item) == content.EVALUATIONS[:2]
    ]
    items = _by_name(evaluations[0]) if evaluations else {}
    if _values(items, content.COMMENT) != sr.statements(case):
        yield "the sentences are not this answer's"
    coded = _values(items, content.PNEUMOTHORAX)
    if case.finding is not None and case.finding.positive:
        wanted = [content.PRESENT[:2]]
    elif case.finding is not None and case.appearance.report_absent:
        wanted = [content.ABSENT[:2]]
    else:
        wanted = []
    if coded != wanted:
        yield "Pneumothorax is coded otherwise than the answer and the site allow"
    yield from _algorithm(items, case)
    context = [item for item in dataset.ContentSequence if item.ValueType == "TEXT"]
    own = {"Pleura", case.model.id, case.model.digest[:16]}
    if any(item.TextValue not in own for item in context):
        yield "the observer is described in words that are not ours"
    known = {
        *sr.statements(case),
        *own,
        case.model.version,
        *(lesion.tracking_id for lesion in case.lesions),
    }
    for parent, item in _descend(dataset):
        if item.ValueType != "TEXT" or item.TextValue in known or parent.ValueType == "IMAGE":
            continue
        if _name(item) != content.ALGORITHM_PARAMETERS[:2]:
            yield "a text that is none of our sentences"
        elif (
            case.finding is None
            or item.TextValue != f"positive from {sr.percent(case.finding.threshold)} %"
        ):
            yield "Algorithm Parameters is not the operating point"


def _library(dataset: Dataset, case: Case) -> Iterator[str]:
    """What is told of the source is in its header."""
    for parent, item in _descend(dataset):
        if parent.ValueType != "IMAGE" or item.ValueType != "TEXT":
            continue
        position = (content.ORIENTATION_ROW[:2], content.ORIENTATION_COLUMN[:2]).index(_name(item))
        if item.TextValue != case.header.PatientOrientation[position]:
            yield "the image library's orientation is not the source's"


def _algorithm(items: dict[tuple[str, str], list[Dataset]], case: Case) -> Iterator[str]:
    for name, wanted in (
        (content.ALGORITHM, case.model.id),
        (content.ALGORITHM_VERSION, case.model.version),
    ):
        if _values(items, name) != [wanted]:
            yield f"{name[2]} is not the model's"


def _descend(item: Dataset) -> Iterator[tuple[Dataset, Dataset]]:
    """(parent, child) of the whole content tree."""
    for child in item.get("ContentSequence") or []:
        yield item, child
        yield from _descend(child)


def _by_name(group: Dataset) -> dict[tuple[str, str], list[Dataset]]:
    named: dict[tuple[str, str], list[Dataset]] = {}
    for item in group.get("ContentSequence") or []:
        named.setdefault(_name(item), []).append(item)
    return named


def _values(items: dict[tuple[str, str], list[Dataset]], name: content.Code) -> list[object]:
    return [
        _code(item.ConceptCodeSequence[0])
        if item.ValueType == "CODE"
        else item[VALUES[item.ValueType]].value
        for item in items.get(name[:2], [])
    ]


def _measure(item: Dataset) -> tuple[str, str, bool]:
    (measured,) = item.MeasuredValueSequence
    derived = [_code(one.ConceptCodeSequence[0]) for one in item.get("ContentSequence") or []]
    return (
        str(measured.NumericValue),
        str(measured.MeasurementUnitsCodeSequence[0].CodeValue),
        derived == [content.ESTIMATED[:2]],
    )


def _name(item: Dataset) -> tuple[str, str]:
    names = item.get("ConceptNameCodeSequence")
    return _code(names[0]) if names else ("", "")


def _code(item: Dataset) -> tuple[str, str]:
    return str(item.CodeValue), str(item.CodingSchemeDesignator)


RULES = (_document, _tree, _headings, _references, _lesions, _said, _library)
