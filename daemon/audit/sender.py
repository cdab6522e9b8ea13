"""Sends the audit trail from the ledger to the repository and to a file, in order.

One thread of the deliver role. A lease lets only one process send at a time. The ledger drops a row
once the repository and the file have its message, as far as they are configured. After a crash in
between, the message is repeated with the same sequenceId.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from daemon.audit.message import Source
from daemon.audit.syslog import Channel, formatted, open_channel
from daemon.backoff import Backoff
from daemon.config import Audit, Config
from daemon.ledger import AuditRow, Ledger, Outage, owner_name
from daemon.spool import Spool
from daemon.tls import TlsClient, repository_client

log = logging.getLogger("pleura.audit")

_AT_ONCE = 100
_IDLE_S = 1.0
_LEDGER_PAUSE_S = 5.0


class AuditSender:
    """Sends what the ledger has recorded, until it is stopped."""

    def __init__(self, config: Config, ledger: Ledger, spool: Spool) -> None:
        assert config.audit is not None
        self._audit: Audit = config.audit
        self._ledger = ledger
        self._spool = spool
        self._source = Source(
            config.ae_title, socket.gethostname(), config.audit.enterprise_site_id
        )
        self._security: TlsClient | None = repository_client(config.audit)
        self._channel: Channel | None = None
        self._backoff = Backoff()
        self._failures = 0

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        outage = Outage(log, "audit: the ledger")
        while not stop.is_set():
            try:
                sent = self._turn()
            except Exception as error:
                # The loop's only catch-all: an unreachable ledger comes back.
                outage.failed(error)
                stop.wait(_LEDGER_PAUSE_S)
                continue
            outage.over()

            if self._failures:
                stop.wait(self._backoff.pause_s(self._failures))
            elif not sent:
                self._ledger.wait(_IDLE_S)
        if self._channel is not None:
            self._channel.close()

    def _turn(self) -> int:
        """Send the oldest rows. Returns how many; 0 if there are none, or after an error."""
        rows, filed = self._ledger.claim_audit(owner_name(), _AT_ONCE)
        if not rows:
            return 0

        messages = [formatted(self._with_patient(row), self._source) for row in rows]
        way: Path | str | None = self._audit.file
        try:
            self._write(rows, messages, filed)
            way = self._audit.repository
            if self._audit.repository is not None:
                self._send(self._audit.repository, messages)
        except OSError as error:
            self._note_trouble(way, error)
            return 0

        self._note_success()
        self._ledger.drop_audit(owner_name(), rows[-1].number)
        return len(rows)

    def _with_patient(self, row: AuditRow) -> AuditRow:
        """The event with the Patient ID, where the settings ask for it.

        It is read from the object itself, so that the ledger never holds it. If retention has
        removed the bytes, the message goes without it.
        """
        name = row.facts.get("spool_name")
        if self._audit.patients == "none" or not name:
            return row
        found = patient_id(self._spool.path(name))
        return replace(row, facts={**row.facts, "patient_id": found}) if found else row

    def _write(self, rows: Sequence[AuditRow], messages: Sequence[bytes], filed: int) -> None:
        """Append the messages that the file does not have yet. Raises OSError."""
        new = [message for row, message in zip(rows, messages, strict=True) if row.number > filed]
        if self._audit.file is None or not new:
            return
        append(self._audit.file, new)
        self._ledger.note_audit_filed(rows[-1].number)

    def _send(self, repository: str, messages: Sequence[bytes]) -> None:
        if self._channel is None:
            self._channel = open_channel(repository, self._security)
        try:
            self._channel.send(messages)
        except OSError:
            self._channel.close()
            self._channel = None
            raise

    def _note_trouble(self, way: Path | str | None, error: OSError) -> None:
        """One line for each outage. `way`: the file or the repository that failed."""
        if not self._failures:
            words = self._security.in_words(error) if self._security else error.strerror or error
            log.error(
                "audit: %s cannot be reached (%s); messages wait in the ledger; retrying",
                way,
                words,
            )
        self._failures += 1

    def _note_success(self) -> None:
        if self._failures:
            log.warning("audit: messages go out again, after %d tries", self._failures)
        self._failures = 0


def patient_id(path: Path) -> str:
    """The Patient ID of a DICOM file; empty where it cannot be read."""
    from pydicom import dcmread

    from daemon.dicom.leniency import lenient_headers

    try:
        with lenient_headers():
            tags = ["PatientID"]
            header = dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
            return str(header.get("PatientID") or "")
    except Exception:
        # On a broken file pydicom may raise anything, and its text may quote a header.
        return ""


def append(path: Path, messages: Sequence[bytes]) -> None:
    """Add each message as a line, all of them or none, durable when this returns. Raises OSError.

    What a crash left without its newline stays as a line of its own.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    try:
        size_bytes = os.fstat(descriptor).st_size
        is_cut_off = size_bytes > 0 and os.pread(descriptor, 1, size_bytes - 1) != b"\n"
        lines = b"".join(message + b"\n" for message in messages)

        try:
            _write_all(descriptor, b"\n" + lines if is_cut_off else lines)
            os.fsync(descriptor)
        except OSError:
            # An append-only file keeps the partial line; the next try ends it.
            with suppress(OSError):
                os.ftruncate(descriptor, size_bytes)
            raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all of it. Raises OSError: a full disk may have taken a part."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
