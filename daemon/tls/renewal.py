"""A context that follows its files: a certificate renewed on disk serves the next connection."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon.tls.contexts import TlsError

log = logging.getLogger("pleura.tls")

# Of one file: device, inode, modification time in nanoseconds, size. None: it is absent.
_Mark = tuple[int, int, int, int] | None


class Renewed:
    """An SSLContext for new connections. Connections that are open keep the context they have.

    Thread-safe. A few stat(2) for each connection cost less than a hundredth of its handshake.
    """

    def __init__(
        self, where: str, build: Callable[[], ssl.SSLContext], files: Sequence[Path]
    ) -> None:
        """`where`: the key of the settings that names the files.

        Raises:
            TlsError: the files cannot be used.
        """
        self._where = where
        self._build = build
        self._files = tuple(files)
        self._lock = threading.Lock()

        # Read before the files: what changes in between is found changed the next time.
        self._marks = self._look()
        self._context = build()

    def current(self) -> ssl.SSLContext:
        """The context of the files as they are now; of the last good files if they are broken.

        A new context also ends resumption: no ticket outlives the certificates that were trusted
        when it was issued.
        """
        with self._lock:
            marks = self._look()
            if marks != self._marks:
                self._marks = marks
                self._renew()
            return self._context

    def _renew(self) -> None:
        began = time.monotonic()
        try:
            self._context = self._build()
        except TlsError as error:
            log.error(
                "%s: the files have changed and cannot be used: %s; the certificate before stays "
                "in use",
                self._where,
                error,
            )
        else:
            took_ms = (time.monotonic() - began) * 1e3
            log.info("%s: renewed files taken for new connections (%.0f ms)", self._where, took_ms)

    def _look(self) -> list[_Mark]:
        return [_mark(path) for path in self._files]


def _mark(path: Path) -> _Mark:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
