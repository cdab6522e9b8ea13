"""From a file's bytes to checked result objects: the worker and `pleura predict` share this."""

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
from inference.admission import REASONS, Exclusion, Rules
from inference.engine import Engine
from inference.finding import Finding, Outcome, Result, State
from inference.measure import measure
from inference.plausibility import UPRIGHT, Pose
from inference.preprocess import as_seen, in_source
from inference.radiograph import Radiograph, Unsuitable
from inference.results.case import Case, NoFinding, RenderSettings

log = logging.getLogger("pleura.analyse")

# Of the classifier's side. Of 24 positives shrunk to 256, 128, 64 and 32 pixels, the default model
# (320 pixels) found 21, 13, 11 and none; of the unchanged it found 22 (2026-11-30).
_LEAST_PART_OF_SIDE = 0.5


@dataclass(frozen=True)
class AnalysisSettings:
    """The site's decisions about the analysis."""

    rules: Rules = field(default_factory=Rules)
    appearance: RenderSettings = field(default_factory=RenderSettings)
    # The union of the kinds of result that the destinations take.
    kinds: frozenset[str] = frozenset({"SEG", "SC"})
    # Whether a SOP Instance UID belongs to one of our results.
    is_ours: Callable[[str], bool] = field(default=lambda _: False)


@dataclass(frozen=True, eq=False)
class Reading:
    """One image after reading: a radiograph to analyse, or an exclusion with its reason."""

    digest: str
    header: Dataset | None = None
    radiograph: Radiograph | None = None
    exclusion: Exclusion | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """The networks' answer for one radiograph.

    If the plausibility gate finds no frontal chest, the other networks are not run.
    """

    # 0 to 1; 1 if the package has no plausibility network.
    plausibility: float = 1.0
    plausible: bool = True
    # The pose in which the networks saw the picture.
    pose: Pose = UPRIGHT
    # The classifier's, 0 to 1.
    probability: float = 0.0
    # (rows, columns) of the picture that the networks saw; only for positives.
    probability_map: NDArray[np.float32] | None = None


class Pipeline:
    """Turns each file's bytes into one Outcome.

    Bad content never raises. There are three steps, so that a worker can overlap them. Any number
    of threads may call `read` and `conclude` at a time; only the thread that owns the device calls
    `answer`.
    """

    def __init__(self, engine: Engine, settings: AnalysisSettings) -> None:
        self.engine = engine
        self._settings = settings

    def analyse(self, files: Sequence[bytes], result_time: datetime) -> list[Outcome]:
        """One Outcome per file, in order: classify the batch, segment the positives, make objects.

        `result_time` is written into every object; no clock is asked (docs/rules.md, "Leases").
        """
        readings = [self.read(data) for data in files]
        answers = self.answer(readings)
        return [
            self.conclude(reading, answer, result_time)
            for reading, answer in zip(readings, answers, strict=True)
        ]

    def fail(self, data: bytes, reason: str, result_time: datetime) -> Outcome:
        """The Outcome of an image that was given up.

        Its pixels are not decoded, because decoding may have ended the earlier attempts.
        """
        digest = radiograph.undecoded_digest(data)

        try:
            header = radiograph.without_pixels(radiograph.parse(data)[0])
        except Unsuitable as unsuitable:
            reading = Reading(digest, exclusion=_exclusion(unsuitable))
        else:
            reading = Reading(digest, header, exclusion=Exclusion(reason, ""))

        return self.conclude(reading, None, result_time)

    def read(self, data: bytes) -> Reading:
        """Parse, judge and decode one file."""
        try:
            dataset, parse_notes = radiograph.parse(data)
        except Unsuitable as unsuitable:
            digest = radiograph.undecoded_digest(data)
            return Reading(digest, exclusion=_exclusion(unsuitable))

        header = radiograph.without_pixels(dataset)
        judged = admission.judge(header, self._settings.rules, self._settings.is_ours)
        if isinstance(judged, Exclusion) and not REASONS[judged.reason].sent:
            return Reading(radiograph.undecoded_digest(data), header, exclusion=judged)

        try:
            image = radiograph.decode(dataset)
        except Unsuitable as unsuitable:
            digest = unsuitable.content_digest or radiograph.undecoded_digest(data)
            return Reading(digest, header, exclusion=_exclusion(unsuitable), notes=parse_notes)

        if isinstance(judged, Exclusion):
            # The archive is told, by an overlay of this picture.
            return Reading(image.content_digest, image.header, image, judged)

        # The radiograph's header holds the display attributes that made its picture.
        notes = (*judged, *parse_notes, *image.notes)
        return Reading(image.content_digest, image.header, image, self._too_small(image), notes)

    def _too_small(self, image: Radiograph) -> Exclusion | None:
        """An exclusion of a thumbnail: "not detected" would be no answer about the lungs."""
        least = self.engine.manifest.classifier.side * _LEAST_PART_OF_SIDE
        rows, columns = image.pixels.shape
        if min(rows, columns) >= least:
            return None
        detail = f"{rows} x {columns} pixels found, {least:.0f} x {least:.0f} or more wanted"
        return Exclusion("too_small", detail)

    def answer(
        self, readings: Sequence[Reading], note: results.Note = results.unnoted
    ) -> list[Answer | None]:
        """Run the networks over the admitted images, on the thread that owns the device.

        One Answer per reading, in order; None for an excluded image. `note` is called with "gated"
        and "classified"; the segmenter takes the remaining time.

        Raises:
            As Engine.classify; ArithmeticError: a network's answer is not between 0 and 1.
        """
        asked = [index for index, reading in enumerate(readings) if reading.exclusion is None]
        pictures = [_pixels(readings[index]) for index in asked]

        answers: list[Answer | None] = [None] * len(readings)
        for index, answer in zip(asked, self._ask(pictures, note), strict=True):
            answers[index] = answer

        return answers

    def _ask(self, images: Sequence[NDArray[np.float32]], note: results.Note) -> list[Answer]:
        if not images:
            return []

        manifest = self.engine.manifest
        answers = self._plausibilities(images)
        shown = [answer.pose.righted(image) for answer, image in zip(answers, images, strict=True)]
        note("gated")

        chests = [index for index, answer in enumerate(answers) if answer.plausible]
        if chests:
            probabilities = self.engine.classify([shown[index] for index in chests])
            for index, probability in zip(chests, probabilities, strict=True):
                answers[index] = replace(answers[index], probability=_in_range(probability))
        note("classified")

        threshold = manifest.classifier.threshold
        positives = [index for index in chests if answers[index].probability >= threshold]
        if positives:
            maps = self.engine.segment([shown[index] for index in positives])
            for index, probability_map in zip(positives, maps, strict=True):
                as_given = answers[index].pose.as_given(probability_map)
                answers[index] = replace(answers[index], probability_map=as_given)

        return answers

    def _plausibilities(self, images: Sequence[NDArray[np.float32]]) -> list[Answer]:
        """The plausibility gate's answers; all plausible if the package has no such network."""
        gate = self.engine.manifest.plausibility
        if gate is None:
            return [Answer()] * len(images)

        judged = plausibility.judge(self.engine.plausible, images, gate.threshold)
        return [
            Answer(
                _in_range(judgement.plausibility),
                plausible=judgement.pose is not None,
                pose=judgement.pose or UPRIGHT,
            )
            for judgement in judged
        ]

    def _finding(self, image: Radiograph, answer: Answer) -> Finding:
        classifier = self.engine.manifest.classifier
        threshold, calibrated = classifier.threshold, classifier.calibration is not None
        probability = answer.probability
        if calibrated:
            probability = _in_percents(probability, threshold)
        if answer.probability_map is None:
            return Finding(probability, threshold, positive=False, calibrated=calibrated)

        # An empty mask does not revoke a positive: the overlay says positive and outlines nothing.
        # Then there is no SEG, because an empty one would look like a negative.
        rule = self.engine.manifest.segmenter.rule
        orientation = image.header.get("PatientOrientation") or None
        probability_map = in_source(
            answer.probability_map, image.pixels.shape, orientation, image.opening
        )
        mask = postprocess.segment(probability_map, *rule)

        # A picture that had to be rotated contradicts its header, so the patient's sides are
        # unknown.
        sided = not answer.pose.quarter_turns
        measurement = measure(mask, image.spacing, orientation if sided else None)
        return Finding(probability, threshold, True, mask, measurement, sided, calibrated)

    def conclude(
        self,
        reading: Reading,
        answer: Answer | None,
        result_time: datetime,
        note: results.Note = results.unnoted,
    ) -> Outcome:
        """Make and check the objects of one image that was read and, if admitted, answered.

        `note` is called with "measured", and by results.build_what_passes.
        """
        exclusion = reading.exclusion
        finding = None

        if answer is not None:
            if answer.pose != UPRIGHT:
                reading = replace(reading, notes=(*reading.notes, answer.pose.note))

            if answer.plausible:
                assert reading.radiograph is not None
                finding = self._finding(reading.radiograph, answer)
                note("measured")
            else:
                detail = f"plausibility {answer.plausibility:.3f}"
                exclusion = Exclusion("not_a_frontal_chest", detail)

        reason = exclusion.reason if exclusion else None
        outcome = Outcome(
            state=REASONS[reason].state if reason else State.ANALYSED,
            content_digest=reading.digest,
            sop_instance_uid=_uid(reading.header, "SOPInstanceUID"),
            study_instance_uid=_uid(reading.header, "StudyInstanceUID"),
            reason=reason,
            detail=exclusion.detail if exclusion else "",
            finding=finding,
            notes=reading.notes,
        )

        is_told = reason is None or REASONS[reason].sent
        if not is_told or reading.header is None or not _can_be_named(reading.header):
            return outcome
        return self._with_results(outcome, reading, result_time, note)

    def _with_results(
        self, outcome: Outcome, reading: Reading, result_time: datetime, note: results.Note
    ) -> Outcome:
        """The outcome with its objects; FAILED if none of them passed its check."""
        case = self._case(reading, outcome.finding, outcome.reason, result_time)
        built = results.build_what_passes(case, self._kinds, note)

        # An object that fails its check is never sent. The failure is visible, and does not affect
        # other objects.
        for problem in built.problems:
            log.error("no %s for %s: %s", problem.kind, outcome.sop_instance_uid, problem.what)

        not_sent = (f"{problem.kind} not sent: {problem.what}" for problem in built.problems)
        detail = "; ".join(part for part in (outcome.detail, *not_sent) if part)
        if built.results or not built.problems:
            return replace(outcome, results=built.results, detail=detail)

        # No object is left to report the answer, so the archive is told that no result follows.
        reason = outcome.reason if outcome.state is State.FAILED else "result_invalid"
        case = self._case(reading, None, "result_invalid", result_time)
        objects = results.build_what_passes(case, self._kinds).results
        return replace(
            outcome,
            state=State.FAILED,
            reason=reason,
            detail=detail,
            finding=None,
            results=objects or self._last_resort(case),
        )

    def _last_resort(self, case: Case) -> tuple[Result, ...]:
        """An overlay without the attributes that made every other object fail its check."""
        made = results.last_resort(case) if "SC" in self._kinds else None
        uid = case.header.SOPInstanceUID
        if made is None:
            log.error("the archive cannot be told of %s: no object passes its check", uid)
            return ()

        result, lacking = made
        left_out = ", ".join(lacking) or "the picture and the notes"
        log.error("the archive is told of %s by an overlay without %s", uid, left_out)
        return (result,)

    @property
    def _kinds(self) -> list[str]:
        """The kinds of result that at least one destination takes."""
        return sorted(self._settings.kinds)

    def _case(
        self, reading: Reading, finding: Finding | None, reason: str | None, result_time: datetime
    ) -> Case:
        assert reading.header is not None
        image = reading.radiograph

        no_finding = None
        if reason:
            no_finding = NoFinding(REASONS[reason].state, reason, REASONS[reason].text)

        return Case(
            header=reading.header,
            content_digest=reading.digest,
            model=self.engine.identity,
            result_time=result_time,
            finding=finding,
            no_finding=no_finding,
            pixels=image.pixels if image else None,
            spacing=image.spacing if image else None,
            appearance=self._settings.appearance,
            notes=reading.notes,
        )

    def warm_up(self) -> None:
        """Run networks and encoders once, so that no patient waits for first imports and
        allocations.

        Raises:
            results.GateError: an encoder's object fails its check on this installation.
        """
        pixels = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
        self.engine.plausible([pixels])
        self.engine.classify([pixels])
        self.engine.segment([pixels])

        header = Dataset()
        header.SOPClassUID = ComputedRadiographyImageStorage
        header.StudyInstanceUID = "2.25.1"
        header.SeriesInstanceUID = "2.25.2"
        header.SOPInstanceUID = "2.25.3"
        header.Modality = "CR"
        header.Rows = 64
        header.Columns = 64
        header.set_original_encoding(False, True)

        mask = pixels > 0.5
        finding = Finding(1.0, 0.5, positive=True, mask=mask, measurement=measure(mask, None, None))
        reading = Reading("", header, Radiograph(header, pixels, None, ""))
        case = self._case(reading, finding, None, datetime(2000, 1, 1))
        for problem in results.build_what_passes(case, self._kinds).problems:
            raise problem


def _exclusion(unsuitable: Unsuitable) -> Exclusion:
    return Exclusion(unsuitable.reason, unsuitable.detail)


def _in_percents(probability: float, threshold: float) -> float:
    """A calibrated probability in whole per cent, 1 to 99: more digits would pretend a precision.

    It gets more digits only if rounding would move it across the threshold.
    """
    for digits in (2, 3, 4):
        rounded = min(max(round(probability, digits), 0.01), 0.99)
        if (rounded >= threshold) == (probability >= threshold):
            return rounded

    return probability


def _in_range(probability: float) -> float:
    """The probability, checked to be 0 to 1.

    NaN, below every threshold, would be a silent negative.
    """
    if not 0.0 <= probability <= 1.0:
        raise ArithmeticError(f"a network answered {probability}, wanted 0 to 1")
    return probability


def _pixels(reading: Reading) -> NDArray[np.float32]:
    """The networks' view: the image upright and in true proportions, however it is stored."""
    assert reading.radiograph is not None
    image = reading.radiograph
    return as_seen(image.pixels, image.aspect, image.header.get("PatientOrientation"))


def _can_be_named(header: Dataset) -> bool:
    """Whether a result can refer to this image: one that failed early has not been judged."""
    keywords = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    return all(_uid(header, keyword) for keyword in keywords)


def _uid(header: Dataset | None, keyword: str) -> str | None:
    value = str(header.get(keyword) or "") if header is not None else ""
    return value if admission.usable_uid(value) else None
