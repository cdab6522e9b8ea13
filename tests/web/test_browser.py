"""The page's forms in a real browser, which sends Origin and Sec-Fetch-Site by itself."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from tests.conftest import missing
from tests.peers.browser import PROGRAMS, Browser
from tests.web.site import PASSWORD, Site, users
from tools.peers.waiting import wait_until


@pytest.fixture
def program() -> str:
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        missing("no Chromium is installed (apt-get install chromium-headless-shell)")
    return found


@pytest.fixture
def served(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[tuple[Site, str]]:
    """A page with a failed image, and its address."""
    site = Site(tmp_path, users=users())
    site.receive("1.2.1")
    site.end("failed", reason="analysis_error")
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(site.app, port=port, lifespan="off", log_config=None, ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until("the page listens", lambda: server.started)
    yield site, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    site.close()


def test_a_person_logs_in_acts_and_logs_out_with_the_forms(
    served: tuple[Site, str], program: str, tmp_path: Path
) -> None:
    site, url = served
    with Browser(program, tmp_path / "browser") as page:
        page.open(f"{url}/")
        page.wait("the login form", "document.querySelector('input[name=password]') !== null")
        page.value("document.querySelector('input[name=name]').value = 'actor'")
        page.value(f"document.querySelector('input[name=password]').value = '{PASSWORD}'")
        page.click("log in", "document.querySelector('main form button')")
        page.wait(
            "the first page", "location.pathname === '/' && document.querySelector('h1') !== null"
        )

        page.click("retry", "document.querySelector('main form[action=\"/acts\"] button')")
        wait_until("the image waits again", lambda: site.view.counts()["instances"]["received"])

        page.click("log out", "document.querySelector('form[action=\"/logout\"] button')")
        page.wait("the login form again", "location.pathname === '/login'")
        assert page.problems == []
