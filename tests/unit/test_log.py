"""The content of log lines, and how they are written."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import select
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.log import JournalFormatter, JsonFormatter, OneLineFormatter, QueuedHandler, is_journal


def line(message: str, *arguments: object, error: Exception | None = None) -> str:
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    return OneLineFormatter().format(
        logging.LogRecord("pleura.test", 20, "", 0, message, arguments, info)
    )


def test_a_peers_string_cannot_forge_a_log_line() -> None:
    formatted = line("from %s", "XRAY1\n2026-01-01 00:00:00 INFO pleura forged\x1b[2J")
    assert "\n" not in formatted
    assert "\x1b" not in formatted
    assert r"\x0a2026" in formatted


def test_an_exception_is_logged_with_type_and_place_without_its_quoted_values() -> None:
    formatted = line("broke", error=ValueError("Invalid value for VR PN: 'Doe^Jane'"))
    assert "ValueError" in formatted
    assert "test_log.py" in formatted
    assert "Jane" not in formatted


def test_messages_of_the_operating_system_are_kept() -> None:
    assert "No space left" in line("broke", error=OSError(28, "No space left on device"))


class Stream(io.StringIO):
    """A stream whose reader stalls until `goes_on` is set, and whose disk may be full."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.full = False

    def write(self, text: str) -> int:
        self.goes_on.wait(10)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def logger(stream: Stream) -> Iterator[logging.Logger]:
    handler = QueuedHandler(stream, most_lines=5)
    handler.setFormatter(OneLineFormatter())
    logger = logging.getLogger("pleura.queued")
    logger.propagate = False
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    yield logger
    stream.goes_on.set()
    logger.handlers[:] = []
    handler.close()


def test_a_stalled_reader_blocks_no_caller_and_lost_lines_are_counted(
    logger: logging.Logger, stream: Stream
) -> None:
    for number in range(20):
        logger.info("line %d", number)
    assert stream.getvalue() == ""

    stream.goes_on.set()
    logger.handlers[0].flush()
    written = stream.getvalue()
    # Five lines wait in the queue, and the writer may hold up to five more.
    lost = re.search(r"ERROR pleura.log (\d+) log lines were dropped", written)
    assert lost is not None
    assert int(lost[1]) in range(10, 16)
    assert written.count(" line ") == 20 - int(lost[1])


def test_queued_lines_are_written_whole_in_chunks_of_pipe_size() -> None:
    pieces: list[str] = []

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    handler = QueuedHandler(Pipe())
    handler.setFormatter(OneLineFormatter())
    sent = [f"{number} {'ß' * 300}" for number in range(60)]
    for line in sent:
        handler.emit(logging.LogRecord("pleura.test", logging.INFO, "", 0, line, (), None))
    handler.close()

    assert len(pieces) < len(sent)
    assert all(piece.endswith("\n") and len(piece.encode()) <= select.PIPE_BUF for piece in pieces)
    written = "".join(pieces).splitlines()
    assert [line.partition("pleura.test ")[2] for line in written] == sent


def test_a_flush_does_not_wait_for_more_lines(
    logger: logging.Logger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.log._GATHER_S", 30.0)
    stream.goes_on.set()
    logger.info("written")
    logger.handlers[0].flush()
    assert "written" in stream.getvalue()


def test_a_full_disk_stops_nothing_and_later_lines_are_written(
    logger: logging.Logger, stream: Stream
) -> None:
    stream.goes_on.set()
    stream.full = True
    logger.info("lost")
    logger.handlers[0].flush()
    stream.full = False
    logger.info("written")
    logger.handlers[0].flush()
    assert "written" in stream.getvalue()


@pytest.mark.parametrize(
    ("level", "severity"),
    [("DEBUG", 7), ("INFO", 6), ("WARNING", 4), ("ERROR", 3), ("CRITICAL", 3)],
)
def test_the_journal_gets_a_severity_with_each_line(level: str, severity: int) -> None:
    record = logging.LogRecord("pleura.test", getattr(logging, level), "", 0, "broke", (), None)
    assert JournalFormatter().format(record).startswith(f"<{severity}>")

    try:
        raise OSError(28, "No space left on device")
    except OSError:
        record.exc_info = sys.exc_info()
    lines = JournalFormatter().format(record).splitlines()
    assert len(lines) > 2
    assert all(each.startswith(f"<{severity}>") for each in lines)


def test_only_the_journals_own_stream_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not is_journal(stream)

        # A command inherits this variable even if its stderr goes elsewhere.
        monkeypatch.setenv("JOURNAL_STREAM", "1:1")
        assert not is_journal(stream)

        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert is_journal(stream)


def test_json_has_one_object_per_line_with_facts_and_without_error_text() -> None:
    quoted = "DOE^JANE"
    try:
        raise ValueError(quoted)
    except ValueError:
        error = sys.exc_info()
    record = logging.LogRecord("pleura.x", 20, "", 0, "image %d\n%s", (7, "1.2\x1b"), error)
    vars(record)["facts"] = {"sop_instance_uid": "1.2", "score": 0.5}

    formatted = JsonFormatter().format(record)
    assert formatted.isprintable()
    assert "JANE" not in formatted
    parsed = json.loads(formatted)
    assert parsed["message"] == "image 7\n1.2\x1b"
    assert (parsed["level"], parsed["sop_instance_uid"], parsed["score"]) == ("INFO", "1.2", 0.5)
    assert parsed["traceback"].endswith("ValueError")
