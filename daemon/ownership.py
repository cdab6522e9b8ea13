"""Files of the node that its user cannot use, as after a command run by root.

The service could not read or write them and would stop later, far from the cause, so it checks
before it starts.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
from collections.abc import Iterator
from pathlib import Path

from daemon.config import Config, sqlite_file

# Beside SQLite's file.
_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal", "-bell")


def trouble(config: Config) -> str:
    """One line about a file of spool or ledger that this user cannot use; "" if every file can be
    used.

    It names the file, its owner, this user, and the command that makes everything usable.
    """
    if os.geteuid() == 0:
        return ""

    for place, path in _files(config):
        try:
            owner = path.lstat().st_uid
        except OSError:
            continue
        if _usable(path):
            continue
        if is_mounted_read_only(path):
            return f"{place}: the file system of {path} is mounted read-only: mount it read-write"
        if owner == os.geteuid():
            return f"{place}: the mode of {path} keeps its owner out: chmod u+rwX {_quoted([path])}"

        me = _user(os.geteuid())
        # The folder of the ledger may hold other files.
        roots = _roots(config)
        given = roots if any(path.is_relative_to(root) for root in roots) else [path]
        recursive = "-R " if given == roots else ""
        remedy = f"sudo chown {recursive}{me}:{_group(os.getegid())} {_quoted(given)}"
        if owner != 0:
            remedy = f"run Pleura as {_user(owner)}, or {remedy}"
        return f"{place}: {path} belongs to {_user(owner)}, and {me} cannot use it; {remedy}"
    return ""


def absent(config: Config) -> list[str]:
    """The parts of spool and ledger that are not there yet, in words."""
    found = []
    if not _is_there(config.spool):
        found.append(f"spool {config.spool}")
    ledger = ledger_file(config)
    if ledger is not None and not _is_there(ledger):
        found.append(f"ledger {ledger}")
    return found


def root_warning(config: Config) -> str:
    """A warning to root before it runs this node; "" for every other user."""
    if os.geteuid() != 0:
        return ""

    owners = set()
    for path in _roots(config):
        if _is_there(path):
            owners.add(path.stat().st_uid)
    users = sorted(_user(owner) for owner in owners - {0})
    if users:
        return (
            f"this is root, and the node's files belong to {', '.join(users)}: files that root "
            f"makes stop the service; use sudo -u {users[0]} pleura ..."
        )
    return "this is root: files that root makes stop a service that runs as another user"


def ledger_file(config: Config) -> Path | None:
    """SQLite's file; None where the ledger is on a server."""
    if (file := sqlite_file(config.ledger)) is not None:
        return Path(file)

    from sqlalchemy.engine import make_url

    url = make_url(config.ledger)
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database)


def owner_of(path: Path) -> str:
    """The name of the user that a file belongs to."""
    try:
        return _user(path.lstat().st_uid)
    except OSError:
        return "nobody knows whom"


def _roots(config: Config) -> list[Path]:
    ledger = ledger_file(config)
    files = [Path(f"{ledger}{suffix}") for suffix in _SQLITE_SUFFIXES] if ledger else []
    return [config.spool, *(path for path in files if _is_there(path))]


def _files(config: Config) -> Iterator[tuple[str, Path]]:
    """(key of the settings, path) of every folder and file, folders before what they hold."""
    spool, *ledger = _roots(config)
    if ledger:
        # SQLite makes and removes files beside its own.
        yield "ledger", ledger[0].parent
    for path in ledger:
        yield "ledger", path

    if not _is_there(spool):
        return
    yield "spool", spool
    if not _usable(spool):
        return
    for path in sorted(spool.iterdir()):
        yield "spool", path
        if path.is_dir() and _usable(path):
            yield from (("spool", file) for file in path.iterdir())


def _is_there(path: Path) -> bool:
    """Also False if this user may not enter a folder on the way."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _usable(path: Path) -> bool:
    mode = os.R_OK | os.W_OK
    return os.access(path, mode | os.X_OK if path.is_dir() else mode, effective_ids=True)


def is_mounted_read_only(path: Path) -> bool:
    """Whether the file system of an existing path is mounted read-only. Raises OSError."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _quoted(paths: list[Path]) -> str:
    return " ".join(shlex.quote(str(each)) for each in paths)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
