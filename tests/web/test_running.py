"""`pleura web` as a process: READY, a login, a tried file, and a clean end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import yaml

from tests import models
from tests.web.site import PASSWORD, users
from training import phantom


def test_a_running_page_tries_a_file_and_keeps_nothing(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    settings = {
        "spool": str(tmp_path / "spool"),
        "ledger": f"sqlite:///{tmp_path}/ledger.db",
        "model": str(models.write(tmp_path / "model", models.tiny_networks())),
        "web": {"port": port, "users": users(), "language": "de"},
    }
    path = tmp_path / "pleura.yaml"
    path.write_text(yaml.safe_dump(settings))
    drawn = phantom.write(phantom.draw(1, pneumothorax=True, size=512), tmp_path / "drawn.dcm")
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    command = [sys.executable, "-m", "daemon.cli", "web", "-c", str(path)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "READY"
            answer = _tried(f"http://127.0.0.1:{port}", drawn)
        finally:
            process.terminate()
        assert process.wait(60) == 0

    assert "data:image/jpeg;base64," in answer
    assert "data:application/dicom;base64," in answer
    assert "Nur für Forschung" in answer
    # If an area in mm² is shown, it is in the plane of the detector.
    assert ("mm²" in answer) == ("geschätzt in der Ebene des Detektors" in answer)
    assert list(temporary.iterdir()) == []


def _tried(origin: str, file: Path) -> str:
    """Log in, upload the file, and return the page with its answer."""
    with httpx.Client(base_url=origin, timeout=200.0) as browser:
        assert browser.get("/healthz").status_code == 200
        form = {"name": "looker", "password": PASSWORD, "next": "/try"}
        form["token"] = _token(browser.get("/login").text)
        assert browser.post("/login", data=form).headers["location"] == "/try"

        token = _token(browser.get("/try").text)
        with file.open("rb") as opened:
            answer = browser.post("/try", data={"token": token}, files={"file": opened})
        assert answer.status_code == 200
        return answer.text


def _token(page: str) -> str:
    found = re.search(r'name="token" value="([^"]+)"', page)
    assert found is not None
    return found[1]
