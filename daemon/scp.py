"""The receive role's network side: Verification and Storage SCP. What it answers with 0x0000 is durable.

Of a C-STORE the command set is looked at; the data set is never decoded here, only written behind a file meta
information of our own. It is taken from memory (`request.DataSet`), not from pynetdicom's STORE_RECV_CHUNKED_DATASET:
there a full disk raises inside the library's reader, which aborts the association where PS3.4 B.2.3 has 0xA700, and
leaves its temporary file behind; it writes and copies each object twice; and its file meta information names no source.
What one peer may make us hold is bounded by the listener instead.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast
from weakref import WeakKeyDictionary

from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE

from daemon.config import Config, Peer
from daemon.dimse import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAXIMUM_PDU_BYTES,
    Priority,
    Status,
    accepted_contexts,
    lenient_headers,
    printable,
    quiet_reactors,
)
from daemon.intake import Intake, NoRoomError
from daemon.ledger import Arrival, Ledger
from daemon.listener import Listener, PeerSocket
from daemon.spool import Spool

log = logging.getLogger("pleura.receive")

_MAXIMUM_ASSOCIATIONS = 64
_IDLE_S = 60.0  # an association without a message
_DRAIN_S = 20.0  # what is being received when we are told to stop
_GIVE_UP_S = 5.0  # after that
_ADDRESSES_S = 60.0  # how long a peer's host name stays resolved
_UID = re.compile(r"[0-9.]{1,64}")
_URGENCY = {"stat": 0, "routine": 1}  # peers[].priority -> Arrival.priority

# A-ASSOCIATE-RJ: result, source, reason (PS3.8 Table 9-21). For an address DICOM has no reason of its own.
Rejection = tuple[int, int, int]
_ADDRESS_NOT_ALLOWED: Rejection = (1, 1, 1)
_CALLING_AE_UNKNOWN: Rejection = (1, 1, 3)
_CALLED_AE_UNKNOWN: Rejection = (1, 1, 7)


class Gate:
    """Who may associate: `peers` of the configuration; where none is named, whoever is on this machine."""

    def __init__(self, ae_title: str, peers: tuple[Peer, ...]) -> None:
        self._ae_title = ae_title
        self._peers = peers
        self._resolved: dict[str, tuple[float, frozenset[str]]] = {}

    def admit(self, called: str, calling: str, address: str) -> Peer | Rejection:
        """The peer that this is, or why it is rejected. AE titles without surrounding blanks."""
        if called != self._ae_title:
            return _CALLED_AE_UNKNOWN
        here = _normal(address)
        if not self._peers:
            loopback = ipaddress.ip_address(here).is_loopback
            return Peer.model_construct(ae_title=calling, host=here) if loopback else _ADDRESS_NOT_ALLOWED
        named = [peer for peer in self._peers if peer.ae_title == calling]
        if not named:
            return _CALLING_AE_UNKNOWN
        for peer in named:
            if peer.host is None or here in self._addresses(peer.host):
                return peer
        return _ADDRESS_NOT_ALLOWED

    def _addresses(self, host: str) -> frozenset[str]:
        until, known = self._resolved.get(host, (0.0, frozenset()))
        if time.monotonic() < until:
            return known
        try:
            known = frozenset(_normal(str(found[4][0])) for found in socket.getaddrinfo(host, None))
        except OSError:  # the name service is away: what it said last still holds
            log.warning("peers: host %s cannot be resolved", host)
        self._resolved[host] = (time.monotonic() + _ADDRESSES_S, known)
        return known


def _normal(address: str) -> str:
    """One spelling for each address: an IPv4 peer on a dual-stack socket looks like ::ffff:10.0.4.11."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


@dataclass
class _Conversation:
    """One association, as long as it lasts."""

    peer: Peer
    address: str
    began: float
    stored: int = 0
    refused: int = 0


class Receiver:
    """The listening node: start() returns when it listens, stop() when what it was receiving is answered."""

    def __init__(self, config: Config, ledger: Ledger, spool: Spool) -> None:
        self._address = (config.host, config.port)
        self._reserve_bytes = config.spool_reserve_mb * 1024 * 1024
        self._ledger = ledger
        self._spool = spool
        self._gate = Gate(config.ae_title, config.peers)
        self._conversations: WeakKeyDictionary[Association, _Conversation] = WeakKeyDictionary()
        self._while_running = ExitStack()
        self._ae = AE(config.ae_title)
        self._ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_associations = _MAXIMUM_ASSOCIATIONS
        self._ae.maximum_pdu_size = MAXIMUM_PDU_BYTES
        self._ae.network_timeout = _IDLE_S

    def start(self) -> None:
        """Listen, and sweep from the spool what an earlier crash has left.

        Raises:
            OSError: host and port cannot be listened on.
        """
        server = self._ae.make_server(
            self._address,
            contexts=accepted_contexts(),
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_C_ECHO, lambda _: Status.SUCCESS.value),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_DIMSE_SENT, self._on_answered),
                (evt.EVT_CONN_CLOSE, self._on_closed),
            ],
        )
        self._while_running.enter_context(lenient_headers())
        self._while_running.enter_context(quiet_reactors())
        self._intake = Intake(self._ledger, self._spool, self._reserve_bytes)
        self._listener = Listener(server, _MAXIMUM_ASSOCIATIONS)
        self._listener.start()
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def stop(self) -> None:
        """No new association; what is being received is finished and answered, then the associations end."""
        self._listener.stop()
        deadline = time.monotonic() + _DRAIN_S
        while (running := self._ae.active_associations) and time.monotonic() < deadline + _GIVE_UP_S:
            for association in running:
                if time.monotonic() > deadline or not _unanswered(association):
                    association.abort(block=False)
            time.sleep(0.01)
        self._intake.stop()
        self._while_running.close()

    def _sweep(self) -> None:
        try:
            count = self._spool.sweep(self._ledger.known_spool_names)
        except Exception:
            log.exception("the spool could not be swept; the next start tries again")
            return
        if count:
            log.info("swept %d spool files that no commit had followed", count)

    def _on_requested(self, event: Event) -> None:
        association = event.assoc
        request = cast(A_ASSOCIATE, association.requestor.primitive)
        address = str(association.requestor.address)
        called, calling = str(request.called_ae_title).strip(), str(request.calling_ae_title).strip()
        verdict = self._gate.admit(called, calling, address)
        if isinstance(verdict, Peer):
            self._conversations[association] = _Conversation(verdict, address, time.monotonic())
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

    def _on_store(self, event: Event) -> int:
        """C-STORE. Never raises: pynetdicom would answer 0xC211, which tells a sender nothing."""
        try:
            status = self._store(event)
        except Exception:  # the handler's one catch-all
            log.exception("a C-STORE could not be processed")
            status = Status.PROCESSING_FAILURE
        conversation = self._conversations[event.assoc]
        conversation.stored += status == Status.SUCCESS
        conversation.refused += status != Status.SUCCESS
        return status.value

    def _store(self, event: Event) -> Status:
        request, syntax = cast(C_STORE, event.request), str(event.context.transfer_syntax)
        peer = self._conversations[event.assoc].peer
        calling = printable(peer.ae_title, 16)
        sop_class_uid, sop_instance_uid = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)

        def refuse(status: Status, why: str) -> Status:
            shown = sop_instance_uid if _UID.fullmatch(sop_instance_uid) else "an instance without a UID"
            log.warning("refused %s from %s with 0x%04X: %s", shown, calling, status, why)
            return status

        if sop_class_uid != event.context.abstract_syntax:
            return refuse(Status.SOP_CLASS_NOT_SUPPORTED, "its presentation context is for another SOP class")
        if not _UID.fullmatch(sop_instance_uid):
            return refuse(Status.INVALID_OBJECT_INSTANCE, "1 to 64 digits and dots wanted")
        meta = _file_meta(request, syntax, calling)
        with cast(BytesIO, request.DataSet).getbuffer() as data_set:
            size_bytes = len(meta) + len(data_set)

            def arrival(name: str) -> Arrival:
                priority = _urgency(request.Priority, peer)
                return Arrival(name, sop_class_uid, sop_instance_uid, syntax, calling, "dimse", priority, size_bytes)

            try:
                self._intake.take(arrival, meta, data_set)
            except NoRoomError as error:
                return refuse(Status.OUT_OF_RESOURCES, str(error))
        log.info("stored %s from %s, %d bytes", sop_instance_uid, calling, size_bytes)
        return Status.SUCCESS

    def _on_answered(self, event: Event) -> None:
        # A message that is arriving meanwhile is counted from its next PDU on; the bound stays one.
        connection = _connection(event.assoc)
        if connection is not None and event.assoc.dimse.msg_queue.empty():
            connection.unanswered_bytes = 0

    def _on_closed(self, event: Event) -> None:
        if event.assoc.requestor.primitive is None:  # it never asked: end the wait for that (ACSE timeout) now
            event.assoc.dul.to_user_queue.put(cast(Any, None))
        conversation = self._conversations.pop(event.assoc, None)
        if conversation is not None:
            log.info(
                "association from %s at %s ended after %.1f s: %d stored, %d refused",
                printable(conversation.peer.ae_title),
                conversation.address,
                time.monotonic() - conversation.began,
                conversation.stored,
                conversation.refused,
            )


def _connection(association: Association) -> PeerSocket | None:
    transport = association.dul.socket
    connection = transport.socket if transport is not None else None
    return connection if isinstance(connection, PeerSocket) else None


def _unanswered(association: Association) -> bool:
    connection = _connection(association)
    return connection is not None and connection.unanswered_bytes > 0


def _urgency(priority: int, peer: Peer) -> int:
    """The message's own priority, then the peer's: 0 stat, 1 routine, 2 low."""
    if priority == Priority.HIGH:
        return 0
    return max(_URGENCY[peer.priority], 2 if priority == Priority.LOW else 0)


def _file_meta(request: C_STORE, syntax: str, calling_ae_title: str) -> bytes:
    """Preamble and file meta information (PS3.10 7.1) for the data set as it came over the wire."""
    meta = create_file_meta(
        sop_class_uid=cast(UID, request.AffectedSOPClassUID),
        sop_instance_uid=cast(UID, request.AffectedSOPInstanceUID),
        transfer_syntax=UID(syntax),
        implementation_uid=UID(IMPLEMENTATION_CLASS_UID),
        implementation_version=IMPLEMENTATION_VERSION_NAME,
    )
    meta.SourceApplicationEntityTitle = calling_ae_title
    buffer = DicomBytesIO(b"")
    write_file_meta_info(buffer, meta)
    return b"\0" * 128 + b"DICM" + buffer.getvalue()
