"""What a log line may hold: our own words and UIDs, on one line, never a patient's value."""

from __future__ import annotations

import logging
import sys
import time
import traceback
import warnings
from types import TracebackType

_ExceptionInfo = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


class OneLineFormatter(logging.Formatter):
    """Time, level, logger, message.

    Control characters are escaped, so that a peer's string cannot forge a line. An exception shows where it rose
    and its type; its text only where the operating system wrote it (errno), for a library's may quote a header.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._second = (0, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802, ARG002 - logging's
        second, text = self._second
        if second != int(
            record.created
        ):  # worked out once for each second: busy nodes log hundreds of lines in one
            second = int(record.created)
            text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second, text
        return f"{text},{record.msecs:03.0f}"

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # what another handler's formatter may have left there
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        line = super().formatMessage(record)
        return (
            line
            if line.isprintable()
            else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
        )

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802 - logging's name
        kind, error, where = ei
        frames = "".join(traceback.format_tb(where))
        text = f": {error}" if isinstance(error, OSError) and error.errno is not None else ""
        return f"{frames}{kind.__name__ if kind else 'unknown'}{text}"


def start() -> None:
    """Send our own loggers to stderr. Libraries stay silent, warnings too: they quote header values."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # What no line of ours shows is not found out for each (Python's logging HOWTO, Optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]  # without one, Python prints warnings by itself
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter())
    ours = logging.getLogger("pleura")
    ours.handlers[:] = [handler]
    ours.setLevel(logging.INFO)
