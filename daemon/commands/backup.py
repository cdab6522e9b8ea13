"""`pleura backup`: copy a running node's SQLite ledger, and the spool files that it refers to.

The ledger is copied first, with SQLite's online backup, which takes a consistent snapshot of a
running database. The files of that snapshot follow. Retention may remove a file in between, which
is counted; but no row lacks a file that is still needed.

The same folder may be used again: files that are there are not copied again, and files that the new
copy of the ledger does not refer to are removed. So a ledger that does not continue the copy in the
folder is refused: otherwise a node that started afresh after a lost disk would replace the only
copy of what it lost.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import make_url

from daemon.ledger import Inspection, KeptFile
from daemon.ledger.copies import copy_ledger
from daemon.spool import Spool, write_durably

LEDGER = "ledger.db"
SPOOL = "spool"

_NEWEST = "SELECT id, spool_name FROM instances ORDER BY id DESC LIMIT 1"
_SAME = "SELECT 1 FROM instances WHERE id = ? AND spool_name = ?"


class BackupError(Exception):
    """The backup cannot be made; the message says what to do instead."""


@dataclass
class Backup:
    """The counts of one run."""

    ledger: Path
    files: int = 0
    copied: int = 0
    # Referred to by the ledger, but absent, damaged or unreadable in the spool.
    missing: int = 0
    removed: int = 0
    # One line for each missing file.
    faults: list[str] = field(default_factory=list)


def back_up(ledger_url: str, spool_folder: Path, out: Path) -> Backup:
    """Write `out`/ledger.db and `out`/spool.

    Raises:
        BackupError: the ledger is not SQLite, or cannot be copied; `out` lies inside the spool, or
            holds the copy of a ledger that this one does not continue.
        LedgerError, SpoolError: the node has not run with these settings.
        OSError: the disk.
    """
    url = make_url(ledger_url)
    if url.get_backend_name() != "sqlite":
        raise BackupError(
            "ledger: PostgreSQL has its own backup: continuous archiving with point-in-time "
            "recovery, or pg_dump; then copy the spool (docs/backup.md)"
        )
    if out.resolve().is_relative_to(spool_folder.resolve()):
        raise BackupError(f"{out}: lies inside the spool; name a folder on another disk")

    # Raises if the settings name no ledger; then nothing is created.
    with closing(Inspection.open(ledger_url)) as inspect:
        spool = Spool.existing(spool_folder, inspect.spool_identity())

    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    backup = Backup(out / LEDGER)
    ledger = Path(str(url.database))
    try:
        _require_successor(ledger, backup.ledger)
        copy_ledger(ledger, backup.ledger)
    except sqlite3.Error as error:
        raise BackupError(
            f"{backup.ledger}: the ledger cannot be copied there ({error})"
        ) from error
    _copy_spool(backup, spool, out / SPOOL)
    return backup


def _require_successor(ledger: Path, earlier: Path) -> None:
    """Raises BackupError unless the ledger knows what the earlier copy knows.

    It compares the newest image: a ledger that continues keeps each row and its number.
    """
    if not earlier.exists():
        return

    try:
        with closing(sqlite3.connect(f"{earlier.resolve().as_uri()}?mode=ro", uri=True)) as before:
            identity = before.execute("SELECT identity FROM spools").fetchone()
            newest = before.execute(_NEWEST).fetchone()
    except sqlite3.Error as error:
        raise BackupError(
            f"{earlier}: the copy that is there cannot be read ({error}). Nothing was changed. "
            f"Keep {earlier.parent} and name a new folder"
        ) from error

    with closing(sqlite3.connect(f"{ledger.resolve().as_uri()}?mode=ro", uri=True)) as now:
        is_same_spool = now.execute("SELECT identity FROM spools").fetchone() == identity
        is_known = newest is None or now.execute(_SAME, newest).fetchone() is not None
    if is_same_spool and is_known:
        return

    raise BackupError(
        f"{earlier}: the copy of another ledger, or of a later state of this ledger: it knows "
        "images that this ledger does not know. Nothing was changed. Is the right ledger in place "
        f"(docs/backup.md)? If it is, keep {earlier.parent} and name a new folder"
    )


def _copy_spool(backup: Backup, spool: Spool, out: Path) -> None:
    out.mkdir(mode=0o700, exist_ok=True)
    with closing(Inspection.open(f"sqlite:///{backup.ledger}")) as inspect:
        identity = inspect.spool_identity()
        kept = {file.spool_name: file for file in inspect.kept_files()}
    if identity is not None:
        write_durably(out / "spool.id", identity.encode())

    for name, file in kept.items():
        backup.files += 1
        target = out / name[:2] / name
        if target.is_file() and file.size_bytes in (None, target.stat().st_size):
            continue
        if fault := _fault(spool, file, target):
            backup.missing += 1
            backup.faults.append(f"{file.what}: {spool.path(name)} {fault}")
            continue
        backup.copied += 1

    for path in out.glob("[0-9a-f][0-9a-f]/*"):
        if path.name not in kept:
            path.unlink()
            backup.removed += 1


def _fault(spool: Spool, file: KeptFile, target: Path) -> str:
    """Copy one file. Returns what is wrong with it; "" if it was copied.

    One bad sector must not keep all later files out of every backup.

    Raises:
        SpoolError: the whole spool is gone. OSError: the backup cannot be written.
    """
    try:
        if damage := spool.damage(file.spool_name, file.size_bytes):
            return damage
        data = spool.read(file.spool_name)
    except OSError as error:
        return f"cannot be read ({error.strerror})"

    target.parent.mkdir(mode=0o700, exist_ok=True)
    write_durably(target, data)
    return ""
