"""A command that is run by another user than the node's says which user to run it as, without a
traceback.

The node's folder is closed to others (0700), so a person who forgets `sudo -u` sees this error.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import ownership
from daemon.config import Config
from daemon.ledger import Inspection, Ledger, LedgerError
from daemon.ledger.overview import FileOverview
from daemon.spool import Spool

_NODE, _OTHER = 65533, 65532


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A node's folder, while the test runs as another user than its owner."""
    if os.geteuid() != 0:
        pytest.skip("only root can be several users")
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    Ledger(f"sqlite:///{folder}/ledger.db").close()
    Spool(folder / "spool")
    os.chown(folder, _NODE, _NODE)
    os.chown(folder / "ledger.db", _NODE, _NODE)

    # Let other users traverse the parent folders.
    for place in (tmp_path, *tmp_path.parents):
        if place == Path(tempfile.gettempdir()):
            break
        place.chmod(place.stat().st_mode | 0o011)
    os.seteuid(_OTHER)
    yield folder
    os.seteuid(0)


_OPENERS: list[Callable[[Path], object]] = [
    lambda path: FileOverview.open(path),
    lambda path: Inspection.open(f"sqlite:///{path}"),
    lambda path: Ledger.existing(f"sqlite:///{path}"),
]


@pytest.mark.parametrize("opens", _OPENERS, ids=["status", "verify", "retry"])
def test_a_closed_folder_is_reported_with_its_owner(
    folder: Path, opens: Callable[[Path], object]
) -> None:
    wanted = f"{folder} belongs to '#{_NODE}': sudo -u '#{_NODE}' pleura"
    with pytest.raises(LedgerError, match=re.escape(wanted)):
        opens(folder / "ledger.db")


@pytest.mark.parametrize("opens", _OPENERS, ids=["status", "verify", "retry"])
def test_a_closed_file_is_reported_with_its_owner(
    folder: Path, opens: Callable[[Path], object]
) -> None:
    os.seteuid(0)
    folder.chmod(0o755)
    (folder / "ledger.db").chmod(0o600)
    os.seteuid(_OTHER)
    wanted = f"{folder}/ledger.db belongs to '#{_NODE}': sudo -u '#{_NODE}' pleura"
    with pytest.raises(LedgerError, match=re.escape(wanted)):
        opens(folder / "ledger.db")


def test_doctor_checks_owners_in_a_closed_folder_without_failing(folder: Path) -> None:
    url = f"sqlite:///{folder}/ledger.db"
    settings = Config.model_validate({"spool": folder / "spool", "ledger": url})
    assert ownership.trouble(settings) == ""
    assert len(ownership.absent(settings)) == 2


@pytest.mark.parametrize(
    ("name", "mode"), [("ledger.db", 0o444), ("ledger.db-shm", 0o444), (".", 0o555)]
)
def test_a_mode_that_keeps_the_owner_out_is_reported_with_its_cure(
    folder: Path, name: str, mode: int
) -> None:
    """The role started, and ended with a traceback at its first write; doctor found nothing."""
    os.seteuid(0)
    (folder / "ledger.db-shm").touch()
    for path in (folder / "ledger.db-shm", folder / "spool"):
        os.chown(path, _NODE, _NODE)
    (folder / name).chmod(mode)
    os.seteuid(_NODE)

    url = f"sqlite:///{folder}/ledger.db"
    settings = Config.model_validate({"spool": folder / "spool", "ledger": url})
    assert ownership.trouble(settings).endswith(f"chmod u+rwX {folder / name}")


def test_a_ledger_in_a_folder_that_is_not_writable_cannot_be_opened_and_says_why(
    folder: Path,
) -> None:
    os.seteuid(0)
    folder.chmod(0o555)
    os.seteuid(_NODE)
    with pytest.raises(LedgerError, match=re.escape(f"may not write to {folder}: chmod u+rwX")):
        Ledger.existing(f"sqlite:///{folder}/ledger.db")
