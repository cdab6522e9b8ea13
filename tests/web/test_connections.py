"""Connections to the page that ask for nothing, or for two things at once."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.config import Config
from daemon.ledger import Ledger
from daemon.spool import Spool
from daemon.web.server import PageServer

PLACES = 100
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def port(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """The port of a page with short waits."""
    for name, seconds in (("_LOOK_S", 0.05), ("_HEADER_S", 0.5)):
        monkeypatch.setattr(f"daemon.web.connections.{name}", seconds)
    number = free_port()
    settings = Config.model_validate(
        {
            "ledger": f"sqlite:///{tmp_path}/ledger.db",
            "spool": str(tmp_path / "spool"),
            "web": {"port": number},
        }
    )
    assert settings.web is not None

    ledger = Ledger(settings.ledger)
    server = PageServer(settings, settings.web, ledger, Spool(settings.spool))
    server.start()
    yield number
    server.stop()
    ledger.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 30.0)


def answered(connection: socket.socket, request: bytes) -> bytes:
    """Everything that comes until the page closes the connection."""
    connection.sendall(request)
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", HEALTH, HEALTH + b"\r\n" + HEALTH])
def test_a_crowd_that_sends_no_whole_request_is_closed(port: int, beginning: bytes) -> None:
    with contextlib.ExitStack() as crowd:
        held = [crowd.enter_context(connect(port)) for _ in range(PLACES)]
        for each in held:
            each.sendall(beginning)
        for each in held:
            with contextlib.suppress(ConnectionError):
                while each.recv(65536):
                    pass
        with connect(port) as honest:
            answer = answered(honest, HEALTH + b"Connection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")


def test_two_lengths_of_one_body_are_refused_and_nothing_behind_it_is_read(port: int) -> None:
    post = (
        b"POST /login HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    with connect(port) as connection:
        answer = answered(connection, post + HEALTH + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1
