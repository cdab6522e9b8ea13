"""An audit repository: a syslog receiver over TLS that can simulate an outage."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading

from tools.peers.certificates import Authority, Pair


class Repository:
    """Collects the messages that it receives, in order. While `is_away`, it closes connections."""

    def __init__(self, pair: Pair, ca: Authority) -> None:
        """It accepts only senders with a certificate that `ca` has issued."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.certificate, pair.key)
        self._context.load_verify_locations(ca.certificate)
        self._context.verify_mode = ssl.CERT_REQUIRED

        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: list[ssl.SSLSocket] = []

        self.is_away = False
        self.messages: list[bytes] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return

            if self.is_away:
                plain.close()
                continue

            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    self._open.append(connection)
                    self._read(connection)
            except OSError:
                plain.close()

    def _read(self, connection: ssl.SSLSocket) -> None:
        """Read messages: each is its size in digits, a space, and its bytes (RFC 5425 4.3)."""
        data = b""
        while part := connection.recv(65536):
            data += part
            while b" " in data:
                size, _, rest = data.partition(b" ")
                if len(rest) < int(size):
                    break
                self.messages.append(rest[: int(size)])
                data = rest[int(size) :]

    def break_off(self) -> None:
        """End every connection, and from now on every new connection."""
        self.is_away = True
        for connection in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """End every connection, and stop listening."""
        self.break_off()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


def numbers(messages: list[bytes]) -> list[int]:
    """The sequenceId of each message (RFC 5424 7.3.1)."""
    return [int(re.findall(rb'sequenceId="(\d+)"', message)[0]) for message in messages]
