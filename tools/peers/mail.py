"""A mail server and a web service that keep the messages they receive, for tests of alerts."""

from __future__ import annotations

import base64
import json
import socketserver
import ssl
import threading
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tools.peers.certificates import Pair


def server_context(pair: Pair) -> ssl.SSLContext:
    """A TLS context for a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@dataclass
class Received:
    """One mail, and how it was sent."""

    mail: EmailMessage
    recipients: list[str]
    was_encrypted: bool
    user: str


class _Threaded(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = False


@dataclass
class MailServer:
    """SMTP on loopback. With `pair` it offers STARTTLS."""

    pair: Pair | None = None
    received: list[Received] = field(default_factory=list)
    # The answer to DATA; with 250 the mail is kept.
    answer: str = "250 taken"
    # The answer to QUIT.
    farewell: str = "221 bye"

    def __enter__(self) -> MailServer:
        mail_server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                _Session(mail_server, self).run()

        self._server = _Threaded(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Session:
    """One SMTP session (RFC 5321), as far as smtplib uses it."""

    def __init__(self, server: MailServer, handler: socketserver.StreamRequestHandler) -> None:
        self._server = server
        self._handler = handler
        self._socket = handler.connection
        self._file = handler.rfile
        self._is_encrypted = False
        self._user = ""
        self._recipients: list[str] = []

    def run(self) -> None:
        """Answer until the client quits or closes the connection."""
        self._say("220 ready")

        try:
            while line := self._file.readline():
                words = line.split()
                verb = words[0].upper().decode() if words else ""
                if verb == "QUIT":
                    self._say(self._server.farewell)
                    break
                self._do(verb, line.decode().strip())
        except (OSError, ssl.SSLError):
            # The client refused our certificate, or closed the connection.
            pass
        finally:
            if self._is_encrypted:
                self._file.close()
                self._socket.close()

    def _do(self, verb: str, line: str) -> None:
        if verb == "EHLO":
            offers = ["STARTTLS"] if self._server.pair and not self._is_encrypted else []
            offers += ["AUTH PLAIN"]
            self._say(*[f"250-{offer}" for offer in ["localhost", *offers]], "250 8BITMIME")
        elif verb == "STARTTLS" and self._server.pair:
            self._say("220 go on")
            self._encrypt(self._server.pair)
        elif verb == "AUTH":
            self._user = base64.b64decode(line.split()[2]).split(b"\0")[1].decode()
            self._say("235 ok")
        elif verb == "RCPT":
            self._recipients.append(line.partition("<")[2].partition(">")[0])
            self._say("250 ok")
        elif verb == "DATA":
            self._take()
        else:
            self._say("250 ok")

    def _encrypt(self, pair: Pair) -> None:
        self._socket = server_context(pair).wrap_socket(self._socket, server_side=True)
        self._file = self._socket.makefile("rb")
        self._is_encrypted = True

    def _take(self) -> None:
        self._say("354 go on")
        lines = []
        while (line := self._file.readline()) != b".\r\n":
            lines.append(line)

        if self._server.answer.startswith("250"):
            mail = message_from_bytes(b"".join(lines), policy=policy.default)
            assert isinstance(mail, EmailMessage)
            received = Received(mail, self._recipients, self._is_encrypted, self._user)
            self._server.received.append(received)

        self._say(self._server.answer)

    def _say(self, *lines: str) -> None:
        self._socket.sendall("".join(f"{line}\r\n" for line in lines).encode())


@dataclass
class WebService:
    """HTTP, or HTTPS with `pair`, on loopback. Keeps the posted JSON with its headers."""

    pair: Pair | None = None
    received: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    status: int = 204

    def __enter__(self) -> WebService:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if service.status < 300:
                    service.received.append((json.loads(body), dict(self.headers)))
                self.send_response(service.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        if self.pair is not None:
            context = server_context(self.pair)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
