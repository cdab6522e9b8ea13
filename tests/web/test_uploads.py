"""Hostile uploads: bounded in bytes, and what runs on them in memory and time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.web.bounded import Bounds, StrangerError, run
from daemon.web.guard import UPLOAD_BYTES
from tests.web.site import Site, Visitor, users


def test_a_body_beyond_its_bound_is_refused(tmp_path: Path) -> None:
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

    # The form without a file, and a file without the token.
    assert looker.post("/try", {"token": looker.token("/try")}).status_code == 400
    file = {"file": ("x.dcm", b"x")}
    assert looker.ask("POST", "/try", files=file).status_code == 403
    site.close()


@pytest.mark.parametrize(
    "bounds",
    [Bounds(4 * 1024**3, 60, wall_s=0.05), Bounds(memory_bytes=1024**2, cpu_s=60, wall_s=60.0)],
)
def test_what_runs_on_a_file_ends_at_its_bounds(bounds: Bounds) -> None:
    with pytest.raises(StrangerError):
        run("inference.preview", ["patient"], b"x", bounds)
