"""Log lines: our own words and UIDs, each on one line, never a patient's value."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, TextIO

_ExceptionInfo = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


LogFormat = Literal["console", "json"]

# Lines that wait for the reader of stderr: some megabytes, and minutes of a busy node.
MOST_LINES = 10_000
# How long the writer lets further lines gather. Each wake-up takes the GIL from a busy association,
# so it wakes once for some forty objects.
_GATHER_S = 0.05
# How long an ending process waits for a stalled reader.
_PATIENCE_S = 2.0


class OneLineFormatter(logging.Formatter):
    """Time, level, logger, message.

    Control characters are escaped, so that a peer's string cannot forge a line. An exception shows
    its traceback and its type. Its text is shown only for an error of the operating system (with
    an errno): a library's text may quote a header.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._second = 0
        self._second_text = ""

    def formatTime(  # noqa: N802 - logging's name
        self,
        record: logging.LogRecord,
        datefmt: str | None = None,  # noqa: ARG002
    ) -> str:
        # Format each second once: busy nodes log hundreds of lines in one.
        second = int(record.created)
        if second != self._second:
            self._second_text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second

        return f"{self._second_text},{record.msecs:03.0f}"

    def format(self, record: logging.LogRecord) -> str:
        # Another handler's formatter may have left its own text of the exception there.
        record.exc_text = None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        line = super().formatMessage(record)
        if line.isprintable():
            return line
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802 - logging's name
        kind, error, where = ei
        frames = "".join(traceback.format_tb(where))
        name = kind.__name__ if kind else "unknown"

        is_operating_systems = isinstance(error, OSError) and error.errno is not None
        return f"{frames}{name}: {error}" if is_operating_systems else f"{frames}{name}"


class JsonFormatter(OneLineFormatter):
    """One JSON object a line, for machines: time (UTC), level, logger, message, traceback.

    A caller's `extra={"facts": {...}}` (names and UIDs) is added to them.
    """

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update(getattr(record, "facts", {}))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class QueuedHandler(logging.Handler):
    """Writes lines on its own thread, so that no association, image or delivery waits for a log
    line. If the reader of the stream stalls or its disk is full, lines are queued, and dropped once
    the queue is full.
    """

    def __init__(self, stream: TextIO, most_lines: int = MOST_LINES) -> None:
        super().__init__()
        self._stream = stream
        # An Event in the queue is set once all lines before it are written.
        self._lines: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._most_lines = most_lines
        # Set by a flush: the writer stops gathering and writes.
        self._hurry = threading.Event()
        self._dropped = 0
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, or count it as dropped."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return

        if self._lines.qsize() < self._most_lines:
            self._lines.put(line)
            return
        with self._counting:
            self._dropped += 1

    def flush(self) -> None:
        """Wait until everything is written, for no longer than a reader may stall at the end."""
        written = threading.Event()
        self._lines.put(written)
        self._hurry.set()
        written.wait(_PATIENCE_S)

    def close(self) -> None:
        """End the thread, once everything is written."""
        self.flush()
        self._lines.put(None)
        super().close()

    def _run(self) -> None:
        is_open = True
        while is_open:
            is_open = self._write_gathered(self._lines.get())

    def _write_gathered(self, first: str | threading.Event | None) -> bool:
        """Write `first` and what follows it within a moment. Returns whether more may come."""
        if isinstance(first, str):
            self._hurry.wait(_GATHER_S)
        self._hurry.clear()
        gathered = [first]
        with contextlib.suppress(queue.Empty):
            while True:
                gathered.append(self._lines.get_nowait())

        self._write([each for each in gathered if isinstance(each, str)])
        with self._counting:
            dropped = self._dropped
            self._dropped = 0
        if dropped:
            self._write([self.format(_lost(dropped))])

        for each in gathered:
            if isinstance(each, threading.Event):
                each.set()
        return None not in gathered

    def _write(self, lines: list[str]) -> None:
        # A full disk or a closed stream must not end the role.
        with contextlib.suppress(OSError, ValueError):
            for piece in _pieces(lines):
                self._stream.write(piece)
                self._stream.flush()


def _pieces(lines: list[str]) -> Iterator[str]:
    """Whole lines, as many as a pipe takes atomically, so that the roles' lines do not mix
    (pipe(7)).
    """
    piece, size_bytes = "", 0
    for line in lines:
        more_bytes = len(line.encode()) + 1
        if piece and size_bytes + more_bytes > select.PIPE_BUF:
            yield piece
            piece, size_bytes = "", 0
        piece += f"{line}\n"
        size_bytes += more_bytes
    if piece:
        yield piece


def _lost(lines: int) -> logging.LogRecord:
    message = "%d log lines were dropped: the reader of stderr was too slow"
    return logging.LogRecord("pleura.log", logging.ERROR, "", 0, message, (lines,), None)


# syslog's severities (RFC 5424, table 2), which journald reads from a line's beginning
# (sd-daemon(3)).
_SEVERITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


class JournalFormatter(logging.Formatter):
    """The same for systemd's journal: each line begins with its severity, such as <3>."""

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner or OneLineFormatter()

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelno
        severity = next((number for least, number in _SEVERITIES if level >= least), _DEBUG)
        # The journal makes an entry of each line of a traceback.
        return "\n".join(f"<{severity}>{line}" for line in self._inner.format(record).splitlines())


def is_journal(stream: TextIO) -> bool:
    """Whether the stream goes to systemd's journal (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def start() -> None:
    """Send our own loggers to stderr. Libraries stay silent, warnings too: they quote headers."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")

    # Do not collect what our lines never show (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None

    # Without a handler at the root, Python itself prints warnings.
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]

    ours = logging.getLogger("pleura")
    for earlier in ours.handlers:
        earlier.close()
    handler = QueuedHandler(sys.stderr)
    handler.setFormatter(_formatter("console"))
    ours.handlers[:] = [handler]
    ours.setLevel(logging.INFO)


def use(form: LogFormat) -> None:
    """Write lines in this form from now on: `console` for people, `json` for machines."""
    for handler in logging.getLogger("pleura").handlers:
        handler.setFormatter(_formatter(form))


def _formatter(form: LogFormat) -> logging.Formatter:
    formatter = JsonFormatter() if form == "json" else OneLineFormatter()
    return JournalFormatter(formatter) if is_journal(sys.stderr) else formatter


def flush() -> None:
    """Write what waits, before a command ends."""
    for handler in logging.getLogger("pleura").handlers:
        handler.flush()
