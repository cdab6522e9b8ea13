"""The folder of a training run: its contents, the folders it refuses, and that its files are
complete.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import BaseModel

from training.data.cases import Case
from training.fitting import ranks
from training.fitting.run import Run, RunError, digest, environment, write


class Recipe(BaseModel):
    id: str = "tiny"
    networks: list[dict[str, int]] = [{"batch": 8, "epochs": 2}]


COMMAND = [
    "pleura",
    "train",
    "--data=/home/roentgen/chests",
    "--out",
    "/home/roentgen/out",
    "--recipe",
    "tiny",
]


def test_a_new_folder_records_command_recipe_and_environment(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", Recipe(), "abc", COMMAND)
    assert json.loads((run.folder / "recipe.json").read_text())["networks"] == [
        {"batch": 8, "epochs": 2}
    ]
    text = (run.folder / "environment.json").read_text()
    assert "roentgen" not in text
    found = json.loads(text)
    assert found["command"] == run.command == "pleura train --data=DATA --out OUT --recipe tiny"
    assert (found["data"], found["processes"]) == ("abc", 1)
    assert found["packages"]["torch"] == run.environment["packages"]["torch"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--data /home/alice --out alice", "--data DATA --out OUT"),
        ("--da=/home/alice --o alice/run", "--da=DATA --o OUT"),
        ("--recipe alice/tiny.yaml --start 0=../alice/w.pt", "--recipe tiny.yaml --start 0=w.pt"),
        ("--start=1=/home/alice=b/w.pt --set split.seed=3", "--start=1=w.pt --set split.seed=3"),
    ],
)
def test_the_recorded_command_names_no_folder(tmp_path: Path, words: str, shown: str) -> None:
    assert Run(tmp_path, Recipe(), "abc", words.split()).command == shown


def test_an_error_of_the_first_process_stops_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("")
    faults: list[str] = []
    monkeypatch.setattr(ranks, "same", lambda fault: faults.append(fault) or fault)

    for folder, fault in ((tmp_path, "no run"), (tmp_path / "thesis.tex", "File exists")):
        with pytest.raises(RunError, match=fault):
            Run(folder, Recipe(), "abc", COMMAND)

    assert "no run" in faults[0]
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    monkeypatch.setattr(ranks, "same", lambda _: faults[0])
    with pytest.raises(RunError, match="no run"):
        Run(tmp_path / "out", Recipe(), "abc", COMMAND)

    monkeypatch.setattr(ranks, "same", lambda _: "")
    # Only the first process creates the folder.
    assert not Run(tmp_path / "out", Recipe(), "abc", COMMAND).folder.exists()


def test_the_same_run_is_resumed_and_another_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, Recipe(), "abc", COMMAND)
    Run(tmp_path, Recipe(), "abc", ["pleura", "train", "again"])
    with pytest.raises(
        RunError, match=r"another recipe: networks\.0\.batch was 8, is 4\. Give another folder"
    ):
        Run(tmp_path, Recipe(networks=[{"batch": 4, "epochs": 2}]), "abc", COMMAND)
    with pytest.raises(RunError, match=r"other data \(digest abc then, abd now\)"):
        Run(tmp_path, Recipe(), "abd", COMMAND)


def test_a_changed_environment_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Run(tmp_path, Recipe(), "abc", COMMAND).folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": 999}))
    Run(tmp_path, Recipe(), "abc", COMMAND)
    assert "threads was 999" in capsys.readouterr().out


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"thesis\.tex and no run"):
        Run(tmp_path, Recipe(), "abc", COMMAND)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_start_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / ".recipe.json.part").write_text("{")
    assert (
        json.loads((Run(tmp_path, Recipe(), "abc", COMMAND).folder / "recipe.json").read_text())[
            "id"
        ]
        == "tiny"
    )


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write(path, lambda file: file.write(b"before"))

    def torn(file: BinaryIO) -> None:
        file.write(b"aft")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(path, torn)
    assert path.read_bytes() == b"before"


class Known(Case):
    def pixels(self) -> NDArray[np.float32]:
        raise AssertionError("a digest reads no pixels")

    mask = pixels

    def identity(self) -> str:
        return "pixels and mask"


def test_the_digest_depends_on_the_images_and_not_on_their_order() -> None:
    cases = [Known(image_id=name, patient=name, label=1.0) for name in "abc"]
    assert digest(cases) == digest(cases[::-1])
    others = [
        [*cases[:2], replace(cases[2], **change)]
        for change in (
            {"label": 0.0},
            {"patient": "a"},
            {"fold": 1},
            {"as_published": False},
            {"image_id": "d"},
        )
    ]
    assert len({digest(some) for some in (cases, cases[:2], *others)}) == 7


def test_a_run_from_a_checkout_records_its_commit() -> None:
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        pytest.skip("not a checkout")
    head = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    assert environment()["commit"] in (commit, f"{commit}-dirty")


def test_an_option_added_by_a_newer_version_does_not_stop_a_run(tmp_path: Path) -> None:
    class Newer(Recipe):
        added: str = "as before"

    Run(tmp_path, Recipe(), "abc", COMMAND)
    Run(tmp_path, Newer(), "abc", COMMAND)
    with pytest.raises(RunError, match="added was"):
        Run(tmp_path, Newer(added="other"), "abc", COMMAND)
