"""A certificate and its key, kept in memory after their files changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon.tls.contexts import Credentials


@dataclass(frozen=True)
class PairInMemory:
    """The contents of the files of Credentials, in their order, with the same `where`."""

    where: str
    contents: tuple[bytes, ...]

    @classmethod
    def read(cls, credentials: Credentials) -> PairInMemory:
        """Raises OSError if a file cannot be read."""
        return cls(credentials.where, tuple(path.read_bytes() for path in credentials.files))

    @contextmanager
    def as_files(self) -> Iterator[Credentials]:
        """The pair as files, because `ssl` loads keys only from files. They never reach a disk."""
        with ExitStack() as stack:
            paths = [stack.enter_context(_file_of(content)) for content in self.contents]
            yield Credentials(self.where, *paths)


@contextmanager
def _file_of(content: bytes) -> Iterator[Path]:
    """A file in memory (memfd_create(2)), which only this user can open."""
    with open(os.memfd_create("pleura"), "wb", buffering=0) as file:  # noqa: PTH123
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
        yield Path(f"/proc/self/fd/{file.fileno()}")
