"""One file's bytes -> a model's answer, without a node: DICOM, PNG, JPEG or TIFF.

`pleura predict` and the page's "Try it" call `predict`, which uses the node's own
inference/pipeline.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference import plain_pictures, radiograph
from inference.admission import Exclusion
from inference.finding import Outcome
from inference.package import SERVED_TASK
from inference.pipeline import Pipeline, Reading
from inference.radiograph import Radiograph, Unsuitable


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one file.

    `pixels` is the picture as a viewer shows it, (rows, columns) float32, 0 black to 1 white; None
    if it could not be read.
    """

    outcome: Outcome
    pixels: NDArray[np.float32] | None

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(rows, columns) bool in the file's own matrix, empty if nothing was found; None if the
        image was not analysed.
        """
        finding = self.outcome.finding
        if finding is None or self.pixels is None:
            return None
        return finding.mask if finding.mask is not None else np.zeros(self.pixels.shape, dtype=bool)

    def summary(self) -> dict[str, Any]:
        """The fields of a line of `pleura predict`, as plain values; None if unknown.

        `centroid_px` and `spread_px` are (column, row); the spread is the standard deviation of the
        mask's pixels.
        """
        finding = self.outcome.finding
        measurement = finding.measurement if finding else None
        spread = measurement.spread_px if measurement else None

        return self.outcome.summary() | {
            "spread_px": spread[::-1] if spread else None,
            "regions": measurement.regions if measurement else None,
        }


def predict(
    pipeline: Pipeline, data: bytes, result_time: datetime, admission: bool = True
) -> Prediction:
    """The answer of `pipeline`'s package for one file. Bad content never raises.

    A picture without a header gets no result objects, because no study is known. A package that no
    node serves (brain MRI) reads only pictures.

    Args:
        result_time: written into result objects; no clock is asked.
        admission: False: also answer images that a node would exclude by their header, such as
            children's, laterals, and images without a study.

    Raises:
        As Engine.classify.
    """
    reading = _read(pipeline, data, admission)
    (answer,) = pipeline.answer([reading])
    outcome = pipeline.conclude(reading, answer, result_time)
    return Prediction(outcome, reading.radiograph.pixels if reading.radiograph else None)


def given_up(pipeline: Pipeline, data: bytes, result_time: datetime) -> Prediction:
    """The answer for a file whose analysis broke."""
    if not plain_pictures.is_picture(data):
        return Prediction(pipeline.fail(data, "analysis_error", result_time), None)

    exclusion = Exclusion("analysis_error", "")
    reading = Reading(hashlib.sha256(data).hexdigest(), exclusion=exclusion)
    return Prediction(pipeline.conclude(reading, None, result_time), None)


def _read(pipeline: Pipeline, data: bytes, admission: bool) -> Reading:
    task = pipeline.engine.manifest.task
    if plain_pictures.is_picture(data):
        return _read_picture(data, task)

    if task != SERVED_TASK:
        detail = f"a model of {task} reads PNG, JPEG or TIFF; give a slice as a picture"
        return Reading(radiograph.undecoded_digest(data), exclusion=Exclusion("modality", detail))
    return pipeline.read(data) if admission else _read_any(data)


def _read_picture(data: bytes, task: str) -> Reading:
    """A picture without a header; a chest's greys are stretched as without a window."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        values = plain_pictures.grey(data) if task == SERVED_TASK else plain_pictures.flair(data)
    except plain_pictures.PictureError as error:
        return Reading(digest, exclusion=Exclusion("undecodable", str(error)[:300]))

    if task == SERVED_TASK:
        if values.min() == values.max():
            return Reading(digest, exclusion=Exclusion("blank", "every pixel has one value"))
        values = radiograph.stretch(values)
    return Reading(digest, radiograph=Radiograph(Dataset(), values, None, digest))


def _read_any(data: bytes) -> Reading:
    """A DICOM image, whatever its header says about patient, view and study."""
    header = None
    try:
        dataset, notes = radiograph.parse(data)
        header = radiograph.without_pixels(dataset)
        image = radiograph.decode(dataset)
    except Unsuitable as unsuitable:
        digest = unsuitable.content_digest or radiograph.undecoded_digest(data)
        exclusion = Exclusion(unsuitable.reason, unsuitable.detail)
        return Reading(digest, header, exclusion=exclusion)

    return Reading(image.content_digest, image.header, image, notes=(*notes, *image.notes))
