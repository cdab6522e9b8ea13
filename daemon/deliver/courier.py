"""The deliver role: results to each destination on its own clock, retried without end until they are there.

One thread per destination, so that a slow or dead one delays no other. A table says what an answer means; what only an
administrator can heal (a rejected association, a dead host) refuses no object, it only makes the thread come back
later. An object that itself is the trouble steps behind the others.

Twice sent is possible where once stored is not known: a crash between the archive's answer and our commit, PS3.4 B.2.3
has no transaction. The UID is the same then, and so are the bytes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from daemon.backoff import backoff_s
from daemon.config import Config, DicomDestination, FolderDestination
from daemon.deliver.commitment import Asker
from daemon.deliver.folder import Folder
from daemon.deliver.retention import Retention
from daemon.dicom.link import (
    Link,
    LinkDownError,
    NotAcceptedError,
    Outgoing,
    Remote,
    UnsendableError,
    describe,
)
from daemon.heartbeat import Heartbeat
from daemon.ledger import DeliveryJob, Ledger, owner_name
from daemon.spool import Spool

log = logging.getLogger("pleura.deliver")

_BATCH = 16  # objects per association
_TURN_S = 30.0  # what has not begun by then is given back: something more urgent may have come
_IDLE_S = 1.0
_PAUSE_S = 5.0  # after trouble with our own ledger
_ABOUT_THE_OBJECT = range(0xC000, 0xD000)
_MAXIMUM_FAILURES = 8  # answers 0xCxxx to one object
_MAXIMUM_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers from 1 to 255


class Verdict(Enum):
    """What an answer means for the object that it answers."""

    STORED = auto()
    BUSY = auto()  # the destination's trouble, not the object's
    REFUSED = auto()
    REFUSED_IN_THE_END = auto()  # after _MAXIMUM_FAILURES of such answers
    RETRY = auto()


# PS3.4 Table B.2-1 and PS3.7 Annex C. Whatever is not here is retried.
_VERDICTS: tuple[tuple[range, Verdict], ...] = (
    (range(0x0000, 0x0001), Verdict.STORED),
    (range(0x0001, 0x0002), Verdict.STORED),  # warning, PS3.7 C.4.2: the operation was performed
    (range(0x0107, 0x0108), Verdict.STORED),  # attribute list error, a warning
    (
        range(0x0111, 0x0112),
        Verdict.STORED,
    ),  # duplicate SOP instance: it is there, and its UID says what it holds
    (range(0x0116, 0x0117), Verdict.STORED),  # attribute value out of range, a warning
    (range(0x0122, 0x0123), Verdict.REFUSED),  # SOP class not supported
    (range(0xA700, 0xA800), Verdict.BUSY),  # out of resources
    (range(0xA900, 0xAA00), Verdict.REFUSED),  # data set does not match SOP class
    (range(0xB000, 0xC000), Verdict.STORED),  # warnings; 0xB000, 0xB006 and 0xB007 for C-STORE
    (range(0xC000, 0xD000), Verdict.REFUSED_IN_THE_END),  # cannot understand
)


def verdict(status: int, failures: int) -> Verdict:
    """What `status` means for an object that was answered 0xCxxx `failures` times before."""
    found = next((verdict for statuses, verdict in _VERDICTS if status in statuses), Verdict.RETRY)
    if found is Verdict.REFUSED_IN_THE_END:
        return Verdict.REFUSED if failures + 1 >= _MAXIMUM_FAILURES else Verdict.RETRY
    return found


class Store(Protocol):
    """Where objects go: an association, or a folder behind the same seam."""

    def echo(self) -> int:
        """Whether it answers. Raises LinkDownError, NotAcceptedError."""

    def store(self, outgoing: Outgoing) -> int:
        """The status of storing one object. Raises NotAcceptedError, UnsendableError, LinkDownError."""


class Courier:
    """One destination's thread.

    Its circuit is closed while objects get through. Trouble opens it: then no object is touched until a probe (C-ECHO)
    is answered, on a clock that slows down to one try in five minutes and has no end.
    """

    def __init__(
        self,
        destination: DicomDestination | FolderDestination,
        config: Config,
        ledger: Ledger,
        spool: Spool,
    ) -> None:
        self._destination = destination
        self._commitment = destination in config.committing()
        self._calling_ae_title = config.ae_title
        self._ledger = ledger
        self._spool = spool
        self._tries: dict[
            int, int
        ] = {}  # delivery id -> how often it was in the way; a restart may forget it

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set; the object in flight then is finished first."""
        owner = owner_name()
        failures = 0  # in a row, of the destination
        while not stop.is_set():
            try:
                stored, trouble = 0, self._probe() if failures else None
                if trouble is None:
                    # It answers, but whether it stores is still to be seen: one object is enough for that.
                    jobs = self._ledger.claim_deliveries(
                        self._destination.name, owner, 1 if failures else _BATCH
                    )
                    if not jobs:
                        failures = 0
                        self._ledger.wait(_IDLE_S)
                        continue
                    with Heartbeat(self._ledger, jobs):
                        stored, trouble = self._deliver(jobs, stop)
            except Exception:  # the loop's one catch-all: a ledger that is away comes back
                log.exception(
                    "%s: the ledger is in trouble; trying again in %g s",
                    self._destination.name,
                    _PAUSE_S,
                )
                self.pause(stop, _PAUSE_S)
                continue
            failures = 0 if trouble is None else 1 if stored else failures + 1
            if trouble is not None:
                pause_s = backoff_s(failures)
                log.warning("%s: %s; again in %.1f s", self._destination.name, trouble, pause_s)
                self.pause(stop, pause_s)

    def pause(self, stop: threading.Event, seconds: float) -> None:
        """Wait, but not longer than until `stop`. A simulation of days overrides this."""
        stop.wait(seconds)

    def open(self, objects: Sequence[Outgoing]) -> AbstractContextManager[Store]:
        """An open way to the destination. Raises LinkDownError."""
        if isinstance(self._destination, FolderDestination):
            return nullcontext(Folder(self._destination.folder, self._ledger))
        remote = Remote(self._destination.ae_title, self._destination.host, self._destination.port)
        return Link(self._calling_ae_title, remote, objects)

    def _probe(self) -> str | None:
        """What is still wrong with the destination, if anything."""
        try:
            with self.open([]) as way:
                way.echo()  # whatever the status: it answers
        except NotAcceptedError:
            pass  # it answers, and knows no Verification
        except LinkDownError as error:
            return str(error)
        return None

    def _deliver(
        self, jobs: Sequence[DeliveryJob], stop: threading.Event
    ) -> tuple[int, str | None]:
        """Send what can be sent. Returns how many were stored, and what is wrong with the destination, if anything."""
        waiting, until, stored = (
            deque(job for job in jobs if self._is_whole(job)),
            time.monotonic() + _TURN_S,
            0,
        )
        if not waiting:
            return 0, None
        trouble: str | None = None
        try:
            with self.open([self._outgoing(job) for job in waiting]) as way:
                while (
                    waiting and trouble is None and not stop.is_set() and time.monotonic() < until
                ):
                    job = waiting.popleft()
                    try:
                        if not self._is_whole(
                            job
                        ):  # it, or the spool, went while the others were sent
                            continue
                        status = way.store(self._outgoing(job))
                    except (NotAcceptedError, UnsendableError) as error:
                        self._refuse(job, str(error))
                    except LinkDownError as error:
                        trouble = str(error)
                        self._later(job, trouble)
                    except Exception as error:
                        self._later(job, f"{type(error).__name__} while it was sent")
                        raise
                    else:
                        found = self._judge(job, status)
                        stored += found is Verdict.STORED
                        trouble = f"answered 0x{status:04X}" if found is Verdict.BUSY else None
        except LinkDownError as error:
            trouble = str(error)
        finally:  # also where something unforeseen breaks: no neighbour stays leased
            for job in waiting:
                self._ledger.give_back_delivery(job, trouble)
        return stored, trouble

    def _is_whole(self, job: DeliveryJob) -> bool:
        """Whether the result's file is what was written. If not, the result is made again, or refused in the end."""
        wanted = job.result.size_bytes
        try:
            size_bytes = self._spool.path(job.result.spool_name).stat().st_size
        except FileNotFoundError:
            self._spool.require()
            why = "its file is gone"
        except OSError:
            return True  # the disk's trouble; sending it will say so
        else:
            if wanted in (None, size_bytes):
                return True
            why = f"its file has {size_bytes} of {wanted} bytes"
        if self._ledger.remake(job, why):
            log.error(
                "%s %s: %s; it is made again", job.result.kind, job.result.sop_instance_uid, why
            )
        else:
            self._refuse(job, why)
        return False

    def _outgoing(self, job: DeliveryJob) -> Outgoing:
        result = job.result
        path = self._spool.path(result.spool_name)
        return Outgoing(
            path, result.sop_class_uid, result.sop_instance_uid, result.transfer_syntax_uid
        )

    def _judge(self, job: DeliveryJob, status: int) -> Verdict:
        found = verdict(status, job.failures)
        if found is Verdict.STORED:
            self._ledger.stored(job, status, self._commitment)
            self._tries.pop(job.id, None)
            log.info(
                "%s has %s %s (0x%04X)",
                job.destination,
                job.result.kind,
                job.result.sop_instance_uid,
                status,
            )
        elif found is Verdict.REFUSED:
            self._refuse(job, f"answered 0x{status:04X}", status)
        else:
            # Only answers about the object count towards refusing it.
            self._later(
                job, f"answered 0x{status:04X}", status if status in _ABOUT_THE_OBJECT else None
            )
        return found

    def _refuse(self, job: DeliveryJob, why: str, status: int | None = None) -> None:
        self._ledger.refused(job, why, status)
        self._tries.pop(job.id, None)
        log.error(
            "%s refused %s %s: %s",
            job.destination,
            job.result.kind,
            job.result.sop_instance_uid,
            why,
        )

    def _later(self, job: DeliveryJob, why: str, status: int | None = None) -> None:
        """It was in the way: it waits longer than the others, more so each time, so that they get through."""
        self._tries[job.id] = self._tries.get(job.id, 0) + 1
        self._ledger.retry_later(job, why, 2 * backoff_s(self._tries[job.id]), status)


class Deliverer:
    """The deliver role: start() returns at once, stop() when the objects in flight are finished."""

    def __init__(self, config: Config, ledger: Ledger, spool: Spool) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        for destination in config.destinations:
            courier = Courier(destination, config, ledger, spool)
            self._add(f"deliver-{destination.name}", courier.run)
        for committing in config.committing():
            self._add(
                f"commitment-{committing.name}", Asker(committing, config.ae_title, ledger).run
            )
        self._add("retention", Retention(config, ledger, spool).run)

    def _add(self, name: str, run: Callable[[threading.Event], None]) -> None:
        self._threads.append(
            threading.Thread(target=run, args=(self._stop,), name=name, daemon=True)
        )

    def start(self) -> None:
        """One thread for each destination, one for each that is asked for commitment, one that tidies up."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more, and wait for what is in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


@dataclass(frozen=True)
class Sent:
    """What became of one file, or of the C-ECHO (`file` None)."""

    file: Path | None
    status: int | None  # None: no answer
    why: str = ""

    @property
    def ok(self) -> bool:
        """The peer has it."""
        return self.status is not None and verdict(self.status, 0) is Verdict.STORED

    def __str__(self) -> str:
        what = "C-ECHO" if self.file is None else str(self.file)
        return f"{what}: " + (self.why if self.status is None else f"0x{self.status:04X}")


def send(
    files: Sequence[Path],
    address: tuple[str, int],
    called_ae_title: str,
    calling_ae_title: str = "PLEURA",
) -> Iterator[Sent]:
    """C-STORE each file as it is (without files: C-ECHO) to the AE at (host, port), and say what was answered."""
    remote = Remote(called_ae_title, *address)
    if not files:
        try:
            with Link(calling_ae_title, remote, []) as link:
                yield Sent(None, link.echo())
        except (LinkDownError, NotAcceptedError) as error:
            yield Sent(None, None, str(error))
    described: list[Outgoing] = []
    for file in files:
        try:
            described.append(describe(file))
        except (UnsendableError, OSError) as error:
            yield Sent(file, None, str(getattr(error, "strerror", None) or error))
    for group in _groups(described):
        yield from _send_group(group, remote, calling_ae_title)


def _send_group(group: Sequence[Outgoing], remote: Remote, calling_ae_title: str) -> Iterator[Sent]:
    waiting = deque(group)
    try:
        with Link(calling_ae_title, remote, group) as link:
            while waiting:
                try:
                    status, why = link.store(waiting[0]), ""
                except (NotAcceptedError, UnsendableError) as error:
                    status, why = None, str(error)
                yield Sent(waiting.popleft().path, status, why)
    except LinkDownError as error:
        yield from (Sent(outgoing.path, None, str(error)) for outgoing in waiting)


def _groups(objects: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Objects that fit into one association each; one needs up to three contexts."""
    group: list[Outgoing] = []
    needed: set[tuple[str, str]] = set()
    for one in objects:
        needed.add((one.sop_class_uid, one.transfer_syntax_uid))
        if 3 * len(needed) > _MAXIMUM_CONTEXTS:
            yield group
            group, needed = [], {(one.sop_class_uid, one.transfer_syntax_uid)}
        group.append(one)
    if group:
        yield group
