"""The one way from bytes to a Finding to checked objects.

The worker and `pleura predict` both take it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage

from inference import admission, plausibility, postprocess, radiograph, results
from inference.admission import REASONS, Rules
from inference.engine import Engine
from inference.finding import Finding, Outcome, State
from inference.measure import measure
from inference.plausibility import UPRIGHT, Pose
from inference.preprocess import as_stored, upright
from inference.radiograph import Radiograph, Unsuitable
from inference.results.identity import Case, Refusal, RenderSettings

log = logging.getLogger("pleura.analyse")


@dataclass(frozen=True)
class Settings:
    """What a site decides about the analysis."""

    rules: Rules = field(default_factory=Rules)
    appearance: RenderSettings = field(default_factory=RenderSettings)
    # the union of what the destinations take
    kinds: frozenset[str] = frozenset({"SEG", "SC"})
    # is this SOP Instance UID one of our results?
    is_ours: Callable[[str], bool] = field(default=lambda _: False)


@dataclass(frozen=True, eq=False)
class Reading:
    """One image after reading: either a radiograph to analyse, or why not."""

    digest: str
    header: Dataset | None = None
    radiograph: Radiograph | None = None
    # (code of REASONS, detail)
    refusal: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """What the networks say of one radiograph.

    No frontal chest by the plausibility gate: nothing else was asked.
    """

    # 0 to 1; 1 where the package has no such network
    plausibility: float = 1.0
    plausible: bool = True
    # in which the networks were shown it
    pose: Pose = UPRIGHT
    # the classifier's, 0 to 1
    probability: float = 0.0
    # (rows, columns); of positives alone
    probability_map: NDArray[np.float32] | None = None


class Pipeline:
    """Bytes in, one Outcome each out. It never raises for what is in the bytes.

    Three steps, so that a worker may overlap them: `read` and `conclude` are for any thread, any
    number at a time; `answer` is for the one that owns the device.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self._settings = settings

    def analyse(self, files: Sequence[bytes], result_time: datetime) -> list[Outcome]:
        """Classify the batch, segment only the positives, make and check the objects. One Outcome
        per file, in order.

        `result_time` is written into every object; no clock is asked (design, "Result times").
        """
        readings = [self.read(data) for data in files]
        answers = self.answer(readings)
        return [self.conclude(*both, result_time) for both in zip(readings, answers, strict=True)]

    def fail(self, data: bytes, reason: str, result_time: datetime) -> Outcome:
        """The Outcome of an image given up on.

        Nothing of it is decoded, for that may be what kills.
        """
        try:
            header = radiograph.without_pixels(radiograph.parse(data)[0])
        except Unsuitable as unsuitable:
            reading = Reading(
                radiograph.undecoded_digest(data), refusal=(unsuitable.reason, unsuitable.detail)
            )
        else:
            reading = Reading(radiograph.undecoded_digest(data), header, refusal=(reason, ""))

        return self.conclude(reading, None, result_time)

    def read(self, data: bytes) -> Reading:
        """Parse, judge and decode one file."""
        try:
            dataset, broken = radiograph.parse(data)
        except Unsuitable as unsuitable:
            return Reading(
                radiograph.undecoded_digest(data), refusal=(unsuitable.reason, unsuitable.detail)
            )

        header = radiograph.without_pixels(dataset)
        verdict = admission.judge(header, self._settings.rules, self._settings.is_ours)
        if isinstance(verdict, admission.Refusal) and not REASONS[verdict.reason].sent:
            return Reading(
                radiograph.undecoded_digest(data), header, refusal=(verdict.reason, verdict.detail)
            )

        try:
            image = radiograph.decode(dataset)
        except Unsuitable as unsuitable:
            digest = unsuitable.content_digest or radiograph.undecoded_digest(data)
            return Reading(
                digest, header, refusal=(unsuitable.reason, unsuitable.detail), notes=broken
            )

        # told to the archive, on the picture it is about
        if isinstance(verdict, admission.Refusal):
            return Reading(image.content_digest, header, image, (verdict.reason, verdict.detail))

        return Reading(image.content_digest, header, image, notes=(*verdict, *broken, *image.notes))

    def answer(self, readings: Sequence[Reading]) -> list[Answer | None]:
        """Run the networks over what was admitted.

        One Answer each, None for what was not. For the device's owner.
        """
        asked = [index for index, reading in enumerate(readings) if reading.refusal is None]
        answers: list[Answer | None] = [None] * len(readings)
        for index, answer in zip(
            asked, self._ask([_pixels(readings[index]) for index in asked]), strict=True
        ):
            answers[index] = answer
        return answers

    def _ask(self, images: Sequence[NDArray[np.float32]]) -> list[Answer]:
        if not images:
            return []

        manifest, engine = self.engine.manifest, self.engine
        answers = [Answer()] * len(images)

        if manifest.plausibility is not None:
            limit = manifest.plausibility.threshold
            answers = [
                Answer(
                    _sure(one.plausibility),
                    plausible=one.pose is not None,
                    pose=one.pose or UPRIGHT,
                )
                for one in plausibility.judge(engine.plausible, images, limit)
            ]

        chests = [index for index, answer in enumerate(answers) if answer.plausible]
        shown = [answer.pose.righted(image) for answer, image in zip(answers, images, strict=True)]

        if chests:
            for index, probability in zip(
                chests, engine.classify([shown[i] for i in chests]), strict=True
            ):
                answers[index] = replace(answers[index], probability=_sure(probability))

        positives = [
            index for index in chests if answers[index].probability >= manifest.classifier.threshold
        ]
        if positives:
            for index, one in zip(
                positives, engine.segment([shown[i] for i in positives]), strict=True
            ):
                answers[index] = replace(
                    answers[index], probability_map=answers[index].pose.as_given(one)
                )

        return answers

    def _finding(self, image: Radiograph, answer: Answer) -> Finding:
        threshold = self.engine.manifest.classifier.threshold

        if answer.probability_map is None:
            return Finding(answer.probability, threshold, positive=False)

        # A region that post-processing leaves nothing of takes no positive back: the overlay says
        # positive, nothing is outlined, and there is no SEG, for it would read like a negative.
        rule = self.engine.manifest.segmenter
        orientation = image.header.get("PatientOrientation") or None
        mask = postprocess.segment(as_stored(answer.probability_map, orientation), *rule.rule)
        # a picture that had to be turned contradicts its header
        sided = not answer.pose.quarter_turns
        measurement = measure(mask, image.spacing, orientation if sided else None)

        return Finding(answer.probability, threshold, True, mask, measurement, sided)

    def conclude(self, reading: Reading, answer: Answer | None, result_time: datetime) -> Outcome:
        """Make and check the objects of one image that was read and, if it was admitted, answered."""
        reason, detail = reading.refusal or (None, "")
        finding = None

        if answer is not None and answer.pose != UPRIGHT:
            reading = replace(reading, notes=(*reading.notes, answer.pose.note))

        if answer is not None and not answer.plausible:
            reason, detail = "not_a_frontal_chest", f"plausibility {answer.plausibility:.3f}"
        elif answer is not None:
            assert reading.radiograph is not None
            finding = self._finding(reading.radiograph, answer)

        state = REASONS[reason].state if reason else State.ANALYSED
        outcome = Outcome(
            state=state,
            content_digest=reading.digest,
            sop_instance_uid=_uid(reading.header, "SOPInstanceUID"),
            study_instance_uid=_uid(reading.header, "StudyInstanceUID"),
            reason=reason,
            detail=detail,
            finding=finding,
            notes=reading.notes,
        )

        if (
            reading.header is None
            or (reason and not REASONS[reason].sent)
            or not _can_be_named(reading.header)
        ):
            return outcome

        built = self._results(reading, finding, reason, result_time)
        # never sent, visible, and in nobody's way
        for problem in built.problems:
            log.error("no %s for %s: %s", problem.kind, outcome.sop_instance_uid, problem.what)

        said = (f"{problem.kind} not sent: {problem.what}" for problem in built.problems)
        detail = "; ".join(part for part in (detail, *said) if part)

        if built.results or not built.problems:
            return replace(outcome, results=built.results, detail=detail)
        # Nothing is left to tell the archive what was found: it is told, where it can be, that
        # there is no answer.
        if state is not State.FAILED:
            reason = "result_invalid"

        outcome = replace(outcome, state=State.FAILED, reason=reason, detail=detail, finding=None)

        return replace(
            outcome, results=self._results(reading, None, "result_invalid", result_time).results
        )

    def _results(
        self, reading: Reading, finding: Finding | None, reason: str | None, result_time: datetime
    ) -> results.Built:
        assert reading.header is not None
        image = reading.radiograph
        case = Case(
            header=reading.header,
            content_digest=reading.digest,
            model=self.engine.identity,
            result_time=result_time,
            finding=finding,
            refusal=Refusal(REASONS[reason].state, reason, REASONS[reason].text)
            if reason
            else None,
            pixels=image.pixels if image else None,
            spacing=image.spacing if image else None,
            appearance=self._settings.appearance,
            notes=reading.notes,
        )

        return results.build_what_passes(case, sorted(self._settings.kinds))

    def warm_up(self) -> None:
        """Run networks and encoders once, so that no patient waits for first imports, lookups and
        allocations.
        """
        pixels = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
        self.engine.plausible([pixels])
        self.engine.classify([pixels])
        self.engine.segment([pixels])
        header = Dataset()
        header.SOPClassUID = ComputedRadiographyImageStorage
        header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID = (
            "2.25.1",
            "2.25.2",
            "2.25.3",
        )
        header.Modality, header.Rows, header.Columns = "CR", 64, 64
        header.set_original_encoding(False, True)
        mask = pixels > 0.5
        finding = Finding(1.0, 0.5, positive=True, mask=mask, measurement=measure(mask, None, None))
        reading = Reading("", header, Radiograph(header, pixels, None, ""))
        for problem in self._results(reading, finding, None, datetime(2000, 1, 1)).problems:
            raise problem


def _sure(probability: float) -> float:
    """NaN is below every threshold, and would be a silent "not detected"."""
    if not 0.0 <= probability <= 1.0:
        raise ArithmeticError(f"a network answered {probability}, wanted 0 to 1")
    return probability


def _pixels(reading: Reading) -> NDArray[np.float32]:
    """What the networks see: the image standing up, however it is stored."""
    assert reading.radiograph is not None
    return upright(reading.radiograph.pixels, reading.radiograph.header.get("PatientOrientation"))


def _can_be_named(header: Dataset) -> bool:
    """Whether a result can refer to this image: one given up on was perhaps never judged."""
    keywords = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    return all(_uid(header, keyword) for keyword in keywords)


def _uid(header: Dataset | None, keyword: str) -> str | None:
    value = str(header.get(keyword) or "") if header is not None else ""
    return value if admission.usable_uid(value) else None
