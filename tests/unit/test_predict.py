"""`pleura predict` over real files: the same processing as the node's, and the correct outcome for
each file.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from daemon.cli import main
from inference import package, radiograph
from tests import models
from training import phantom
from training.data import rle

# The correct outcome of each file of node/: the reason why it is not analysed, or None.
STATES: dict[str, str | None] = {
    # Chest PA, no file meta information.
    "CR-MONO1-10-chest.dcm": None,
    # Teeth, according to the study description.
    "CR-ModalitySequenceLUT.dcm": "body_part",
    # A chest that names neither body part nor view.
    "Issue44_Monochrome1-Jpeg.dcm": None,
    # Another vendor's result.
    "Milvue_AI_SC_RLEPlanarConfiguration.dcm": "modality",
    # Chest PA, compressed in two ways.
    **dict.fromkeys(("RG1_J2KI.dcm", "RG1_JLSN.dcm"), None),
    # A hip.
    **{f"RG2_{kind}.dcm": "body_part" for kind in ("J2KR", "JLSL", "JPLL", "JPLY", "RLE", "UNC")},
    # A tibia.
    **{f"RG3_{kind}.dcm": "body_part" for kind in ("JLSL", "JPLL")},
    # A chest in a Secondary Capture whose header does not say so.
    "nih_wrapped_DX.dcm": None,
    # A chest, shown with white lungs as its header demands.
    "siim_relabelled_MONOCHROME1.dcm": None,
    # Real chests without a study UID, so no result could be filed with them.
    **{
        f"stage2_ID_{name}.dcm": "no_identity"
        for name in ("0bc787781", "15849f0c0", "33fdb1d7c", "346ef7da2", "44e8b2bbe", "93f22568d", "9748851ee",
                     "bacc01a5d", "ca86daf2e", "d876567ea", "dac387269")
    },
    # A dog.
    "veterinary_DX_211x169.dcm": "species",
}  # fmt: skip
# The same picture, compressed in two ways.
ALIKE = (("RG1_J2KI.dcm", "RG1_JLSN.dcm"),)


def predict(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, object]]:
    umask = os.umask(0)
    os.umask(umask)
    try:
        status = main(["predict", *map(str, arguments)])
    finally:
        os.umask(umask)
    assert status == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_file_of_the_node_folder_has_its_correct_state(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((data / "node").glob("*.dcm"))
    answers = {Path(str(answer["file"])).name: answer for answer in predict(capsys, *files)}
    assert {name: answer["reason"] for name, answer in answers.items()} == STATES

    for name, answer in answers.items():
        assert answer["state"] == ("not_analysed" if STATES[name] else "analysed"), name
        if STATES[name]:
            assert answer["detail"], name
        else:
            assert 0 < float(str(answer["probability"])) < 1, name

    for first, second in ALIKE:
        assert answers[first]["positive"] == answers[second]["positive"]
        # Probabilities are stated in whole percents, so they may differ by one rounding step plus a
        # float error.
        assert answers[first]["probability"] == pytest.approx(
            answers[second]["probability"], abs=0.0101
        )


def test_real_chests_without_a_study_are_analysed_once_given_an_identity(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate(sorted((data / "node").glob("stage2_*.dcm"))):
        dataset, _ = radiograph.parse(path.read_bytes())
        dataset.StudyInstanceUID = f"2.25.7{number}"
        dataset.SeriesInstanceUID = f"2.25.8{number}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.9{number}"
        dataset.save_as(tmp_path / path.name)
    answers = {
        Path(str(answer["file"])).stem: answer["reason"]
        for answer in predict(capsys, *sorted(tmp_path.glob("*.dcm")))
    }
    assert len(answers) == 11
    assert {name: reason for name, reason in answers.items() if reason} == {
        "stage2_ID_d876567ea": "under_age"
    }


def test_twenty_real_xrays_get_an_answer_with_objects(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((data / "siim" / "dicom").glob("*.dcm"))[::12][:20]
    answers = predict(capsys, *files, "--out", tmp_path, "--at", "2026-01-01T12:00:00+00:00")
    made = [dcmread(path) for path in tmp_path.glob("*.dcm")]
    children = [answer for answer in answers if answer["reason"] == "under_age"]
    analysed = [answer for answer in answers if answer["state"] == "analysed"]
    assert len(children) + len(analysed) == len(answers) == 20
    assert sum(dataset.Modality == "OT" for dataset in made) == 20
    outlined = sum(bool(answer["positive"] and answer["area_px"]) for answer in analysed)
    assert sum(dataset.Modality == "SEG" for dataset in made) == outlined > 0


def test_the_demo_phantoms_are_classified_correctly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_one, without = predict(
        capsys, *phantom.demo_samples(tmp_path / "samples"), "--out", tmp_path / "out"
    )

    assert with_one["positive"] is True
    assert with_one["laterality"] in ("L", "R")
    assert without["positive"] is False
    assert without["area_px"] is None

    # Only the detector's spacing is known.
    assert with_one["area_mm2"]
    assert with_one["area_estimated"] is True
    assert without["area_estimated"] is None

    assert sorted(dcmread(path).Modality for path in (tmp_path / "out").iterdir()) == [
        "OT",
        "OT",
        "PR",
        "SEG",
        "SR",
        "SR",
    ]


def test_the_outline_of_a_phantom_matches_its_pneumothorax(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A phantom of 1024 px would take seconds to draw.
    drawn = phantom.draw(7, pneumothorax=True, size=512)
    predict(capsys, phantom.write(drawn, tmp_path / "one.dcm"), "--out", tmp_path / "out")
    (segmentation,) = (d for d in map(dcmread, (tmp_path / "out").iterdir()) if d.Modality == "SEG")
    found = segmentation.pixel_array.astype(bool)
    assert 2 * (found & drawn.mask).sum() / (found.sum() + drawn.mask.sum()) > 0.8


def test_the_same_call_gives_the_same_bytes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data / "node" / "siim_relabelled_MONOCHROME1.dcm"
    for folder in ("first", "second"):
        predict(capsys, file, "--out", tmp_path / folder, "--at", "2026-01-01T12:00:00+00:00")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("first", "second")
    )
    assert first == second


def test_an_unreadable_file_is_reported_and_the_others_are_processed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM")
    assert main(["predict", str(tmp_path / "absent.dcm"), str(tmp_path / "text.dcm")]) == 1
    output = capsys.readouterr()
    assert "absent.dcm: cannot be read" in output.err
    assert json.loads(output.out)["reason"] == "not_dicom"


@pytest.mark.parametrize("option", ["--out", "--masks", "--submission"])
def test_an_unwritable_output_is_reported_before_any_work(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.dcm").write_bytes(b"")
    (tmp_path / "file").touch()
    assert main(["predict", str(tmp_path / "a.dcm"), option, str(tmp_path / "file" / "x")]) == 2
    printed = capsys.readouterr()
    assert f"{option}: {tmp_path}/file/x: " in printed.err
    assert not printed.out


def test_an_unwritable_result_is_reported_and_the_others_are_written(
    eager_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Image.fromarray((phantom.draw(7, True, size=64).pixels * 255).astype(np.uint8))
    for name in ("a", "b"):
        picture.save(tmp_path / f"{name}.png")

    masks = tmp_path / "masks"
    (masks / "a.png").mkdir(parents=True)
    submission = tmp_path / "submission.csv"
    files = [str(tmp_path / f"{name}.png") for name in ("a", "b", "absent")]
    call = ["predict", "--model", str(eager_package), *files, "--masks", str(masks)]

    assert main([*call, "--submission", str(submission)]) == 1
    printed = capsys.readouterr()
    assert [line.split(",")[0] for line in submission.read_text().splitlines()] == [
        "ImageId", "a", "b", "absent"
    ]  # fmt: skip
    assert "a.png: cannot be written (Is a directory)" in printed.err
    assert len(printed.out.splitlines()) == 2
    assert (masks / "b.png").is_file()


@pytest.mark.parametrize("arguments", [["--model", "/nowhere"], ["--device", "tpu"]])
def test_a_missing_model_or_device_is_reported(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.dcm").write_bytes(b"")
    assert main(["predict", str(tmp_path / "a.dcm"), *arguments]) == 2
    assert "model, device:" in capsys.readouterr().err


@pytest.fixture(scope="module")
def eager_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of tiny networks that calls every image positive and outlines as much as possible."""
    folder = models.write(tmp_path_factory.mktemp("model") / "eager", models.tiny_networks())
    manifest = package.read_manifest(folder)
    low = {"bottom": 0.001, "top": 0.001, "min_area_at_1024_px": 0}
    changes = {
        "classifier": manifest.classifier.model_dump() | {"threshold": 0.001},
        "segmenter": manifest.segmenter.model_dump() | low,
    }
    package.amend(folder, changes)
    return folder


def test_pictures_and_folders_are_answered_like_dicom(
    eager_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same chest as DICOM, PNG, JPEG and 16-bit TIFF; masks and submission use its own matrix."""
    drawn = phantom.draw(7, pneumothorax=True, size=96)
    folder = tmp_path / "in"
    phantom.write(drawn, folder / "a" / "one.dcm")
    picture = Image.fromarray((drawn.pixels * 255).astype(np.uint8)).crop((0, 0, 80, 96))
    picture.save(folder / "two.png")
    picture.save(folder / "three.jpg", quality=95)
    Image.fromarray((drawn.pixels * 65535).astype(np.uint16)).save(folder / "four.tif")
    (folder / "labels.csv").write_text("not an image")
    Image.new("L", (64, 64), 7).save(folder / "blank.png")
    whole = io.BytesIO()
    picture.convert("RGB").save(whole, "JPEG")
    (folder / "broken.jpg").write_bytes(whole.getvalue()[:700])

    masks, submission = tmp_path / "masks", tmp_path / "submission.csv"
    wanted = ("--model", eager_package, "--masks", masks, "--submission", submission)
    answers = predict(capsys, folder, *wanted)

    by_name = {Path(str(answer["file"])).name: answer for answer in answers}
    assert by_name.pop("blank.png")["reason"] == "blank"
    assert by_name.pop("broken.jpg")["reason"] == "undecodable"
    assert set(by_name) == {"one.dcm", "two.png", "three.jpg", "four.tif"}
    rows = rle.read(submission)
    assert rows["blank"] == ("-1",)
    for name, answer in by_name.items():
        stem = Path(name).stem
        path = (masks / "a" / stem if name == "one.dcm" else masks / stem).with_suffix(".png")
        with Image.open(path) as image:
            found = np.asarray(image) == 255
        assert found.shape == ((96, 80) if stem in ("two", "three") else (96, 96))
        assert found.sum() == (answer["area_px"] or 0), name
        assert rows[stem] == (rle.encode(found),)
        assert answer["positive"] is True
    assert any(answer["area_px"] for answer in by_name.values())


def test_a_uid_has_no_file_extension_and_a_name_may_be_any_bytes(
    eager_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture = Image.fromarray((phantom.draw(7, True, size=64).pixels * 255).astype(np.uint8))
    names = [b"1.2.840.1", b"1.2.840.2", b"1.2.840.3.dcm", b"two\nlines.png", b"caf\xe9.png"]
    for name in names:
        picture.save(folder / os.fsdecode(name), "PNG")

    masks, submission = tmp_path / "masks", tmp_path / "submission.csv"
    wanted = ("--model", eager_package, "--masks", masks, "--submission", submission)
    answers = predict(capsys, folder, *wanted)
    assert len(answers) == len(names)
    assert {os.fsencode(path.name) for path in masks.iterdir()} == {
        b"1.2.840.1.png", b"1.2.840.2.png", b"1.2.840.3.png", b"two\nlines.png", b"caf\xe9.png"
    }  # fmt: skip
    rows = submission.read_bytes()
    for name in (b"1.2.840.1,", b"1.2.840.2,", b"1.2.840.3,", b'"two\nlines",', b"caf\xe9,"):
        assert b"\n" + name in rows


def test_images_without_a_study_are_answered_with_any_image(
    eager_package: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data / "node" / "stage2_ID_0bc787781.dcm"
    (answer,) = predict(capsys, path, "--model", eager_package, "--any-image")
    assert answer["state"] == "analysed"


def test_two_images_of_one_name_are_reported_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.dcm").write_bytes(b"")
    arguments = ["predict", str(tmp_path), "--model", "/nowhere", "--submission", "out.csv"]
    assert main(arguments) == 2
    assert "two images are named one" in capsys.readouterr().err


def test_a_model_of_brain_slices_gives_mask_and_features(
    eager_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No node loads such a model, and it does not read DICOM."""
    shutil.copytree(eager_package, tmp_path / "mri")
    package.amend(tmp_path / "mri", {"task": "lower-grade-glioma"})
    folder = tmp_path / "case"
    folder.mkdir()
    slices = np.random.default_rng(0).integers(60, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(slices).save(folder / "case_1.tif")
    Image.fromarray(slices[:, :, 0]).save(folder / "case_1_mask.tif")
    dicom = phantom.write(phantom.draw(0, True, size=64), tmp_path / "one.dcm")

    masks = tmp_path / "masks"
    first, second = predict(capsys, folder, dicom, "--model", tmp_path / "mri", "--masks", masks)

    assert first["state"] == "analysed"
    assert second["reason"] == "modality"
    with Image.open(masks / "case_1.png") as image:
        drawn = np.asarray(image) == 255
    assert drawn.shape == (40, 50)
    assert drawn.sum() == first["area_px"] > 0
    rows, columns = np.nonzero(drawn)
    assert first["centroid_px"] == pytest.approx([columns.mean(), rows.mean()])
    assert first["spread_px"] == pytest.approx([columns.std(), rows.std()])
