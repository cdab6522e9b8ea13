"""Sends results to one destination, on its own schedule, and retries until they are stored.

Each destination has its own thread, so that a slow or dead destination delays no other. A table
says what an answer means (verdict.py). An outage that only an administrator can end (a rejected
association, a dead host) refuses no object: the thread tries again later. An object that is itself
the cause is moved behind the others.

An object may be sent twice after a crash between the archive's answer and our commit: PS3.4 B.2.3
has no transactions. It then has the same UID and the same bytes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Protocol

from daemon import watchdog
from daemon.config import Config, DicomDestination, FolderDestination
from daemon.deliver.folder import Folder
from daemon.deliver.limits import DEFAULT_LIMITS, DeliverLimits
from daemon.deliver.remote import remote_of
from daemon.deliver.verdict import CANNOT_UNDERSTAND, Verdict, cure, verdict
from daemon.dicom.link import Link, LinkDownError, NotAcceptedError, Remote, proposal
from daemon.dicom.outgoing import FileGoneError, Outgoing, UnsendableError
from daemon.dicom.requestor import Answer
from daemon.heartbeat import Heartbeat
from daemon.ledger import (
    DeliveryJob,
    Ledger,
    Outage,
    Recipient,
    log_failure,
    owner_name,
)
from daemon.ledger.timeline import Stopwatch
from daemon.spool import Spool, SpoolError

log = logging.getLogger("pleura.deliver")

# Tries of a result whose file cannot be read, before it is made again.
_READS = 3
_PIECE_BYTES = 1 << 20


class Store(Protocol):
    """A place that stores objects: an association, or a folder behind the same interface."""

    def store(self, outgoing: Outgoing) -> Answer:
        """Store one object. Raises NotAcceptedError, UnsendableError, LinkDownError."""


@dataclass
class _Turn:
    """One association, and its outcome so far."""

    stored: int = 0
    # Why the last refused object was refused.
    refused: str | None = None
    # The last object that was answered and is still owed: its delivery ID, and the answer.
    unstored: tuple[int, str] | None = None
    # The last answer to an object that is itself at fault, and is still owed.
    blamed: str | None = None
    # The destination's fault in words; then nothing more is sent.
    trouble: str | None = None
    # Whether that fault is the association's, not an answer.
    is_unreached: bool = False
    # The association is lost, by a fault of the node's own disk.
    is_over: bool = False


@dataclass
class _Troubled:
    """An object that a destination answered but did not store.

    It counts these answers, and how many objects the destination had stored by the first and by the
    last of them.
    """

    tries: int = 0
    stored_before: int | None = None
    stored_at_last: int | None = None


class Courier:
    """One destination's thread, with a circuit breaker.

    The circuit is closed while objects are stored. An outage opens it, and so does an association
    that stored nothing, whatever the answers. Then one object alone is tried, with a back-off that
    grows to one try in five minutes and never gives up. The object itself is the probe: an archive
    need not take Verification, and may reject an association that proposes nothing else. It is the
    most urgent object that was never answered, then each of the others in turn: an archive that
    stores no SC may store a SEG.
    """

    def __init__(
        self,
        destination: DicomDestination | FolderDestination,
        config: Config,
        ledger: Ledger,
        spool: Spool,
        limits: DeliverLimits = DEFAULT_LIMITS,
    ) -> None:
        self._destination = destination
        self._remote: Remote | None = None
        if isinstance(destination, DicomDestination):
            self._remote = remote_of(config, destination)
            self._recipient = Recipient(destination.ae_title, destination.host)
        else:
            self._recipient = Recipient(str(destination.folder))

        self._commitment = destination in config.committing()
        self._calling_ae_title = config.ae_title

        self._ledger = ledger
        self._spool = spool
        self._limits = limits
        self._outage = Outage(log, f"{destination.name}: the ledger")

        # By delivery ID. A restart may forget it.
        self._troubled: dict[int, _Troubled] = {}
        # How many objects this courier has stored.
        self._stored = 0
        # Delivery IDs of the objects that were answered, but not stored, since the last stored
        # object.
        self._unstored: set[int] = set()

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set; the object in flight then is finished first."""
        # A restart would not help a network share that hangs, and would delay the other
        # destinations.
        if isinstance(self._destination, FolderDestination):
            self._run(stop)
            return

        with watchdog.watched(f"deliveries to {self._destination.name}"):
            self._run(stop)

    def _run(self, stop: threading.Event) -> None:
        failures = 0  # of the destination, in a row
        # Whether no association has come about since the last that failed, or at all.
        is_unreached = True
        while not stop.is_set():
            watchdog.beat()
            try:
                turn = self._turn(failures, stop)
            except Exception as error:
                # The loop's only catch-all: an unreachable ledger comes back.
                self._outage.failed(error)
                self.pause(stop, self._limits.ledger_pause_s)
                continue

            self._outage.over()
            if turn is None:
                continue
            if turn.stored:
                failures = 0
                self._unstored.clear()

            was_unreached, is_unreached = is_unreached, turn.is_unreached
            if turn.trouble is not None:
                failures += 1
                self._open_circuit(turn.trouble, failures, stop)
            elif turn.stored:
                self._note(None)
            elif turn.unstored is not None:
                # Each object counts once, so that one bad object does not delay the others for
                # long.
                number, answer = turn.unstored
                self._unstored.add(number)
                failures = max(1, len(self._unstored))
                self._open_circuit(answer, failures, stop)
            elif turn.refused is not None:
                # The destination works and judges objects: the refusal itself is logged.
                failures = 0
                self._note(None, answer=turn.refused)
            elif turn.blamed is not None and was_unreached:
                # The answer shows that the destination is reached again. It says nothing about a
                # destination that answered the others without storing them.
                failures = 0
                self._note(None, answer=turn.blamed)

    def _open_circuit(self, trouble: str, failures: int, stop: threading.Event) -> None:
        if stop.is_set():
            # Its settings have gone, or the role ends. Its successor tries for itself.
            log.info("%s: %s, when deliveries to it ended", self._destination.name, trouble)
            return
        pause_s = self._limits.backoff.pause_s(failures)
        log.warning("%s: %s; again in %.1f s", self._destination.name, trouble, pause_s)
        self._note(trouble, pause_s)
        self.pause(stop, pause_s)

    def pause(self, stop: threading.Event, seconds: float) -> None:
        """Wait, but not longer than until `stop` or `pleura retry --now`.

        A simulation of days overrides this.
        """
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            watchdog.beat()
            if stop.wait(min(left_s, self._limits.idle_s)):
                return
            with suppress(Exception):
                # While the ledger is unreachable, the pause takes its full time.
                if self._ledger.inspect.next_try_is_due(self._destination.name):
                    return

    def open(self, objects: Sequence[Outgoing]) -> AbstractContextManager[Store]:
        """An open way to the destination, for these objects. Raises LinkDownError."""
        there = self._destination
        if isinstance(there, FolderDestination):
            return nullcontext(Folder.open(there.folder, self._ledger))
        assert self._remote is not None

        # The other kinds are proposed too. If the destination declines these objects alone, it is
        # the objects that are at fault (_decline).
        others = self._ledger.inspect.newest_syntaxes(there.results)
        contexts = proposal([*(outgoing.syntaxes for outgoing in objects), *others])
        return Link.open(self._calling_ae_title, self._remote, contexts, self._limits.association)

    def _note(self, trouble: str | None, pause_s: float = 0.0, answer: str = "it stores") -> None:
        """Tell `pleura status` how the destination is."""
        try:
            self._ledger.note_destination(self._destination.name, trouble, pause_s, answer)
        except Exception as error:
            # Deliveries go on.
            log_failure(log, f"{self._destination.name}: its state could not be recorded", error)

    def _turn(self, failures: int, stop: threading.Event) -> _Turn | None:
        """Claim and send what is due; None if nothing was due."""
        name = self._destination.name
        if failures:
            jobs = self._ledger.claim_probe(name, owner_name())
        else:
            limit = self._limits.objects_per_association
            jobs = self._ledger.claim_deliveries(name, owner_name(), limit)
        if not jobs:
            self._ledger.wait(self._limits.idle_s)
            return None
        with Heartbeat(self._ledger, jobs):
            return self._deliver(jobs, stop)

    def _deliver(self, jobs: Sequence[DeliveryJob], stop: threading.Event) -> _Turn | None:
        """Send what can be sent."""
        deadline = time.monotonic() + self._limits.turn_s
        waiting = deque(job for job in jobs if self._is_whole(job))
        turn = _Turn()
        watch = Stopwatch()
        if not waiting:
            return None

        try:
            with self.open([self._outgoing(job) for job in waiting]) as store:
                watch.note("associated")
                while waiting and turn.trouble is None and not turn.is_over:
                    watchdog.beat()
                    if stop.is_set() or time.monotonic() >= deadline:
                        break
                    self._send(store, waiting.popleft(), watch, turn)
        except LinkDownError as error:
            turn.trouble = str(error)
            turn.is_unreached = True
        finally:
            # Even after an unexpected error: no other object stays leased.
            for job in waiting:
                self._ledger.give_back_delivery(job, turn.trouble)
        return turn

    def _send(self, store: Store, job: DeliveryJob, watch: Stopwatch, turn: _Turn) -> None:
        """Send one object, and note the outcome in `turn`."""
        watch.note("begun")

        try:
            # The file, or the spool, may have gone while the others were sent.
            if not self._is_whole(job):
                return
            answer = store.store(self._outgoing(job))
            watch.note("answered")
        except FileGoneError as error:
            # The spool may be unreachable. Otherwise the next try has the object made again.
            self._later(job, str(error))
        except NotAcceptedError as error:
            self._decline(job, error, turn)
        except UnsendableError as error:
            self._refuse(job, str(error))
            turn.refused = str(error)
        except LinkDownError as error:
            if why := self._unreadable(job):
                self._make_again(job, why)
                turn.is_over = True
            else:
                self._later(job, str(error))
                turn.trouble = str(error)
                turn.is_unreached = True
        except Exception as error:
            self._later(job, f"{type(error).__name__} while it was sent")
            raise
        else:
            self._judge(job, answer, watch.steps, turn)

    def _is_whole(self, job: DeliveryJob) -> bool:
        """Whether the result's file is what was written.

        If not, the result is made again, or refused in the end.
        """
        result = job.result
        try:
            damage = self._spool.damage(result.spool_name, result.size_bytes)
        except OSError:
            # A fault of the disk: sending the object will report it.
            return True
        if damage is None:
            return True

        why = f"its file {damage}"
        if not self._is_remade(job, why):
            self._refuse(job, why)
        return False

    def _unreadable(self, job: DeliveryJob) -> str | None:
        """Why the result's file cannot be read, as on a bad sector.

        None if it can, and while the whole spool is unreachable.
        """
        try:
            with self._spool.open(job.result.spool_name) as file:
                while file.read(_PIECE_BYTES):
                    watchdog.beat()
        except OSError as error:
            with suppress(SpoolError):
                self._spool.require()
                return f"its file cannot be read ({error.strerror})"
        return None

    def _make_again(self, job: DeliveryJob, why: str) -> None:
        """Let the result be made again, once a few reads have shown that the fault lasts."""
        past = self._troubled.setdefault(job.id, _Troubled())
        if past.tries >= _READS and self._is_remade(job, why):
            self._troubled.pop(job.id)
        else:
            self._later(job, why)

    def _is_remade(self, job: DeliveryJob, why: str) -> bool:
        """Let the result be made again. Returns whether that is possible."""
        if not self._ledger.remake(job, why):
            return False

        result = job.result
        log.error("%s %s: %s; it is made again", result.kind, result.sop_instance_uid, why)
        return True

    def _outgoing(self, job: DeliveryJob) -> Outgoing:
        result = job.result
        path = self._spool.path(result.spool_name)
        return Outgoing(
            path, result.sop_class_uid, result.sop_instance_uid, result.transfer_syntax_uid
        )

    def _judge(
        self, job: DeliveryJob, answer: Answer, steps: Mapping[str, float], turn: _Turn
    ) -> None:
        last = self._troubled.setdefault(job.id, _Troubled()).stored_at_last
        stores_others = last is not None and self._stored > last
        judged = verdict(answer.status, job.failures, job.failing_s, stores_others)

        if judged is Verdict.STORED:
            self._ledger.mark_stored(job, answer.status, self._commitment, self._recipient, steps)
            turn.stored += 1
            self._stored += 1
            self._troubled.pop(job.id, None)
            result = (job.result.kind, job.result.sop_instance_uid)
            log.info("%s stored %s %s (%s)", job.destination, *result, answer)
        elif judged is Verdict.REFUSED:
            self._refuse(job, str(answer), answer.status)
            turn.refused = str(answer)
        else:
            self._troubled[job.id].stored_at_last = self._stored
            # Only an answer about the object counts towards refusing it.
            about_it = answer.status in CANNOT_UNDERSTAND
            self._later(job, str(answer), answer.status if about_it else None)
            if judged is Verdict.BUSY:
                turn.trouble = str(answer)
            elif self._is_at_fault(job):
                turn.blamed = str(answer)
            else:
                turn.unstored = (job.id, str(answer))

    def _decline(self, job: DeliveryJob, error: NotAcceptedError, turn: _Turn) -> None:
        """No context for this object was accepted.

        It is refused only if the destination works and gives the syntaxes as the reason. Any other
        reason may pass, such as an archive that is starting or read-only.
        """
        is_at_fault = self._is_at_fault(job)
        if error.is_lasting and (error.accepts_others or is_at_fault):
            self._refuse(job, str(error))
            turn.refused = str(error)
            return

        self._later(job, str(error))
        if error.accepts_others:
            turn.blamed = str(error)
        else:
            turn.trouble = str(error)

    def _is_at_fault(self, job: DeliveryJob) -> bool:
        """Whether an object that was not stored is itself at fault.

        Then the destination has stored others since it first answered this one.
        """
        past = self._troubled.setdefault(job.id, _Troubled())
        if past.stored_before is None:
            past.stored_before = self._stored
        return self._stored > past.stored_before

    def _refuse(self, job: DeliveryJob, why: str, status: int | None = None) -> None:
        self._ledger.mark_refused(job, why, status)
        self._troubled.pop(job.id, None)
        result = (job.result.kind, job.result.sop_instance_uid)
        log.error("%s refused %s %s: %s%s", job.destination, *result, why, cure(status))

    def _later(self, job: DeliveryJob, why: str, status: int | None = None) -> None:
        """Let the object wait longer than the others, more each time, so that they get through."""
        past = self._troubled.setdefault(job.id, _Troubled())
        past.tries += 1
        pause_s = 2 * self._limits.backoff.pause_s(past.tries)
        self._ledger.retry_later(job, why, pause_s, status)
