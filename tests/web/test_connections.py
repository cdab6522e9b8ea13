"""Connections to the page that ask for nothing, or for two things at once."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from daemon.config import Config
from daemon.ledger import Ledger
from daemon.spool import Spool
from daemon.web.server import PageServer
from tools.peers.certificates import Authority

PLACES = 100
# More than the system holds for a client that does not read.
OBJECT = bytes(20_000_000)
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_LOOK_S", 0.05), ("_HEADER_S", 0.5)):
        monkeypatch.setattr(f"daemon.web.connections.{name}", seconds)


@pytest.fixture
def port(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[int]:
    """The port of a page."""
    number = free_port()
    with page(tmp_path, port=number):
        yield number


@contextlib.contextmanager
def page(folder: Path, **web: Any) -> Iterator[None]:
    settings = Config.model_validate(
        {"ledger": f"sqlite:///{folder}/ledger.db", "spool": str(folder / "spool"), "web": web}
    )
    assert settings.web is not None

    ledger = Ledger(settings.ledger)
    server = PageServer(settings, settings.web, ledger, Spool(settings.spool))
    server.start()
    try:
        yield
    finally:
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


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_large_object_over_a_slow_line_arrives_whole(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch, is_tls: bool
) -> None:
    """The answer is complete for uvicorn long before the client has read it."""
    app = Starlette(routes=[Route("/object", lambda _: Response(OBJECT))])
    monkeypatch.setattr("daemon.web.server.build", lambda *_: app)
    ca = Authority(tmp_path / "ca")
    number = free_port()
    tls = {"tls": ca.issue("page").settings()} if is_tls else {}

    with page(tmp_path, port=number, **tls), contextlib.ExitStack() as opened:
        line = opened.enter_context(connect(number))
        if is_tls:
            context = ssl.create_default_context(cafile=str(ca.certificate))
            line = opened.enter_context(context.wrap_socket(line, server_hostname="localhost"))
        line.sendall(b"GET /object HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # Much longer than a connection may ask for nothing
        time.sleep(1.5)

        received = line.recv(65536)
        left = received.index(b"\r\n\r\n") + 4 + len(OBJECT) - len(received)
        while left and (part := line.recv(65536)):
            left -= len(part)
        assert left == 0
