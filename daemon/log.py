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


def start() -> None:
    """Send our own loggers to stderr. Libraries stay silent, warnings too: they quote headers."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")

    # Facts that no line of ours shows are not gathered (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None

    # Without a handler at the root, Python prints warnings by itself.
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter())
    ours = logging.getLogger("pleura")
    ours.handlers[:] = [handler]
    ours.setLevel(logging.INFO)
