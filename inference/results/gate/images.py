"""The gate's rules for images that are derived from the source: SEG and Secondary Capture."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from inference.results.gate.expected import Expected, Rule
from inference.results.gate.header import directions_of, element_of, lossy_steps, values_of


def _references(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """The object refers to its source and to nothing else, by instance, class and series."""
    sop_class_uid, sop_instance_uid = expected.source
    count = 0
    for item in expected.items[1:]:
        if "ReferencedSOPInstanceUID" not in item and "ReferencedSOPClassUID" not in item:
            continue
        count += 1
        instance, sop_class = (
            item.get("ReferencedSOPInstanceUID"),
            item.get("ReferencedSOPClassUID"),
        )
        if instance != sop_instance_uid:
            yield f"ReferencedSOPInstanceUID {instance} is not the source"
        if sop_class != sop_class_uid:
            yield f"ReferencedSOPClassUID {sop_class} is not the source's"

    series = dataset.ReferencedSeriesSequence
    wanted = [expected.case.header.SeriesInstanceUID]
    if [item.get("SeriesInstanceUID") for item in series] != wanted:
        yield "ReferencedSeriesSequence does not name the source's series, and it alone"
    if len(series[0].get("ReferencedInstanceSequence") or []) != 1 or count < 2:
        yield "the source is not referred to as series and as source image"


def _lossy_history(dataset: Dataset, expected: Expected) -> Iterator[str]:
    """The source's lossy history is carried on; the overlay adds its step (PS3.3 C.7.6.1.1.5)."""
    steps = lossy_steps(expected.case.header)
    found = {
        keyword: [str(value) for value in values_of(element_of(dataset, keyword))]
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
    }

    if dataset.SOPClassUID == SecondaryCaptureImageStorage:
        own = (found["LossyImageCompressionRatio"] or ["0"])[-1]
        if not 1 < float(own) < 1000:
            yield "LossyImageCompressionRatio is not this picture's"
        steps = [*steps, (own, "ISO_10918_1")]

    if dataset.get("LossyImageCompression") != ("01" if steps else "00"):
        yield "LossyImageCompression does not say what happened to the pixels"
    for position, keyword in enumerate(found):
        wanted = [step[position] for step in steps]
        if found[keyword] != (wanted if any(wanted) else []):
            yield f"{keyword} does not carry the source's history on"


def _orientation(dataset: Dataset, expected: Expected) -> Iterator[str]:
    found = [str(value) for value in values_of(dataset["PatientOrientation"])]
    if found != (directions_of(expected.case.header) or []):
        yield "PatientOrientation is not the source's"


RULES: tuple[Rule, ...] = (_references, _lossy_history, _orientation)
