"""What a log line may hold."""

from __future__ import annotations

import logging
import sys

from daemon.log import OneLineFormatter


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


def test_a_peers_string_cannot_forge_a_line() -> None:
    formatted = line("from %s", "XRAY1\n2026-01-01 00:00:00 INFO pleura forged\x1b[2J")
    assert "\n" not in formatted
    assert "\x1b" not in formatted
    assert r"\x0a2026" in formatted


def test_an_exception_tells_where_and_what_kind_but_not_what_a_library_quoted() -> None:
    formatted = line("broke", error=ValueError("Invalid value for VR PN: 'Doe^Jane'"))
    assert "ValueError" in formatted
    assert "test_log.py" in formatted
    assert "Jane" not in formatted


def test_the_operating_systems_words_are_kept() -> None:
    assert "No space left" in line("broke", error=OSError(28, "No space left on device"))
