"""`pleura backup`: a copy of a running node's SQLite ledger, and the spool files that it counts on.

The ledger is copied first, with SQLite's online backup, which gives one moment of a running
database. The files of that moment follow. In this order a file may have been removed by retention
meanwhile, which is counted; a row never lacks a file that is still needed.

The same folder may be used again: files that are there already are not copied again, and files that
the new copy of the ledger does not count on are removed.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

from daemon.ledger import Inspection
from daemon.ledger.copies import copy_ledger
from daemon.spool import Spool, write_durably

LEDGER = "ledger.db"
SPOOL = "spool"


class BackupError(Exception):
    """The backup cannot be made; the message says what to do instead."""


@dataclass
class Backup:
    """The counts of one run."""

    ledger: Path
    files: int = 0
    copied: int = 0
    # Counted on by the ledger, and absent or damaged in the spool.
    missing: int = 0
    removed: int = 0


def back_up(ledger_url: str, spool_folder: Path, out: Path) -> Backup:
    """Write `out`/ledger.db and `out`/spool.

    Raises:
        BackupError: the ledger is not SQLite, or `out` lies inside the spool.
        LedgerError, SpoolError: the node has not run with these settings.
        OSError, sqlite3.Error: the disk.
    """
    url = make_url(ledger_url)
    if url.get_backend_name() != "sqlite":
        raise BackupError(
            "ledger: PostgreSQL has its own backup: continuous archiving with point-in-time "
            "recovery, or pg_dump; then copy the spool (docs/backup.md)"
        )
    if out.resolve().is_relative_to(spool_folder.resolve()):
        raise BackupError(f"{out}: lies inside the spool; name a folder on another disk")

    # Raises where the settings name no ledger: nothing is made then.
    with closing(Inspection.open(ledger_url)) as inspect:
        spool = Spool.existing(spool_folder, inspect.spool_identity())

    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    backup = Backup(out / LEDGER)
    copy_ledger(Path(str(url.database)), backup.ledger)
    _copy_spool(backup, spool, out / SPOOL)
    return backup


def _copy_spool(backup: Backup, spool: Spool, out: Path) -> None:
    out.mkdir(mode=0o700, exist_ok=True)
    with closing(Inspection.open(f"sqlite:///{backup.ledger}")) as inspect:
        identity = inspect.spool_identity()
        kept = {file.spool_name: file.size_bytes for file in inspect.kept_files()}
    if identity is not None:
        write_durably(out / "spool.id", identity.encode())

    for name, size_bytes in kept.items():
        backup.files += 1
        target = out / name[:2] / name
        if target.is_file() and size_bytes in (None, target.stat().st_size):
            continue
        if spool.damage(name, size_bytes):
            backup.missing += 1
            continue
        _copy(spool.path(name), target)
        backup.copied += 1

    for path in out.glob("[0-9a-f][0-9a-f]/*"):
        if path.name not in kept:
            path.unlink()
            backup.removed += 1


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    _sync(part)
    part.rename(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
