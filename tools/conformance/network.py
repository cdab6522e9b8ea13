"""The tables of the network: contexts, roles, statuses, rejections, times, settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydicom.uid import UID

from daemon.config import Config, DicomDestination, FolderDestination, Peer
from daemon.deliver import verdict
from daemon.deliver.limits import DEFAULT_LIMITS as LIMITS
from daemon.deliver.verdict import Verdict
from daemon.dicom import commitment, link, negotiation, tables
from daemon.dicom.acceptor import Rejection
from daemon.dicom.tables import STORAGE_COMMITMENT, VERIFICATION, Status
from daemon.receive.access import AccessList, Caller
from daemon.receive.scp import limits_of
from inference.results.kinds import KINDS
from tools.conformance import table

_RESULTS = [(str(kind.sop_class_uid), str(kind.transfer_syntax_uid)) for kind in KINDS.values()]
_ARCHIVE = DicomDestination(
    name="pacs", ae_title="PACS", host="192.0.2.2", port=104, commitment=True
)

# The limits of the receive role with default settings.
RECEIVE_LIMITS = limits_of(Config())


def services() -> list[str]:
    """SOP classes and roles."""
    stored = tables.stored_classes().keys() - {VERIFICATION, STORAGE_COMMITMENT}
    sent = {sop_class for sop_class, _ in _RESULTS}
    rows = [
        ("Verification", VERIFICATION, "yes", "yes"),
        ("Storage Commitment Push Model", STORAGE_COMMITMENT, "yes", "no"),
    ]

    for sop_class in sorted(stored | sent, key=lambda uid: (uid not in sent, uid)):
        as_scu = "yes" if sop_class in sent else "no"
        as_scp = "yes" if sop_class in stored else "no"
        rows.append((UID(sop_class).name, sop_class, as_scu, as_scp))

    return table(("SOP class", "UID", "SCU", "SCP"), rows)


def accepted() -> list[str]:
    """The accepted presentation contexts; classes with the same transfer syntaxes share a row."""
    together: dict[tuple[str, ...], list[str]] = {}
    for sop_class, taken in tables.stored_classes().items():
        name = _name(sop_class, taken.takes_scp)
        together.setdefault(taken.transfer_syntaxes, []).append(name)

    rows = (
        ("; ".join(names), "; ".join(UID(syntax).name for syntax in syntaxes))
        for syntaxes, names in together.items()
    )
    return table(("SOP classes", "transfer syntaxes, in our order of preference"), rows)


def _name(sop_class: str, takes_scp: bool) -> str:
    role = " (also where the peer proposes itself as SCP)" if takes_scp else ""
    return f"{UID(sop_class).name.removesuffix(' SOP Class')}{role}"


def proposed() -> list[str]:
    """The proposed presentation contexts."""
    rows = []
    for kind, result in zip(KINDS, _RESULTS, strict=True):
        offered = [UID(context.transfer_syntaxes[0]).name for context in link.proposal([result])]
        rows.append((f"{kind}: {UID(result[0]).name}", "one for each of: " + "; ".join(offered)))

    offered = [UID(context.transfer_syntaxes[0]).name for context in link.proposal([])]
    rows.append(("Verification", "one for each of: " + "; ".join(offered)))

    (context,) = link.commitment_proposal()
    name = UID(context.abstract_syntax).name.removesuffix(" SOP Class")
    offered = [UID(syntax).name for syntax in context.transfer_syntaxes]
    rows.append((name, "one, for: " + "; ".join(offered)))

    return table(("SOP class", "contexts"), rows)


def implementation() -> list[str]:
    """Names, and the limits on what the node receives and sends."""
    return table(
        ("", "value"),
        [
            ("Application Context Name", negotiation.APPLICATION_CONTEXT),
            ("Implementation Class UID", tables.IMPLEMENTATION_CLASS_UID),
            ("Implementation Version Name", tables.IMPLEMENTATION_VERSION_NAME),
            (
                "maximum PDU received, as acceptor and as initiator",
                f"{tables.MAXIMUM_PDU_BYTES} bytes",
            ),
            (
                "longest message taken as initiator",
                f"{LIMITS.association.message_bytes} bytes",
            ),
            ("longest PDU sent", f"what the peer takes, at most {tables.MAXIMUM_PDU_BYTES} bytes"),
            (
                "longest PDU taken from a peer that does not keep to it",
                f"{RECEIVE_LIMITS.pdu_bytes} bytes",
            ),
            ("longest C-STORE", f"{RECEIVE_LIMITS.store_bytes} bytes"),
            ("longest other message", f"{RECEIVE_LIMITS.message_bytes} bytes"),
            ("simultaneous associations as acceptor", RECEIVE_LIMITS.associations),
            (
                "simultaneous associations as initiator",
                "one for each destination; one more where it is asked for commitment",
            ),
            ("outstanding asynchronous operations", "1: the window is not negotiated"),
        ],
    )


# ---- statuses and rejections

_ANSWERS = {
    Status.SUCCESS: (
        "C-ECHO, C-STORE, N-EVENT-REPORT",
        "done; of a C-STORE: the object and its record are on disk",
    ),
    Status.PROCESSING_FAILURE: ("C-STORE, N-EVENT-REPORT", "our own trouble; send it again"),
    Status.NO_SUCH_EVENT_TYPE: ("N-EVENT-REPORT", "an Event Type ID other than 1 and 2"),
    Status.INVALID_ARGUMENT_VALUE: (
        "N-EVENT-REPORT",
        "not readable, or a Transaction UID that this AE was not asked under",
    ),
    Status.INVALID_OBJECT_INSTANCE: (
        "C-STORE",
        "the Affected SOP Instance UID is longer than 64 or not of digits and dots",
    ),
    Status.NO_SUCH_SOP_CLASS: (
        "N-EVENT-REPORT",
        "a SOP class other than Storage Commitment Push Model",
    ),
    Status.SOP_CLASS_NOT_SUPPORTED: (
        "C-STORE",
        "the Affected SOP Class UID is not that of the presentation context, or that context is "
        "not for storage",
    ),
    Status.UNRECOGNIZED_OPERATION: (
        "every other request",
        "this AE does not know the operation",
    ),
    Status.CANNOT_UNDERSTAND: ("C-STORE", "it has no data set"),
    Status.OUT_OF_RESOURCES: (
        "C-STORE",
        "too little room on disk, or the record cannot be written; send it again later",
    ),
}


def answers() -> list[str]:
    """The statuses of the node's responses."""
    rows = [
        (f"0x{status:04X}", status.name.lower().replace("_", " "), *_ANSWERS[status])
        for status in Status
    ]
    return table(("status", "meaning", "of", "when"), rows)


def rejections() -> list[str]:
    """The access list's answer to each kind of caller."""
    named = AccessList("PLEURA", [Peer(ae_title="XRAY1", host="192.0.2.1")], [_ARCHIVE])
    empty = AccessList("PLEURA", [])
    callers = [
        ("no `peers`: any AE, on this machine", empty, ("PLEURA", "ANY", "127.0.0.1")),
        ("no `peers`: from elsewhere", empty, ("PLEURA", "ANY", "192.0.2.9")),
        ("an AE of `peers`, from its host", named, ("PLEURA", "XRAY1", "192.0.2.1")),
        ("an AE of `peers`, from another host", named, ("PLEURA", "XRAY1", "192.0.2.9")),
        (
            "a destination with `commitment: true`, from its host",
            named,
            ("PLEURA", "PACS", "192.0.2.2"),
        ),
        ("an AE that nothing names", named, ("PLEURA", "ANY", "192.0.2.1")),
        ("any, and it calls another AE title", named, ("OTHER", "XRAY1", "192.0.2.1")),
    ]

    rows = [(who, _admitted(access.admit(*caller))) for who, access, caller in callers]
    too_many = (
        f"one more than {RECEIVE_LIMITS.associations} associations, unless one AE holds more than "
        "half of them and one of these has brought no object for "
        f"{RECEIVE_LIMITS.unproductive_s:g} s: that one is ended"
    )
    rows.append((too_many, f"A-ASSOCIATE-RJ {negotiation.LOCAL_LIMIT_EXCEEDED}"))
    return table(("caller", "answer"), rows)


def _admitted(answer: Caller | Rejection) -> str:
    """The access list's answer in words."""
    if isinstance(answer, Rejection):
        return f"A-ASSOCIATE-RJ {answer.answer}"
    if answer.stores:
        return "accepted"
    return "accepted for Verification and storage commitment reports only"


_BEHAVIOUR = {
    Verdict.STORED: "stored",
    Verdict.BUSY: "owed: the destination gets a pause, then is tried with one object",
    Verdict.RETRY: "owed: sent again, later each time",
    Verdict.REFUSED: "refused: shown by `pleura status` until a person acts",
}


def verdicts() -> list[str]:
    """The consequence of each status of a C-STORE response for the object."""
    rows = []
    for meaning in verdict.MEANINGS:
        first = meaning.statuses[0]
        at_once = verdict.verdict(first, 0)
        in_the_end = verdict.verdict(first, 1 << 20, 1e9)

        behaviour = _BEHAVIOUR[at_once]
        if at_once is not in_the_end:
            behaviour += (
                f"; after {verdict.MAXIMUM_FAILURES} such answers refused, where others are stored "
                f"meanwhile or {verdict.FAILING_HOURS} hours have passed"
            )
        rows.append((_range(meaning.statuses), meaning.words, behaviour))

    rows.append(("any other", "", _BEHAVIOUR[Verdict.RETRY]))
    return table(("status", "meaning", "the object is"), rows)


def _range(statuses: range) -> str:
    first = f"0x{statuses[0]:04X}"
    last = f"0x{statuses[-1]:04X}"
    return first if first == last else f"{first} to {last}"


_FAILURES = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0119: "class-instance conflict",
    0x0122: "referenced SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}
_FATES = {
    commitment.Fate.LOST: "sent again, then asked for again",
    commitment.Fate.LATER: "asked for again",
    commitment.Fate.REFUSED: "refused",
}


def failures() -> list[str]:
    """The effect of each Failure Reason of a report on the object."""
    rows = [
        (f"0x{reason:04X}", _FAILURES[reason], _FATES[fate])
        for reason, fate in commitment.FATES.items()
    ]
    return table(
        ("failure reason", "meaning", "the object is"),
        [*rows, ("any other", "", _FATES[commitment.Fate.LOST])],
    )


def times() -> list[str]:
    """The node's time limits, and the limits on one exchange."""
    association = LIMITS.association
    first_s = LIMITS.backoff.first_s
    longest_s = LIMITS.backoff.longest_s
    slowest_kb_per_s = association.slowest_bytes_per_s / 1000

    return table(
        ("what", "limit"),
        [
            (
                "a connection that has not asked for an association (ARTIM)",
                f"{RECEIVE_LIMITS.request_s:g} s",
            ),
            (
                "such connections at a time; beyond, the oldest of the address with most goes",
                RECEIVE_LIMITS.connections,
            ),
            ("one PDU from its first byte to its last", f"{RECEIVE_LIMITS.pdu_s:g} s"),
            ("an association without a message", f"{RECEIVE_LIMITS.idle_s:g} s, then aborted"),
            ("what is being received when the node stops", f"{RECEIVE_LIMITS.drain_s:g} s"),
            ("to connect to a destination", f"{association.connect_s:g} s"),
            ("its answer to an association or release request", f"{association.acse_s:g} s"),
            (
                "its answer to a C-STORE",
                f"{association.answer_s:g} s + object at {slowest_kb_per_s:g} kB/s",
            ),
            ("it takes no byte", f"{association.stalled_s:g} s"),
            ("its answer to an N-ACTION", f"{association.answer_s:g} s"),
            (
                "an N-EVENT-REPORT on the association that asked",
                f"{LIMITS.same_association_s:g} s, then released",
            ),
            (
                "an N-EVENT-REPORT at all",
                f"{LIMITS.first_report_s:g} s, then asked again; twice as long each time",
            ),
            ("objects in one association", LIMITS.objects_per_association),
            ("objects in one N-ACTION", LIMITS.references_per_request),
            (
                "trying again",
                f"after {first_s:g} s, twice as long each time, at most {longest_s:g} s apart, "
                "without end",
            ),
        ],
    )


_OURS_ALONE = (
    "model",
    "device",
    "engine",
    "max_batch",
    "spool",
    "retention",
    "ledger",
    "inbox",
    "web",
)


def settings() -> list[str]:
    """The settings that affect the network, with their defaults."""
    rows = (row for row in _defaults(Config(), "") if not row[0].strip("`").startswith(_OURS_ALONE))
    return table(("key", "default"), rows)


def _defaults(model: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, default) of every key, also inside sections and items of lists."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _defaults(value, f"{prefix}{name}.")
            continue

        yield f"`{prefix}{name}`", _as_yaml(value)
        items: dict[str, Iterable[type[BaseModel]]] = {
            "peers": (Peer,),
            "destinations": (DicomDestination, FolderDestination),
        }
        for kind in items.get(name, ()):
            keys = (f"{key}: {_default(field)}" for key, field in kind.model_fields.items())
            yield f"`{prefix}{name}[]`", "; ".join(keys)


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _as_yaml(field.default)


def _as_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
