"""A context that follows its files: a certificate renewed on disk serves the next connection."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon.tls.contexts import Credentials, TlsError
from daemon.tls.memory import PairInMemory

log = logging.getLogger("pleura.tls")

# How often to try again while renewed files cannot be used. The cause may pass without a change of
# the files: a folder that may not be entered, a certificate that is valid from tomorrow.
_RETRY_S = 5.0

# Of one file: device, inode, times of modification and of change in nanoseconds, size. chmod and
# chown move only the time of change. None: the file is absent.
_Mark = tuple[int, int, int, int, int] | None


class Renewed:
    """An SSLContext for new connections. Open connections keep their context.

    Thread-safe. A few stat(2) for each connection cost less than a hundredth of its handshake.
    """

    def __init__(
        self,
        where: str,
        build: Callable[[Credentials | None], ssl.SSLContext],
        files: Sequence[Path],
        credentials: Credentials | None = None,
        retry_s: float = _RETRY_S,
    ) -> None:
        """`where`: the key of the settings that names the files.

        `build`: makes a context that presents the given pair. `credentials`: our pair among the
        files; None: no certificate is presented.
        """
        self._where = where
        self._build = build
        self._files = tuple(files)
        self._credentials = credentials
        self._retry_s = retry_s
        self._lock = threading.Lock()

        self._context: ssl.SSLContext | None = None
        # The pair that the context presents.
        self._pair: PairInMemory | None = None
        self._marks: list[_Mark] = []
        # When to try again, and the fault that was logged; None: the files are in use.
        self._retry_at: float | None = None
        self._fault: str | None = None
        # A peer has resumed a session that it should not resume.
        self._is_spent = False

    def current(self) -> ssl.SSLContext:
        """The context of the current files.

        While our pair cannot be used, the last good pair is presented, but to the peers that the
        files list now: a peer that was removed from the list is refused. A new context also ends
        resumption: no ticket outlives the certificates that were trusted when it was issued.

        Raises:
            TlsError: the files cannot be used, and there is no earlier context.
        """
        with self._lock:
            # Read before the files, so that a change in between is noticed the next time.
            marks = self._look()

            if self._context is None:
                self._context = self._first()
            elif marks != self._marks or self._is_due() or self._is_spent:
                self._context = self._renewed(self._context)

            self._marks = marks
            self._is_spent = False
            return self._context

    def end_resumption(self, of: ssl.SSLContext) -> None:
        """Let no later connection resume a session of the context `of`."""
        with self._lock:
            self._is_spent = self._is_spent or of is self._context

    def _first(self) -> ssl.SSLContext:
        try:
            context = self._of_files()
        except OSError as error:
            raise TlsError(f"{self._where}: {error}") from error

        try:
            self._require_dates()
        except (TlsError, OSError) as error:
            # A running node goes on to present an expired certificate, so a restart does the same.
            log.error("%s; there is no other, so it is presented, and peers may refuse it", error)
        return context

    def _renewed(self, before: ssl.SSLContext) -> ssl.SSLContext:
        began = time.monotonic()
        # Set before the try, so that every exit from it keeps the fault.
        self._retry_at = began + self._retry_s
        try:
            self._require_dates()
            context = self._of_files()
        except (TlsError, OSError) as error:
            # OSError: a file vanished between two looks at it.
            context, fault = self._of_last_pair(before, str(error))
            if fault != self._fault:
                log.error(
                    "%s: the files have changed and cannot be used: %s; the previous "
                    "certificate stays in use",
                    self._where,
                    fault,
                )
            self._fault = fault
            return context

        self._retry_at = self._fault = None
        took_ms = (time.monotonic() - began) * 1e3
        log.info("%s: renewed files in use for new connections (%.0f ms)", self._where, took_ms)
        return context

    def _of_files(self) -> ssl.SSLContext:
        context = self._build(self._credentials)
        if self._credentials is not None:
            self._pair = PairInMemory.read(self._credentials)
        return context

    def _of_last_pair(self, before: ssl.SSLContext, fault: str) -> tuple[ssl.SSLContext, str]:
        """The pair in use with the list of trusted peers as it is now, and the fault in words.

        If that list cannot be used, the earlier context stays.
        """
        if self._pair is None:
            return before, fault
        try:
            with self._pair.as_files() as pair:
                return self._build(pair), fault
        except (TlsError, OSError) as error:
            words = fault if str(error) == fault else f"{fault}; {error}"
            return before, f"{words}; peers are trusted as before"

    def _is_due(self) -> bool:
        return self._retry_at is not None and time.monotonic() >= self._retry_at

    def _require_dates(self) -> None:
        """Raises TlsError if our certificate is not valid today."""
        if self._credentials is not None:
            self._credentials.own()

    def _look(self) -> list[_Mark]:
        return [_mark(path) for path in self._files]


def _mark(path: Path) -> _Mark:
    try:
        status = path.stat()
    except OSError:
        return None
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return status.st_dev, status.st_ino, *times, status.st_size
