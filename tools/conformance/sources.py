"""A finding, and variants of it that each change a single thing. An attribute that changes with a
variant depends on the changed thing.
"""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import DigitalXRayImageStorageForPresentation

from inference.finding import Finding, ModelIdentity
from inference.measure import measure
from inference.radiograph import spacing_of
from inference.results import KINDS, Case, RenderSettings, build
from tools import cases

# Beyond the minimum, every attribute that results take from a source. No value occurs twice, so
# that a copy can be recognised by its value.
_RICH: dict[str, Any] = {
    "IssuerOfPatientID": "ISSUER-1", "StudyDescription": "Thorax PA",
    "TimezoneOffsetFromUTC": "+0100", "AcquisitionDate": "20260302", "AcquisitionTime": "090807",
    "Rows": 600, "Columns": 780, "FrameOfReferenceUID": "2.25.14",
    "ImagerPixelSpacing": [0.22, 0.209], "PixelSpacing": [0.2, 0.19], "BurnedInAnnotation": "NO",
    "LossyImageCompression": "01", "LossyImageCompressionRatio": [7.5],
    "LossyImageCompressionMethod": ["ISO_15444_1"],
    "PhotometricInterpretation": "MONOCHROME2", "RescaleSlope": 2, "RescaleIntercept": -3,
    "RescaleType": "OD", "WindowCenter": 401, "WindowWidth": 801, "VOILUTFunction": "LINEAR",
    "ShutterShape": ["RECTANGULAR", "CIRCULAR", "POLYGONAL"],
    "ShutterLeftVerticalEdge": 2, "ShutterRightVerticalEdge": 36,
    "ShutterUpperHorizontalEdge": 4, "ShutterLowerHorizontalEdge": 38,
    "CenterOfCircularShutter": [19, 18], "RadiusOfCircularShutter": 17,
    "VerticesOfThePolygonalShutter": [3, 5, 3, 33, 35, 34],
}  # fmt: skip
_OTHER: dict[str, Any] = _RICH | {
    "SpecificCharacterSet": "ISO_IR 192", "SOPClassUID": DigitalXRayImageStorageForPresentation,
    "Modality": "DX", "SOPInstanceUID": "2.25.21", "StudyInstanceUID": "2.25.22",
    "SeriesInstanceUID": "2.25.23", "PatientName": "Núñez^Eva", "PatientID": "P-2",
    "PatientBirthDate": "19710202", "PatientSex": "O", "PatientAge": "055Y",
    "StudyDate": "20260203", "StudyTime": "111213", "StudyID": "S2", "AccessionNumber": "A2",
    "ReferringPhysicianName": "Øre^Ann", "BodyPartExamined": "THORAX",
    "PatientOrientation": ["R", "H"], "Rows": 500, "Columns": 820,
    "IssuerOfPatientID": "ISSUER-2", "StudyDescription": "Thorax AP",
    "TimezoneOffsetFromUTC": "-0500", "FrameOfReferenceUID": "2.25.24",
    "ImagerPixelSpacing": [0.33, 0.319], "PixelSpacing": [0.3, 0.29],
    "BurnedInAnnotation": "YES", "LossyImageCompressionRatio": [3.5, 8.5],
    "LossyImageCompressionMethod": ["ISO_15444_1", "ISO_10918_1"],
    "PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 4, "RescaleIntercept": -5,
    "RescaleType": "HU", "WindowCenter": 403, "WindowWidth": 803, "VOILUTFunction": "SIGMOID",
    "ShutterShape": ["POLYGONAL", "CIRCULAR", "RECTANGULAR"],
    "ShutterLeftVerticalEdge": 6, "ShutterRightVerticalEdge": 796,
    "ShutterUpperHorizontalEdge": 8, "ShutterLowerHorizontalEdge": 798,
    "CenterOfCircularShutter": [402, 404], "RadiusOfCircularShutter": 333,
    "VerticesOfThePolygonalShutter": [5, 7, 9, 777, 779, 781],
}  # fmt: skip
_KEPT = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Rows",
    "Columns",
)
# Source -> the source that it is compared with, and the single thing that differs. Tables name
# these things in this order.
CHANGES = {
    "source": ("base", "source"),
    "bare": ("base", "source"),
    "luts": ("base", "source"),
    "other luts": ("luts", "source"),
    "finding": ("base", "finding"),
    "no region": ("base", "finding"),
    "negative": ("base", "finding"),
    "refused": ("bare", "finding"),
    "model": ("base", "model"),
    "time": ("base", "time"),
    "settings": ("base", "settings"),
    "negative, coded": ("negative", "settings"),
    "noted": ("base", "notes"),
}


def _bare() -> Dataset:
    """The smallest header that a result can refer to."""
    return cases.header(
        **{element.keyword: None for element in cases.header() if element.keyword not in _KEPT}
    )


def _with_luts(first: int) -> Dataset:
    """A source with LUTs in place of slope and window, and without pixel spacing, only with a pixel
    aspect ratio. `first`: the lowest stored value and the lowest output.
    """
    lut = Dataset()
    # LUT Descriptor and LUT Data.
    lut.add_new(0x00283002, "US", [4, first, 8])
    lut.add_new(0x00283006, "OW", (np.arange(4, dtype="<u2") + first).tobytes())

    header = cases.header(
        **_RICH | {"PixelSpacing": None, "ImagerPixelSpacing": None, "PixelAspectRatio": [first, 9]}
    )
    header.ModalityLUTSequence = [lut]
    header.VOILUTSequence = [lut]
    return header


def _lesions(header: Dataset) -> Finding:
    """A finding of two regions."""
    mask = np.zeros((header.Rows, header.Columns), dtype=bool)
    mask[30:120, 40:100] = True
    mask[200:330, 220:300] = True

    measured = measure(mask, spacing_of(header), header.get("PatientOrientation"))
    return Finding(0.61, 0.55, True, mask, measured, calibrated=True)


@cache
def sources() -> dict[str, Case]:
    """The sources by name. CHANGES says how they differ."""
    base = cases.positive(cases.header(**_RICH))
    negative = cases.negative(cases.header(**_RICH))

    other_model = ModelIdentity("another", "9.8.7", "cd" * 32, "2.25.99")
    other_settings = RenderSettings(512, 70, report_absent=True, refer_to_segmentation=False)
    no_region = Finding(0.9, 0.42, True, np.zeros_like(cases.blob(base.header)))

    return {
        "base": base,
        "source": cases.positive(cases.header(**_OTHER), content_digest="d1" * 32),
        "finding": replace(base, finding=_lesions(cases.header(**_RICH))),
        "model": replace(base, model=other_model),
        "time": replace(base, result_time=datetime(2027, 12, 11, 10, 9, 8, 7)),
        "settings": replace(base, appearance=other_settings),
        "bare": cases.positive(_bare()),
        "luts": cases.positive(_with_luts(1)),
        "other luts": cases.positive(_with_luts(2)),
        "noted": replace(base, notes=("PatientAge absent or implausible",)),
        "no region": replace(base, finding=no_region),
        "negative": negative,
        "negative, coded": replace(negative, appearance=RenderSettings(report_absent=True)),
        "refused": cases.refused(_bare()),
    }


@cache
def built(name: str) -> dict[str, Dataset]:
    """Every kind of object that is built from the source of this name, read back from its bytes."""
    results = build(sources()[name], KINDS)
    return {result.kind: dcmread(io.BytesIO(result.data)) for result in results}


def objects(kind: str) -> dict[str, Dataset]:
    """The object of this kind for each source from which it is built."""
    return {name: built(name)[kind] for name in sources() if kind in built(name)}
