"""Association negotiation on the wire: lenient where the standard says to ignore, exact in its
answers.
"""

from __future__ import annotations

import random
import struct

import pytest
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ

from daemon.dicom import negotiation
from daemon.dicom.negotiation import (
    Accepted,
    ContextResult,
    Proposal,
    Rejected,
    Roles,
    Supported,
    UserInformation,
)
from daemon.dicom.pdu import MalformedError, PduType

CR, COMMITMENT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.20.1"
IMPLICIT, EXPLICIT, JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"
US = UserInformation(262144, "1.2.3", "OURS")
TAKEN = {CR: Supported((EXPLICIT, IMPLICIT)), COMMITMENT: Supported((EXPLICIT,), takes_scp=True)}


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def context(number: int = 1, *parts: bytes) -> bytes:
    parts = parts or (item(0x30, CR.encode()), item(0x40, EXPLICIT.encode()))
    return item(0x20, bytes([number, 0, 0, 0]) + b"".join(parts))


def user(*parts: bytes) -> bytes:
    return item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3") + b"".join(parts))


def body(
    *items: bytes,
    calling: bytes = b"MODALITY",
    version: int = 1,
    application: bytes = b"1.2.840.10008.3.1.1.1",
) -> bytes:
    """The body of an A-ASSOCIATE-RQ."""
    fixed = struct.pack(">HH16s16s32s", version, 0, b"PLEURA".ljust(16), calling.ljust(16), b"")
    return fixed + item(0x10, application) + b"".join(items or (context(), user()))


IGNORED = {
    "an unknown item": (item(0x77, b"whatever"), context(), user()),
    "an unknown item without a value": (context(), item(0x00, b""), user()),
    "an unknown sub-item of a context": (
        context(1, item(0x30, CR.encode()), item(0x99, b"?"), item(0x40, EXPLICIT.encode())),
        user(),
    ),
    "an unknown sub-item of the user information": (context(), user(item(0x5F, b"x" * 300))),
    "a version name of 40 characters": (context(), user(item(0x55, b"V" * 40))),
    "a version name that is not ASCII": (context(), user(item(0x55, "Röntgen".encode()))),
    "a class UID that is not a UID": (context(), user(item(0x52, b"not a uid \xff"))),
    "an asynchronous window that is cut off": (context(), user(item(0x53, b"\0"))),
    "a role selection longer than its sub-item": (context(), user(item(0x54, b"\0\xff1.2"))),
    "a user identity": (context(), user(item(0x58, b"\x01\x01\0\x04user\0\0"))),
    "UIDs padded with NUL": (
        context(1, item(0x30, CR.encode() + b"\0"), item(0x40, EXPLICIT.encode() + b"\0")),
        user(),
    ),
    "UIDs padded with a space": (
        context(1, item(0x30, CR.encode() + b" "), item(0x40, EXPLICIT.encode() + b" ")),
        user(),
    ),
    "no user information": (context(),),
}


@pytest.mark.parametrize("what", IGNORED)
def test_an_item_that_the_standard_ignores_changes_nothing(what: str) -> None:
    request = negotiation.read_request(body(*IGNORED[what]))
    assert request.contexts == (Proposal(1, CR, (EXPLICIT,)),)
    assert negotiation.protocol_rejection(request) is None
    (decision,) = negotiation.decide(request, TAKEN)
    assert (decision.result, decision.transfer_syntax) == (ContextResult.ACCEPTED, EXPLICIT)


@pytest.mark.parametrize("version", [0x0001, 0x0003, 0x8001, 0xFFFF])
def test_only_bit_0_of_the_protocol_version_counts(version: int) -> None:
    assert negotiation.protocol_rejection(negotiation.read_request(body(version=version))) is None


@pytest.mark.parametrize("version", [0x0000, 0x0002, 0xFFFE])
def test_a_protocol_version_without_bit_0_is_rejected(version: int) -> None:
    request = negotiation.read_request(body(version=version))
    assert negotiation.protocol_rejection(request) == Rejected(1, 2, 2)


@pytest.mark.parametrize("name", [b"1.2.840.10008.3.1.1.2", b"", b"\xff\xff", b"1.2.3"])
def test_another_application_context_is_rejected(name: bytes) -> None:
    request = negotiation.read_request(body(application=name))
    assert negotiation.protocol_rejection(request) == Rejected(1, 1, 2)


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        (b"MODALITY        ", "MODALITY"),
        (b"MODALITY\0\0\0\0\0\0\0\0", "MODALITY"),
        (b"MODALITY\0garbage", "MODALITY"),
        (b"  MODALITY      ", "MODALITY"),
        (b"TWO WORDS\0      ", "TWO WORDS"),
        (b" " * 16, None),
        (b"\0" * 16, None),
        (b"\0LATE".ljust(16), None),
        ("Röntgen".encode("latin-1").ljust(16), None),
        ("Röntgen".encode().ljust(16), None),
        (b"BACK\\SLASH".ljust(16), None),
        (b"NEW\nLINE".ljust(16), None),
    ],
)
def test_ae_titles_are_trimmed_or_invalid(raw: bytes, title: str | None) -> None:
    assert negotiation.ae_title(raw) == title


REJECTED = {
    "no transfer syntax": (
        (item(0x30, CR.encode()),),
        ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED,
    ),
    "another transfer syntax": (
        (item(0x30, CR.encode()), item(0x40, JPEG.encode())),
        ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED,
    ),
    "no abstract syntax": (
        (item(0x40, EXPLICIT.encode()),),
        ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED,
    ),
    "another abstract syntax": (
        (item(0x30, b"1.2.3"), item(0x40, EXPLICIT.encode())),
        ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED,
    ),
    "nothing": ((item(0x99, b""),), ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED),
}


@pytest.mark.parametrize("what", REJECTED)
def test_a_rejected_context_has_its_result_and_the_others_are_accepted(what: str) -> None:
    parts, result = REJECTED[what]
    request = negotiation.read_request(body(context(3, *parts), context(5), user()))
    decisions = negotiation.decide(request, TAKEN)
    assert [decision.result for decision in decisions] == [result, ContextResult.ACCEPTED]

    answer = negotiation.write_accept(request, decisions, {}, US)
    accepted = negotiation.read_answer(PduType.ASSOCIATE_AC, answer[6:])
    assert isinstance(accepted, Accepted)
    assert accepted.contexts == {5: EXPLICIT}
    assert accepted.results == {3: result, 5: 0}


def test_another_toolkit_reads_our_answer() -> None:
    roles = item(0x54, struct.pack(">H", len(COMMITMENT)) + COMMITMENT.encode() + b"\0\1")
    request = negotiation.read_request(body(context(), user(item(0x53, b"\0\7\0\3"), roles)))
    answered = negotiation.answered_roles(request, TAKEN)
    encoded = negotiation.write_accept(request, negotiation.decide(request, TAKEN), answered, US)

    theirs = A_ASSOCIATE_AC()
    theirs.decode(encoded)
    answer = theirs.to_primitive()
    assert theirs.encode() == encoded
    assert answer.maximum_length_received == 262144
    assert answer.application_context_name == "1.2.840.10008.3.1.1.1"
    (taken,) = answer.presentation_context_definition_results_list
    assert (taken.context_id, taken.result, taken.transfer_syntax) == (1, 0, [EXPLICIT])
    window = [
        one for one in answer.user_information if hasattr(one, "maximum_number_operations_invoked")
    ]
    assert [
        (one.maximum_number_operations_invoked, one.maximum_number_operations_performed)
        for one in window
    ] == [(1, 1)]
    (role,) = [one for one in answer.user_information if hasattr(one, "scp_role")]
    assert (role.sop_class_uid, role.scu_role, role.scp_role) == (COMMITMENT, False, True)


def test_another_toolkit_reads_our_request() -> None:
    proposals = [Proposal(1, CR, (EXPLICIT, IMPLICIT)), Proposal(3, COMMITMENT, (EXPLICIT,))]
    encoded = negotiation.write_request("ARCHIVE", "PLEURA", proposals, US)
    theirs = A_ASSOCIATE_RQ()
    theirs.decode(encoded)
    assert theirs.encode() == encoded
    assert (theirs.called_ae_title.strip(), theirs.calling_ae_title.strip()) == (
        "ARCHIVE",
        "PLEURA",
    )
    request = negotiation.read_request(encoded[6:])
    assert request.contexts == tuple(proposals)
    assert request.user == US


@pytest.mark.parametrize(
    ("asked", "answered"),
    [((0, 1), (0, 1)), ((1, 1), (0, 1)), ((1, 0), (1, 0)), ((0, 0), (0, 0))],
)
def test_an_archive_may_report_commitment_in_either_role(
    asked: tuple[int, int], answered: tuple[int, int]
) -> None:
    role = item(0x54, struct.pack(">H", len(COMMITMENT)) + COMMITMENT.encode() + bytes(asked))
    report = context(1, item(0x30, COMMITMENT.encode()), item(0x40, EXPLICIT.encode()))
    request = negotiation.read_request(body(report, user(role)))
    assert negotiation.answered_roles(request, TAKEN) == {COMMITMENT: Roles(*map(bool, answered))}
    assert negotiation.decide(request, TAKEN)[0].result == ContextResult.ACCEPTED


def test_a_storage_class_keeps_the_default_roles() -> None:
    role = item(0x54, struct.pack(">H", len(CR)) + CR.encode() + b"\1\1")
    request = negotiation.read_request(body(context(), user(role)))
    assert negotiation.answered_roles(request, TAKEN) == {}


MALFORMED = {
    "nothing": b"",
    "cut off in the titles": body()[:60],
    "cut off in an item": body()[:-3],
    "an item header that is cut off": body() + b"\x50\0",
    "an item longer than the request": body() + b"\x50\0\xff\xff",
    "a sub-item longer than its item": body(item(0x20, b"\1\0\0\0\x30\0\xff\xff1.2")),
    "a context without a header": body(item(0x20, b"\1\0")),
    "context ID 2": body(context(2), user()),
    "context ID 0": body(context(0), user()),
    "context ID 254": body(context(254), user()),
    "a context ID used twice": body(context(1), context(1), user()),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_the_error_of_a_malformed_request_says_what_is_wrong(what: str) -> None:
    with pytest.raises(MalformedError, match=r"\w+ \w+"):
        negotiation.read_request(MALFORMED[what])


def test_any_bytes_are_a_request_or_malformed() -> None:
    rng = random.Random(20260101)
    valid = body(context(1), context(3), user(item(0x53, b"\0\1\0\1"), item(0x55, b"NAME")))

    for _ in range(3000):
        changed = bytearray(valid)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(68, len(changed))] = rng.randrange(256)

        try:
            request = negotiation.read_request(bytes(changed[: rng.randint(60, len(changed))]))
        except MalformedError:
            continue

        decisions = negotiation.decide(request, TAKEN)
        answer = negotiation.write_accept(
            request, decisions, negotiation.answered_roles(request, TAKEN), US
        )
        read = negotiation.read_answer(answer[0], answer[6:])
        assert isinstance(read, Accepted)
        assert len(read.results) == len(request.contexts)


def test_an_answer_is_read_as_leniently_as_a_request() -> None:
    taken = item(0x21, b"\1\0\0\0" + item(0x99, b"?") + item(0x40, EXPLICIT.encode() + b"\0"))
    declined = item(0x21, b"\3\0\4\0")
    fixed = struct.pack(">HH16s16s32s", 3, 0, b"\0" * 16, b"M\xfc".ljust(16), b"")
    information = user(item(0x55, b"V" * 40), item(0x5F, b"?"), item(0x53, b"\0"))
    answer = negotiation.read_answer(0x02, fixed + item(0x77, b"") + taken + declined + information)
    assert isinstance(answer, Accepted)
    assert (answer.contexts, answer.results) == ({1: EXPLICIT}, {1: 0, 3: 4})
    assert answer.user.maximum_pdu_bytes == 16384


def test_a_rejection_is_read_and_described_in_words() -> None:
    answer = negotiation.read_answer(0x03, b"\0\1\1\7")
    assert answer == negotiation.CALLED_AE_TITLE_NOT_RECOGNIZED
    assert str(answer) == "1/1/7 (permanent: called AE title not recognized)"
    assert str(Rejected(2, 3, 1)) == "2/3/1 (transient: temporary congestion)"
    assert "standard does not have" in str(Rejected(9, 9, 9))

    theirs = A_ASSOCIATE_RJ()
    theirs.decode(negotiation.write_reject(Rejected(2, 3, 2)))
    assert (theirs.result, theirs.source, theirs.reason_diagnostic) == (2, 3, 2)


@pytest.mark.parametrize(
    ("pdu_type", "rest"), [(0x02, b"\0\1"), (0x03, b"\0"), (0x07, bytes(4)), (0x16, b"")]
)
def test_an_unexpected_answer_is_malformed(pdu_type: int, rest: bytes) -> None:
    with pytest.raises(MalformedError):
        negotiation.read_answer(pdu_type, rest)
