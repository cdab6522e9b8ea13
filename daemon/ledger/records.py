"""The values that the ledger takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class LedgerLimits:
    """How long the ledger waits, and how often it tries again."""

    # A dead owner's work can be claimed after this. A working owner renews its leases
    # (heartbeat.py).
    lease_s: float = 60.0
    # The longest wait of each kind. A later time comes from a clock that was set back, and counts
    # as due. A lease: five times its length, because a live owner renews it and must not lose it to
    # a small step of the clock.
    leases_outlived: int = 5
    # A delivery's next try: twice the longest back-off of a courier.
    longest_delivery_wait_s: float = 600.0
    # A storage commitment request.
    longest_wait_s: float = 3600.0
    # How often the lost result files of one image are made again.
    maximum_remakes: int = 3
    # When the delivery of a result that is being made again is due again.
    remake_s: float = 30.0
    # The first wait of an object that an archive has lost twice; doubled each time.
    forgetful_s: float = 60.0
    # How long a process without a heartbeat is remembered.
    roles_kept_s: float = 7 * 86400.0
    # Events of the audit trail that may wait for the repository: about half a gigabyte.
    audit_rows: int = 1_000_000
    # After this a request is forgotten: its report is no longer recognised, and the archive is
    # asked again.
    commitments_kept_s: float = 90 * 86400.0


class Arrival(NamedTuple):
    """One object whose bytes are durable in the spool.

    The UIDs are from the command set, and never name a file.
    """

    spool_name: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    origin: str  # dimse, inbox
    priority: int  # 0 stat, 1 routine, 2 low
    size_bytes: int
    # Where the sender called from; None: the inbox.
    calling_address: str | None = None


class Recipient(NamedTuple):
    """The recipient of an object, for the audit trail: an AE with its host, or a folder."""

    name: str
    host: str = ""


class Readdressed(NamedTuple):
    """The outcome of sending what is addressed to one destination to another."""

    moved: int
    # They stay, because the other destination does not take their kind.
    not_taken: int
    # They stay, because the same result is addressed to the other destination already.
    already_there: int


@dataclass(frozen=True)
class AuditRow:
    """One audit event that still waits. `facts` are named in daemon/audit/message.py."""

    number: int
    made_at: float
    event: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class ImageJob:
    """One claimed image."""

    id: int
    attempt: int
    spool_name: str
    sop_instance_uid: str
    # Attempts made alone that began before this one and never ended.
    unfinished_alone: int
    # The size that was accepted; a file of another size has been damaged since.
    size_bytes: int
    # The time in its results: the ledger's clock at the first completion, or now.
    result_time: float


@dataclass(frozen=True)
class StoredResult:
    """One result object in the spool."""

    kind: str
    spool_name: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    # None: written by a version that did not record it.
    size_bytes: int | None = None


@dataclass(frozen=True)
class Completion:
    """The end of one image, as the ledger records it. `state` is an ImageState."""

    state: str
    content_digest: str
    study_instance_uid: str | None = None
    reason: str | None = None
    detail: str = ""
    probability: float | None = None
    positive: bool | None = None
    model: str | None = None
    device: str | None = None
    # Manufacturer and model name of the X-ray system, as the header says.
    device_model: str | None = None
    accession_digest: str | None = None
    results: tuple[StoredResult, ...] = ()
    # Each step of the analysis -> seconds from the claim to its end (timeline.py).
    steps: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DeliveryJob:
    """One claimed delivery."""

    id: int
    attempt: int
    destination: str
    # How often the destination has answered this object with a failure status.
    failures: int
    result: StoredResult
    # How long ago the first of these answers was; 0: there was none.
    failing_s: float = 0.0


@dataclass(frozen=True)
class CommitmentRequest:
    """The objects that one destination is asked to commit to.

    Its report names the transaction UID.
    """

    transaction_uid: str
    references: tuple[tuple[str, str], ...]  # SOP class UID, SOP Instance UID
    # Objects that an earlier request named, but no report.
    asked_before: int = 0


@dataclass(frozen=True)
class KeptFile:
    """A spool file that the ledger refers to."""

    spool_name: str
    size_bytes: int | None
    what: str  # whose file it is, in words
