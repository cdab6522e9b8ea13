"""The settings file: where it is, how it is created, and which results `predict` makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import dcmread

from daemon.cli import main
from daemon.config import commented_file, load
from daemon.parser import parse
from training import phantom


def test_settings_are_found_by_the_environment_or_in_etc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "here.yaml"
    path.write_text("port: 104\n")
    monkeypatch.setenv("PLEURA_CONFIG", str(path))
    assert main(["config", "check"]) == 0
    assert capsys.readouterr().out == f"{path}: ok\n"

    other = tmp_path / "other.yaml"
    assert parse(["status", "-c", str(other)]).config == other
    for nothing in ("", None):
        if nothing is None:
            monkeypatch.delenv("PLEURA_CONFIG")
        else:
            monkeypatch.setenv("PLEURA_CONFIG", nothing)
        assert parse(["status"]).config == Path("/etc/pleura/pleura.yaml")


def test_init_writes_the_commented_file_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pleura.yaml"
    assert main(["config", "init", "-c", str(path)]) == 0
    assert path.read_text() == commented_file().read_text()
    assert load(path).port == 11112
    assert f"pleura config check -c {path}" in capsys.readouterr().out

    path.write_text("port: 104\n")
    assert main(["config", "init", "-c", str(path)]) == 2
    assert "already exists; nothing was written" in capsys.readouterr().err
    assert path.read_text() == "port: 104\n"


def test_init_does_not_create_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "init", "-c", str(tmp_path / "mistyped" / "pleura.yaml")]) == 2
    assert f"mkdir -p {tmp_path / 'mistyped'}" in capsys.readouterr().err
    assert not (tmp_path / "mistyped").exists()


def test_the_error_for_an_absent_file_names_the_command_that_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pleura.yaml"
    assert main(["config", "check", "-c", str(path)]) == 2
    assert f"pleura config init -c {path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kinds"),
    [([], {"SEG", "OT", "SR", "PR"}), (["--results", "sc, SR"], {"OT", "SR"})],
    ids=["all", "some"],
)
def test_predict_makes_the_requested_results(
    tiny_package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    kinds: set[str],
) -> None:
    file = phantom.write(phantom.draw(1, True, 64), tmp_path / "in.dcm")
    made = tmp_path / "out"
    command = ["predict", str(file), "--model", str(tiny_package), "--device", "cpu"]
    assert main([*command, "--out", str(made), *options]) == 0

    answer = json.loads(capsys.readouterr().out)
    if not answer["area_px"]:
        kinds -= {"SEG", "PR"}
    assert {str(dcmread(path).Modality) for path in made.glob("*.dcm")} == kinds


def test_an_unknown_kind_is_refused(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(tmp_path / "in.dcm"), "--model", str(tiny_package)]
    assert main([*command, "--results", "SEG,RTSTRUCT"]) == 2
    assert "found 'RTSTRUCT'; allowed: SEG, SC, SR, PR" in capsys.readouterr().err
