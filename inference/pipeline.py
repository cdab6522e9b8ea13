"""The one way from bytes to a Finding to checked objects; the worker and `pleura predict` both take it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage

from inference import admission, postprocess, radiograph, results
from inference.admission import REASONS, Rules
from inference.engine import Engine
from inference.finding import Finding, Outcome, Result, State
from inference.measure import measure
from inference.radiograph import Radiograph, Unsuitable
from inference.results.gate import GateError
from inference.results.identity import Case, Refusal, RenderSettings

log = logging.getLogger("pleura.analyse")


@dataclass(frozen=True)
class Settings:
    """What a site decides about the analysis."""

    rules: Rules = field(default_factory=Rules)
    appearance: RenderSettings = field(default_factory=RenderSettings)
    kinds: frozenset[str] = frozenset({"SEG", "SC"})  # the union of what the destinations take
    is_ours: Callable[[str], bool] = field(default=lambda _: False)  # is this SOP Instance UID one of our results?


@dataclass(frozen=True, eq=False)
class _Read:
    """One image after reading: either a radiograph to analyse, or why not."""

    digest: str
    header: Dataset | None = None
    radiograph: Radiograph | None = None
    refusal: tuple[str, str] | None = None  # (code of REASONS, detail)
    notes: tuple[str, ...] = ()


class Pipeline:
    """Bytes in, one Outcome each out. It never raises for what is in the bytes."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self._settings = settings

    def analyse(self, files: Sequence[bytes], result_time: datetime) -> list[Outcome]:
        """Classify the batch, segment only the positives, make and check the objects. One Outcome per file, in order.

        `result_time` is written into every object; no clock is asked (design, "Result times").
        """
        reads = [self._read(data) for data in files]
        admitted = [read for read in reads if read.refusal is None]
        findings = iter(self._find([read.radiograph for read in admitted if read.radiograph is not None]))
        return [self._conclude(read, None if read.refusal else next(findings), result_time) for read in reads]

    def fail(self, data: bytes, reason: str, result_time: datetime) -> Outcome:
        """The Outcome of an image given up on: nothing of it is decoded, for that may be what kills."""
        try:
            header = radiograph.without_pixels(radiograph.parse(data)[0])
        except Unsuitable as unsuitable:
            read = _Read(radiograph.undecoded_digest(data), refusal=(unsuitable.reason, unsuitable.detail))
        else:
            read = _Read(radiograph.undecoded_digest(data), header, refusal=(reason, ""))
        return self._conclude(read, None, result_time)

    def _read(self, data: bytes) -> _Read:
        try:
            dataset, broken = radiograph.parse(data)
        except Unsuitable as unsuitable:
            return _Read(radiograph.undecoded_digest(data), refusal=(unsuitable.reason, unsuitable.detail))
        header = radiograph.without_pixels(dataset)
        verdict = admission.judge(header, self._settings.rules, self._settings.is_ours)
        if isinstance(verdict, admission.Refusal) and not REASONS[verdict.reason].sent:
            return _Read(radiograph.undecoded_digest(data), header, refusal=(verdict.reason, verdict.detail))
        try:
            image = radiograph.decode(dataset)
        except Unsuitable as unsuitable:
            return _Read(
                radiograph.undecoded_digest(data), header, refusal=(unsuitable.reason, unsuitable.detail), notes=broken
            )
        if isinstance(verdict, admission.Refusal):  # told to the archive, on the picture it is about
            return _Read(image.content_digest, header, image, (verdict.reason, verdict.detail))
        return _Read(image.content_digest, header, image, notes=(*verdict, *broken))

    def _find(self, images: Sequence[Radiograph]) -> list[Finding]:
        if not images:
            return []
        threshold = self.engine.manifest.classifier.threshold
        findings = [
            Finding(probability, threshold, positive=probability >= threshold)
            for probability in self.engine.classify([image.pixels for image in images])
        ]
        positives = [index for index, finding in enumerate(findings) if finding.positive]
        if positives:
            maps = self.engine.segment([images[index].pixels for index in positives])
            for index, probability_map in zip(positives, maps, strict=True):
                findings[index] = self._outlined(findings[index], images[index], probability_map)
        return findings

    def _outlined(self, finding: Finding, image: Radiograph, probability_map: NDArray[np.float32]) -> Finding:
        segmenter = self.engine.manifest.segmenter
        mask = postprocess.segment(probability_map, segmenter.bottom, segmenter.top, segmenter.min_area_at_1024_px)
        orientation = image.header.get("PatientOrientation") or None
        return replace(finding, mask=mask, measurement=measure(mask, image.spacing, orientation))

    def _conclude(self, read: _Read, finding: Finding | None, result_time: datetime) -> Outcome:
        reason, detail = read.refusal or (None, "")
        state = REASONS[reason].state if reason else State.ANALYSED
        outcome = Outcome(
            state=state,
            content_digest=read.digest,
            sop_instance_uid=_uid(read.header, "SOPInstanceUID"),
            study_instance_uid=_uid(read.header, "StudyInstanceUID"),
            reason=reason,
            detail=detail,
            finding=finding,
            notes=read.notes,
        )
        if read.header is None or (reason and not REASONS[reason].sent):
            return outcome
        try:
            return replace(outcome, results=self._results(read, finding, reason, result_time))
        except (GateError, ValueError) as error:
            # Never sent, visible, and the archive is told, where it can be, that this image has no answer.
            detail = f"{error.kind}: {error.what}" if isinstance(error, GateError) else type(error).__name__
            log.error("no result for %s: %s", outcome.sop_instance_uid, detail)
            if state is not State.FAILED:
                reason = "result_invalid"
            outcome = replace(outcome, state=State.FAILED, reason=reason, detail=detail, finding=None)
        with suppress(GateError, ValueError):
            outcome = replace(outcome, results=self._results(read, None, "result_invalid", result_time))
        return outcome

    def _results(
        self, read: _Read, finding: Finding | None, reason: str | None, result_time: datetime
    ) -> tuple[Result, ...]:
        assert read.header is not None
        image = read.radiograph
        case = Case(
            header=read.header,
            content_digest=read.digest,
            model=self.engine.identity,
            result_time=result_time,
            finding=finding,
            refusal=Refusal(REASONS[reason].state, reason, REASONS[reason].text) if reason else None,
            pixels=image.pixels if image else None,
            spacing=image.spacing if image else None,
            appearance=self._settings.appearance,
            notes=read.notes,
        )
        return results.build(case, sorted(self._settings.kinds))

    def warm_up(self) -> None:
        """Run networks and encoders once, so that no patient waits for first imports, lookups and allocations."""
        pixels = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
        self.engine.classify([pixels])
        self.engine.segment([pixels])
        header = Dataset()
        header.SOPClassUID = ComputedRadiographyImageStorage
        header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID = "2.25.1", "2.25.2", "2.25.3"
        header.Modality, header.Rows, header.Columns = "CR", 64, 64
        header.set_original_encoding(False, True)
        mask = pixels > 0.5
        finding = Finding(1.0, 0.5, positive=True, mask=mask, measurement=measure(mask, None, None))
        read = _Read("", header, Radiograph(header, pixels, None, ""))
        self._results(read, finding, None, datetime(2000, 1, 1))


def _uid(header: Dataset | None, keyword: str) -> str | None:
    value = str(header.get(keyword) or "") if header is not None else ""
    return value if admission.usable_uid(value) else None
