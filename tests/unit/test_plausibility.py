"""The plausibility network: real chests and phantoms are frontal chests in any orientation; a hip,
a tibia, teeth and a dog are not.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import config

from inference import package, plausibility, radiograph
from inference.engine import Engine
from inference.finding import State
from inference.networks import build
from inference.pipeline import AnalysisSettings, Pipeline
from inference.plausibility import OTHERS, UPRIGHT, Judgement, Pixels, Pose
from training import phantom
from training.plausibility import non_chests
from training.plausibility.chests import TURNED_OR_INVERTED
from training.plausibility.train import scores, train

pytestmark = pytest.mark.xdist_group("plausibility")

UPSIDE_DOWN = Pose(2)
# Files of node/ that show no frontal chest. Their headers reveal it, so the test removes those
# attributes.
OTHERS_OF_NODE = (
    *(f"RG2_{kind}.dcm" for kind in ("J2KR", "JLSL", "JPLL", "JPLY", "RLE", "UNC")),
    "RG3_JLSL.dcm", "RG3_JPLL.dcm",
    "CR-ModalitySequenceLUT.dcm", "veterinary_DX_211x169.dcm",
)  # fmt: skip
# Another system's result in colour, which admission excludes by its header.
RESULT = "Milvue_AI_SC_RLEPlanarConfiguration.dcm"
TELLING = (
    "BodyPartExamined", "ViewPosition", "ViewCodeSequence", "AnatomicRegionSequence",
    "StudyDescription",
    "SeriesDescription", "ProtocolName", "PerformedProcedureStepDescription",
    "RequestedProcedureDescription",
    "AcquisitionDeviceProcessingDescription", "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription", "PatientBreedCodeSequence", "PatientAge", "PatientBirthDate",
    "ImageComments",
)  # fmt: skip


@cache
def engine() -> Engine:
    return Engine(package.load(package.default_folder()), torch.device("cpu"), "torch")


def judge(images: Sequence[Pixels]) -> list[Judgement]:
    wanted = engine().manifest.plausibility
    assert wanted is not None
    return plausibility.judge(engine().plausible, images, wanted.threshold)


def read(path: Path) -> Pixels:
    return radiograph.decode(radiograph.parse(path.read_bytes())[0]).pixels


def test_every_real_chest_of_the_node_folder_is_recognised(data: Path) -> None:
    names = sorted(
        {path.name for path in (data / "node").glob("*.dcm")} - {*OTHERS_OF_NODE, RESULT}
    )
    assert len(names) == 17
    for name, verdict in zip(
        names, judge([read(data / "node" / name) for name in names]), strict=True
    ):
        # In this file only PhotometricInterpretation was changed, so it is shown inverted and must
        # be recognised as such.
        wanted = Pose(inverted=True) if name == "siim_relabelled_MONOCHROME1.dcm" else UPRIGHT
        assert verdict.pose == wanted, name


def test_real_chests_of_siim_are_recognised(data: Path) -> None:
    paths = sorted((data / "siim" / "dicom").glob("*.dcm"))[::9]
    for path, verdict in zip(paths, judge([read(path) for path in paths]), strict=True):
        assert verdict.pose == UPRIGHT or path.stem in TURNED_OR_INVERTED, path.name


def test_a_real_upside_down_chest_is_recognised_as_such(data: Path) -> None:
    (name,) = (name for name in TURNED_OR_INVERTED if "." in name)
    (verdict,) = judge([read(data / "siim" / "dicom" / f"{name}.dcm")])
    assert verdict.pose == UPSIDE_DOWN


# Drawing a phantom of 1024 px takes seconds.
@pytest.mark.parametrize(("size", "seeds"), [(256, (7, 19, 31, 44)), (1024, (19, 44))])
def test_phantoms_are_recognised_as_chests(size: int, seeds: Sequence[int]) -> None:
    drawn = [phantom.draw(seed, pneumothorax=seed % 2 == 0, size=size).pixels for seed in seeds]
    assert [verdict.pose for verdict in judge(drawn)] == [UPRIGHT] * len(seeds)


@pytest.mark.parametrize("name", OTHERS_OF_NODE)
def test_another_body_part_without_telling_attributes_is_not_analysed(
    data: Path, name: str
) -> None:
    dataset, _ = radiograph.parse((data / "node" / name).read_bytes())
    for keyword in TELLING:
        if keyword in dataset:
            del dataset[keyword]

    buffer = io.BytesIO()
    # The file of teeth has an invalid Implementation Class UID.
    with config.disable_value_validation():
        dataset.save_as(buffer, enforce_file_format=True)
    (outcome,) = Pipeline(engine(), AnalysisSettings()).analyse(
        [buffer.getvalue()], datetime(2026, 1, 1)
    )
    assert (outcome.state, outcome.reason) == (State.NOT_ANALYSED, "not_a_frontal_chest")

    assert outcome.finding is None
    assert not outcome.results


@pytest.mark.parametrize("kind", ["limb", "hand", "teeth", "pelvis", "spine", "text", "gradient"])
def test_most_drawn_pictures_of_something_else_are_refused(kind: str) -> None:
    drawn = non_chests.draw(kind, 12, np.zeros((1, 1, 1), dtype=np.uint8), seed=90_210)
    poses = [
        verdict.pose
        for verdict in judge([one.astype(np.float32) / np.float32(255) for one in drawn])
    ]
    assert poses.count(UPRIGHT) <= 2


@pytest.mark.parametrize(
    "pixels", [np.zeros((40, 30)), np.ones((1, 500)), np.eye(64), np.full((9, 9), 0.3)]
)
def test_pictures_without_content_are_not_chests(pixels: Pixels) -> None:
    assert judge([pixels.astype(np.float32)])[0].pose is None


images = arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 1, width=16)
)


@given(images, st.sampled_from((UPRIGHT, *OTHERS)))
def test_a_map_of_a_corrected_pose_returns_to_the_source_pixels(pixels: Pixels, pose: Pose) -> None:
    back = pose.as_given(pose.righted(pixels))
    assert np.array_equal(back, 1 - pixels if pose.inverted else pixels)


def test_each_of_the_seven_other_poses_has_its_own_words() -> None:
    assert len(set(OTHERS)) == 7
    assert UPRIGHT not in OTHERS
    assert UPRIGHT.note == ""
    assert (
        Pose(1, True).note == "not shown as a chest is: analysed turned by 90 degrees and inverted"
    )


def test_only_refused_images_are_judged_in_other_poses() -> None:
    asked: list[int] = []

    # This judge prefers a bright upper left corner.
    def ask(pictures: Sequence[Pixels]) -> list[float]:
        asked.append(len(pictures))
        return [float(picture[0, 0]) for picture in pictures]

    chest = np.eye(2, dtype=np.float32)
    sideways = np.array([[0.2, 0.95], [0.3, 0.3]], dtype=np.float32)
    none = np.full((2, 2), 0.45, dtype=np.float32)
    verdicts = plausibility.judge(ask, [chest, sideways, none], 0.5)
    assert [verdict.pose for verdict in verdicts] == [UPRIGHT, Pose(1), None]

    assert asked == [3, 7, 7]
    assert (
        plausibility.judge(lambda pictures: [0.4] * len(pictures), [none], 0.3)[0].pose == UPRIGHT
    )
    assert plausibility.judge(lambda pictures: [0.2] * len(pictures), [none], 0.3)[0].pose is None
    assert (
        plausibility.judge(lambda pictures: [math.nan] * len(pictures), [none], 0.3)[0].pose is None
    )


@pytest.mark.parametrize("kind", list(non_chests.KINDS))
def test_drawn_pictures_are_reproducible(kind: str) -> None:
    chests = np.stack(
        [phantom.draw(seed, False, size=non_chests.SIDE).pixels * 255 for seed in (1, 2)]
    )
    first, second = (non_chests.draw(kind, 2, chests.astype(np.uint8), seed=3) for _ in range(2))
    assert first.shape == (2, non_chests.SIDE, non_chests.SIDE)
    assert np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])
    assert np.ptp(first) > 50


def test_the_network_learns_to_tell_chests_from_limbs() -> None:
    drawn = [phantom.draw(seed, False, size=non_chests.SIDE).pixels * 255 for seed in range(12)]
    chests = np.stack(drawn).astype(np.uint8)
    limbs = non_chests.draw("limb", 12, chests, seed=1)
    network = train(chests, limbs, seed=0, steps=40)
    assert np.median(scores(network, chests)) > np.median(scores(network, limbs)) + 1


def test_the_network_is_small_and_takes_any_batch() -> None:
    network = build("plain-classifier").eval()
    assert sum(weights.numel() for weights in network.parameters()) < 100_000
    assert network(torch.zeros(3, 1, 64, 64)).shape == (3, 1)
