"""Fixtures for every test: real data, peer programs, a free port, a ledger.

If data or a program is missing, the test is skipped with the reason; under CI=true it fails.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.peers.ports import unused_port
from tools.peers.postgres import Postgres, binaries

REPOSITORY = Path(__file__).resolve().parent.parent

# pytest-xdist hands out single tests, so each worker process makes a module's fixtures and imports
# again. Where that costs seconds, the file sets `pytestmark = pytest.mark.xdist_group(...)`: then
# one process runs all its tests.

if "PYTEST_XDIST_WORKER" in os.environ:
    # With several workers, a second torch thread only waits for a core and slows down the first.
    # Set before torch is imported; processes that a test starts inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def missing(reason: str) -> None:
    """Skip with the reason; fail under CI=true, where everything must be installed."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real X-rays: PLEURA_DATA, default ../shared/data beside the checkout."""
    folder = Path(os.environ.get("PLEURA_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "SOURCES.md").is_file():
        missing(
            f"no test data: {folder} holds no SOURCES.md; set PLEURA_DATA to the folder of real X-rays"
        )
    return folder


@pytest.fixture(scope="session")
def peer() -> Callable[[str], str]:
    """peer("storescu") -> the program's path."""

    def find(name: str) -> str:
        # Debian puts Orthanc into sbin, which is not on every PATH.
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is None:
            missing(
                f"peer program {name!r} is not installed "
                "(apt-get install dcmtk orthanc dicom3tools prometheus)"
            )
        assert path is not None
        return path

    return find


@pytest.fixture
def free_port() -> Callable[[], int]:
    """free_port() -> a TCP port that no program listens on."""
    return unused_port


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL server for the whole session. A test that stops the server starts its own."""
    if binaries() is None:
        missing("PostgreSQL's server is not installed (apt-get install postgresql)")
    with Postgres(tmp_path_factory.mktemp("postgres"), unused_port(), durable=False) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new ledger; the test runs once with each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def disk_steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fsyncs and renames of this process from now on, in order. A test may add or clear steps."""
    steps: list[str] = []
    fsync = os.fsync
    # Path.rename calls os.rename.
    rename = os.rename

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        steps.append(
            "folder synced" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "bytes synced"
        )

    def noted_rename(source: str | Path, target: str | Path) -> None:
        steps.append("named")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    return steps


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 16 MB."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        missing("a small file system cannot be mounted (needs root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def tiny_package(tmp_path: Path) -> Path:
    """A model package with untrained networks of a few thousand weights, and no plausibility
    network.
    """
    # Imports torch, so only for tests that need it.
    from tests import models

    return models.write(tmp_path / "tiny", models.tiny_networks())
