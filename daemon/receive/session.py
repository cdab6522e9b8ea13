"""One admitted peer: the handlers of its C-ECHO, C-STORE and N-EVENT-REPORT messages.

A C-STORE's command set is read. Its data set is never decoded here, only written behind our own
file meta information, piece by piece as it arrives.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from daemon.dicom.acceptor import Context
from daemon.dicom.negotiation import ContextResult, Decision, Supported
from daemon.dicom.part10 import write_file_meta
from daemon.dicom.pdu import CommandSet, StoreRequest
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    STORAGE_CLASSES,
    VERIFICATION,
    Priority,
    Status,
    reported_classes,
    stored_classes,
)
from daemon.dicom.uids import is_uid
from daemon.ledger import Arrival, Ledger
from daemon.receive.access import Caller
from daemon.receive.commitment_reports import take_report
from daemon.receive.intake import IncomingFile, Intake, NoRoomError, NotCommittedError

log = logging.getLogger("pleura.receive")

_DECLINED_SHOWN = 8  # declined contexts in one line of the log

_IMPLEMENTATION = (IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME)
# A file that lies ready is used for this long: objects of one second share a folder's flush.
_READY_S = 1.0
_URGENCY = {"stat": 0, "routine": 1}  # peers[].priority -> Arrival.priority
_LOW = 2
# What a person should do about a refused object.
_CURES = {
    Status.PROCESSING_FAILURE: "see the kernel's log, ask `pleura doctor`; the sender keeps it",
    Status.OUT_OF_RESOURCES: "make room on the spool's disk; the sender keeps it",
    Status.SOP_CLASS_NOT_SUPPORTED: "the sender mixes two SOP classes up: report it to its maker",
    Status.INVALID_OBJECT_INSTANCE: "the sender makes invalid UIDs: report it to its maker",
}
_COMMIT_CURE = "ask `pleura doctor`; the sender keeps it"


@dataclass
class Counts:
    """The objects and bytes that one association has brought."""

    stored: int = 0
    refused: int = 0
    echoes: int = 0
    reports: int = 0

    def __str__(self) -> str:
        """In words, without zero counts."""
        parts = []
        if self.stored or self.refused:
            parts.append(f"{self.stored} stored, {self.refused} refused")
        if self.echoes:
            parts.append(f"{self.echoes} C-ECHO answered")
        if self.reports:
            parts.append(f"{self.reports} storage commitment reports taken")
        return ", ".join(parts) or "no message came"


@dataclass(eq=False)
class Session:
    """One admitted peer (daemon.dicom.acceptor.Session)."""

    caller: Caller
    address: str
    intake: Intake
    ledger: Ledger
    counts: Counts = field(default_factory=Counts)
    declined: list[Decision] = field(default_factory=list)
    proposed: int = 0
    productive_at: float = field(
        default_factory=time.monotonic
    )  # its last whole object, or its begin
    unlogged: StoredObject | None = None  # stored, and its answer is on the way
    # The next object's file, opened while its sender has our answer to read, and when.
    ready: IncomingFile | None = None
    ready_since: float = 0.0

    @property
    def holder(self) -> tuple[str, str]:
        """The holder of its slot: its peer, or, without an entry in `peers`, its address."""
        return self.caller.ae_title, self.caller.entry or self.address

    @property
    def supported(self) -> Mapping[str, Supported]:
        return stored_classes() if self.caller.stores else reported_classes()

    def negotiated(self, decisions: Iterable[Decision]) -> None:
        """If nothing was accepted, every declined context matters."""
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
        # A declined transfer syntax is more of a surprise: many senders propose every SOP class.
        by_surprise = sorted(self.declined, key=lambda each: -each.result)
        words = list(dict.fromkeys(_in_words(each) for each in by_surprise))
        shown = "; ".join(words[:_DECLINED_SHOWN])
        more = "; ..." if len(words) > _DECLINED_SHOWN else ""
        which = f"{len(self.declined)} of {self.proposed}"
        return f"declined {which} proposed presentation contexts: {shown}{more}"

    def echo(self, context: Context) -> int:
        if context.abstract_syntax != VERIFICATION:
            return Status.SOP_CLASS_NOT_SUPPORTED
        self.counts.echoes += 1
        return Status.SUCCESS

    def store(self, request: StoreRequest, context: Context) -> StoredObject:
        return StoredObject(self, request, context)

    def event_report(self, command: CommandSet, data_set: bytes, context: Context) -> int:
        status = take_report(command, data_set, context, self.caller.destinations, self.ledger)
        self.counts.reports += status == Status.SUCCESS
        return status

    def answered(self) -> None:
        """After the answer, so that the sender waits neither for the next file nor for the log."""
        if self.unlogged is not None:
            self._open_next()
            self.unlogged.log_stored()
            self.unlogged = None

    def begin_file(self) -> IncomingFile:
        """A file for an object that comes. Raises NoRoomError, OSError."""
        file, self.ready = self.ready, None
        if file is None:
            return self.intake.begin()
        if time.monotonic() < self.ready_since + _READY_S:
            return file
        file.drop()
        return self.intake.begin()

    def close(self) -> None:
        """The association has ended."""
        file, self.ready = self.ready, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.drop()

    def _open_next(self) -> None:
        """Open the next object's file. Many associations bring one object, so not after the first.

        What prevents it is said when the object comes.
        """
        if self.counts.stored > 1:
            with contextlib.suppress(NoRoomError, OSError):
                self.ready = self.intake.begin()
                self.ready_since = time.monotonic()


class StoredObject:
    """One C-STORE being received (daemon.dicom.acceptor.Incoming).

    A refused object's bytes are read and discarded.
    """

    def __init__(self, session: Session, request: StoreRequest, context: Context) -> None:
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
        elif context.abstract_syntax not in STORAGE_CLASSES:
            self._refuse(
                Status.SOP_CLASS_NOT_SUPPORTED, "its presentation context is not for storage"
            )
        elif not is_uid(request.sop_instance_uid):
            self._refuse(
                Status.INVALID_OBJECT_INSTANCE,
                "its SOP Instance UID is absent or not of 1 to 64 digits and dots",
            )

    def write(self, *chunks: memoryview) -> None:
        """The next bytes of its data set."""
        if self._status == Status.SUCCESS:
            self._carefully(lambda: self._write(chunks))

    def end(self) -> int:
        """Keep the object, if nothing was wrong. Returns the status to answer with."""
        if self._status == Status.SUCCESS:
            self._carefully(self._keep)
        counts = self._session.counts
        self._session.productive_at = time.monotonic()

        if self._status != Status.SUCCESS:
            counts.refused += 1
            return self._status
        counts.stored += 1
        self._session.unlogged = self
        return self._status

    def log_stored(self) -> None:
        """One line for an object that was stored."""
        uid = self._request.sop_instance_uid
        log.info("stored %s from %s, %d bytes", uid, self._calling, self._size_bytes)

    def drop(self) -> None:
        """The association ended before the object was complete."""
        if self._file is not None:
            self._carefully(self._file.drop)

    def _write(self, chunks: tuple[memoryview, ...]) -> None:
        if self._file is not None:
            self._size_bytes += sum(len(chunk) for chunk in chunks)
            self._file.write(*chunks)
            return

        self._file = self._session.begin_file()
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
            calling_address=self._session.address,
        )

        self._file.keep(arrival)

    def _carefully(self, step: Callable[[], None]) -> None:
        try:
            step()
        except NotCommittedError as error:
            self._refuse(Status.OUT_OF_RESOURCES, str(error), _COMMIT_CURE)
        except NoRoomError as error:
            self._refuse(Status.OUT_OF_RESOURCES, str(error))
        except OSError as error:
            self._refuse(Status.PROCESSING_FAILURE, f"spool: {error.strerror or error}")
        except Exception:
            # The handler's only catch-all.
            log.exception("a C-STORE could not be processed")
            self._status = Status.PROCESSING_FAILURE

    def _refuse(self, status: Status, why: str, cure: str | None = None) -> None:
        uid = self._request.sop_instance_uid
        shown = uid if is_uid(uid) else "an instance without a UID"
        cure = cure or _CURES.get(status)
        told = f"{why}; {cure}" if cure else why
        log.warning("refused %s from %s with 0x%04X: %s", shown, self._calling, status, told)
        self._status = status


def _urgency(priority: int, caller: Caller) -> int:
    """The message's own priority, then the peer's: 0 stat, 1 routine, 2 low."""
    if priority == Priority.HIGH:
        return 0
    return max(_URGENCY[caller.priority], _LOW if priority == Priority.LOW else 0)


def _in_words(declined: Decision) -> str:
    """A declined context: its SOP class, and its transfer syntaxes if they are the reason."""
    proposal = declined.proposal
    abstract = proposal.abstract_syntax[:64] or "no SOP class"
    if declined.result == ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED:
        return f"{abstract} (SOP class not taken)"
    syntaxes = ", ".join(each[:64] for each in proposal.transfer_syntaxes[:_DECLINED_SHOWN])
    return f"{abstract} in {syntaxes or 'no transfer syntax'} (transfer syntax not taken)"
