"""The receive role's network side: Verification and Storage SCP. What it answers with 0x0000 is durable.

Of a C-STORE the command set is looked at; the data set is never decoded here, only written behind a file meta
information of our own, piece by piece as it arrives (direct.py). What direct.py leaves to pynetdicom is taken from
memory (`request.DataSet`), not from its STORE_RECV_CHUNKED_DATASET: there a full disk raises inside the library's
reader, which aborts the association where PS3.4 B.2.3 has 0xA700, and leaves its temporary file behind; it writes and
copies each object twice; and its file meta information names no source. What a peer may make us hold is bounded by the
listener.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, cast
from weakref import WeakKeyDictionary

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE

from daemon.config import Config
from daemon.dicom.pdu import StoreRequest, file_meta
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAXIMUM_PDU_BYTES,
    Priority,
    Status,
    accepted_contexts,
    lenient_headers,
    printable,
    quiet_reactors,
    report_contexts,
)
from daemon.ledger import Arrival, Ledger
from daemon.receive import direct
from daemon.receive.access import Caller, Gate
from daemon.receive.commitment_reports import take_report
from daemon.receive.intake import Entry, Intake, NoRoomError
from daemon.receive.listener import Listener, PeerSocket
from daemon.spool import BytesLike, Spool

log = logging.getLogger("pleura.receive")

_MAXIMUM_ASSOCIATIONS = 64
_SMALL_MESSAGE_BYTES = (
    4 << 20
)  # all but C-STORE: a commitment report on the 200 objects of one question has 30 KB
_IDLE_S = 60.0  # an association without a message
_NOWHERE_S = 60.0  # without an object that became whole: then it may have to give way
_ROOM_S = 2.0  # how long one that gives way may take to be gone
_DRAIN_S = 20.0  # what is being received when we are told to stop
_GIVE_UP_S = 5.0  # after that
_UID = re.compile(r"[0-9.]{1,64}")
_URGENCY = {"stat": 0, "routine": 1}  # peers[].priority -> Arrival.priority


@dataclass
class _Conversation:
    """One association, as long as it lasts."""

    caller: Caller
    calling: str  # its AE title, as a log may show it
    address: str
    began: float
    got_on: float  # when its last object became whole, or it began
    stored: int = 0
    refused: int = 0


class Receiver:
    """The listening node: start() returns when it listens, stop() when what it was receiving is answered."""

    def __init__(self, config: Config, ledger: Ledger, spool: Spool) -> None:
        self._address = (config.host, config.port)
        self._reserve_bytes = config.spool_reserve_mb * 1024 * 1024
        self._ledger = ledger
        self._spool = spool
        self._gate = Gate(config.ae_title, config.peers, config.committing())
        self._conversations: WeakKeyDictionary[Association, _Conversation] = WeakKeyDictionary()
        self._contexts = {
            True: accepted_contexts(),
            False: report_contexts(),
        }  # for those who may store, and others
        self._while_running = ExitStack()
        self._ae = AE(config.ae_title)
        self._ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_associations = _MAXIMUM_ASSOCIATIONS
        self._ae.maximum_pdu_size = MAXIMUM_PDU_BYTES
        self._ae.network_timeout = _IDLE_S

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: host and port cannot be listened on.
        """
        server = self._ae.make_server(
            self._address,
            contexts=report_contexts(),  # copied for each association, which costs; _on_requested() replaces them
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_C_ECHO, lambda _: Status.SUCCESS.value),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_N_EVENT_REPORT, self._on_event_report),
                (evt.EVT_PDU_RECV, self._on_pdu),
                (evt.EVT_DIMSE_SENT, self._on_answered),
                (evt.EVT_CONN_CLOSE, self._on_closed),
            ],
        )
        self._while_running.enter_context(lenient_headers())
        self._while_running.enter_context(quiet_reactors())
        self._intake = Intake(self._ledger, self._spool, self._reserve_bytes)
        self._listener = Listener(server, _MAXIMUM_ASSOCIATIONS)
        self._listener.start()

    def stop(self) -> None:
        """No new association; what is being received is finished and answered, then the associations end."""
        self._listener.stop()
        deadline = time.monotonic() + _DRAIN_S
        while (
            running := self._ae.active_associations
        ) and time.monotonic() < deadline + _GIVE_UP_S:
            for association in running:
                if time.monotonic() > deadline or not _unanswered(association):
                    association.abort(block=False)
            time.sleep(0.01)
        self._intake.stop()
        self._while_running.close()

    def _on_requested(self, event: Event) -> None:
        association = event.assoc
        request = cast(A_ASSOCIATE, association.requestor.primitive)
        address = str(association.requestor.address)
        called, calling = (
            str(request.called_ae_title).strip(),
            str(request.calling_ae_title).strip(),
        )
        verdict = self._gate.admit(called, calling, address)
        if isinstance(verdict, Caller):
            association.acceptor.supported_contexts = self._contexts[verdict.stores]
            now = time.monotonic()
            conversation = _Conversation(
                verdict, printable(verdict.ae_title, 16), address, now, now
            )
            self._make_room(conversation)
            self._conversations[association] = conversation
            direct.install(association, partial(self._begin, conversation))
            return
        log.warning(
            "association from %r at %s to %r rejected: %d/%d/%d",
            printable(calling),
            address,
            printable(called),
            *verdict,
        )
        association.acse.send_reject(*verdict)
        association.kill()

    def _make_room(self, newcomer: _Conversation) -> None:
        """Where no place is left, and one AE has most of them, that of its associations which got nowhere gives way.

        Of an honest sender of that many, it costs one object's new beginning; without it, who lets bytes drip at all
        places would keep out everybody else for as long as it likes.
        """
        running = self._ae.active_associations  # the newcomer's is one of them
        if len(running) <= _MAXIMUM_ASSOCIATIONS:
            return
        held = [
            (told, one) for one in running if (told := self._conversations.get(one)) is not None
        ]
        crowds = Counter((told.calling, told.address) for told, _ in held)
        largest = max(crowds, key=crowds.__getitem__, default=("", ""))
        if crowds[largest] <= _MAXIMUM_ASSOCIATIONS // 2 or largest == (
            newcomer.calling,
            newcomer.address,
        ):
            return
        theirs = [(told, one) for told, one in held if (told.calling, told.address) == largest]
        told, association = min(theirs, key=lambda pair: pair[0].got_on)
        connection = _connection(association)
        if connection is None or time.monotonic() < told.got_on + _NOWHERE_S:
            return
        log.warning(
            "association from %s at %s ended: no place is left, and it has most",
            told.calling,
            told.address,
        )
        connection.shutdown(socket.SHUT_RDWR)
        until = time.monotonic() + _ROOM_S
        while (
            len(self._ae.active_associations) > _MAXIMUM_ASSOCIATIONS and time.monotonic() < until
        ):
            time.sleep(0.01)

    def _on_store(self, event: Event) -> int:
        """A C-STORE that pynetdicom has taken. Never raises: it would answer 0xC211, which tells a sender nothing."""
        message = cast(C_STORE, event.request)
        request = StoreRequest(
            cast(int, message.MessageID),
            str(message.AffectedSOPClassUID),
            str(message.AffectedSOPInstanceUID),
            message.Priority,
        )
        incoming = self._begin(
            self._conversations[event.assoc],
            request,
            str(event.context.abstract_syntax),
            str(event.context.transfer_syntax),
        )
        with cast(BytesIO, message.DataSet).getbuffer() as data_set:
            incoming.write(data_set)
        return incoming.end()

    def _begin(
        self, conversation: _Conversation, request: StoreRequest, abstract: str, syntax: str
    ) -> _Incoming:
        return _Incoming(conversation, request, abstract, syntax, self._intake.begin())

    def _on_event_report(self, event: Event) -> tuple[int, None]:
        conversation = self._conversations.get(
            event.assoc
        )  # gone, if the archive did not wait for the answer
        return take_report(
            event, conversation.caller.destinations if conversation else (), self._ledger
        )

    def _on_pdu(self, event: Event) -> None:
        """What pynetdicom collects in memory, and is not known to be a C-STORE, is small or ends the association."""
        message, connection = event.assoc.dimse.message, _connection(event.assoc)
        if message is None or connection is None or isinstance(message, C_STORE_RQ):
            return
        parts = [
            part for part in (message.encoded_command_set, message.data_set) if part is not None
        ]
        if sum(len(part.getbuffer()) for part in parts) > _SMALL_MESSAGE_BYTES:
            log.warning(
                "connection ended: a message of more than %d bytes that is no C-STORE",
                _SMALL_MESSAGE_BYTES,
            )
            connection.spoil()
            connection.shutdown(socket.SHUT_RDWR)  # whoever says no more is to notice too

    def _on_answered(self, event: Event) -> None:
        # A message that is arriving meanwhile is counted from its next PDU on; the bound stays one.
        connection = _connection(event.assoc)
        if connection is not None and event.assoc.dimse.msg_queue.empty():
            connection.unanswered_bytes = 0

    def _on_closed(self, event: Event) -> None:
        if (
            event.assoc.requestor.primitive is None
        ):  # it never asked: end the wait for that (ACSE timeout) now
            event.assoc.dul.to_user_queue.put(cast(Any, None))
        conversation = self._conversations.pop(event.assoc, None)
        if conversation is not None:
            log.info(
                "association from %s at %s ended after %.1f s: %d stored, %d refused",
                conversation.calling,
                conversation.address,
                time.monotonic() - conversation.began,
                conversation.stored,
                conversation.refused,
            )


class _Incoming:
    """One C-STORE on its way in (direct.Incoming). A refused one takes the rest of its data set, and keeps nothing."""

    def __init__(
        self,
        conversation: _Conversation,
        request: StoreRequest,
        abstract_syntax: str,
        syntax: str,
        entry: Entry,
    ) -> None:
        self._conversation = conversation
        self._request = request
        self._syntax = syntax
        self._entry = entry
        self._calling = conversation.calling
        self._size_bytes = 0
        self._status = Status.SUCCESS
        if request.sop_class_uid != abstract_syntax:
            self._refuse(
                Status.SOP_CLASS_NOT_SUPPORTED, "its presentation context is for another SOP class"
            )
        elif not _UID.fullmatch(request.sop_instance_uid):
            self._refuse(Status.INVALID_OBJECT_INSTANCE, "1 to 64 digits and dots wanted")

    def write(self, *chunks: BytesLike) -> None:
        """The next bytes of its data set. Never raises."""
        if self._status != Status.SUCCESS:
            return
        if not self._size_bytes:
            implementation = (IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME)
            chunks = (
                file_meta(self._request, self._syntax, implementation, self._calling),
                *chunks,
            )
        self._size_bytes += sum(len(chunk) for chunk in chunks)
        self._carefully(lambda: self._entry.write(*chunks))

    def end(self) -> int:
        """Keep it, if nothing was wrong. Returns the status to answer with. Never raises."""
        if self._status == Status.SUCCESS:
            self._carefully(lambda: self._entry.keep(self._arrival))
        self._conversation.got_on = time.monotonic()
        if self._status == Status.SUCCESS:
            self._conversation.stored += 1
            log.info(
                "stored %s from %s, %d bytes",
                self._request.sop_instance_uid,
                self._calling,
                self._size_bytes,
            )
        else:
            self._conversation.refused += 1
        return self._status.value

    def drop(self) -> None:
        """Its association has ended before it. Never raises."""
        self._carefully(self._entry.drop)

    def _arrival(self, name: str) -> Arrival:
        request, priority = (
            self._request,
            _urgency(self._request.priority, self._conversation.caller),
        )
        uids = (request.sop_class_uid, request.sop_instance_uid, self._syntax)
        return Arrival(name, *uids, self._calling, "dimse", priority, self._size_bytes)

    def _carefully(self, step: Callable[[], None]) -> None:
        try:
            step()
        except NoRoomError as error:
            self._refuse(Status.OUT_OF_RESOURCES, str(error))
        except Exception:  # the handler's one catch-all
            log.exception("a C-STORE could not be processed")
            self._status = Status.PROCESSING_FAILURE

    def _refuse(self, status: Status, why: str) -> None:
        uid = self._request.sop_instance_uid
        shown = uid if _UID.fullmatch(uid) else "an instance without a UID"
        log.warning("refused %s from %s with 0x%04X: %s", shown, self._calling, status, why)
        self._status = status


def _connection(association: Association) -> PeerSocket | None:
    transport = association.dul.socket
    connection = transport.socket if transport is not None else None
    return connection if isinstance(connection, PeerSocket) else None


def _unanswered(association: Association) -> bool:
    connection = _connection(association)
    return connection is not None and connection.unanswered_bytes > 0


def _urgency(priority: int, caller: Caller) -> int:
    """The message's own priority, then the peer's: 0 stat, 1 routine, 2 low."""
    if priority == Priority.HIGH:
        return 0
    return max(_URGENCY[caller.priority], 2 if priority == Priority.LOW else 0)
