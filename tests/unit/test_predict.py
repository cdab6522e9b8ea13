"""`pleura predict` over real files: the node's own way from bytes to an outcome, and the outcome each file deserves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydicom import dcmread

from daemon.cli import main
from training import phantom

# By its header no frontal adult chest, not decodable, or without an identity: why each file of node/ is not analysed.
REFUSED = {
    "CR-ModalitySequenceLUT.dcm": "body_part",  # teeth
    "Milvue_AI_SC_RLEPlanarConfiguration.dcm": "modality",  # another vendor's result
    **{f"RG2_{kind}.dcm": "body_part" for kind in ("J2KR", "JLSL", "JPLL", "JPLY", "RLE", "UNC")},  # a hip
    **{f"RG3_{kind}.dcm": "body_part" for kind in ("JLSL", "JPLL")},  # a tibia
    "veterinary_DX_211x169.dcm": "species",  # a dog
}
ANALYSED = {
    "CR-MONO1-10-chest.dcm", "Issue44_Monochrome1-Jpeg.dcm", "RG1_J2KI.dcm", "RG1_JLSN.dcm", "nih_wrapped_DX.dcm",
    "siim_relabelled_MONOCHROME1.dcm",
}  # fmt: skip


def predict(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, object]]:
    umask = os.umask(0)
    os.umask(umask)
    try:
        status = main(["predict", *map(str, arguments)])
    finally:
        os.umask(umask)
    assert status == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_file_of_the_node_folder_has_its_state(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((data / "node").glob("*.dcm"))
    answers = {Path(str(answer["file"])).name: answer for answer in predict(capsys, *files)}
    assert len(answers) == len(files)
    for name, answer in answers.items():
        if name in ANALYSED:
            assert (answer["state"], answer["reason"]) == ("analysed", None), name
            assert 0 < float(str(answer["probability"])) < 1
        else:
            wanted = REFUSED.get(name, "no_identity")  # stage2_*: a Study Instance UID that is empty
            assert (answer["state"], answer["reason"]) == ("not_analysed", wanted), name
            assert answer["detail"]


def test_twenty_real_xrays_get_an_answer_and_its_objects(
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


def test_the_demo_phantoms_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_one, without = predict(capsys, *phantom.demo_samples(tmp_path / "samples"), "--out", tmp_path / "out")
    assert with_one["positive"] is True
    assert with_one["laterality"] in ("L", "R")
    assert without["positive"] is False
    assert without["area_px"] is None
    assert sorted(dcmread(path).Modality for path in (tmp_path / "out").iterdir()) == ["OT", "OT", "SEG"]


def test_the_phantoms_outline_is_the_pneumothorax(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = phantom.draw(7, pneumothorax=True)
    predict(capsys, phantom.write(drawn, tmp_path / "one.dcm"), "--out", tmp_path / "out")
    (segmentation,) = (d for d in map(dcmread, (tmp_path / "out").iterdir()) if d.Modality == "SEG")
    found = segmentation.pixel_array.astype(bool)
    assert 2 * (found & drawn.mask).sum() / (found.sum() + drawn.mask.sum()) > 0.8


def test_the_same_call_gives_the_same_bytes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = data / "node" / "siim_relabelled_MONOCHROME1.dcm"
    for folder in ("first", "second"):
        predict(capsys, file, "--out", tmp_path / folder, "--at", "2026-01-01T12:00:00+00:00")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("first", "second")
    )
    assert first == second


def test_a_file_that_cannot_be_read_is_said_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM")
    assert main(["predict", str(tmp_path / "absent.dcm"), str(tmp_path / "text.dcm")]) == 1
    output = capsys.readouterr()
    assert "absent.dcm: cannot be read" in output.err
    assert json.loads(output.out)["reason"] == "not_dicom"


@pytest.mark.parametrize("arguments", [["--model", "/nowhere"], ["--device", "cuda:99"]])
def test_a_model_or_device_that_is_not_there_is_said(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.dcm").write_bytes(b"")
    assert main(["predict", str(tmp_path / "a.dcm"), *arguments]) == 2
    assert "model, device:" in capsys.readouterr().err
