"""Hostile uploads: limits on their bytes, and on memory and time of the processes that read them."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.web.bounded import BoundedRunError, Bounds, run
from daemon.web.guard import UPLOAD_BYTES
from tests.web.site import Site, Visitor, users


def test_a_body_above_its_size_limit_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path, users=users())
    looker = Visitor(site)
    looker.log_in("looker")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(UPLOAD_BYTES):
            yield b"x" * 1_000_000

    told = {"content-length": str(UPLOAD_BYTES + 1)}
    form = {"content-type": "multipart/form-data; boundary=b"}
    assert looker.ask("POST", "/try", content=b"", headers=told).status_code == 413
    assert looker.ask("POST", "/login", content=b"x" * 100_000).status_code == 413
    assert looker.ask("POST", "/try", content=endless(), headers=form).status_code in (400, 413)

    # A form without a file, then a file without the token.
    assert looker.post("/try", {"token": looker.token("/try")}).status_code == 400
    file = {"file": ("x.dcm", b"x")}
    assert looker.ask("POST", "/try", files=file).status_code == 403
    site.close()


@pytest.mark.parametrize(
    "bounds",
    [Bounds(4 * 1024**3, 60, wall_s=0.05), Bounds(memory_bytes=1024**2, cpu_s=60, wall_s=60.0)],
)
def test_a_process_on_a_file_ends_at_its_limits(bounds: Bounds) -> None:
    with pytest.raises(BoundedRunError):
        run("inference.preview", ["patient"], b"x", bounds)


def test_a_picture_is_tried_again_after_a_slow_decoder_but_not_if_undecodable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, users=users())
    for uid in ("1.2.1", "1.2.2"):
        site.receive(uid)
        site.end("analysed")
    looker = Visitor(site)
    looker.log_in("looker")
    runs: list[bytes | Exception] = [BoundedRunError("took too long"), b"picture", b""]
    monkeypatch.setattr("daemon.web.pictures.run", lambda *_: _next(runs))

    asked = ["/images/1/picture"] * 3 + ["/images/2/picture"] * 2
    assert [looker.get(path).status_code for path in asked] == [503, 200, 200, 404, 404]
    assert not runs
    site.close()


def _next(runs: list[bytes | Exception]) -> bytes:
    answer = runs.pop(0)
    if isinstance(answer, Exception):
        raise answer
    return answer


def test_a_limited_number_of_pictures_waits_for_the_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, users=users())
    site.receive("1.2.1")
    site.end("analysed")
    looker = Visitor(site)
    looker.log_in("looker")
    release = threading.Event()

    def slow(*_: object) -> bytes:
        release.wait(60.0)
        return b"picture"

    monkeypatch.setattr("daemon.web.pictures.run", slow)
    statuses: list[int] = []

    def look() -> None:
        statuses.append(looker.get("/images/1/picture").status_code)

    threads = [threading.Thread(target=look) for _ in range(12)]
    for thread in threads:
        thread.start()

    deadline = time.monotonic() + 30.0
    while len(statuses) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)

    turned_away = list(statuses)
    release.set()
    for thread in threads:
        thread.join()

    assert turned_away == [503] * 3
    assert sorted(statuses) == [200] * 9 + [503] * 3
    site.close()
