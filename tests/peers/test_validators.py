"""Every kind of result, from every kind of source, checked by independent validators: dicom3tools
and DCMTK.

Only the networks' answers are made up, so that each source gives a positive, a negative and an
image that is not analysed.
"""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from inference.admission import Rules
from inference.engine import Engine
from inference.finding import Outcome, Result, State
from inference.pipeline import AnalysisSettings, Pipeline
from inference.radiograph import COPIED_KEYWORDS
from inference.results import KINDS
from tools.cases import AT, MODEL, header
from tools.peers.harness import Node, Orthanc, storescu

SIIM = "siim/dicom/1.2.276.0.7230010.3.1.4.8323329"
SOURCES = [
    # JPEG Baseline in an SC class, as published
    f"{SIIM}.13666.1517875247.117800.dcm",
    # Re-wrapped in JPEG-LS: no ages, empty dates
    f"{SIIM}.1000.1517875165.878027.dcm",
    # No file meta information
    "node/CR-MONO1-10-chest.dcm",
    # MONOCHROME1 in 8 bits, no view, no body part
    "node/Issue44_Monochrome1-Jpeg.dcm",
    # MONOCHROME1 in 15 bits, lossy with a ratio but no method, PixelSpacing 0\0
    "node/RG1_J2KI.dcm",
    "node/RG1_JLSN.dcm",
    # DX in an SC class, six type 2 attributes missing
    "node/nih_wrapped_DX.dcm",
    "node/siim_relabelled_MONOCHROME1.dcm",
]
DX_16 = {
    "SOPClassUID": DigitalXRayImageStorageForPresentation, "Modality": "DX",
    "PresentationIntentType": "FOR PRESENTATION",
    "ViewPosition": "PA", "PhotometricInterpretation": "MONOCHROME2", "PresentationLUTShape": "IDENTITY",
    "RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US", "WindowCenter": 30000, "WindowWidth": 60000,
    "PixelSpacing": None, "ImagerPixelSpacing": [0.8, 0.8], "ImageLaterality": "U", "BurnedInAnnotation": "NO",
    "ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 20, "ShutterRightVerticalEdge": 360,
    "ShutterUpperHorizontalEdge": 20, "ShutterLowerHorizontalEdge": 400, "LossyImageCompression": "00",
}  # fmt: skip
MADE: dict[str, dict[str, Any]] = {
    "DX 16-bit": DX_16,
    "DX 16-bit MONOCHROME1": DX_16
    | {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE", "FrameOfReferenceUID": "1.2.3.4"},
    "CR MONOCHROME1": {"PhotometricInterpretation": "MONOCHROME1"},
    "turned": {"PatientOrientation": ["F", "L"], "PixelSpacing": [0.8, 0.4]},
    "thorax, no spacing": {"PixelSpacing": [0.0, 0.0], "BodyPartExamined": "THORAX", "PatientOrientation": None},
    "Japanese": {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "ReferringPhysicianName": "Suzuki=鈴木",
    },
    "Chinese": {
        "SpecificCharacterSet": "GB18030", "PatientName": "Wang^XiaoDong=王^小东", "ReferringPhysicianName": None,
    },
    "UTF-8": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Δοκιμή^Ένα", "StudyDescription": "胸部"},
    "twice lossy": {
        "LossyImageCompression": "01", "LossyImageCompressionRatio": [10, 12.5],
        "LossyImageCompressionMethod": ["ISO_15444_1", "ISO_10918_1"],
    },
    "nameless": {
        "PatientName": None, "StudyID": None, "AccessionNumber": None, "PatientBirthDate": None, "StudyTime": None,
    },
    "another time zone": {"TimezoneOffsetFromUTC": "-0400"},
}  # fmt: skip

# DCMTK 3.6.7 prints this warning and reads on.
NOT_KNOWN_TO_DCMTK = re.compile(
    r"W: (The VR checker does not support this|Reading unknown/unsupported) ?Specific ?Character ?Set"
)


class MadeUpEngine:
    """An engine with made-up answers: negative, or positive with two regions, one with a hole."""

    identity = MODEL
    manifest = SimpleNamespace(
        classifier=SimpleNamespace(side=320, threshold=0.42, calibration=None),
        segmenter=SimpleNamespace(rule=(0.5, 0.5, 1, 0)),
        plausibility=None,
    )

    def __init__(self, positive: bool) -> None:
        self._positive = positive

    def classify(self, images: Sequence[NDArray[np.float32]]) -> list[float]:
        return [0.87 if self._positive else 0.12] * len(images)

    def segment(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        return [regions(image.shape[0], image.shape[1]) for image in images]


def regions(rows: int, columns: int) -> NDArray[np.float32]:
    """(rows, columns): 1 in a crescent with a hole at the left and in a disc at the right, else 0."""
    row, column = np.mgrid[0:rows, 0:columns] / np.array([rows, columns]).reshape(2, 1, 1)
    crescent = np.hypot((row - 0.4) / 0.3, (column - 0.25) / 0.15) < 1
    crescent &= np.hypot((row - 0.4) / 0.08, (column - 0.25) / 0.05) > 1
    disc = np.hypot((row - 0.3) / 0.1, (column - 0.8) / 0.08) < 1
    return np.asarray(crescent | disc, dtype=np.float32)


def analysed(data: bytes, positive: bool, **settings: Any) -> Outcome:
    engine = cast(Engine, MadeUpEngine(positive))
    pipeline = Pipeline(engine, AnalysisSettings(kinds=frozenset(KINDS), **settings))
    (outcome,) = pipeline.analyse([data], AT)
    return outcome


def made(changes: dict[str, Any]) -> bytes:
    source = header(
        **(
            {
                # 410 rows of 0.8 mm: a chest of 0.33 m in few pixels.
                "PixelSpacing": [0.8, 0.8],
                "Rows": 410,
                "Columns": 370,
                "BitsAllocated": 16,
                "BitsStored": 16,
                "HighBit": 15,
                "PixelRepresentation": 0,
            }
            | changes
        )
    )

    source.SamplesPerPixel = 1
    source.PhotometricInterpretation = source.get("PhotometricInterpretation", "MONOCHROME2")
    row, column = np.mgrid[0 : source.Rows, 0 : source.Columns]
    source.PixelData = (5000 + 90 * row + 40 * column).astype("<u2").tobytes()
    source["PixelData"].VR = "OW"
    source.file_meta = FileMetaDataset()
    source.file_meta.MediaStorageSOPClassUID = source.SOPClassUID
    source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
    source.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    source.save_as(file, enforce_file_format=True)
    return file.getvalue()


class Validators:
    """Writes objects to disk and asserts that no validator complains about them."""

    def __init__(self, peer: Callable[[str], str], folder: Path) -> None:
        self._peer = peer
        self._folder = folder

    def check(self, source: bytes, results: Sequence[Result], name: str) -> None:
        folder = self._folder / name
        folder.mkdir()
        (folder / "source.dcm").write_bytes(source)
        files = []
        for result in results:
            files.append(folder / f"{result.kind}.dcm")
            files[-1].write_bytes(result.data)
            self._check_object(result.kind, files[-1])
        assert self._complaints("dcentvfy", folder / "source.dcm", *files) == []

    def _check_object(self, kind: str, file: Path) -> None:
        assert self._complaints("dciodvfy", file) == []
        assert subprocess.run([self._peer("dcmftest"), file], capture_output=True).returncode == 0
        if kind == "SR":
            read = subprocess.run(
                [self._peer("dsrdump"), file], capture_output=True, text=True, errors="replace"
            )
            about = [
                line for line in read.stderr.splitlines() if not NOT_KNOWN_TO_DCMTK.match(line)
            ]
            assert (read.returncode, about) == (0, [])

        checked = subprocess.run(
            [self._peer("dcmpschk"), file], capture_output=True, text=True, errors="replace"
        )

        said = [line for line in (checked.stdout + checked.stderr).splitlines() if line]
        dataset = dcmread(file)
        if kind == "PR" and dataset["PatientName"].is_empty:
            # A name that the source lacks is not invented: PatientName is type 2 (PS3.3 C.7.1.1),
            # but dcmpschk wants a value.
            assert said[1:-1] == ["W: patientName absent or empty in presentation state"]
        elif (
            dataset.get("SpecificCharacterSet") == "ISO_IR 192"
            and said[-1] == "W: Test failed - one or more errors."
        ):
            # dcmpschk does not know UTF-8. It may object only to text copied from the source.
            objects = re.findall(r"Affected attribute: (\w+)", "\n".join(said))
            assert said[1:-1].count(
                "E: Error: Attribute value does not conform to data type definition."
            ) == len(objects)
            assert set(objects) <= set(COPIED_KEYWORDS)
        else:
            assert said == [f"W: Testing: {file}", "W: Test passed."]

    def _complaints(self, program: str, *files: Path) -> list[str]:
        found = subprocess.run(
            [self._peer(program), *files], capture_output=True, text=True, errors="replace"
        )
        return [
            line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")
        ]


@pytest.fixture
def validators(peer: Callable[[str], str], tmp_path: Path) -> Validators:
    return Validators(peer, tmp_path)


def check_all(validators: Validators, data: bytes) -> None:
    positive = analysed(data, True)
    negative = analysed(data, False)
    refused = analysed(data, True, rules=Rules(minimum_age_years=130, when_absent="admit"))
    assert (positive.state, positive.detail, len(positive.results)) == (State.ANALYSED, "", 4)
    assert (negative.state, len(negative.results)) == (State.ANALYSED, 2)
    check_pixels(positive)

    answers = {"positive": positive, "negative": negative}
    if refused.state is not State.ANALYSED:
        assert refused.reason == "under_age"
        answers["refused"] = refused

    for name, outcome in answers.items():
        validators.check(data, outcome.results, name)
        # The node recognises each result as its own output, and sends nothing.
        for result in outcome.results:
            back = analysed(result.data, True)
            assert (back.state, back.reason, back.results) == (State.NOT_ANALYSED, "own_output", ())


def check_pixels(outcome: Outcome) -> None:
    """pydicom and highdicom read the SEG's frames, one for each region, back as the exact mask."""
    (seg,) = [result for result in outcome.results if result.kind == "SEG"]
    assert outcome.finding is not None
    mask = outcome.finding.mask
    assert mask is not None

    # (regions, rows, columns)
    frames = dcmread(io.BytesIO(seg.data)).pixel_array.astype(bool)
    assert frames.shape == (2, *mask.shape)
    assert np.array_equal(frames.any(axis=0), mask)
    assert not frames.all(axis=0).any()

    again = hd.seg.segread(io.BytesIO(seg.data))
    read = again.get_pixels_by_source_instance(
        [outcome.sop_instance_uid], ignore_spatial_locations=False
    )
    assert np.array_equal(np.moveaxis(read[0], -1, 0).astype(bool), frames)


@pytest.mark.parametrize("name", SOURCES)
def test_real_sources_give_objects_that_validators_accept(
    name: str, data: Path, validators: Validators
) -> None:
    check_all(validators, (data / name).read_bytes())


@pytest.mark.parametrize("name", MADE)
def test_made_up_headers_give_objects_that_validators_accept(
    name: str, validators: Validators
) -> None:
    check_all(validators, made(MADE[name]))


def test_a_second_sending_changes_nothing_in_the_archive(
    peer: Callable[[str], str], orthanc: Orthanc, tmp_path: Path
) -> None:
    def send(outcomes: Sequence[Outcome]) -> None:

        files = []
        for outcome in outcomes:
            for result in outcome.results:
                files.append(tmp_path / f"{result.sop_instance_uid}.dcm")
                files[-1].write_bytes(result.data)
        command = [
            peer("dcmsend"),
            "-aec",
            orthanc.ae_title,
            "127.0.0.1",
            str(orthanc.dicom_port),
            *map(str, files),
        ]
        subprocess.run(command, check=True, capture_output=True)

    positive = made(MADE["DX 16-bit"])
    negative = made({"SOPInstanceUID": "2.25.77"})
    send([analysed(positive, True), analysed(negative, False)])
    held = {name: orthanc.file(tags["orthanc"]) for name, tags in orthanc.instances().items()}
    assert len(held) == 6

    changes = orthanc.get("/changes?last")["Last"]
    # The results are built again.
    send([analysed(positive, True), analysed(negative, False)])
    assert {
        name: orthanc.file(tags["orthanc"]) for name, tags in orthanc.instances().items()
    } == held
    assert orthanc.get("/changes?last")["Last"] == changes


def test_a_node_delivers_all_kinds_once_and_makes_nothing_of_its_own_results(
    peer: Callable[[str], str],
    orthanc: Orthanc,
    tiny_package: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    files = []
    for number, changes in enumerate(MADE.values()):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(made(changes | {"SOPInstanceUID": f"2.25.{1000 + number}"}))
        if number == 2:
            break
    places = [orthanc.destination(profile="all")]
    with Node(tmp_path / "node", free_port(), model=str(tiny_package), destinations=places) as node:
        assert storescu(peer("storescu"), node, files, "-R").returncode == 0
        node.wait_done(len(files))
        held = orthanc.instances()
        kinds = [tags["Modality"] for tags in held.values()]
        assert kinds.count("SR") == kinds.count("OT") == len(files)

        assert kinds.count("SEG") == kinds.count("PR")
        objects = []
        for uid, tags in held.items():
            objects.append(tmp_path / f"back-{uid}.dcm")

            objects[-1].write_bytes(orthanc.file(tags["orthanc"]))
        for option in ("-xy", "-xe"):
            part = [
                path
                for path in objects
                if (b"JFIF" in path.read_bytes()[:4096]) == (option == "-xy")
            ]

            assert storescu(peer("storescu"), node, part, option, "-R").returncode == 0
        counts = node.wait_done(len(files) + len(objects))
        assert counts["instances"]["not_analysed"] == len(objects)
        assert counts["deliveries"] == {
            "owed": 0,
            "stored": len(objects),
            "committed": 0,
            "refused": 0,
        }
        assert len(orthanc.instances()) == len(objects)
