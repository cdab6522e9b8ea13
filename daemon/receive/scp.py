"""The receive role's network side:

Verification and Storage SCP. An object answered with 0x0000 is durable.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from daemon import watchdog
from daemon.audit import Alerts
from daemon.config import Config
from daemon.dicom import negotiation
from daemon.dicom.acceptor import Association, End, Limits, Rejection
from daemon.dicom.negotiation import Request, escaped
from daemon.ledger import Ledger
from daemon.receive.access import AccessList
from daemon.receive.connections import Served
from daemon.receive.intake import Intake
from daemon.receive.listener import Listener, Port
from daemon.receive.roster import Roster
from daemon.receive.session import Session
from daemon.spool import Spool
from daemon.tls import PeerCertificate, node_context

log = logging.getLogger("pleura.receive")


class Receiver:
    """The listening node: start() returns when it listens, stop() when the messages in hand are
    answered.
    """

    def __init__(
        self, config: Config, ledger: Ledger, spool: Spool, limits: Limits | None = None
    ) -> None:
        """`limits`: by default from the settings.

        Raises:
            TlsError: the node's certificate, its key or the trusted certificates cannot be used.
        """
        self.limits = limits or limits_of(config)
        self._ledger = ledger

        self._access = _access_list(config, self.limits)
        self._intake = Intake(ledger, spool, config.spool_reserve_mb * 1024 * 1024)
        self._roster = Roster(self.limits)
        self._alerts = Alerts(ledger)
        self._listener = Listener(_ports(config), self.limits, self._serve, self._alerts.refuse)

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: a host and port cannot be listened on.
        """
        self._listener.start()
        self._alerts.start()

    def take(self, config: Config) -> None:
        """Use new settings for new associations.

        An open association keeps its caller and its limits. The reserve of room changes at once,
        because it protects the disk.
        """
        self.limits = limits_of(config)
        self._access = _access_list(config, self.limits)
        self._intake.reserve(config.spool_reserve_mb)
        self._roster.take(self.limits)
        self._listener.take(self.limits)

    def stop(self) -> None:
        """Accept no new association.

        Messages in hand are finished and answered, then their associations end.
        """
        self._listener.stop()
        self._roster.stop()
        self._intake.stop()
        self._alerts.stop()

    @property
    def associations(self) -> int:
        """How many there are now."""
        return len(self._roster)

    @property
    def waiting_connections(self) -> int:
        """How many connections have not asked for an association."""
        return self._listener.waiting

    def is_alive(self) -> bool:
        """Whether connections are still accepted."""
        return self._listener.is_alive()

    def _serve(self, connection: Served, address: str) -> None:
        """Give a connection with an association request its thread."""

        def admit(request: Request, address: str) -> Session | Rejection:
            return self._admit(request, address, connection.certificate)

        association = Association(connection, address, self.limits, admit)
        if not self._roster.enter(association, self._run):
            connection.close()
            self._alerts.refuse(address, "ended: no thread is free for its association")

    def _run(self, association: Association) -> None:
        """The thread of one association."""
        began = time.monotonic()
        try:
            with watchdog.watched(f"association from {association.address}"):
                end = association.run()
            _log_end(association, end, time.monotonic() - began)
            if association.rejection is not None:
                self._alerts.refuse(association.address, end.why)
        finally:
            if isinstance(association.session, Session):
                association.session.close()
            self._roster.leave(association)
            association.close()

    def _admit(
        self, request: Request, address: str, certificate: PeerCertificate | None
    ) -> Session | Rejection:
        rejected = negotiation.protocol_rejection(request)
        if rejected is not None:
            return Rejection(rejected, _unusual(request))

        called = negotiation.ae_title(request.called_ae_title)
        calling = negotiation.ae_title(request.calling_ae_title)
        caller = self._access.admit(called, calling, address, certificate)
        if isinstance(caller, Rejection):
            return caller

        session = Session(caller, address, self._intake, self._ledger)
        if full := self._roster.take_slot(session):
            return Rejection(negotiation.LOCAL_LIMIT_EXCEEDED, full)
        return session


def _ports(config: Config) -> list[Port]:
    """The plain port and the TLS port, if the settings have them. Raises TlsError."""
    ports = []
    if config.port is not None:
        ports.append(Port(config.host, config.port))
    if config.tls is not None:
        ports.append(Port(config.host, config.tls.port, node_context(config.tls)))
    return ports


def _access_list(config: Config, limits: Limits) -> AccessList:
    return AccessList(config.ae_title, config.peers, config.committing(), limits.associations)


def limits_of(config: Config) -> Limits:
    """The limits that the settings allow."""
    ours = config.limits
    return replace(
        Limits(),
        idle_s=ours.idle_s,
        request_s=ours.request_s,
        pdu_s=ours.pdu_s,
        associations=ours.associations,
    )


def _log_end(association: Association, end: End, took_s: float) -> None:
    """One line for each association that ends, and for each that is rejected."""
    session = association.session
    if isinstance(session, Session):
        counts = str(session.counts)
        if session.declined and not session.counts.stored:
            counts += f"; {session.refusals()}"
        level = logging.INFO if end.is_orderly else logging.WARNING
        log.log(
            level,
            "association from %s at %s ended after %.1f s: %s; %s",
            session.caller.ae_title,
            session.address,
            took_s,
            end.why,
            counts,
        )
        return

    request = association.request
    if request is None:
        log.warning("connection from %s ended: %s", association.address, end.why)
        return
    log.warning(
        "association from '%s' at %s to '%s' %s",
        _shown(request.calling_ae_title),
        association.address,
        _shown(request.called_ae_title),
        end.why,
    )


def _shown(ae_title: bytes) -> str:
    """16 bytes for the log: without padding blanks, other unprintable bytes escaped."""
    return escaped(ae_title.rstrip(b" "))


def _unusual(request: Request) -> str:
    """The subject of a protocol rejection, and the remedy."""
    if request.application_context != negotiation.APPLICATION_CONTEXT:
        return (
            f"application context '{request.application_context[:64]}' found, "
            f"{negotiation.APPLICATION_CONTEXT} wanted; this peer speaks another protocol"
        )
    return (
        f"protocol version 0x{request.protocol_version:04X} found, bit 0 wanted; "
        "this peer speaks another version of DICOM"
    )
