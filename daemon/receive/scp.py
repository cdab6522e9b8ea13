"""The receive role's network side: Verification and Storage SCP. What it answers with 0x0000 is durable.

Of a C-STORE the command set is looked at; the data set is never decoded here, only written behind a file meta
information of our own, piece by piece as it arrives.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from daemon.config import Config
from daemon.dicom import negotiation
from daemon.dicom.acceptor import Association, Connection, Context, End, Limits, Rejection
from daemon.dicom.negotiation import ContextResult, Decision, Request, Supported, escaped
from daemon.dicom.part10 import write_file_meta
from daemon.dicom.pdu import CommandSet, StoreRequest
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    VERIFICATION,
    Priority,
    Status,
    reported_classes,
    stored_classes,
)
from daemon.ledger import Arrival, Ledger
from daemon.receive.access import AccessList, Caller
from daemon.receive.commitment_reports import take_report
from daemon.receive.intake import IncomingFile, Intake, NoRoomError
from daemon.receive.listener import Listener
from daemon.spool import Spool

log = logging.getLogger("pleura.receive")

_GIVE_UP_S = 5.0  # after the time to drain, for threads to end
_GIVING_WAY_S = 2.0  # for an association that gives way to be gone
_DECLINED_SHOWN = 8  # declined contexts in one line of the log

_UID = re.compile(r"[0-9.]{1,64}")
_IMPLEMENTATION = (IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME)
_URGENCY = {"stat": 0, "routine": 1}  # peers[].priority -> Arrival.priority
_LOW = 2


class Receiver:
    """The listening node: start() returns when it listens, stop() when the messages in hand are answered."""

    def __init__(
        self, config: Config, ledger: Ledger, spool: Spool, limits: Limits | None = None
    ) -> None:
        """`limits`: default those of the settings."""
        self.limits = limits or limits_of(config)
        self._ledger = ledger
        self._access = AccessList(config.ae_title, config.peers, config.committing())
        self._intake = Intake(ledger, spool, config.spool_reserve_mb * 1024 * 1024)
        self._roster = Roster(self.limits)
        self._listener = Listener((config.host, config.port), self.limits, self._serve)

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: host and port cannot be listened on.
        """
        self._listener.start()

    def stop(self) -> None:
        """Take no new association. Messages in hand are finished and answered, then the associations end."""
        self._listener.stop()
        self._roster.stop()
        self._intake.stop()

    @property
    def associations(self) -> int:
        """How many there are now."""
        return len(self._roster)

    @property
    def waiting_connections(self) -> int:
        """How many connections have not asked for an association."""
        return self._listener.waiting

    def _serve(self, connection: Connection, address: str) -> None:
        """Give a connection that asks for an association its thread."""
        association = Association(connection, address, self.limits, self._admit)
        if not self._roster.enter(association, self._run):
            connection.close()

    def _run(self, association: Association) -> None:
        """The thread of one association."""
        began = time.monotonic()
        try:
            end = association.run()
            _log_end(association, end, time.monotonic() - began)
        finally:
            self._roster.leave(association)
            association.close()

    def _admit(self, request: Request, address: str) -> _Session | Rejection:
        rejected = negotiation.protocol_rejection(request)
        if rejected is not None:
            return Rejection(rejected, _unusual(request))

        called = negotiation.ae_title(request.called_ae_title)
        calling = negotiation.ae_title(request.calling_ae_title)
        caller = self._access.admit(called, calling, address)
        if isinstance(caller, Rejection):
            return caller

        session = _Session(caller, address, self._intake, self._ledger)
        if not self._roster.has_room_for(session):
            return Rejection(
                negotiation.LOCAL_LIMIT_EXCEEDED,
                f"{self.limits.associations} associations are open (limits.associations)",
            )
        return session


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


class Roster:
    """The associations there are, each with its thread, and the rule for when all places are taken."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._running: set[Association] = set()
        self._threads: set[threading.Thread] = set()

    def __len__(self) -> int:
        return len(self._running)

    def enter(self, association: Association, run: Callable[[Association], None]) -> bool:
        """Start the association's thread. False where there are far too many, those that are ending included.

        As many again as may be open are let in, to be told so by a rejection.
        """

        def run_and_forget() -> None:
            try:
                run(association)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run_and_forget, name="association", daemon=True)
        with self._lock:
            if len(self._threads) >= 2 * self._limits.associations:
                return False
            self._running.add(association)
            self._threads.add(thread)
        thread.start()
        return True

    def leave(self, association: Association) -> None:
        """It has ended; its connection may still be closing."""
        with self._lock:
            self._running.discard(association)

    def has_room_for(self, newcomer: _Session) -> bool:
        """Whether there is a place for an association that has entered; one that is open may have to give way.

        When every place is taken and one AE holds more than half, end its least productive association. An honest
        sender re-sends one object; otherwise a slow-drip peer could lock every other sender out.
        """
        if len(self._running) <= self._limits.associations:
            return True
        least_productive = self._least_productive_of_a_crowd(newcomer)
        if least_productive is None:
            return False

        least_productive.cut("every place is taken, and this AE holds most of them")
        deadline = time.monotonic() + _GIVING_WAY_S
        while len(self._running) > self._limits.associations:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _least_productive_of_a_crowd(self, newcomer: _Session) -> Association | None:
        with self._lock:
            running = [*self._running]
        held = [
            (association, association.session)
            for association in running
            if isinstance(association.session, _Session)
        ]
        crowds = Counter(session.origin for _, session in held)
        largest, size = max(crowds.items(), key=lambda crowd: crowd[1], default=(("", ""), 0))
        if size <= self._limits.associations // 2 or largest == newcomer.origin:
            return None

        theirs = [pair for pair in held if pair[1].origin == largest]
        association, session = min(theirs, key=lambda pair: pair[1].productive_at)
        if time.monotonic() < session.productive_at + self._limits.unproductive_s:
            return None
        return association

    def stop(self) -> None:
        """End every association after its message in hand; those that take too long at once."""
        with self._lock:
            running = [*self._running]
        for association in running:
            association.stop()

        deadline = time.monotonic() + self._limits.drain_s
        while self._running and time.monotonic() < deadline:
            time.sleep(0.01)
        with self._lock:
            running, threads = [*self._running], [*self._threads]
        for association in running:
            association.cut(f"this node stops, and waited {self._limits.drain_s:g} s for it")

        deadline = time.monotonic() + _GIVE_UP_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


@dataclass
class _Counts:
    """What one association has brought."""

    stored: int = 0
    refused: int = 0
    echoes: int = 0
    reports: int = 0

    def __str__(self) -> str:
        """In words; only what there was."""
        parts = []
        if self.stored or self.refused:
            parts.append(f"{self.stored} stored, {self.refused} refused")
        if self.echoes:
            parts.append(f"{self.echoes} C-ECHO answered")
        if self.reports:
            parts.append(f"{self.reports} storage commitment reports taken")
        return ", ".join(parts) or "no message came"


@dataclass(eq=False)
class _Session:
    """One admitted peer (daemon.dicom.acceptor.Session)."""

    caller: Caller
    address: str
    intake: Intake
    ledger: Ledger
    counts: _Counts = field(default_factory=_Counts)
    declined: list[Decision] = field(default_factory=list)
    proposed: int = 0
    productive_at: float = field(
        default_factory=time.monotonic
    )  # its last whole object, or its begin

    @property
    def origin(self) -> tuple[str, str]:
        return self.caller.ae_title, self.address

    @property
    def supported(self) -> Mapping[str, Supported]:
        return stored_classes() if self.caller.stores else reported_classes()

    def negotiated(self, decisions: Iterable[Decision]) -> None:
        """Every declined context matters where nothing else is left."""
        answered = [*decisions]
        self.proposed = len(answered)
        self.declined = [each for each in answered if each.result != ContextResult.ACCEPTED]
        if len(self.declined) == self.proposed:
            log.warning(
                "association from %s at %s: %s", self.caller.ae_title, self.address, self.refusals()
            )

    def refusals(self) -> str:
        """Which contexts were declined, and why."""
        if not self.proposed:
            return "it proposed no presentation context, so it can send nothing"
        # A transfer syntax that is not taken is the likelier surprise: many senders propose every SOP class.
        by_surprise = sorted(self.declined, key=lambda each: -each.result)
        words = list(dict.fromkeys(_in_words(each) for each in by_surprise))
        shown = "; ".join(words[:_DECLINED_SHOWN])
        more = "; ..." if len(words) > _DECLINED_SHOWN else ""
        count = len(self.declined)
        which = "every" if count == self.proposed else f"{count} of {self.proposed}"
        return f"declined {which} proposed presentation context(s): {shown}{more}"

    def echo(self, context: Context) -> int:
        if context.abstract_syntax != VERIFICATION:
            return Status.SOP_CLASS_NOT_SUPPORTED
        self.counts.echoes += 1
        return Status.SUCCESS

    def store(self, request: StoreRequest, context: Context) -> _StoredObject:
        return _StoredObject(self, request, context)

    def event_report(self, command: CommandSet, data_set: bytes, context: Context) -> int:
        status = take_report(command, data_set, context, self.caller.destinations, self.ledger)
        self.counts.reports += status == Status.SUCCESS
        return status


class _StoredObject:
    """One C-STORE on its way in (daemon.dicom.acceptor.Incoming). A refused one takes its bytes and keeps none."""

    def __init__(self, session: _Session, request: StoreRequest, context: Context) -> None:
        self._session = session
        self._request = request
        self._transfer_syntax = context.transfer_syntax
        self._calling = session.caller.ae_title
        self._file: IncomingFile | None = None
        self._size_bytes = 0
        self._status = Status.SUCCESS

        if request.sop_class_uid != context.abstract_syntax:
            self._refuse(
                Status.SOP_CLASS_NOT_SUPPORTED, "its presentation context is for another SOP class"
            )
        elif not _UID.fullmatch(request.sop_instance_uid):
            self._refuse(
                Status.INVALID_OBJECT_INSTANCE,
                "its SOP Instance UID is absent or not of 1 to 64 digits and dots",
            )

    def write(self, *chunks: memoryview) -> None:
        """The next bytes of its data set."""
        if self._status == Status.SUCCESS:
            self._carefully(lambda: self._write(chunks))

    def end(self) -> int:
        """Keep it, if nothing was wrong. Returns the status to answer with."""
        if self._status == Status.SUCCESS:
            self._carefully(self._keep)
        counts = self._session.counts
        self._session.productive_at = time.monotonic()

        if self._status != Status.SUCCESS:
            counts.refused += 1
            return self._status
        counts.stored += 1
        uid = self._request.sop_instance_uid
        log.info("stored %s from %s, %d bytes", uid, self._calling, self._size_bytes)
        return self._status

    def drop(self) -> None:
        """Its association has ended before it."""
        if self._file is not None:
            self._carefully(self._file.drop)

    def _write(self, chunks: tuple[memoryview, ...]) -> None:
        if self._file is not None:
            self._size_bytes += sum(len(chunk) for chunk in chunks)
            self._file.write(*chunks)
            return

        self._file = self._session.intake.begin()
        request = self._request
        uids = (request.sop_class_uid, request.sop_instance_uid, self._transfer_syntax)
        head = write_file_meta(uids, _IMPLEMENTATION, self._calling)
        self._size_bytes = len(head) + sum(len(chunk) for chunk in chunks)
        self._file.write(head, *chunks)

    def _keep(self) -> None:
        if self._file is None:
            self._write(())
        assert self._file is not None
        request = self._request
        arrival = Arrival(
            spool_name=self._file.name,
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            transfer_syntax_uid=self._transfer_syntax,
            calling_ae_title=self._calling,
            origin="dimse",
            priority=_urgency(request.priority, self._session.caller),
            size_bytes=self._size_bytes,
        )
        self._file.keep(arrival)

    def _carefully(self, step: Callable[[], None]) -> None:
        try:
            step()
        except NoRoomError as error:
            self._refuse(Status.OUT_OF_RESOURCES, str(error))
        except Exception:
            # The handler's one catch-all.
            log.exception("a C-STORE could not be processed")
            self._status = Status.PROCESSING_FAILURE

    def _refuse(self, status: Status, why: str) -> None:
        uid = self._request.sop_instance_uid
        shown = uid if _UID.fullmatch(uid) else "an instance without a UID"
        log.warning("refused %s from %s with 0x%04X: %s", shown, self._calling, status, why)
        self._status = status


def _urgency(priority: int, caller: Caller) -> int:
    """The message's own priority, then the peer's: 0 stat, 1 routine, 2 low."""
    if priority == Priority.HIGH:
        return 0
    return max(_URGENCY[caller.priority], _LOW if priority == Priority.LOW else 0)


def _log_end(association: Association, end: End, took_s: float) -> None:
    """One line for each association that ends, and for each that does not come about."""
    session = association.session
    if isinstance(session, _Session):
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
    """16 bytes as the log shows them: padding of blanks cut, every other odd byte escaped."""
    return escaped(ae_title.rstrip(b" "))


def _unusual(request: Request) -> str:
    """What a protocol rejection is about, and what to do."""
    if request.application_context != negotiation.APPLICATION_CONTEXT:
        return (
            f"application context '{request.application_context[:64]}' found, "
            f"{negotiation.APPLICATION_CONTEXT} wanted; this peer speaks another protocol"
        )
    return (
        f"protocol version 0x{request.protocol_version:04X} found, bit 0 wanted; "
        "this peer speaks another version of DICOM"
    )


def _in_words(declined: Decision) -> str:
    """A declined context: its SOP class, and its transfer syntaxes where they are the reason."""
    proposal = declined.proposal
    abstract = proposal.abstract_syntax[:64] or "no SOP class"
    if declined.result == ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED:
        return f"{abstract} (SOP class not taken)"
    syntaxes = ", ".join(each[:64] for each in proposal.transfer_syntaxes[:_DECLINED_SHOWN])
    return f"{abstract} in {syntaxes or 'no transfer syntax'} (transfer syntax not taken)"
