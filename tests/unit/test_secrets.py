"""Secrets from files or the environment: they are used, protected from other users, and shown
nowhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon import cli, config
from daemon.commands import doctor
from daemon.exits import EXIT_CANNOT_START, EXIT_DONE, EXIT_FAILED

PASSWORD = "only-the-database-knows"
# Port 1: nothing listens there.
URL = f"postgresql+psycopg://pleura:{PASSWORD}@127.0.0.1:1/pleura"


@pytest.fixture(autouse=True)
def no_secrets_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLEURA_LEDGER", raising=False)
    monkeypatch.delenv("PLEURA_LEDGER_FILE", raising=False)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.url"
    path.write_text(URL + "\n")
    return path


def settings(folder: Path, *lines: str) -> Path:
    path = folder / "pleura.yaml"
    path.write_text("\n".join([f"spool: {folder}/spool", *lines]))
    return path


def test_a_secret_is_read_from_the_file_in_the_settings(tmp_path: Path, secret: Path) -> None:
    assert config.load(settings(tmp_path, f"ledger_file: {secret}")).ledger == URL


def test_the_environment_overrides_the_settings(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settings(tmp_path, "ledger: sqlite:////var/lib/pleura/another.db")
    monkeypatch.setenv("PLEURA_LEDGER_FILE", str(secret))
    assert config.load(path).ledger == URL

    monkeypatch.setenv("PLEURA_LEDGER", f"sqlite:///{tmp_path}/mine.db")
    assert config.load(path).ledger == f"sqlite:///{tmp_path}/mine.db"


def test_a_changed_device_keeps_the_secret(tmp_path: Path, secret: Path) -> None:
    loaded = config.load(settings(tmp_path, f"ledger_file: {secret}"))
    assert config.with_device(loaded, "cpu").ledger == URL


def test_the_metrics_token_must_be_unreadable_for_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("hush")
    token.chmod(0o644)
    path = settings(tmp_path, f"web: {{metrics_token_file: {token}}}")
    assert cli.main(["config", "check", "-c", str(path)]) == 2
    assert f"web.metrics_token_file: found {token} with mode 0644" in capsys.readouterr().err
    token.chmod(0o640)
    assert cli.main(["config", "check", "-c", str(path)]) == 0


def test_a_secret_in_two_places_is_refused(tmp_path: Path, secret: Path) -> None:
    path = settings(tmp_path, f"ledger_file: {secret}", f"ledger: {URL}")
    with pytest.raises(config.ConfigError, match="one of them, not both") as caught:
        config.load(path)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("text", [PASSWORD, f"mysql://pleura:{PASSWORD}@db/pleura", ""])
def test_a_wrong_secret_is_named_only_by_its_place(text: str, tmp_path: Path, secret: Path) -> None:
    secret.write_text(text)
    with pytest.raises(config.ConfigError, match=r"ledger_file.*ledger\.url") as caught:
        config.load(settings(tmp_path, f"ledger_file: {secret}"))
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://pleura:{PASSWORD}",
        f"postgresql+psycopg://pleura:x#{PASSWORD}@db:port/pleura",
        f"postgresql+psycopg://pleura:{PASSWORD}@db:1,other:2/pleura",
        f"postgresql+psycopg://db:port/pleura?password={PASSWORD}",
        f"postgresql+psycopg:pleura:{PASSWORD}@db",
        PASSWORD,
    ],
)
@pytest.mark.parametrize("key", ["ledger", "ledger_file"])
def test_a_wrong_url_is_refused_without_its_password(
    url: str, key: str, tmp_path: Path, secret: Path
) -> None:
    secret.write_text(url)
    path = settings(tmp_path, f"{key}: {json.dumps(url if key == 'ledger' else str(secret))}")
    with pytest.raises(config.ConfigError, match=r"postgresql\+psycopg://user@host") as caught:
        config.load(path)
    assert PASSWORD not in str(caught.value)


def test_a_password_among_the_options_is_hidden_however_it_is_spelled() -> None:
    url = f"postgresql+psycopg://db/pleura?PASSWORD={PASSWORD}"
    assert PASSWORD not in str(config.public(config.Config(ledger=url)))


def test_an_absent_secret_stops_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = settings(tmp_path, f"ledger_file: {tmp_path}/absent")
    assert cli.main(["config", "check", "-c", str(path)]) == EXIT_CANNOT_START
    assert "absent cannot be read (No such file or directory)" in capsys.readouterr().err


def test_no_command_and_no_traceback_shows_the_password(
    tmp_path: Path, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psycopg")
    path = settings(tmp_path, f"ledger_file: {secret}")
    assert cli.main(["config", "show", "-c", str(path)]) == EXIT_DONE
    shown = capsys.readouterr()
    assert "pleura:***@127.0.0.1" in shown.out

    # The server is unreachable, and both commands report it.
    assert cli.main(["status", "-c", str(path)]) == EXIT_FAILED
    printed = capsys.readouterr()
    assert "08001" in printed.err
    loaded = config.load(path)
    findings = doctor.examine(loaded, lambda: "", {})
    ledger = next(finding for finding in findings if finding.subject == "ledger")
    assert "08001" in ledger.trouble

    everything = shown.out + shown.err + printed.out + printed.err + str(ledger) + repr(loaded)
    assert PASSWORD not in everything


@pytest.mark.parametrize("name", ["PLEURA_LEDGER", "PLEURA_LEDGER_FILE"])
def test_an_empty_variable_does_not_select_the_default_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As with `PLEURA_LEDGER: ${DATABASE}` in a compose file where DATABASE is not set."""
    path = tmp_path / "pleura.yaml"
    path.write_text("ledger: postgresql://pleura@db/pleura\n")
    monkeypatch.setenv(name, "")
    with pytest.raises(config.ConfigError, match=f"{name}: found nothing; give it a value"):
        config.load(path)
