"""Files on disk: durable before anyone learns of them, under our own names, and never incomplete.

A file is written as a hidden `.part`, renamed, fsynced, and its folder fsynced. Only then does the
ledger learn its name, and only names in the ledger count. The rename comes before the fsync so that
one commit of the file system's journal serves both (docs/rules.md, "Durability").

Names are random. So no peer's string ever becomes a path, and any number of processes and hosts can
write to one spool without coordination. A crash may leave a `.part`, which is swept once it is old,
or a complete file without a row, which adoption.py adopts.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

BytesLike = bytes | bytearray | memoryview

# Two digits that name the folder, 64 random bits, and a counter of 14 digits.
_NAME = re.compile(r"[0-9a-f]{32}")
# An unfinished file; hidden from programs that watch a folder.
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_MARKER = "spool.id"
_QUARANTINE = "quarantine"
# A million files stay a few thousand per folder.
_SHARDS = [f"{number:02x}" for number in range(256)]
# Pieces in one system call (IOV_MAX is 1024).
_AT_ONCE = 1000
# A longer file goes to the disk in portions of this size while the rest of it arrives.
_PORTION_BYTES = 4 << 20
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
# Far longer than any write takes from its first byte to the ledger's commit.
ORPHAN_AGE_S = 3600.0

_Found = TypeVar("_Found")

# Python's os module has no sync_file_range(2). None: nor has this system.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class SpoolError(Exception):
    """The folder is not the expected one. That may pass: the spool may be mounted later."""


class Spool:
    """One folder of received images and results, which all roles and hosts of a node share."""

    def __init__(self, folder: Path) -> None:
        """Create the parts of the folder that are missing.

        Raises:
            OSError: it cannot be created or written.
        """
        self._begin_names(folder)

        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for shard in _SHARDS:
            (folder / shard).mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(
                f"{folder}: not writable by this user; give it to the user that runs Pleura"
            )

    def _begin_names(self, folder: Path) -> None:
        self.folder = folder
        # A string, because making a Path costs more than some of the system calls.
        self._at = str(folder)
        self._identity: str | None = None
        # Device and inode of the marker that was read last
        self._marker_place = (0, 0)
        # A process's names share a random prefix and count up from a random number.
        self._names = secrets.token_hex(8)
        self._numbers = itertools.count(secrets.randbits(54))

    def claim(self, agree: Callable[[str | None], str | None]) -> None:
        """Make sure that this is the folder whose files the ledger knows, and not an empty mount
        point. `agree` takes this folder's identity, or None to only query, and returns the identity
        that the ledger knows.

        Raises:
            SpoolError: it is another folder.
        """
        marker = self.folder / _MARKER
        if agree(None) is None:
            # A new ledger. If several hosts start at once, one of them creates the marker.
            part = self.folder / f".{secrets.token_hex(8)}.part"
            write_durably(part, secrets.token_hex(16).encode())
            with contextlib.suppress(FileExistsError):
                marker.hardlink_to(part)
            part.unlink()
            sync_folder(self.folder)

        here = identity(self.folder)
        if here is None or agree(here) != here:
            raise SpoolError(_another(self.folder))
        self._identity = here

    def require(self) -> None:
        """Raises SpoolError if the whole folder is gone or replaced, so that its files do not count
        as lost.
        """
        if self._identity is None:
            return
        try:
            marker = os.stat(f"{self._at}/{_MARKER}")  # noqa: PTH116
            place = (marker.st_dev, marker.st_ino)
            if place == self._marker_place:
                return
            here = identity(self.folder)
        except OSError as error:
            raise SpoolError(f"spool {self.folder}: no longer there; is it mounted?") from error

        if here != self._identity:
            raise SpoolError(_another(self.folder))
        self._marker_place = place

    def require_whole(self, sizes: Mapping[str, int]) -> None:
        """Raises SpoolError unless this spool holds each file (name -> bytes) in full.

        Another folder may have been mounted here while a file was written, and may hide that file
        now.
        """
        self.require()
        for name, size_bytes in sizes.items():
            if damage := self.damage(name, size_bytes):
                raise SpoolError(
                    f"spool {self.folder}: new file {name} {damage}; was it mounted meanwhile?"
                )

    def write(self, *chunks: BytesLike) -> str:
        """Make the bytes of `chunks`, one after another, durable. Returns the new file's name.

        Raises:
            OSError: no room, or the disk failed; nothing is left behind.
        """
        (name,) = self.write_all([chunks])
        return name

    def write_all(self, files: Iterable[Sequence[BytesLike]]) -> list[str]:
        """Make several files durable, each given as its chunks, with one flush of their folder.

        Returns their names, in order. Raises OSError, as write(): none of them is left behind.
        """
        names: list[str] = []

        try:
            for chunks in files:
                file = self.begin()
                file.write(*chunks)
                file.finish()
                names.append(file.name)
            self.sync(names)
        except BaseException:
            for name in names:
                self.remove(name)
            raise

        return names

    def begin(self) -> Unfinished:
        """A new file, to be written piece by piece. Raises OSError."""
        # Files of one second share a folder, so one sync() serves them all.
        shard = _SHARDS[int(time.time()) % len(_SHARDS)]
        return Unfinished(f"{self._at}/{shard}", f"{shard}{self._names}{next(self._numbers):014x}")

    def sync(self, names: Iterable[str]) -> None:
        """Make the names of files durable; their bytes already are. Raises OSError."""
        for shard in {name[:2] for name in names}:
            sync_folder(f"{self._at}/{shard}")

    def read(self, name: str) -> bytes:
        """All bytes of one file.

        Raises:
            ValueError: not one of our names. SpoolError: the whole spool is gone. OSError: the
                spool is there, but this file cannot be read.
        """
        return self._certain(self.path(name).read_bytes)

    def open(self, name: str) -> BinaryIO:
        """One file for reading. Raises FileNotFoundError, ValueError (not one of our names)."""
        return self.path(name).open("rb")

    def path(self, name: str) -> Path:
        """The path of a file. Raises ValueError for a name that is not one of ours."""
        return Path(self._place(name))

    def _place(self, name: str) -> str:
        """path() as a string, for code that runs in each commit."""
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"spool: {name!r} found, 32 hexadecimal digits wanted: only our own names are paths"
            )
        return f"{self._at}/{name[:2]}/{name}"

    def damage(self, name: str, size_bytes: int | None) -> str | None:
        """What is wrong with a file that was written with this size; None if it is complete.

        `size_bytes` None: the size is not known.

        Raises:
            SpoolError: the whole spool is gone. OSError: the disk cannot be read.
        """
        place = self._place(name)
        try:
            found_bytes = self._certain(lambda: os.stat(place)).st_size  # noqa: PTH116
        except FileNotFoundError:
            return "is gone"

        if size_bytes in (None, found_bytes):
            return None
        return f"has {found_bytes} of {size_bytes} bytes"

    def _certain(self, look: Callable[[], _Found]) -> _Found:
        """Run `look`, which examines one file.

        Raises OSError only if the spool was there before and after a failed look: it may be mounted
        again between the failed look and require().
        """
        try:
            return look()
        except OSError:
            self.require()
        try:
            return look()
        except OSError:
            self.require()
            raise

    def remove(self, name: str) -> None:
        """Remove one file, if it still exists."""
        self.path(name).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """The free space for ordinary users on the spool's file system."""
        room = os.statvfs(self._at)
        return room.f_bavail * room.f_frsize

    def names(self) -> Iterator[str]:
        """The names of all complete files, in no particular order."""
        for shard in _SHARDS:
            with os.scandir(self.folder / shard) as entries:
                yield from (entry.name for entry in entries if _NAME.fullmatch(entry.name))

    def old_names(self, age_s: float) -> Iterator[list[str]]:
        """The names of complete files older than `age_s` seconds, folder by folder.

        Raises:
            OSError: at its end, if one of the folders cannot be read.
        """
        faults = Faults()
        for shard in _SHARDS:
            old: list[str] = []
            with faults.noted():
                old = _older(self.folder / shard, age_s, _NAME)
            if old:
                yield old
        faults.raise_first()

    @property
    def quarantine_folder(self) -> Path:
        """Complete files that only a person may delete. The folder may be absent."""
        return self.folder / _QUARANTINE

    def quarantine(self, name: str, suffix: str = "") -> None:
        """Move a complete file where no sweep removes it. Raises OSError."""
        self.quarantine_folder.mkdir(mode=0o700, exist_ok=True)
        self.path(name).rename(self.quarantine_folder / f"{name}{suffix}")
        sync_folder(self.quarantine_folder)
        self.sync([name])

    def quarantined(self) -> list[str]:
        """The names of files in quarantine that a person must look at; not those with a suffix."""
        if not self.quarantine_folder.is_dir():
            return []
        names = (entry.name for entry in self.quarantine_folder.iterdir())
        return sorted(name for name in names if _NAME.fullmatch(name))

    @classmethod
    def existing(cls, folder: Path, identity_in_ledger: str | None) -> Spool:
        """The spool of a node that has run, for commands that only read. It changes nothing.

        Raises:
            SpoolError: there is no such folder, or the ledger knows another one.
        """
        if not folder.is_dir():
            raise SpoolError(
                f"spool {folder}: there is no such folder; the node has not run with these "
                "settings yet"
            )

        if identity(folder) != identity_in_ledger:
            raise SpoolError(_another(folder))

        spool = cls.__new__(cls)
        spool._begin_names(folder)
        spool._identity = identity_in_ledger
        return spool

    def sweep(self, known: Callable[[Iterable[str]], set[str]], age_s: float = ORPHAN_AGE_S) -> int:
        """Remove files older than `age_s` seconds that may go. Returns how many.

        `known` returns the names, of those given, that must stay. A young file may be between its
        write and its commit, here or on another host.

        Raises:
            OSError: at its end, if a folder cannot be read or a file cannot be removed.
        """
        faults = Faults()
        count = 0
        for folder in [self.folder, *(self.folder / shard for shard in _SHARDS)]:
            with faults.noted():
                count += sweep_unfinished(folder, age_s)

        with faults.noted():
            for old in self.old_names(age_s):
                for name in set(old) - known(old):
                    with faults.noted():
                        self.remove(name)
                        count += 1
        faults.raise_first()
        return count


class Faults:
    """The errors of a disk, in work on many files: one bad sector keeps no other file from it.

    `with faults.noted():` around each step, and `faults.raise_first()` after the last.
    """

    def __init__(self) -> None:
        self._first: OSError | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note an OSError, and go on behind the block."""
        try:
            yield
        except OSError as error:
            self._first = self._first or error

    def raise_first(self) -> None:
        """Raise the first OSError that was noted, if there was one."""
        if self._first is not None:
            raise self._first


class Unfinished:
    """A file being written. It gets its name once it is complete; a failure leaves nothing."""

    def __init__(self, folder: str | Path, name: str) -> None:
        """Raises OSError."""
        self.name = name
        self._path = f"{folder}/{name}"
        # Its current path. Not a secret, so no system call for random bits; O_EXCL takes no chance.
        self._at = f"{folder}/.{random.getrandbits(64):016x}.part"
        self._descriptor = os.open(
            self._at, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        self._written_bytes = 0
        # Of them, those that the kernel was told to write to the disk.
        self._begun_bytes = 0

    def write(self, *chunks: BytesLike) -> None:
        """Append the bytes of `chunks`, one after another.

        Raises:
            OSError: no room, or the disk failed; the file is dropped.
        """
        left = [memoryview(chunk).cast("B") for chunk in chunks if len(chunk)]

        try:
            while left:
                written = os.writev(self._descriptor, left[:_AT_ONCE])
                self._written_bytes += written
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]
        except BaseException:
            self.drop()
            raise
        self._begin_portions()

    def finish(self) -> None:
        """Give the file its name, which the ledger does not know yet, and make its bytes durable.

        The name is durable once the folder is synced as well.

        Raises:
            OSError: no room, or the disk failed; the file is dropped.
        """
        self._in_turn(self._take_name, self._sync)

    def replace(self) -> None:
        """Make the bytes durable, then replace the file at the path that others read.

        Raises:
            OSError: no room, or the disk failed; the file is dropped, and the old file stays.
        """
        self._in_turn(self._sync, self._take_name)

    def drop(self) -> None:
        """Remove an unfinished file; a finished file stays."""
        if self._descriptor < 0:
            return
        self._close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at)  # noqa: PTH108

    def _in_turn(self, *steps: Callable[[], None]) -> None:
        try:
            for step in steps:
                step()
        except BaseException:
            self.drop()
            raise
        self._close()

    def _begin_portions(self) -> None:
        """Begin to write each whole portion, so that the fsync finds little left to write."""
        whole_bytes = self._written_bytes // _PORTION_BYTES * _PORTION_BYTES
        if whole_bytes > self._begun_bytes:
            begin_writing(self._descriptor, self._begun_bytes, whole_bytes - self._begun_bytes)
            self._begun_bytes = whole_bytes

    def _take_name(self) -> None:
        os.rename(self._at, self._path)  # noqa: PTH104
        self._at = self._path

    def _sync(self) -> None:
        os.fsync(self._descriptor)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


def identity(folder: Path) -> str | None:
    """The identity of a spool; None if no node has run with this folder."""
    marker = folder / _MARKER
    # A person may have restored it by hand, with a line feed at its end.
    return marker.read_text().strip() if marker.exists() else None


def _another(folder: Path) -> str:
    return f"spool {folder}: not the folder whose files this ledger knows; is it mounted here?"


def write_durably(path: Path, *chunks: BytesLike) -> None:
    """Put the bytes of `chunks` at `path`, complete and durable, or leave `path` as it was.

    Raises:
        OSError: no room, or the disk failed; the unfinished file is removed.
    """
    file = Unfinished(path.parent, path.name)
    file.write(*chunks)
    file.replace()
    sync_folder(path.parent)


def sweep_unfinished(folder: Path, age_s: float = ORPHAN_AGE_S) -> int:
    """Remove the unfinished files of dead writers in one folder. Returns how many."""
    left = _older(folder, age_s, _PART)
    for name in left:
        (folder / name).unlink(missing_ok=True)
    return len(left)


def _older(folder: Path, age_s: float, form: re.Pattern[str]) -> list[str]:
    """The names of this form whose files are older than `age_s` seconds.

    A file from an hour ahead counts as old: the clock was set back since.
    """
    with os.scandir(folder) as entries:
        # A destination may hold any number of files: its server is not asked about each.
        found = [entry for entry in entries if form.fullmatch(entry.name)]
    if not found:
        return []

    now = _now(folder)
    names = []
    for entry in found:
        # Its owner may have removed it first.
        with contextlib.suppress(FileNotFoundError):
            age = now - entry.stat(follow_symlinks=False).st_mtime
            if age > age_s or age < -ORPHAN_AGE_S:
                names.append(entry.name)
    return names


def _now(folder: Path) -> float:
    """The time on the clock that stamps the folder's files: on a network share, the server's."""
    try:
        os.utime(folder)
    except PermissionError:
        return time.time()
    return folder.stat().st_mtime


def begin_writing(descriptor: int, offset: int, size_bytes: int) -> None:
    """Let the kernel begin to write a part of a file to the disk, where the system can.

    Nothing is durable by that: the fsync waits for the bytes, and tells of their errors.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, size_bytes, _SYNC_FILE_RANGE_WRITE)


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
