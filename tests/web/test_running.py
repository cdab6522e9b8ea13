"""`pleura web` as a process: READY, a login, a tried file, and a clean end."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from daemon.web.guard import client_address
from daemon.web.server import PageServer
from tests import models
from tests.web.site import PASSWORD, Site, users
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


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_one_port_serves_ipv6_and_ipv4(tmp_path: Path, free_port: Callable[[], int]) -> None:
    site = Site(tmp_path, host="::", port=free_port(), users=users(), proxy="127.0.0.1")
    assert site.settings.web is not None
    server = PageServer(site.settings, site.settings.web, site.ledger, site.spool)
    server.start()

    try:
        statuses = [
            httpx.get(
                f"http://{host}:{site.settings.web.port}/healthz",
                headers={"x-forwarded-proto": "https"},
                timeout=60.0,
            ).status_code
            for host in ("127.0.0.1", "[::1]")
        ]
    finally:
        server.stop()
        site.close()
    # The second is not the proxy, so it is not believed that it came by HTTPS.
    assert statuses == [200, 403]


@pytest.mark.parametrize(
    ("host", "throttled_as"),
    [
        ("10.0.4.11", "10.0.4.11"),
        ("::ffff:10.0.4.11", "10.0.4.11"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_failed_logins_are_counted_by_address(host: str, throttled_as: str) -> None:
    """On a port of both families, all IPv4 clients lie in one /64."""
    assert client_address({"client": (host, 4711)}) == throttled_as


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
