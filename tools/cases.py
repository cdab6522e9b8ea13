"""Cases for tests of results and of the gate: made-up patients, a made-up chest, real X-rays."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config
from pydicom.uid import ComputedRadiographyImageStorage

from inference.finding import Finding, ModelIdentity, State
from inference.measure import measure
from inference.radiograph import Spacing, decode, parse, spacing_of
from inference.results import Case, NoFinding

MODEL = ModelIdentity(
    id="pleura-default", version="1.2.3", digest="ab" * 32, device_uid="2.25.20260304"
)
# A time without a zone is the site's local time.
AT = datetime(2026, 3, 4, 5, 6, 7, 890123)
NOT_ANALYSED = NoFinding(
    State.NOT_ANALYSED, "under_age", "the patient is younger than the minimum age"
)


def header(**changes: Any) -> Dataset:
    """A computed radiograph's header. A change to None removes the attribute.

    It has 41 x 37 pixels, so that no row of a bit mask ends at a byte boundary.
    """
    source = Dataset()
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100", "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": "2.25.11", "StudyInstanceUID": "2.25.12", "SeriesInstanceUID": "2.25.13",
        "PatientName": "Grün^Ada", "PatientID": "P-1", "PatientBirthDate": "19700101",
        "PatientSex": "F", "PatientAge": "056Y", "StudyDate": "20260303", "StudyTime": "101112",
        "StudyID": "S1", "AccessionNumber": "A1", "ReferringPhysicianName": "Weiß^Otto",
        "Modality": "CR", "Manufacturer": "Scanner", "BodyPartExamined": "CHEST",
        "PatientOrientation": ["L", "F"], "PixelSpacing": [0.2, 0.2],
        "PixelSpacingCalibrationType": "FIDUCIAL", "Rows": 41, "Columns": 37,
    }  # fmt: skip

    with config.disable_value_validation():
        for keyword, value in (values | changes).items():
            if value is not None:
                setattr(source, keyword, value)

    source.set_original_encoding(False, True, source.get("SpecificCharacterSet"))
    return source


def pixels(source: Dataset) -> NDArray[np.float32]:
    """A grey image, (rows, columns), that differs in every corner."""
    rows, columns = np.mgrid[0 : source.Rows, 0 : source.Columns]
    return np.asarray(
        0.1 + 0.5 * rows / source.Rows + 0.3 * columns / source.Columns, dtype=np.float32
    )


def blob(source: Dataset) -> NDArray[np.bool_]:
    """A region in the upper left, away from the middle."""
    mask = np.zeros((source.Rows, source.Columns), dtype=bool)
    mask[source.Rows // 8 : source.Rows // 2, source.Columns // 10 : source.Columns // 3] = True
    mask[source.Rows // 4, source.Columns // 8] = False
    return mask


def positive(
    source: Dataset | None = None, mask: NDArray[np.bool_] | None = None, **changes: Any
) -> Case:
    """A case with a calibrated finding. `changes` are to the case, not to its source."""
    source = source or header()
    mask = blob(source) if mask is None else mask

    spacing = _spacing(source)
    measurement = measure(mask, spacing, source.get("PatientOrientation"))
    finding = Finding(0.87, 0.42, True, mask, measurement, calibrated=True)
    return _case(source, finding=finding, spacing=spacing, **changes)


def _spacing(source: Dataset) -> Spacing | None:
    """The spacing that a radiograph of full size would have."""
    whole = Dataset({**source})
    for keyword in ("Rows", "Columns"):
        # Replace the element: `whole` shares its elements with the source.
        whole.add_new(keyword, "US", max(1024, source.Rows, source.Columns))
    return spacing_of(whole)


def negative(source: Dataset | None = None, **changes: Any) -> Case:
    """A case whose finding is below the threshold."""
    return _case(source or header(), finding=Finding(0.12, 0.42, False), **changes)


def refused(source: Dataset | None = None, **changes: Any) -> Case:
    """A case that admission excluded from analysis."""
    return _case(source or header(), **({"no_finding": NOT_ANALYSED} | changes))


def real(file: Path, **changes: Any) -> Case:
    """A positive case of a real X-ray, with a made-up region."""
    dataset, _ = parse(file.read_bytes())
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)

    image = decode(dataset)
    return positive(image.header, pixels=image.pixels, content_digest=image.content_digest)


def _case(source: Dataset, **values: Any) -> Case:
    given: dict[str, Any] = {
        "content_digest": "c0" * 32,
        "model": MODEL,
        "result_time": AT,
        "pixels": pixels(source),
    }
    return Case(header=source, **(given | values))
