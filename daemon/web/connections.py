"""The page's connections: one that holds its place and asks for nothing is closed.

uvicorn waits without a limit for a connection's first request, for the rest of a request's header,
and for a client that does not read its answer. A hundred such connections would take every place.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from daemon.tcp import unacknowledged_bytes

_LOOK_S = 5.0
# From the connection, or from an answer, to a whole header.
_HEADER_S = 30.0
# From a header to the last byte of the answer that the client has read: the longest trial, and a
# large object over a slow line.
_ANSWER_S = 600.0


class PageProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with an end to each wait."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected, with TLS after its handshake."""
        super().connection_made(transport)
        # The request, and whether it is answered, since when.
        self._state: tuple[Any, bool] = (None, True)
        self._since = self.loop.time()
        self._next_look = self.loop.call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._next_look.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Close the connection if it has waited too long in one state."""
        now = self.loop.time()
        is_answered = self.cycle is None or (self.cycle.response_complete and self._is_read())
        if (self.cycle, is_answered) != self._state:
            self._state, self._since = (self.cycle, is_answered), now

        if now - self._since >= (_HEADER_S if is_answered else _ANSWER_S):
            # close() would wait until the client has read what was sent.
            self.transport.abort()
            return
        self._next_look = self.loop.call_later(_LOOK_S, self._look)

    def _is_read(self) -> bool:
        """Whether the client's system has all that was sent.

        uvicorn counts an answer as complete while most of it still waits to be sent.
        """
        connection: socket.socket = self.transport.get_extra_info("socket")
        # It is closed a moment before connection_lost().
        return connection.fileno() < 0 or not unacknowledged_bytes(connection)
