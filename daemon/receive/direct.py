"""C-STOREs straight from the socket to the disk, beneath pynetdicom.

pynetdicom polls in two threads per association, collects a data set in memory and copies it several times on the way.
Here its own thread, when it asks whether there is something to read, takes C-STOREs off the wire itself: fragments go
to the file as they arrive, and the answer goes out at once. Whatever else comes is left to pynetdicom untouched:
associations, C-ECHO, releases, aborts, and each C-STORE-RQ whose command set is not as the standard has it.

It rests on what pynetdicom 3.0.4 does inside; with any other version all goes through pynetdicom.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from mmap import mmap
from typing import Protocol

import pynetdicom
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class
from pynetdicom.transport import AssociationSocket

from daemon.dicom.pdu import (
    A_ABORT_BY_PROVIDER,
    P_DATA_TF,
    PDU_HEADER_BYTES,
    SMALLEST_PDU_BYTES,
    Fragment,
    MalformedError,
    StoreRequest,
    fragments,
    store_request,
    store_response,
)
from daemon.receive.listener import PDU_LIMIT_BYTES, PeerSocket

log = logging.getLogger("pleura.receive")

_TESTED = "3.0.4"
_WRITTEN_AT_ONCE_BYTES = 1 << 20
_WRITTEN_AT_ONCE_PARTS = 1000  # IOV_MAX is 1024
_COMMAND_LIMIT_BYTES = (
    64 * 1024
)  # of PDUs that do not yet complete a command set; a C-STORE-RQ's has about 150


class Incoming(Protocol):
    """One object that is arriving. Nothing here raises: what goes wrong is in the status."""

    def write(self, *chunks: memoryview) -> None:
        """The next bytes of its data set."""

    def end(self) -> int:
        """The data set is complete: keep it. Returns the status to answer with."""

    def drop(self) -> None:
        """It will not become complete."""


Begin = Callable[
    [StoreRequest, str, str], Incoming
]  # request, abstract and transfer syntax of its context


def install(association: Association, begin: Begin) -> None:
    """From its establishment on, C-STOREs of `association` go to what `begin` makes of each request."""
    plain = association.dul.socket
    if (
        pynetdicom.__version__ == _TESTED
        and plain is not None
        and isinstance(plain.socket, PeerSocket)
    ):
        association.dul.socket = _StoreTransport(plain, plain.socket, begin)


class _StoreTransport(AssociationSocket):
    """pynetdicom's socket, which answers `ready` only for what is not ours to take."""

    def __init__(self, plain: AssociationSocket, connection: PeerSocket, begin: Begin) -> None:
        self.__dict__ = (
            plain.__dict__
        )  # it takes the other's place: one state, however long that is still in use
        self._peer = connection
        self._begin = begin
        self._contexts: dict[int, tuple[str, str]] | None = None
        self._buffer: memoryview | None = None

    @property
    def ready(self) -> bool:
        """Whether there is something for pynetdicom to read. Called by its thread, again and again."""
        if self._is_connected and self._peer.has_unread:
            return True
        if not super().ready:
            return False
        if self.assoc.dul.state_machine.current_state != "Sta6":
            return True  # no association
        if not self.assoc.dimse.msg_queue.empty():
            return False  # who does not wait for an answer waits here, not in our memory (PS3.7 D.3.3.3: one at a time)
        if self.assoc.dimse.message is not None:
            return True  # pynetdicom is in the middle of a message
        if self._contexts is None:
            self._contexts = self._storage_contexts()
        reactor = (
            self.assoc._reactor_checkpoint
        )  # while it is cleared, pynetdicom's other thread does not poll
        reactor.clear()
        try:
            while taken := self._take(self._contexts):
                pass
            return taken is False
        except MalformedError as error:
            log.warning("association ended: the peer sent %s", error)
            self._peer.spoil()
            with contextlib.suppress(OSError):
                self._peer.sendall(A_ABORT_BY_PROVIDER)
        except OSError:
            self._peer.spoil()  # pynetdicom reads that as the end of the connection
        except Exception:  # the loop's one catch-all: this association ends, the others go on
            log.exception("association ended: a message could not be taken")
            self._peer.spoil()
        finally:
            reactor.set()
        return True

    def close(self) -> None:
        """As pynetdicom's; what has ended is garbage for a while, and its buffer must not be."""
        super().close()
        self._buffer = None

    def _storage_contexts(self) -> dict[int, tuple[str, str]]:
        """Context ID -> abstract and transfer syntax, of the contexts whose C-STOREs are taken here."""
        if 0 < (self.assoc.requestor.maximum_length or 0) < SMALLEST_PDU_BYTES:
            return {}
        return {
            context.context_id: (str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for context in self.assoc.accepted_contexts
            if context.context_id is not None
            and uid_to_service_class(str(context.abstract_syntax)) is StorageServiceClass
        }

    def _take(self, contexts: dict[int, tuple[str, str]]) -> bool | None:
        """Take one C-STORE and answer it. False: what comes next is pynetdicom's to read; None: it has to act first."""
        opened = self._peer.begin_pdu(self._pynetdicom_waits)
        if opened is None:
            return None
        command, held_bytes = bytearray(), 0
        while True:  # it may come in several fragments (PS3.8 E.2)
            body = self._body(opened, 0)
            if body is None:
                return False
            parts = fragments(body)
            if not held_bytes:
                if not parts:
                    return True  # no PDV, no message (PS3.8 9.3.5 wants one at least)
                context_id = parts[0].context_id
            rest = _after_command(command, context_id, parts)
            if rest is not None:
                break
            self._peer.unread(body)
            held_bytes += len(body) + PDU_HEADER_BYTES
            if held_bytes > _COMMAND_LIMIT_BYTES:
                raise MalformedError("a command set without an end")
            opened = self._peer.begin_pdu(self._association_goes_on)
            if opened is None:
                self._peer.spoil()
                return None
        request = store_request(memoryview(command))
        if request is None or context_id not in contexts:
            self._peer.unread(body)
            return False
        self._peer.forget_unread()
        incoming = self._begin(request, *contexts[context_id])
        whole: bool | None = False
        try:
            whole = self._take_data_set(incoming, context_id, rest, len(body))
        finally:
            if not whole:
                incoming.drop()
        if whole:
            self._peer.answer(store_response(context_id, request, incoming.end()))
            self.assoc.dul._idle_timer.restart()  # the peer's silence begins now, however long ours was
        return whole

    def _take_data_set(
        self, incoming: Incoming, context_id: int, parts: list[Fragment], filled: int
    ) -> bool | None:
        """Hand over the data set as it arrives, `parts` first. True: it is complete; else as _take()."""
        waiting: list[memoryview] = []
        while True:
            for part in parts:
                if (
                    part.of_command
                    or part.context_id != context_id
                    or (part.last and part is not parts[-1])
                ):
                    raise MalformedError("another message inside a data set")
                waiting.append(part.value)
            last = bool(parts) and parts[-1].last
            if last or filled >= _WRITTEN_AT_ONCE_BYTES or len(waiting) >= _WRITTEN_AT_ONCE_PARTS:
                incoming.write(*waiting)
                waiting.clear()
                filled = 0
            if last:
                return True
            opened = self._peer.begin_pdu(self._association_goes_on)
            if opened is None:
                self._peer.spoil()
                return None
            body = self._body(opened, filled)
            if body is None:
                return False
            parts = fragments(body)
            filled += len(body)

    def _body(self, opened: tuple[int, int], at: int) -> memoryview | None:
        """The body of the PDU that was begun, in the buffer from `at` on; None, and it is unread, if it has no data."""
        self.assoc.dul._idle_timer.restart()
        pdu_type, size = opened
        if pdu_type != P_DATA_TF:
            self._peer.unread()
            return None
        if self._buffer is None:
            # Pages of its own: only what is used is taken, and it goes back when the connection is closed.
            self._buffer = memoryview(mmap(-1, _WRITTEN_AT_ONCE_BYTES + PDU_LIMIT_BYTES))
        body = self._buffer[at : at + size]
        self._peer.read_body(body)
        return body

    def _pynetdicom_waits(self) -> bool:
        """Neither has it anything to send, nor has the peer been silent for too long."""
        return self.assoc.dul.to_provider_queue.empty() and not self.assoc.dul.idle_timer_expired()

    def _association_goes_on(self) -> bool:
        dul = self.assoc.dul
        ending = any(isinstance(one, A_ABORT | A_P_ABORT) for one in [*dul.to_provider_queue.queue])
        return not ending and not dul.idle_timer_expired()


def _after_command(
    command: bytearray, context_id: int, parts: list[Fragment]
) -> list[Fragment] | None:
    """Add to `command` what of it is in `parts`. Returns what follows its last fragment, None where that is to come.

    What does not belong there ends the association: pynetdicom would collect all that follows, in memory.
    """
    for number, part in enumerate(parts, start=1):
        if not part.of_command or part.context_id != context_id:
            raise MalformedError("another message inside a command set, or a data set before it")
        command += part.value
        if part.last:
            return parts[number:]
    return None
