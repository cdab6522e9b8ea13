"""`pleura model promote`: the shadow's package takes the place of the model's, and the way back.

The settings stay as they are: `model` names a place, and the package in that place is replaced, as
a person would do by hand (docs/install.md, "Change the model").
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daemon.exits import CannotStartError

# renameat2(2): both names change places in one step.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Promotion:
    """What a promotion changed, in words for the audit trail and for the person."""

    what: str
    place: Path
    before: Path


def promote(model: str, shadow: str, check: Callable[[Path], str]) -> Promotion:
    """Put a copy of the package `shadow` where `model` is; the old one stays beside it.

    `check` loads a package and gives its name, or raises.

    Raises:
        CannotStartError: `model` is the package that ships, or a file cannot be written.
    """
    place = _replaceable(model, shadow)
    before = _before(place)
    copy = place.with_name(f"{place.name}.new")
    try:
        _remove(copy)
        _copy(Path(shadow), copy, place)
        new = check(copy)
        _exchange(copy, place)
        _remove(before)
        copy.rename(before)
    except OSError as error:
        raise CannotStartError(
            f"model promote: {error}; this user must be able to write in {place.parent}"
        ) from error
    finally:
        _remove(copy)
    return Promotion(f"model promote: {place} is now {new}", place, before)


def put_back(model: str, check: Callable[[Path], str]) -> Promotion:
    """Put the package back that the last promotion replaced; the promoted one takes its place.

    Raises:
        CannotStartError: there is none, or it cannot be moved.
    """
    place = Path(model)
    before = _before(place)
    if not before.exists():
        raise CannotStartError(f"model promote --back: {before} is not there; nothing was promoted")
    old = check(before)
    try:
        _exchange(before, place)
    except OSError as error:
        raise CannotStartError(
            f"model promote: {error}; this user must be able to write in {place.parent}"
        ) from error
    return Promotion(f"model promote --back: {place} is {old} again", place, before)


def _replaceable(model: str, shadow: str) -> Path:
    if model == "default":
        raise CannotStartError(
            "model: found default, which ships with Pleura and is not replaced; write in the "
            f"settings `model: {shadow}` and `shadow: null`, then: pleura reload"
        )
    place, source = Path(model), Path(shadow)
    if place.is_dir() != source.is_dir():
        raise CannotStartError(
            f"shadow.model: found {source}; allowed: a folder where `model` is a folder, and a "
            f"zip where it is a zip ({place})"
        )
    return place


def _before(place: Path) -> Path:
    return place.with_name(f"{place.name}.before")


def _copy(source: Path, copy: Path, like: Path) -> None:
    """Copy a package durably, for the same user that owns `like`."""
    if source.is_dir():
        shutil.copytree(source, copy)
    else:
        shutil.copy2(source, copy)

    owner = like.stat()
    paths = [copy, *copy.rglob("*")]
    for path in paths:
        if os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid)
        _sync(path)
    _sync(copy.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Let two paths change places: at once on Linux, else by three renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    paths = (os.fsencode(one), os.fsencode(other))
    if renameat2 is not None:
        done = renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
        if done == 0:
            return

    aside = one.with_name(f"{one.name}.aside")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)
