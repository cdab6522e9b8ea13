"""The files of a model package, in a folder or a zip: names and sizes are checked, nothing is
extracted.

A package is untrusted. Nothing of a zip is extracted to disk, no name in it is used as a path, and
a member's stated size is a limit, not a promise.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

MAX_FILES = 32
# Two networks of SENet-154's size in float32 are 0.9 GB.
MAX_FILE_BYTES = 2 << 30
# The highest ratio of unpacked to packed bytes: weights shrink by a tenth, YAML by a factor of ten.
_MAX_RATIO = 200
# The ratio of a smaller file is not checked.
_RATIO_FREE_BYTES = 1 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# The exceptions that zipfile raises for damaged or false archives.
_BROKEN_ZIP = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError,
    NotImplementedError, RuntimeError,
    ValueError, OverflowError, AttributeError, IndexError,
)  # fmt: skip


class PackageError(Exception):
    """The package cannot serve. The message says where, what was found, what is wanted."""


class Container(Protocol):
    """The files of one package."""

    path: Path

    def names(self) -> list[str]:
        """Every file's name.

        Raises PackageError for anything that is not a plain file with a plain name.
        """

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of one file.

        Raises PackageError: absent, unreadable, or more than `limit` bytes.
        """

    def where(self, name: str) -> str:
        """The file's name for a message."""


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    """The files of the package at `path`: a folder, or a zip.

    Raises:
        PackageError: neither, not readable, or with anything in it but plain files.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError) as error:
        # ValueError: the path holds a NUL.
        raise PackageError(
            f"{path}: {_cause(error)}; give the folder or the zip of a model package"
        ) from error

    if kind == stat.S_IFDIR:
        yield _Folder(path)
        return

    if kind != stat.S_IFREG:
        raise PackageError(
            f"{path}: neither a folder nor a file; give the folder or the zip of a model package"
        )

    try:
        archive = zipfile.ZipFile(path)
    except (OSError, *_BROKEN_ZIP) as error:
        raise PackageError(
            f"{path}: not a zip ({_cause(error)}); give the folder or the zip of a package"
        ) from error

    with archive:
        yield _Zip(path, archive)


def _cause(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)[:200]


def checked_name(name: str) -> str:
    """The name, if it can name a file inside the package.

    Raises:
        ValueError: anything with a slash, a drive, a leading dot, a control character.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(
            f"{name[:200]!r} is not a plain file name (letters, digits, '.', '_' and '-'); a "
            "package is one flat "
            "folder, and its zip holds the files, not the folder (cd FOLDER && zip ../NAME.zip *)"
        )
    return name


def _checked(where: str, names: list[str]) -> list[str]:
    if len(names) > MAX_FILES:
        raise PackageError(f"{where}: {len(names)} files found, at most {MAX_FILES} allowed")
    for name in names:
        try:
            checked_name(name)
        except ValueError as error:
            raise PackageError(f"{where}: {error}") from error
    if len({name.casefold() for name in names}) < len(names):
        raise PackageError(f"{where}: two files share a name; it is unclear which is meant")
    return names


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        try:
            with os.scandir(self.path) as entries:
                found = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
        except OSError as error:
            raise PackageError(f"{self.path}: cannot be read ({_cause(error)})") from error
        for name, plain in found.items():
            if not plain:
                raise PackageError(
                    f"{self.path}: {name[:200]!r} is a folder, a link or a device, not a file"
                )
        return _checked(str(self.path), sorted(found))

    def read(self, name: str, limit: int) -> bytes:
        try:
            # Since names() ran, the file may have become a link, or a pipe that never ends.
            descriptor = os.open(
                self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
            with open(descriptor, "rb") as file:  # noqa: PTH123 - Path.open() knows no O_NOFOLLOW
                about = os.fstat(descriptor)
                if not stat.S_ISREG(about.st_mode):
                    raise PackageError(f"{self.where(name)}: not a file")

                if about.st_size > limit:
                    raise PackageError(
                        f"{self.where(name)}: {about.st_size} bytes found, at most {limit} allowed"
                    )

                return file.read(limit)
        except OSError as error:
            raise PackageError(
                f"{self.where(name)}: cannot be read ({_cause(error)}); the package is incomplete"
            ) from error

    def where(self, name: str) -> str:
        return str(self.path / name)


class _Zip:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive

    def names(self) -> list[str]:
        members = self._archive.infolist()
        names = _checked(str(self.path), [member.orig_filename for member in members])
        for member in members:
            self._refuse_odd(member)
        return names

    def _refuse_odd(self, member: zipfile.ZipInfo) -> None:
        where, kind = self.where(member.orig_filename), stat.S_IFMT(member.external_attr >> 16)
        # APPNOTE 4.4.15: on Unix the upper half holds the mode.
        if kind not in (0, stat.S_IFREG):
            raise PackageError(
                f"{where}: a folder, a link or a device; only files belong in a package"
            )

        # APPNOTE 4.4.4, bit 0.
        if member.flag_bits & 0x1:
            raise PackageError(f"{where}: encrypted; pack it without a password")

        if member.compress_type not in _METHODS:
            raise PackageError(
                f"{where}: compression method {member.compress_type} found; allowed: stored, "
                "deflated"
            )

        if member.file_size > max(_RATIO_FREE_BYTES, _MAX_RATIO * member.compress_size):
            raise PackageError(
                f"{where}: {member.compress_size} packed bytes say to be {member.file_size}; "
                f"at most {_MAX_RATIO} times is allowed, weights never shrink so far"
            )

    def read(self, name: str, limit: int) -> bytes:
        try:
            size = self._archive.getinfo(name).file_size
            if size > limit:
                raise PackageError(
                    f"{self.where(name)}: {size} bytes found, at most {limit} allowed"
                )

            with self._archive.open(name) as file:
                # zipfile stops at the declared size and checks the CRC there.
                data = file.read(size + 1)
        except KeyError as error:
            raise PackageError(f"{self.where(name)}: absent; the package is incomplete") from error
        except (OSError, *_BROKEN_ZIP) as error:
            raise PackageError(
                f"{self.where(name)}: cannot be unpacked ({_cause(error)}); pack it again"
            ) from error

        if len(data) != size:
            raise PackageError(f"{self.where(name)}: {len(data)} bytes found, {size} declared")

        return data

    def where(self, name: str) -> str:
        return f"{self.path}: {name[:200]}"
