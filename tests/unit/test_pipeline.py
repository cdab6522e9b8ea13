"""From readings to outcomes: the plausibility gate, positives without a region, invalid network
answers, and orientation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from inference import package, results
from inference.engine import Engine
from inference.finding import Outcome, State
from inference.manifest import Plausibility
from inference.pipeline import AnalysisSettings, Pipeline
from inference.plausibility import OTHERS, Pose
from tools.images import image, written
from training import phantom

AT = datetime(2026, 1, 2, 3, 4, 5)
Images = Sequence[NDArray[np.float32]]


class Scripted:
    """An engine whose networks give scripted answers and record their calls."""

    def __init__(self, engine: Engine, plausibility: float | None = None) -> None:
        self.device = engine.device
        self.identity = engine.identity
        stated = engine.manifest.classifier.model_dump(exclude={"calibration"})
        network = {**stated, "threshold": 0.4}
        gate = Plausibility(**network) if plausibility is not None else None
        self.manifest = engine.manifest.model_copy(update={"plausibility": gate})
        self.plausibility = plausibility or 0.0
        self.probability = 0.9
        self.inside = 1.0
        self.in_other_poses: list[float] = [0.0] * len(OTHERS)
        self.asked: list[str] = []

    def plausible(self, images: Images) -> list[float]:
        self.asked.append("plausible")
        # Only the first image of the batch is implausible; the later calls are about its other
        # poses.
        first = self.asked.count("plausible") == 1
        return [self.plausibility, *[1.0] * (len(images) - 1)] if first else self.in_other_poses

    def classify(self, images: Images) -> list[float]:
        self.asked += ["classify"] * len(images)
        return [self.probability] * len(images)

    def segment(self, images: Images) -> list[NDArray[np.float32]]:
        self.asked += ["segment"] * len(images)
        return [np.full(image.shape, self.inside, dtype=np.float32) for image in images]


@pytest.fixture
def engine(tiny_package: Path) -> Scripted:
    return Scripted(Engine(package.load(tiny_package), torch.device("cpu")))


@pytest.fixture
def gated(tiny_package: Path) -> Scripted:
    return Scripted(Engine(package.load(tiny_package), torch.device("cpu")), plausibility=0.1)


def analysed(engine: Scripted, folder: Path, images: int = 1) -> list[Outcome]:
    files = [
        phantom.write(phantom.draw(seed, False, 64), folder / f"{seed}.dcm").read_bytes()
        for seed in range(images)
    ]
    return Pipeline(engine, AnalysisSettings()).analyse(files, AT)  # type: ignore[arg-type]


def test_an_image_that_is_not_a_frontal_chest_gets_no_analysis_and_no_result(
    gated: Scripted, tmp_path: Path
) -> None:
    no_chest, chest = analysed(gated, tmp_path, 2)
    assert (no_chest.state, no_chest.reason) == (State.NOT_ANALYSED, "not_a_frontal_chest")
    assert no_chest.results == ()
    assert no_chest.finding is None
    assert no_chest.detail == "plausibility 0.100"
    assert no_chest.content_digest != ""
    assert chest.state is State.ANALYSED
    assert chest.results
    assert gated.asked == ["plausible", "plausible", "classify", "segment"]


@pytest.mark.parametrize(
    ("shape", "is_analysed"), [((15, 64), False), ((64, 15), False), ((16, 16), True)]
)
def test_a_thumbnail_is_not_analysed_and_the_archive_is_told(
    engine: Scripted, shape: tuple[int, int], is_analysed: bool
) -> None:
    """The package's classifier sees 32 x 32 pixels."""
    engine.probability = 0.1
    values = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape)
    pipeline = Pipeline(engine, AnalysisSettings())  # type: ignore[arg-type]

    (outcome,) = pipeline.analyse([written(image(values, 12))], AT)
    assert (outcome.reason is None) == is_analysed
    assert [result.kind for result in outcome.results] == ["SC"]
    if not is_analysed:
        assert (outcome.state, outcome.reason) == (State.NOT_ANALYSED, "too_small")
        assert outcome.detail == f"{shape[0]} x {shape[1]} pixels found, 16 x 16 or more wanted"
        assert engine.asked == []


def test_each_step_of_an_image_is_noted_when_it_ends(engine: Scripted, tmp_path: Path) -> None:
    pipeline = Pipeline(engine, AnalysisSettings())  # type: ignore[arg-type]
    file = phantom.write(phantom.draw(1, False, 64), tmp_path / "one.dcm")
    noted: list[str] = []

    reading = pipeline.read(file.read_bytes())
    (answer,) = pipeline.answer([reading], noted.append)
    assert noted == ["gated", "classified"]

    pipeline.conclude(reading, answer, AT, noted.append)
    assert noted[2:] == ["measured", "encoded SEG", "checked SEG", "encoded SC", "checked SC"]


def test_implausible_images_are_not_classified(gated: Scripted, tmp_path: Path) -> None:
    assert analysed(gated, tmp_path)[0].reason == "not_a_frontal_chest"
    assert gated.asked == ["plausible", "plausible"]


def test_an_upside_down_chest_is_analysed_upright_with_a_note(
    gated: Scripted, tmp_path: Path
) -> None:
    """The region lies in the source's pixels. No side is stated, because the header cannot be
    trusted.
    """
    gated.in_other_poses[OTHERS.index(Pose(2))] = 0.97

    def segment(images: Images) -> list[NDArray[np.float32]]:
        maps = [np.zeros(image.shape, dtype=np.float32) for image in images]
        maps[0][4:20, 40:60] = 1.0
        return maps

    gated.segment = segment  # type: ignore[method-assign]
    (outcome,) = analysed(gated, tmp_path)
    assert outcome.finding is not None
    assert outcome.finding.mask is not None
    assert outcome.finding.mask[44:60, 4:24].all()
    assert outcome.finding.mask.sum() == 16 * 20
    assert outcome.finding.measurement is not None
    assert outcome.finding.measurement.laterality is None
    (segmentation,) = [dcmread(BytesIO(one.data)) for one in outcome.results if one.kind == "SEG"]
    region = segmentation.SegmentSequence[0].AnatomicRegionSequence[0]
    assert "AnatomicRegionModifierSequence" not in region
    assert "analysed turned by 180 degrees" in "; ".join(outcome.notes)


def test_an_image_at_the_threshold_counts_as_a_chest(gated: Scripted, tmp_path: Path) -> None:
    gated.plausibility = 0.4
    assert analysed(gated, tmp_path)[0].state is State.ANALYSED


def test_a_package_without_a_plausibility_network_accepts_every_image(
    engine: Scripted, tmp_path: Path
) -> None:
    assert analysed(engine, tmp_path)[0].state is State.ANALYSED
    assert engine.asked == ["classify", "segment"]


def test_a_positive_without_a_region_stays_positive(engine: Scripted, tmp_path: Path) -> None:
    """The overlay states it. There is no SEG, because an empty SEG reads like a negative."""
    engine.inside = 0.0
    (outcome,) = analysed(engine, tmp_path)
    assert outcome.finding is not None
    assert outcome.finding.positive
    assert outcome.finding.mask is not None
    assert not outcome.finding.mask.any()
    assert outcome.finding.measurement is None
    assert [result.kind for result in outcome.results] == ["SC"]


def failing_encoder(_: object) -> Dataset:
    raise TypeError("a header nobody thought of")


def break_encoder(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the encoder of this kind raise."""
    record = replace(results.KINDS[kind], encoder=f"{__name__}:failing_encoder")
    monkeypatch.setitem(results.KINDS, kind, record)


def test_an_object_that_cannot_be_made_is_logged_and_blocks_no_other(
    engine: Scripted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    break_encoder("SEG", monkeypatch)
    (outcome,) = analysed(engine, tmp_path)
    assert (outcome.state, outcome.reason) == (State.ANALYSED, None)
    assert [result.kind for result in outcome.results] == ["SC"]
    assert "SEG not sent: it cannot be made (TypeError)" in outcome.detail
    assert "no SEG for" in caplog.text


def test_an_image_fails_if_no_object_can_be_made(
    engine: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("SEG", "SC"):
        break_encoder(kind, monkeypatch)
    (outcome,) = analysed(engine, tmp_path)
    assert (outcome.state, outcome.reason) == (State.FAILED, "result_invalid")
    assert outcome.results == ()
    assert "SC not sent" in outcome.detail


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (["L", "F"], lambda stored: stored),
        (["R", "F"], lambda stored: stored[:, ::-1]),
        (["R", "H"], lambda stored: stored[::-1, ::-1]),
        (["F", "L"], lambda stored: stored.T),
        (["H", "R"], lambda stored: stored.T[::-1, ::-1]),
    ],
)
def test_a_rotated_image_is_analysed_upright_and_its_region_is_in_stored_pixels(
    orientation: list[str],
    turn: Callable[[NDArray[np.integer]], NDArray[np.integer]],
    engine: Scripted,
    tmp_path: Path,
) -> None:
    dataset = dcmread(phantom.write(phantom.draw(1, False, 64), tmp_path / "standing.dcm"))
    standing = dataset.pixel_array.copy()
    # Mark a corner, so that no two sides are alike.
    standing[:8, :24] = standing.min()
    stored = np.ascontiguousarray(turn(standing))
    dataset.PixelData = stored.tobytes()
    dataset.PatientOrientation = orientation
    seen: list[NDArray[np.float32]] = []

    def segment(images: Images) -> list[NDArray[np.float32]]:
        seen.extend(images)
        maps = [np.zeros(image.shape, dtype=np.float32) for image in images]
        # The region is at the top, on the patient's left.
        maps[0][4:20, 40:60] = 1.0
        return maps

    engine.segment = segment  # type: ignore[method-assign]
    dataset.save_as(tmp_path / "turned.dcm")
    (outcome,) = Pipeline(engine, AnalysisSettings()).analyse(
        [(tmp_path / "turned.dcm").read_bytes()], AT
    )  # type: ignore[arg-type]
    assert np.corrcoef(seen[0].ravel(), standing.ravel())[0, 1] > 0.99
    assert outcome.finding is not None
    assert outcome.finding.mask is not None
    wanted = np.zeros((64, 64), dtype=bool)
    wanted[4:20, 40:60] = True
    assert np.array_equal(outcome.finding.mask, turn(wanted))
    assert outcome.finding.measurement is not None
    assert outcome.finding.measurement.laterality == "L"


def test_nothing_outside_the_shutter_is_analysed_measured_or_outlined(
    engine: Scripted, tmp_path: Path
) -> None:
    dataset = dcmread(phantom.write(phantom.draw(1, False, 64), tmp_path / "open.dcm"))
    dataset.ShutterShape = "RECTANGULAR"
    dataset.ShutterLeftVerticalEdge = 9
    dataset.ShutterRightVerticalEdge = 56
    dataset.ShutterUpperHorizontalEdge = 5
    dataset.ShutterLowerHorizontalEdge = 60
    dataset.save_as(tmp_path / "shut.dcm")
    seen: list[NDArray[np.float32]] = []

    def segment(images: Images) -> list[NDArray[np.float32]]:
        seen.extend(images)
        return [np.ones(image.shape, dtype=np.float32) for image in images]

    engine.segment = segment  # type: ignore[method-assign]
    pipeline = Pipeline(engine, AnalysisSettings())  # type: ignore[arg-type]
    (outcome,) = pipeline.analyse([(tmp_path / "shut.dcm").read_bytes()], AT)
    inside = np.zeros((64, 64), dtype=bool)
    inside[4:60, 8:56] = True
    assert (seen[0][~inside] == 0).all()
    assert outcome.finding is not None
    assert np.array_equal(outcome.finding.mask, inside)
    assert outcome.finding.measurement is not None
    assert outcome.finding.measurement.area_px == inside.sum()


def test_networks_see_true_proportions_and_the_mask_is_in_source_pixels(
    engine: Scripted, tmp_path: Path
) -> None:
    dataset = dcmread(phantom.write(phantom.draw(1, False, 64), tmp_path / "square.dcm"))
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        if keyword in dataset:
            del dataset[keyword]
    dataset.PixelAspectRatio = [1, 2]
    dataset.save_as(tmp_path / "wide.dcm")
    shapes: list[tuple[int, ...]] = []

    def segment(images: Images) -> list[NDArray[np.float32]]:
        shapes.extend(image.shape for image in images)
        maps = [np.zeros(image.shape, dtype=np.float32) for image in images]
        maps[0][16:32, 64:96] = 1.0
        return maps

    engine.segment = segment  # type: ignore[method-assign]
    pipeline = Pipeline(engine, AnalysisSettings())  # type: ignore[arg-type]
    (outcome,) = pipeline.analyse([(tmp_path / "wide.dcm").read_bytes()], AT)
    assert shapes == [(64, 128)]
    assert outcome.finding is not None
    wanted = np.zeros((64, 64), dtype=bool)
    wanted[16:32, 32:48] = True
    assert np.array_equal(outcome.finding.mask, wanted)


def test_a_negative_is_not_segmented(engine: Scripted, tmp_path: Path) -> None:
    engine.probability = 0.1
    (outcome,) = analysed(engine, tmp_path)
    assert outcome.finding is not None
    assert not outcome.finding.positive
    assert outcome.finding.mask is None
    assert engine.asked == ["classify"]


@pytest.mark.parametrize("answer", [math.nan, math.inf, -0.1])
def test_an_answer_that_is_not_a_probability_is_never_a_negative(
    answer: float, engine: Scripted, tmp_path: Path
) -> None:
    engine.probability = answer
    with pytest.raises(ArithmeticError):
        analysed(engine, tmp_path)


def test_an_invalid_plausibility_is_an_error_not_an_exclusion(
    gated: Scripted, tmp_path: Path
) -> None:
    gated.plausibility = math.nan
    with pytest.raises(ArithmeticError):
        analysed(gated, tmp_path)


def test_a_failed_image_without_study_or_series_uid_has_no_result(
    engine: Scripted, tmp_path: Path
) -> None:
    path = phantom.write(phantom.draw(3, True, 64), tmp_path / "one.dcm")
    dataset = dcmread(path)

    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        unnamed = BytesIO()
        changed = Dataset(dataset)
        changed.file_meta = dataset.file_meta
        delattr(changed, keyword)
        changed.save_as(unnamed, implicit_vr=False, little_endian=True)
        outcome = Pipeline(engine, AnalysisSettings()).fail(
            unnamed.getvalue(), "analysis_error", AT
        )  # type: ignore[arg-type]
        assert (outcome.state, outcome.reason, outcome.results) == (
            State.FAILED,
            "analysis_error",
            (),
        )

    assert (
        Pipeline(engine, AnalysisSettings()).fail(path.read_bytes(), "analysis_error", AT).results
    )  # type: ignore[arg-type]
