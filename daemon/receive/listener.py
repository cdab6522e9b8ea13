"""The TCP listener before the acceptor: decides which connections get a thread.

A connection here first waits until a whole association request has come (waiting.py). So neither a
load balancer's probe, nor a peer that sends one byte, nor half a TLS handshake takes a sender's
slot. Every port shares one limit of such connections.

Other threads compute handshakes (handshakes.py); everything else about a waiting connection happens
in the listener's single thread.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from daemon import watchdog
from daemon.addresses import canonical
from daemon.dicom.acceptor import Limits
from daemon.receive.connections import PlainConnection, Served
from daemon.receive.handshakes import Handshakes
from daemon.receive.waiting import (
    HandshakeError,
    NoRequestError,
    PlainWaiting,
    TlsWaiting,
    Waiting,
)
from daemon.tls import Renewed

log = logging.getLogger("pleura.receive")

_BACKLOG = 512
_ACCEPTED_AT_ONCE = 64  # then connections that speak are heard, also in a flood

# The shortest time between two log lines about the same trouble of the same address.
_QUIET_S = 60.0
_REMEMBERED_TROUBLES = 1000

Serve = Callable[[Served, str], None]


@dataclass(frozen=True)
class Port:
    """A place to listen at. `context`: DICOM over TLS; None: without."""

    host: str
    number: int
    context: Renewed | None = None


class Listener:
    """Accepts TCP connections and hands those that ask for an association to `serve`, on its own
    thread.
    """

    def __init__(
        self,
        ports: Sequence[Port],
        limits: Limits,
        serve: Serve,
        refused: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        """`refused` is called for each connection that gets no association, with address and
        reason.
        """
        self._serve = serve
        self._refused = refused
        self._limits = limits

        self._ports = ports
        tls_ports = [port.number for port in ports if port.context is not None]
        self._tls_port = tls_ports[0] if tls_ports else None

        self._listening: dict[socket.socket, Port] = {}
        self._waiting: dict[socket.socket, Waiting] = {}  # oldest first
        self._handshakes = Handshakes(self._wake)
        # Not registered with the selector: a step of their handshake is due or running.
        self._computing: set[socket.socket] = set()
        self._said: dict[tuple[str, str], float] = {}  # (address, trouble) -> when it was logged
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Listen. Returns at once.

        Raises:
            OSError: a host and port cannot be listened on; its `filename` names the port.
        """
        try:
            for port in self._ports:
                self._listening[_listening(port)] = port
        except OSError:
            for each in self._listening:
                each.close()
            # The next try starts again with the first port.
            self._listening.clear()
            raise

        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        for each in (self._woken, self._waker):
            each.setblocking(False)
        for each in (*self._listening, self._woken):
            self._selector.register(each, selectors.EVENT_READ)
        if self._tls_port is not None:
            self._handshakes.start()
        self._thread.start()

    def take(self, limits: Limits) -> None:
        """New limits, for connections that wait and for new connections."""
        self._limits = limits

    def stop(self) -> None:
        """Take no new connection; associations go on."""
        self._is_stopping = True
        self._wake()
        self._thread.join()
        self._handshakes.stop()

        self._selector.close()
        for each in {*self._waiting, *self._computing}:
            each.close()
        self._waiting.clear()
        for each in (self._woken, self._waker, *self._listening):
            each.close()

    def _wake(self) -> None:
        """Wake the listener, to look at what other threads have done."""
        # Full: the listener is awake.
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"\0")

    def is_alive(self) -> bool:
        """Whether connections are still accepted."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many connections have not asked for an association yet."""
        return len(self._waiting)

    def _run(self) -> None:
        with watchdog.watched("listener"):
            self._listen()

    def _listen(self) -> None:
        while not self._is_stopping:
            watchdog.beat()
            for key, _ in self._selector.select(timeout=1.0):
                with _contained():
                    self._look(key.fileobj)
            with _contained():
                self._drop_overdue()

    def _look(self, ready: object) -> None:
        if not isinstance(ready, socket.socket):
            return
        if ready is self._woken:
            self._woken.recv(4096)
            self._take_steps()
        elif ready in self._listening:
            for _ in range(_ACCEPTED_AT_ONCE):
                if not self._accept(ready):
                    break
        elif ready in self._waiting:
            self._hear(self._waiting[ready])

    def _drop_overdue(self) -> None:
        oldest = time.monotonic() - self._limits.request_s
        for waiting in [each for each in self._waiting.values() if each.since < oldest]:
            with contextlib.suppress(OSError):
                if what := waiting.unfinished():
                    self._say(
                        waiting.address,
                        f"no whole {what} in {self._limits.request_s:g} s (limits.request_s); "
                        "look for a stall of the sender or of the network",
                    )
            self._drop(waiting.socket)

    def _accept(self, listening: socket.socket) -> bool:
        """Take one connection. Returns whether there may be another."""
        try:
            connection, address = listening.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            # For example, too many open files: a silent connection is evicted.
            log.warning("no connection can be accepted (%s)", error.strerror)
            if self._waiting:
                self._drop(self._most_dispensable())
            else:
                time.sleep(0.1)
            return False

        waiting = self._new(connection, canonical(str(address[0])), listening)
        try:
            self._selector.register(connection, selectors.EVENT_READ)
        except BaseException:
            connection.close()
            raise
        self._waiting[connection] = waiting
        if len(self._waiting) > self._limits.connections:
            self._drop(self._most_dispensable())
        return True

    def _new(self, connection: socket.socket, address: str, listening: socket.socket) -> Waiting:
        context = self._listening[listening].context
        try:
            if context is None:
                return PlainWaiting(connection, address, self._tls_port)
            return TlsWaiting(connection, address, context)
        except BaseException:
            connection.close()
            raise

    def _most_dispensable(self) -> socket.socket:
        """The connection to evict: the oldest of the address with the most waiting connections."""
        crowds = Counter(waiting.address for waiting in self._waiting.values())
        # Among equals the first, which has the oldest connection.
        ((largest, _),) = crowds.most_common(1)
        return next(
            waiting.socket for waiting in self._waiting.values() if waiting.address == largest
        )

    def _hear(self, waiting: Waiting) -> None:
        """The connection has bytes, or has ended."""
        if waiting.computes:
            self._selector.unregister(waiting.socket)
            self._computing.add(waiting.socket)
            self._handshakes.begin(waiting, self._limits.request_bytes)
            return
        self._conclude(waiting, partial(waiting.served, self._limits.request_bytes))

    def _take_steps(self) -> None:
        """Continue connections whose handshake step has been computed."""
        for waiting, step in self._handshakes.finished():
            self._computing.discard(waiting.socket)
            if waiting.socket not in self._waiting:
                # The connection was dropped meanwhile.
                waiting.socket.close()
                continue

            self._selector.register(waiting.socket, selectors.EVENT_READ)
            with _contained():
                self._conclude(waiting, step.result)

    def _conclude(self, waiting: Waiting, served: Callable[[], Served | None]) -> None:
        """Serve the connection, let it wait on, or end it, depending on `served`."""
        try:
            connection = served()
        except NoRequestError as error:
            self._say(waiting.address, error.what, str(error))
            waiting.say_abort(self._limits.request_bytes)
            self._drop(waiting.socket)
            return
        except HandshakeError as error:
            self._say(waiting.address, str(error), f"the TLS handshake failed: {error}")
            self._drop(waiting.socket)
            return
        except OSError:
            self._drop(waiting.socket)
            return
        if connection is None:
            return

        self._selector.unregister(waiting.socket)
        del self._waiting[waiting.socket]
        try:
            PlainConnection(waiting.socket).bound_waits(self._limits.pdu_s)
            self._serve(connection, waiting.address)
        except BaseException:
            waiting.socket.close()
            raise

    def _say(self, address: str, trouble: str, words: str = "") -> None:
        """Log a connection without an association: the same trouble of an address once a minute."""
        self._refused(address, words or trouble)
        now = time.monotonic()
        if now < self._said.get((address, trouble), 0.0) + _QUIET_S:
            return
        if len(self._said) >= _REMEMBERED_TROUBLES:
            self._said.clear()
        self._said[address, trouble] = now
        log.warning("connection from %s ended: %s", address, words or trouble)

    def _drop(self, connection: socket.socket) -> None:
        del self._waiting[connection]
        if connection not in self._computing:
            self._selector.unregister(connection)
        elif self._handshakes.withdraw(connection):
            self._computing.discard(connection)
        else:
            # A thread is working on it: it is closed afterwards.
            return
        connection.close()


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """The loop's only catch-all: a fault of one connection must not stop the listener."""
    try:
        yield
    except Exception:
        log.exception("a connection could not be served")


def _listening(port: Port) -> socket.socket:
    """A socket that listens at `port`. Raises OSError."""
    is_ipv6 = ":" in port.host

    try:
        listening = socket.create_server(
            (port.host, port.number),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        error.filename = f"{port.host}:{port.number}"
        raise

    listening.setblocking(False)
    return listening
