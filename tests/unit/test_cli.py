"""The commands as a person or a script calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from daemon.config import document
from daemon.installed import shipped_file
from daemon.ledger import Arrival, Completion, Ledger
from daemon.parser import parse
from tests.commands import pleura


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `pleura` in a process of its own, for tests of process behaviour."""
    command = [sys.executable, "-m", "daemon.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "pleura.yaml"
    path.write_text(
        yaml.safe_dump(
            {"spool": str(tmp_path / "spool"), "ledger": f"sqlite:///{tmp_path}/ledger.db"}
        )
    )
    return path


def test_config_check_and_show_work(settings: Path, tmp_path: Path) -> None:
    assert process("config", "check", "-c", settings).stdout == f"{settings}: ok\n"
    shown = pleura("config", "show", "-c", settings)
    assert yaml.safe_load(shown.stdout)["port"] == 11112
    (tmp_path / "wrong.yaml").write_text("port: x\nprot: 1\n")
    wrong = process("config", "check", "-c", tmp_path / "wrong.yaml")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "command",
    ["status", "status 1.2.3", "trace 1.2.3", "retry", "verify", "metrics", "drift", "alerts list"],
)
def test_a_command_reads_the_settings_once(
    command: str, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second reading takes time, and may find another file than the first."""
    Ledger(f"sqlite:///{tmp_path}/ledger.db").close()
    texts: list[str] = []
    parse_yaml = document.parse
    monkeypatch.setattr(document, "parse", lambda text: texts.append(text) or parse_yaml(text))

    pleura(*command.split(), "-c", settings)
    assert len(texts) == 1


@pytest.mark.parametrize(
    "command", [["serve"], ["receive"], ["analyse"], ["deliver"], ["status"], ["retry"]]
)
def test_wrong_settings_stop_every_command_with_exit_status_2(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text("prot: 1\n")
    # `serve` reads the settings in a child process, whose stderr only a real process captures.
    call = process if command == ["serve"] else pleura
    answer = call(*command, "-c", tmp_path / "wrong.yaml")
    assert answer.returncode == 2
    assert "prot: unknown key" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": "/nowhere"}, "model"),
        ({"ledger": "sqlite:////proc/none/ledger.db"}, "ledger"),
        ({"spool": "/proc/none"}, "spool"),
        # A missing GPU must never fall back to the CPU silently.
        ({"device": "cuda:99"}, "device: cuda:99 found"),
    ],
)
def test_serve_that_cannot_start_ends_with_the_reason(
    settings: Path, change: dict[str, str], word: str, free_port: Callable[[], int]
) -> None:
    settings.write_text(
        yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"port": free_port()} | change)
    )
    answer = process("serve", "-c", settings)
    assert answer.returncode == 2, answer.stderr
    assert word in answer.stderr
    assert "READY" not in answer.stdout
    assert "Traceback" not in answer.stderr


def test_status_and_retry_work(settings: Path, tmp_path: Path) -> None:
    before = pleura("status", "-c", settings)
    assert before.returncode == 2
    assert "has not run" in before.stderr

    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.receive([Arrival("a", "1.2", "1.2.3", "1.2.1", "XRAY1", "dimse", 1, 1)])
    (job,) = ledger.claim_images("test", 1)
    ledger.complete(job, Completion("failed", "d", reason="analysis_error"), {})
    ledger.close()

    counts = json.loads(pleura("status", "--json", "-c", settings).stdout)
    assert {subject: counts[subject] for subject in ("instances", "deliveries")} == {
        "instances": {"received": 0, "analysed": 0, "not_analysed": 0, "failed": 1},
        "deliveries": {"owed": 0, "stored": 0, "committed": 0, "refused": 0},
    }

    text = pleura("status", "-c", settings).stdout
    assert "1 failed" in text
    assert "1.2.3 failed analysis_error" in text
    history = json.loads(pleura("status", "--json", "-c", settings, "1.2.3").stdout)
    assert history["1.2.3"][0]["state"] == "failed"
    assert pleura("status", "-c", settings, "9.9").returncode == 1

    assert pleura("retry", "-c", settings, "--state", "refused").stdout == "0 re-armed\n"
    assert pleura("retry", "-c", settings, "1.2.3").stdout == "1 re-armed\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["report", "--since", "yesterday"], "'yesterday' found, a day such as 2026-11-30 wanted"),
        (["report", "--since", "2026-11-31"], "'2026-11-31' found, a day such as"),
        (["resend", "--to", "pacs", "--since", "now"], "'now' found, a time such as 2026-11-30T18"),
    ],
)
def test_a_wrong_day_or_time_is_told_the_form_that_is_wanted(
    command: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(command)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("action", ["check", "show", "init", "schema"])
def test_a_settings_file_without_its_option_is_not_overlooked(
    action: str, settings: Path, tmp_path: Path
) -> None:
    answer = pleura("config", action, tmp_path / "other.yaml", "-c", settings)
    assert answer.returncode == 2
    assert f"pleura config {action} -c {tmp_path / 'other.yaml'}" in answer.stderr


@pytest.mark.parametrize(
    "command", [["retry", "--to", "pacz"], ["resend", "--to", "pacz", "--since", "2026-11-30"]]
)
def test_an_unknown_destination_is_refused(command: list[str], settings: Path) -> None:
    answer = pleura(*command, "-c", settings)
    assert answer.returncode == 2
    assert answer.stderr == "--to: found 'pacz'; allowed: no destination is named\n"


def test_a_password_prompt_that_is_left_asks_for_a_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end_of_file(*_: object) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", end_of_file)
    answer = pleura("web", "hash")
    assert (answer.returncode, answer.stderr) == (
        2,
        "password: found 0 characters; allowed: from 8 to 256\n",
    )


def test_send_reports_that_nobody_listens(free_port: Callable[[], int]) -> None:
    answer = pleura("send", "--to", f"127.0.0.1:{free_port()}", "--called", "PLEURA")
    assert answer.returncode == 1
    assert "C-ECHO" in answer.stdout
    assert pleura("send", "--to", "nonsense", "--called", "PLEURA").returncode == 2


def test_files_that_the_node_writes_are_private(settings: Path) -> None:
    program = (
        "import os, sys; from daemon import cli; cli.main(sys.argv[1:]); print(oct(os.umask(0)))"
    )
    command = [sys.executable, "-c", program, "config", "check", "-c", str(settings)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "0o77"


def test_shipped_files_are_found_in_the_checkout() -> None:
    assert shipped_file("daemon", "pleura.yaml").is_file()
    assert shipped_file("training", "recipes/default.yaml").is_file()


def test_model_check_and_show_work() -> None:
    assert ": ok, " in pleura("model", "check").stdout
    assert json.loads(pleura("model", "show").stdout)["task"] == "pneumothorax"
    wrong = pleura("model", "check", "/nowhere")
    assert wrong.returncode == 2
    assert os.linesep.join(wrong.stderr.splitlines()).startswith("/nowhere")
