"""An archive from pynetdicom's AE."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.transport import ThreadedAssociationServer


@contextmanager
def serving(
    entity: AE, port: int, handlers: Sequence[Any] = ()
) -> Iterator[ThreadedAssociationServer]:
    """Serve `port` of this machine in threads until the block ends, and close every connection.

    pynetdicom itself leaves the socket open if the peer has closed the connection.
    """
    sockets: list[socket.socket] = []

    def note(event: Any) -> None:
        sockets.append(event.assoc.dul.socket.socket)

    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[*handlers, (evt.EVT_CONN_OPEN, note)]
    )
    assert server is not None

    try:
        yield server
    finally:
        server.shutdown()
        for connection in sockets:
            connection.close()
