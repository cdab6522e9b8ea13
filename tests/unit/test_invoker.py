"""The person that the audit trail names for a command."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from daemon import invoker

OURS = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the kernel tells the number of the user that logged in."""
    path = tmp_path / "loginuid"
    monkeypatch.setattr(invoker, "_LOGIN", path)
    for name in ("SUDO_USER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.mark.parametrize("variable", ["LOGNAME", "USER", "SUDO_USER"])
def test_a_person_who_logged_in_cannot_take_another_name(
    login: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    login.write_text(str(os.getuid()))
    monkeypatch.setenv(variable, "alice")
    assert invoker.user() == OURS


@pytest.mark.parametrize("content", ["4294967295", "65534", "", None])
def test_without_a_login_it_is_the_caller_of_sudo_or_the_process_s_user(
    login: Path, content: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        login.write_text(content)
    monkeypatch.setenv("LOGNAME", "mallory")
    assert invoker.user() == OURS
    monkeypatch.setenv("SUDO_USER", "alice")
    assert invoker.user() == "alice"


def test_a_user_without_a_name_is_a_number(login: Path) -> None:
    login.write_text("3999999999")
    assert invoker.user() == "3999999999"
