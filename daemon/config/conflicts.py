"""Settings that are valid alone and wrong together: results would be lost, repeated or looped."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from daemon.config.schema import Config, DicomDestination, FolderDestination
from daemon.config.values import sqlite_file

# What _same_folder() compares.
_FOLDERS: dict[str, Any] = {"spool": True, "inbox": True, "destinations": {"__all__": {"folder"}}}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What SQLite keeps beside a database (https://sqlite.org/tempfiles.html), and the node's doorbell.
_BESIDE_THE_LEDGER = ("-wal", "-shm", "-journal", "-bell")


def find(config: Config, source: Path | None = None) -> list[str]:
    """One line for each conflict: the keys, what is wrong, what to do.

    `source` is the file that the settings were read from.
    """
    return [
        *_own_address(config),
        *_same_peer(config),
        *_same_archive(config),
        *_same_folder(config),
        *_in_the_inbox(config, source),
        *_same_file(config, source),
        *_audit_file_in_a_folder(config),
    ]


def _same_peer(config: Config) -> Iterator[str]:
    """Two entries for one peer: the second would be ignored, with its priority or certificate."""
    for (first, one), (second, other) in combinations(enumerate(config.peers), 2):
        if (one.ae_title, one.host, one.certificate) == (
            other.ae_title,
            other.host,
            other.certificate,
        ):
            yield (
                f"peers[{second}]: found the same peer as peers[{first}] ({one.ae_title}); "
                "keep one of them"
            )


def _own_address(config: Config) -> Iterator[str]:
    """A destination that is the node itself: each result would come back as a new image."""
    ours = {*_LOOPBACK, config.host, socket.gethostname().lower()}
    for index, destination in enumerate(config.destinations):
        if not isinstance(destination, DicomDestination) or destination.port not in config.ports():
            continue

        host = destination.host.lower()
        if host in ours or host.startswith("127.") or _is_local(host):
            yield (
                f"destinations[{index}]: found {destination.host}:{destination.port}, which is "
                "this node; give the archive's host and port"
            )


def _is_local(host: str) -> bool:
    """Whether an IP address belongs to this machine: only such an address can be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
    except OSError:
        return False

    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, 0))
        except OSError:
            return False
    return True


def _same_archive(config: Config) -> Iterator[str]:
    """Two names for one archive: it would get every result twice."""
    for (first, one), (second, other) in combinations(enumerate(config.destinations), 2):
        if isinstance(one, DicomDestination) and isinstance(other, DicomDestination):
            is_same = _archive(one) == _archive(other)
        elif isinstance(one, FolderDestination) and isinstance(other, FolderDestination):
            is_same = one.folder.resolve() == other.folder.resolve()
        else:
            is_same = False

        if is_same:
            yield (
                f"destinations[{second}]: found the same place as destinations[{first}] under "
                "another name; list all its results under one name"
            )


def _archive(destination: DicomDestination) -> tuple[str, int, str]:
    host = destination.host.lower().removesuffix(".")
    return (
        "localhost" if host in _LOOPBACK else host,
        destination.port,
        destination.ae_title,
    )


def _same_folder(config: Config) -> Iterator[str]:
    """Folders that lie in one another: one role would take or remove the files of another."""
    for (first, one), (second, other) in combinations(_folders(config), 2):
        is_destination = first.startswith("destinations") and second.startswith("destinations")
        inner, outer = other.resolve(), one.resolve()
        overlap = inner.is_relative_to(outer) or outer.is_relative_to(inner)
        if overlap and not is_destination:
            yield f"{second}: found {other}, which overlaps {first} ({one}); give separate folders"


def _folders(config: Config) -> Iterator[tuple[str, Path]]:
    """(key, path) of every folder that a role fills or empties."""
    yield "spool", config.spool
    if config.inbox is not None:
        yield "inbox", config.inbox
    for index, destination in enumerate(config.destinations):
        if isinstance(destination, FolderDestination):
            yield f"destinations[{index}].folder", destination.folder


def _in_the_inbox(config: Config, source: Path | None) -> Iterator[str]:
    """Files of the node in the inbox, which takes and removes every file: the ledger, a key."""
    if config.inbox is None:
        return

    inbox = config.inbox.resolve()
    for key, path in _files(config, source):
        if path.resolve().is_relative_to(inbox):
            yield (
                f"inbox: found {config.inbox}, where {key} lies ({path}); the inbox takes and "
                "removes every file in it, so give it a folder of its own"
            )


def _same_file(config: Config, source: Path | None) -> Iterator[str]:
    """A file that a role writes, under a second key: audit messages in the ledger or in a key."""
    beside = {}
    if file := sqlite_file(config.ledger):
        beside = {f"the ledger's {end}": Path(file + end) for end in _BESIDE_THE_LEDGER}
    written = {"ledger", "audit.file", *beside}

    files = (*_files(config, source), *beside.items())
    for (first, one), (second, other) in combinations(files, 2):
        if written & {first, second} and one.resolve() == other.resolve():
            yield (
                f"{first}: found {one}, which is also {second} ({other}); the node writes into "
                "this file, so give each a file of its own"
            )


def _audit_file_in_a_folder(config: Config) -> Iterator[str]:
    """The audit trail's file in the spool, or in the place of a folder."""
    if config.audit is None or config.audit.file is None:
        return

    file = config.audit.file.resolve()
    for key, path in _folders(config):
        folder = path.resolve()
        # A folder destination may hold the file: only names of results are written there.
        is_inside = key == "spool" and file.is_relative_to(folder)
        if is_inside or folder.is_relative_to(file):
            yield (
                f"audit.file: found {config.audit.file}, which overlaps {key} ({path}); give a "
                "file outside of it"
            )


def _files(config: Config, source: Path | None) -> Iterator[tuple[str, Path]]:
    """(key, path) of every file or model package that the settings name, and of their own file."""
    if source is not None:
        yield "the settings file", source
    if file := sqlite_file(config.ledger):
        yield "ledger", Path(file)
    packages = {"model": config.model, "shadow.model": config.shadow and config.shadow.model}
    for key, package in packages.items():
        if package and package != "default":
            yield key, Path(package)

    yield from _paths(config.model_dump(exclude=_FOLDERS))


def _paths(value: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    if isinstance(value, Path):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _paths(each, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from _paths(each, f"{key}[{index}]")
