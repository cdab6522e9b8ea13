"""Made-up radiographs as DICOM data sets, for tests and benchmarks."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, config, uid
from pydicom.dataset import FileMetaDataset


def header(**changes: Any) -> FileDataset:
    """A computed radiograph's data set without pixels. A change to None removes the attribute."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID("2.25.31")
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid.UID("2.25.3")
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))  # type: ignore[arg-type]

    values: dict[str, Any] = {
        "SOPClassUID": uid.ComputedRadiographyImageStorage, "SOPInstanceUID": "2.25.31",
        "StudyInstanceUID": "2.25.32", "SeriesInstanceUID": "2.25.33", "Modality": "CR",
        "BodyPartExamined": "CHEST", "ViewPosition": "PA", "PatientName": "Made^Up",
        "PatientID": "M-1", "PatientAge": "050Y", "PatientOrientation": ["L", "F"],
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
    }  # fmt: skip

    with config.disable_value_validation():
        for keyword, value in (values | changes).items():
            if value is not None:
                setattr(dataset, keyword, value)

    return dataset


def image(
    values: NDArray[np.integer], bits_stored: int | None = None, **changes: Any
) -> FileDataset:
    """An uncompressed image of (rows, columns) stored values. `changes` are to its header; None
    removes an attribute.
    """
    allocated = 8 * values.dtype.itemsize
    stored = bits_stored or allocated

    described: dict[str, Any] = {
        "Rows": values.shape[0], "Columns": values.shape[1], "BitsAllocated": allocated,
        "BitsStored": stored, "HighBit": stored - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
    }  # fmt: skip
    dataset = header(**(described | changes))

    dataset.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
    return dataset


def written(dataset: Dataset, **options: Any) -> bytes:
    """The bytes of the data set's file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, **options)
    return buffer.getvalue()
