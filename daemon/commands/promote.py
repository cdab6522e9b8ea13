"""`pleura model promote`: put the shadow's package in the place of the model's, or take that back.

The settings stay as they are: `model` names a place, and the package in that place is replaced, as
a person would do by hand (docs/install.md, "Change the model").
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon.exits import CannotStartError

# renameat2(2) swaps two names atomically.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Promotion:
    """What a promotion changed, in words for the person."""

    what: str
    before: Path


@dataclass(frozen=True)
class PromotionHooks:
    """What a promotion asks of its caller."""

    # Loads a package, replays it, and gives its name. Raises errors that the caller handles.
    check: Callable[[Path], str]
    # Gives the name of a package that may be damaged.
    name: Callable[[Path], str]
    # Writes one line of the audit trail.
    record: Callable[[str], None]


def promote(model: str, shadow: str, hooks: PromotionHooks) -> Promotion:
    """Put a copy of the package `shadow` where `model` is; the old one stays beside it.

    The copy, NAME.new, is swapped with the model atomically. The former model is then renamed
    NAME.before. A promotion that is killed leaves a complete package in the model's place;
    repeating it keeps the package that served as NAME.before.

    Raises:
        CannotStartError: `model` cannot be replaced, or a file cannot be written.
    """
    place, source = _replaceable(model, shadow)
    before = _before(place)
    copy = _copy_of(place)

    with _in_words(place), _alone(place):
        _restore(before, _older(place))
        if _is_swapped(source, copy, place, hooks):
            old = hooks.check(copy)
            what = f"model promote: {place} is {hooks.name(place)} already, and was {old}"
            _remove(before)
        else:
            what = _swap_in(source, copy, place, hooks)

        copy.rename(before)
        _sync(place.parent)
        # The promotion is done. The next one tells where this cannot be removed.
        with contextlib.suppress(OSError):
            _remove(_older(place))
    return Promotion(what, before)


def put_back(model: str, hooks: PromotionHooks) -> Promotion:
    """Put the package back that the last promotion replaced; the promoted one takes its place.

    Raises:
        CannotStartError: there is no such package, or it cannot be moved.
    """
    place = _place(model)
    before = _before(place)
    copy = _copy_of(place)

    with _in_words(place), _alone(place):
        _restore(before, _older(place))
        if copy.exists():
            raise CannotStartError(
                f"model promote --back: found {copy}: a promotion was killed, and {copy} may be "
                "what served before; finish it first: pleura model promote"
            )
        if not before.exists():
            raise CannotStartError(
                f"model promote --back: {before} is not there; nothing was promoted"
            )

        old = hooks.check(before)
        what = f"model promote --back: {place} is {old} again, and was {hooks.name(place)}"
        with _recorded(what, place, hooks):
            _exchange(before, place)
        _sync(place.parent)
    return Promotion(what, before)


def _is_swapped(source: Path, copy: Path, place: Path, hooks: PromotionHooks) -> bool:
    """Whether a promotion of this shadow was killed after the swap: then `copy` has served."""
    return copy.exists() and hooks.name(source) == hooks.name(place) != hooks.name(copy)


def _swap_in(source: Path, copy: Path, place: Path, hooks: PromotionHooks) -> str:
    """Swap a checked copy of `source` with the model, which is then `copy`. Returns it in words."""
    try:
        _remove(copy)
        _copy(source, copy, place)
        new = hooks.check(copy)
        old = hooks.name(place)
        if new == old:
            raise CannotStartError(f"model promote: {place} is {new} already; nothing is done")

        what = f"model promote: {place} is now {new}, and was {old}"
        with _recorded(what, place, hooks), _set_aside(_before(place), _older(place)):
            # Last, because no step after the swap may fail.
            _exchange(copy, place)
    except Exception:
        # Not if a signal ends the command: the swap may have happened, and `copy` be what served.
        _remove(copy)
        raise
    return what


def _replaceable(model: str, shadow: str) -> tuple[Path, Path]:
    """Where the model is, and the shadow's package."""
    if model == "default":
        raise CannotStartError(
            "model: found default, which ships with Pleura and is not replaced; write in the "
            f"settings `model: {shadow}` and `shadow: null`, then restart the node"
        )

    place = _place(model)
    source = Path(shadow)
    if place.is_dir() != source.is_dir():
        raise CannotStartError(
            f"shadow.model: found {source}; allowed: a folder where `model` is a folder, and a "
            f"zip where it is a zip ({place})"
        )

    own = (_before(place), _copy_of(place), _older(place))
    if source.resolve() in [path.resolve() for path in own]:
        raise CannotStartError(
            f"shadow.model: found {source}, a name that a promotion uses itself; allowed: another "
            "name, after: mv"
        )

    return place, source


def _place(model: str) -> Path:
    place = Path(model)
    if place.is_symlink():
        raise CannotStartError(
            f"model: found {place}, a symbolic link; a promotion replaces a folder or a zip. Let "
            "the link point to the new package (ln -sfn), then: pleura reload"
        )
    return place


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Only one promotion at a time: two would use the same names."""
    folder = os.open(place.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotStartError(
                f"model promote: another promotion is at work in {place.parent}"
            ) from error
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def _in_words(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotStartError(
            f"model promote: {error}; this user must be able to write in {place.parent}"
        ) from error


def _before(place: Path) -> Path:
    return place.with_name(f"{place.name}.before")


def _copy_of(place: Path) -> Path:
    """The path of an unfinished copy: never a package that serves or served."""
    return place.with_name(f"{place.name}.new")


def _older(place: Path) -> Path:
    """Where the package of NAME.before waits until the model has taken its name."""
    return place.with_name(f"{place.name}.older")


@contextlib.contextmanager
def _set_aside(before: Path, older: Path) -> Iterator[None]:
    """Free the name `before`. It is put back where what is done next fails."""
    _remove(older)
    if before.exists():
        before.rename(older)
    try:
        yield
    except Exception:
        _restore(before, older)
        raise


def _restore(before: Path, older: Path) -> None:
    """Undo _set_aside(), also for a promotion that was killed."""
    if older.exists() and not before.exists():
        older.rename(before)


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
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _recorded(what: str, place: Path, hooks: PromotionHooks) -> Iterator[None]:
    """Record in the audit trail what is done next, and, if it fails, that it was not done."""
    hooks.record(what)
    try:
        yield
    except Exception:
        hooks.record(f"model promote: did not happen; {place} stays as it was")
        raise


def _exchange(other: Path, place: Path) -> None:
    """Swap both paths atomically.

    Raises:
        CannotStartError: the file system cannot swap. OSError: it failed.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise CannotStartError(_no_exchange(place))

    paths = (os.fsencode(other), os.fsencode(place))
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS):
            raise CannotStartError(_no_exchange(place))
        raise OSError(number, os.strerror(number), str(place))


def _no_exchange(place: Path) -> str:
    return (
        f"model promote: the file system of {place} cannot swap two names; write the path "
        "of the shadow's package as `model` in the settings, then: pleura reload"
    )
