"""The Secondary Capture overlay: what any viewer shows, JPEG baseline in an RGB picture (PS3.3 A.8.1)."""

from __future__ import annotations

import io

from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage

from inference.results import overlay
from inference.results.identity import (
    MANUFACTURER,
    PLEURA_VERSION,
    Case,
    code,
    identify,
    record_lossy,
    reference,
    reference_series,
)
from inference.results.source import copied, lossy_history, orientation

KIND = "SC"
TRANSFER_SYNTAX_UID = JPEGBaseline8Bit
SERIES_NUMBER = 9002
JPEG_METHOD = "ISO_10918_1"  # PS3.3 C.7.6.1.1.5.1
SEGMENTATION = ("113076", "DCM", "Segmentation")
RESAMPLING = ("113085", "DCM", "Spatial resampling")
LOSSY_COMPRESSION = ("113040", "DCM", "Lossy Compression")
SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")


def encode(case: Case) -> Dataset:
    """Build the overlay: every answer has one, positive, not detected or not analysed."""
    picture = overlay.draw(case)
    buffer = io.BytesIO()
    # 4:4:4: a thin coloured line loses its colour where chrominance is subsampled.
    picture.save(buffer, "JPEG", quality=case.appearance.jpeg_quality, subsampling=0)
    jpeg = buffer.getvalue()

    dataset = identify(case, KIND, SERIES_NUMBER, "Pneumothorax overlay")
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.Modality = "OT"
    # SC Equipment module, PS3.3 C.8.6.1
    dataset.ConversionType = "WSD"
    dataset.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    dataset.SecondaryCaptureDeviceManufacturerModelName = case.model.id
    dataset.SecondaryCaptureDeviceSoftwareVersions = [
        f"Pleura {PLEURA_VERSION}",
        f"model {case.model.version}",
    ]
    dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = (
        dataset.ContentDate,
        dataset.ContentTime,
    )

    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.PatientOrientation = orientation(case.header)  # type 2C
    body_part = copied(case.header, "BodyPartExamined")
    if body_part is not None:
        dataset.add(body_part)
    if body_part is None or body_part.value != "CHEST":
        dataset.Laterality = (
            None  # type 2C, PS3.3 C.7.3.1: wanted unless the body part is known to be unpaired
        )
    # The banner names no patient, but the source's own pixels may: silence is no promise.
    dataset.BurnedInAnnotation = "NO" if case.header.get("BurnedInAnnotation") == "NO" else "YES"
    dataset.RecognizableVisualFeatures = "NO"
    _derive(dataset, case)

    dataset.SamplesPerPixel = 3
    # The only value besides RGB for this transfer syntax (PS3.5 Table 8.2.1-1), for any sub-sampling in the bit stream
    # (PS3.3 C.7.6.3.1.2).
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.PlanarConfiguration = 0
    dataset.Columns, dataset.Rows = picture.size
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    # No PixelSpacing: it would invite measuring on a picture.
    ratio = picture.width * picture.height * 3 / len(jpeg)
    record_lossy(dataset, [*lossy_history(case.header), (f"{ratio:.3f}", JPEG_METHOD)])
    dataset.PixelData = encapsulate([jpeg])
    dataset["PixelData"].VR = "OB"  # PS3.5 A.4: encapsulated
    dataset["PixelData"].is_undefined_length = True
    return dataset


def _derive(dataset: Dataset, case: Case) -> None:
    """Say how the picture came about and from which image (General Image and General Reference modules)."""
    steps = [LOSSY_COMPRESSION]
    said = "Banner added below the radiograph"
    if overlay.place(case).scale != 1 and case.pixels is not None:
        steps.insert(0, RESAMPLING)
        said += "; radiograph resampled"
    if case.segmented is not None:
        steps.insert(0, SEGMENTATION)
        said += "; contour of the segmented region drawn"
    dataset.DerivationDescription = f"{said}; JPEG quality {case.appearance.jpeg_quality}"
    dataset.DerivationCodeSequence = [code(*step) for step in steps]
    source = reference(case)
    source.PurposeOfReferenceCodeSequence = [code(*SOURCE_IMAGE)]
    source.SpatialLocationsPreserved = "NO"  # the banner adds rows
    dataset.SourceImageSequence = [source]
    dataset.ReferencedSeriesSequence = [reference_series(case)]
