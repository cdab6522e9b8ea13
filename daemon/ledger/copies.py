"""A copy of SQLite's file: a consistent snapshot of a running database, in one file."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path


def copy_ledger(source: Path, target: Path) -> None:
    """Copy with SQLite's online backup, durably; an existing `target` is replaced.

    Raises:
        OSError, sqlite3.Error: the disk; the unfinished copy is removed.
    """
    part = target.with_suffix(".part")
    # A killed process may have left one.
    part.unlink(missing_ok=True)

    try:
        _copy(source, part)
        _sync(part)
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _copy(source: Path, target: Path) -> None:
    read_only = f"{source.resolve().as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(read_only, uri=True, timeout=30)) as running,
        closing(sqlite3.connect(target)) as copy,
    ):
        running.backup(copy)
        # In one file: no -wal beside the copy that could be forgotten.
        copy.execute("PRAGMA journal_mode=DELETE")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
