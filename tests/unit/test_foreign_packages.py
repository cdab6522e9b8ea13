"""Our packages have common names: if another distribution installs one of them, every command
reports it and exits.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon import cli

DECLARED = {"top_level.txt": "daemon\n", "RECORD": ""}
LISTED = {
    "RECORD": "../../bin/tool,,\ndaemon/__init__.py,sha256=x,1\ndaemon/daemon.py,sha256=x,1\n"
}
HARMLESS = {
    "RECORD": "daemonize/__init__.py,,\nother/daemon/__init__.py,,\ntraining_data.py,,\ndaemon-1.dist-info/RECORD,,\n"
}


def install(folder: Path, files: dict[str, str]) -> None:
    info = folder / "python_daemon-3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: python-daemon\nVersion: 3.0\n")
    for name, text in files.items():
        (info / name).write_text(text)


@pytest.mark.parametrize("files", [DECLARED, LISTED], ids=["declared", "listed"])
def test_a_conflicting_distribution_is_named(
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(tmp_path, files)
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["config", "check", "-c", "absent.yaml"]) == 2
    error = capsys.readouterr().err
    assert "'daemon'" in error
    assert "python-daemon" in error


def test_names_that_only_begin_alike_are_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, HARMLESS)
    monkeypatch.syspath_prepend(tmp_path)
    # The exit status comes from the absent file.
    assert cli.main(["config", "check", "-c", "absent.yaml"]) == 2
    assert "python-daemon" not in capsys.readouterr().err
