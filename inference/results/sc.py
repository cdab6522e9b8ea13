"""The Secondary Capture overlay: a baseline JPEG that any viewer shows (PS3.3 A.8.1)."""

from __future__ import annotations

import io

from pydicom import Dataset
from pydicom.encaps import encapsulate

from inference.results import codes, overlay
from inference.results.case import Case
from inference.results.identity import (
    add_body_part,
    add_code,
    code,
    identify,
    record_lossy,
    reference,
    reference_series,
)
from inference.results.source import lossy_history, orientation
from inference.results.uids import PLEURA_VERSION
from inference.results.wording import (
    BANNER_ADDED,
    CONTOUR_DRAWN,
    MANUFACTURER,
    QUALITY,
    RESAMPLED,
)

KIND = "SC"
JPEG_METHOD = "ISO_10918_1"  # PS3.3 C.7.6.1.1.5.1


def encode(case: Case) -> Dataset:
    """Build the overlay: every answer has one, positive, not detected or not analysed."""
    picture = overlay.draw(case)
    buffer = io.BytesIO()
    # 4:4:4: a thin coloured line loses its colour where chrominance is subsampled.
    picture.save(buffer, "JPEG", quality=case.appearance.jpeg_quality, subsampling=0)
    jpeg = buffer.getvalue()

    dataset = identify(case, KIND)
    _describe_equipment(dataset, case)
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.PatientOrientation = orientation(case.header)  # type 2C
    add_body_part(dataset, case)
    # The banner names no patient, but the source's own pixels may: silence is no promise.
    dataset.BurnedInAnnotation = "NO" if case.header.get("BurnedInAnnotation") == "NO" else "YES"
    dataset.RecognizableVisualFeatures = "NO"
    _derive(dataset, case)

    # No PixelSpacing: it would invite measuring on a picture. YBR_FULL_422 is the only value beside
    # RGB for this transfer syntax (PS3.5 Table 8.2.1-1), for any sub-sampling in the bit stream
    # (PS3.3 C.7.6.3.1.2).
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.PlanarConfiguration = 0
    dataset.Columns, dataset.Rows = picture.size
    dataset.BitsAllocated = 8
    dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0

    ratio = picture.width * picture.height * 3 / len(jpeg)
    record_lossy(dataset, [*lossy_history(case.header), (f"{ratio:.3f}", JPEG_METHOD)])
    dataset.PixelData = encapsulate([jpeg])
    dataset["PixelData"].VR = "OB"  # PS3.5 A.4: encapsulated
    dataset["PixelData"].is_undefined_length = True
    return dataset


def _describe_equipment(dataset: Dataset, case: Case) -> None:
    """SC Equipment and SC Image modules, PS3.3 C.8.6.1, C.8.6.2."""
    dataset.ConversionType = "WSD"
    dataset.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    dataset.SecondaryCaptureDeviceManufacturerModelName = case.model.id
    dataset.SecondaryCaptureDeviceSoftwareVersions = [
        f"Pleura {PLEURA_VERSION}",
        f"model {case.model.version}",
    ]
    dataset.DateOfSecondaryCapture = dataset.ContentDate
    dataset.TimeOfSecondaryCapture = dataset.ContentTime


def _derive(dataset: Dataset, case: Case) -> None:
    """Say how the picture was derived and from which image (General Image, General Reference)."""
    steps = [codes.LOSSY_COMPRESSION]
    phrases = [BANNER_ADDED]
    if overlay.place(case).scales != (1, 1) and case.pixels is not None:
        steps.insert(0, codes.RESAMPLING)
        phrases.append(RESAMPLED)
    if case.segmented is not None:
        steps.insert(0, codes.SEGMENTATION)
        phrases.append(CONTOUR_DRAWN)
    phrases.append(QUALITY.format(quality=case.appearance.jpeg_quality))
    dataset.DerivationDescription = "; ".join(phrases)
    dataset.DerivationCodeSequence = [code(*step) for step in steps]

    source = reference(case)
    add_code(source, "PurposeOfReferenceCodeSequence", codes.SOURCE_IMAGE)
    # The banner adds rows.
    source.SpatialLocationsPreserved = "NO"
    dataset.SourceImageSequence = [source]
    dataset.ReferencedSeriesSequence = [reference_series(case)]
