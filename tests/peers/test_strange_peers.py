"""Odd peers from public bug reports: padded titles, unknown items, other protocols, missing UIDs.

The tests also check the log line of each.
"""

from __future__ import annotations

import json
import logging
import re
import struct
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    UserIdentityNegotiation,
)

from daemon.config import Peer
from daemon.dicom.acceptor import Limits
from tests.peers.mutations import item
from tests.peers.receiving import (
    BODY,
    COMMAND,
    CR,
    DATA,
    JPEG,
    JPEG_LS,
    LAST,
    FreePort,
    Node,
    Program,
    RawSender,
    c_store,
    image,
    p_data,
    siim,
    storescu,
)
from tools.peers.harness import Orthanc
from tools.peers.waiting import wait_until

IMPLICIT = b"1.2.840.10008.1.2"
EXPLICIT = b"1.2.840.10008.1.2.1"
COMMITMENT = b"1.2.840.10008.1.20.1"
APPLICATION = b"1.2.840.10008.3.1.1.1"


def request(
    *items: bytes,
    calling: bytes = b"XRAY1",
    called: bytes = b"PLEURA",
    version: int = 1,
    application: bytes = APPLICATION,
    context_id: int = 1,
    syntaxes: tuple[bytes, ...] = (IMPLICIT,),
    user: bytes = b"",
) -> bytes:
    """An A-ASSOCIATE-RQ for CR. `items` come before its context; `user` is added to its user
    information.
    """
    parts = item(0x30, CR.encode()) + b"".join(item(0x40, each) for each in syntaxes)
    context = item(0x20, bytes([context_id, 0, 0, 0]) + parts)
    information = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3") + user)
    titles = called.ljust(16) + calling.ljust(16)
    body = struct.pack(">HH", version, 0) + titles + bytes(32) + item(0x10, application)
    body += b"".join(items) + context + information
    return struct.pack(">BBL", 1, 0, len(body)) + body


class RawPeer(RawSender):
    """A connection that sends the given bytes first."""

    def __init__(self, node: Node, said: bytes) -> None:
        self.socket = node.connect()
        self.socket.sendall(said)


TOLERATED = {
    "a title padded with NUL": request(calling=b"XRAY1\0\0\0\0\0\0\0\0\0\0\0"),
    "a title with another's rest behind its NUL": request(calling=b"XRAY1\0ORESCU"),
    "a title with leading blanks": request(calling=b"   XRAY1"),
    "a called title padded with NUL": request(called=b"PLEURA".ljust(16, b"\0")),
    "a version name of 40 characters": request(user=item(0x55, b"A" * 40)),
    "a version name that is not ASCII": request(user=item(0x55, "Röntgen".encode())),
    "an unknown item": request(item(0x70, b"whatever")),
    "an unknown sub-item": request(user=item(0x5E, b"whatever")),
    "a later protocol version": request(version=0x0003),
    "every protocol version": request(version=0xFFFF),
    "UIDs padded with NUL": request(syntaxes=(IMPLICIT + b"\0",)),
    "a user identity": request(user=item(0x58, b"\x01\x01\0\4user\0\0")),
    "an asynchronous window": request(user=item(0x53, b"\0\x08\0\x08")),
    "a role selection that is cut off": request(user=item(0x54, b"\0\xff1")),
}


@pytest.mark.parametrize("what", TOLERATED)
def test_a_peer_with_a_tolerated_oddity_can_store(start: Callable[..., Node], what: str) -> None:
    node = start(peers=(Peer(ae_title="XRAY1", host="127.0.0.1"),))
    with RawPeer(node, TOLERATED[what]) as peer:
        assert peer.answer()[0] == 0x02
        peer.send(p_data((COMMAND | LAST, c_store()), (DATA | LAST, BODY)))
        assert peer.status() == 0x0000
    assert [row["calling_ae_title"] for row in node.rows()] == ["XRAY1"]


REJECTED = {
    "an unknown title": (
        request(calling=b"CT2"),
        (1, 1, 3),
        r"'CT2' .*add to peers: {ae_title: CT2",
    ),
    "a blank title": (request(calling=b""), (1, 1, 3), r"from '' at .*is blank"),
    "a title of NUL": (request(calling=bytes(16)), (1, 1, 3), r"'(\\x00){16}' at .*is blank"),
    "a title that is not ASCII": (
        request(calling="Röntgen".encode("latin-1")),
        (1, 1, 3),
        r"'R\\xf6ntgen' at .*printable ASCII",
    ),
    "a title in two lines": (
        request(calling=b"X\n2026 ERROR me"),
        (1, 1, 3),
        r"'X\\n2026 ERROR me'",
    ),
    "another called title": (request(called=b"ORTHANC"), (1, 1, 7), r"to 'ORTHANC'.*is PLEURA"),
    "a blank called title": (request(called=b""), (1, 1, 7), r"to ''.*this node is PLEURA"),
    "another application context": (
        request(application=b"1.2.840.10008.3.1.1.2"),
        (1, 1, 2),
        r"'1\.2\.840\.10008\.3\.1\.1\.2' found",
    ),
    "no application context": (request(application=b""), (1, 1, 2), r"context '' found"),
    "another protocol version": (request(version=0x0002), (1, 2, 2), "version 0x0002 found"),
    "no protocol version": (request(version=0), (1, 2, 2), "version 0x0000 found"),
}


@pytest.mark.parametrize("what", REJECTED)
def test_a_rejection_is_exact_and_has_one_line(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.INFO)
    said, answer, words = REJECTED[what]
    node = start(peers=(Peer(ae_title="XRAY1", host="127.0.0.1"),))

    with RawPeer(node, said) as peer:
        kind, body = peer.answer()
        assert (kind, tuple(body[1:])) == (0x03, answer)
        assert peer.answer()[0] == 0

    wait_until("it is logged", lambda: "rejected" in caplog.text)
    lines = [each.getMessage() for each in caplog.records if each.name == "pleura.receive"]
    (line,) = lines
    assert "at 127.0.0.1" in line
    assert "rejected with {}/{}/{} (".format(*answer) in line
    assert re.search(words, line), line
    assert line.isprintable()
    assert len(line) < 500


ABORTED = {
    "an even context ID": (request(context_id=2), 6, "presentation context ID 2; odd"),
    "a context ID of 0": (request(context_id=0), 6, "presentation context ID 0; odd"),
    "a context ID that is used twice": (
        request(item(0x20, b"\1\0\0\0" + item(0x30, b"1.2"))),
        6,
        "used twice",
    ),
    "an item that leaves the request": (
        request()[:-1].replace(
            struct.pack(">L", len(request()) - 6), struct.pack(">L", len(request()) - 7)
        ),
        6,
        "longer than what holds it",
    ),
    "a request that is too short": (b"\1\0\0\0\0\4abcd", 6, "of 4 bytes; at least 68"),
    "P-DATA first": (b"\4\0\0\0\0\4\0\0\0\0", 0, "P_DATA_TF came instead"),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 0, "a TLS hello"),
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 0, "an HTTP request"),
    "an SSH hello": (b"SSH-2.0-OpenSSH_9.2\r\n", 0, "an SSH hello"),
    "an HL7 message": (b"\x0bMSH|^~\\&|A|B", 0, "an HL7 message"),
    "noise": (bytes(range(200, 250)), 0, r"'\xc8\xc9"),
}


@pytest.mark.parametrize("what", ABORTED)
def test_a_connection_without_a_valid_request_is_aborted_with_one_line(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture, what: str
) -> None:
    said, reason, words = ABORTED[what]
    node = start()
    for _ in range(2):
        with RawPeer(node, said) as peer:
            kind, body = peer.answer()
            assert (kind, body[3]) == (0x07, reason)
            assert peer.answer()[0] == 0
    wait_until("it is logged", lambda: words in caplog.text)
    assert "connection from 127.0.0.1 ended: " in caplog.text
    # Bytes that are no request are logged once a minute; an invalid request is logged each time.
    assert caplog.text.count(words) == (2 if said[0] == 1 else 1)
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_a_context_without_transfer_syntax_is_declined_and_leaves_no_thread_spinning(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    node = start()
    with RawPeer(node, request(syntaxes=())) as peer:
        kind, body = peer.answer()
        assert kind == 0x02
        assert item(0x21, b"\1\0\4\0" + item(0x40, IMPLICIT)) in body
        peer.send(b"\x05\0\0\0\0\x04\0\0\0\0")
        assert peer.answer()[0] == 0x06
    wait_until("its thread ends", lambda: node.receiver.associations == 0)
    assert "declined 1 of 1 proposed presentation contexts" in caplog.text
    assert f"{CR} in no transfer syntax" in caplog.text


def test_when_every_context_is_declined_the_log_says_which(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node = start()
    mpeg = b"1.2.840.10008.1.2.4.102"
    with RawPeer(node, request(syntaxes=(mpeg, b"1.2.3"))) as peer:
        assert peer.answer()[0] == 0x02
        peer.send(b"\x05\0\0\0\0\x04\0\0\0\0")
        assert peer.answer()[0] == 0x06
    wait_until("the end is logged", lambda: "the peer released it" in caplog.text)
    end = caplog.records[-1].getMessage()
    assert "no message came; declined 1 of 1" in end
    assert f"{CR} in {mpeg.decode()}, 1.2.3 (transfer syntax not taken)" in end


NO_UID = {
    "no SOP class": (c_store(E0002=b""), 0x0122),
    "no SOP instance": (c_store(E1000=b""), 0x0117),
    "neither": (c_store(E0002=b"", E1000=b""), 0x0122),
    "an instance of blanks": (c_store(E1000=b"    "), 0x0117),
    "an instance that is not ASCII": (c_store(E1000=b"1.2.\xff\xfe"), 0x0117),
    "a class that is not ASCII": (c_store(E0002=b"1.2.\xff\xfe"), 0x0122),
}


@pytest.mark.parametrize("what", NO_UID)
def test_a_c_store_without_its_uids_is_answered_at_once(
    start: Callable[..., Node], what: str
) -> None:
    command, status = NO_UID[what]
    node = start()
    with RawPeer(node, request()) as peer:
        peer.answer()
        peer.send(p_data((COMMAND | LAST, command), (DATA | LAST, BODY)))
        peer.socket.settimeout(10)
        kind, body = peer.answer()
        assert kind == 0x04
        assert struct.pack("<HHLH", 0, 0x0900, 2, status) in body
        peer.send(p_data((COMMAND | LAST, c_store()), (DATA | LAST, BODY)))
        assert peer.status() == 0x0000
    assert len(node.rows()) == 1


OTHER_MESSAGES = {
    "a C-STORE without a data set": (c_store(E0800=b"\1\1"), [], 0xC000),
    "a C-FIND": (c_store(E0100=b"\x20\0"), [p_data((DATA | LAST, BODY))], 0x0211),
    "an N-CREATE": (c_store(E0100=b"\x40\1"), [p_data((DATA | LAST, BODY))], 0x0211),
    "a C-ECHO on a storage context": (c_store(E0100=b"\x30\0", E0800=b"\1\1"), [], 0x0122),
    "a report of a class that is no commitment": (
        c_store(E0100=b"\0\1", E1002=b"\1\0"),
        [p_data((DATA | LAST, BODY))],
        0x0118,
    ),
}


@pytest.mark.parametrize("what", OTHER_MESSAGES)
def test_an_unsupported_message_is_answered_and_the_association_goes_on(
    start: Callable[..., Node], what: str
) -> None:
    command, more, status = OTHER_MESSAGES[what]
    node = start()
    with RawPeer(node, request()) as peer:
        peer.answer()
        peer.send(p_data((COMMAND | LAST, command)), *more)
        assert peer.status() == status
        peer.send(p_data((COMMAND | LAST, c_store()), (DATA | LAST, BODY)))
        assert peer.status() == 0x0000


ENDS = {
    "a release": (b"\x05\0\0\0\0\x04\0\0\0\0", 0x06, "the peer released it"),
    "an abort": (b"\x07\0\0\0\0\x04\0\0\2\6", 0x00, "invalid parameter value"),
    "an abort by its user": (b"\x07\0\0\0\0\x04\0\0\0\0", 0x00, "by its application"),
    "a second request": (request(), 0x07, "ASSOCIATE_RQ, a PDU that is not allowed in this state"),
    "a release response": (b"\x06\0\0\0\0\x04\0\0\0\0", 0x07, "RELEASE_RP, a PDU that is not"),
    "an unknown PDU": (b"\x4d\0\0\0\0\x04\0\0\0\0", 0x07, "not a PDU type"),
    "an unaccepted context": (
        p_data((COMMAND | LAST, c_store()), context_id=9),
        0x07,
        "context 9, which was not accepted",
    ),
    "a response": (
        p_data((COMMAND | LAST, c_store(E0100=b"\x01\x80"))),
        0x07,
        "a response, which nothing has asked for",
    ),
    "no command field": (
        p_data((COMMAND | LAST, c_store(E0100=b""))),
        0x07,
        "without Command Field",
    ),
    "no message ID": (
        p_data((COMMAND | LAST, c_store(E0110=b""))),
        0x07,
        "without Command Field or",
    ),
}


@pytest.mark.parametrize("what", ENDS)
def test_an_association_s_end_is_one_line_with_its_reason(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.INFO)
    said, answer, words = ENDS[what]
    node = start()
    with RawPeer(node, request()) as peer:
        assert peer.answer()[0] == 0x02
        peer.send(said)
        assert peer.answer()[0] == answer
    wait_until("it is logged", lambda: words in caplog.text)
    assert caplog.text.count("association from XRAY1 at 127.0.0.1 ended") == 1
    assert caplog.text.count("no message came") == 1


def test_a_pdu_that_takes_too_long_is_named_in_the_log(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    node = start(limits=Limits(pdu_s=0.5))
    with RawPeer(node, request()) as peer:
        peer.answer()
        peer.send(b"\x04\0\0\0\xff\xffabc")
        assert peer.answer()[0] == 0x07
    wait_until("it is logged", lambda: "more than 0.5 s for one PDU" in caplog.text)


# -- whole conversations with other toolkits

FAMILIES = {"uncompressed": "-xe", "JPEG": "-xy", "JPEG-LS": "-xt"}


@pytest.mark.parametrize("identity", [False, True], ids=["plain", "with user identity"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dcmtk_storescu(
    start: Callable[..., Node], peer: Program, data: Path, family: str, identity: bool
) -> None:
    node = start()
    files = siim(data, 1)[JPEG_LS if family == "JPEG-LS" else JPEG]
    if family == "uncompressed":
        files = [data / "node" / "RG2_UNC.dcm"]
    options = ("-usr", "me", "-pwd", "secret") if identity else ()

    sent = storescu(peer, node, files, FAMILIES[family], *options)
    assert sent.returncode == 0, sent.stderr
    (row,) = node.rows()
    assert node.spool.read(row["spool_name"])[128:132] == b"DICM"


def test_dcmtk_dcmsend_and_echoscu(start: Callable[..., Node], peer: Program, data: Path) -> None:
    node = start()
    where = ["127.0.0.1", str(node.port)]
    files = [*siim(data, 1)[JPEG], *siim(data, 1)[JPEG_LS], data / "node" / "RG2_UNC.dcm"]
    command = [peer("dcmsend"), "-aec", "PLEURA", "--decompress-never", *where, *map(str, files)]

    sent = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert sent.returncode == 0, sent.stderr
    assert len(node.rows()) == 3

    echo = [peer("echoscu"), "-aec", "PLEURA", "--repeat", "3", *where]
    assert subprocess.run(echo, timeout=60).returncode == 0


@pytest.mark.parametrize("extended", [False, True], ids=["plain", "window and identity"])
def test_pynetdicom(start: Callable[..., Node], extended: bool) -> None:
    node = start()
    entity = AE("TESTER")
    entity.add_requested_context(CR, ExplicitVRLittleEndian)
    more: list[Any] = []
    if extended:
        window = AsynchronousOperationsWindowNegotiation()
        window.maximum_number_operations_invoked = 8
        window.maximum_number_operations_performed = 8
        identity = UserIdentityNegotiation()
        identity.user_identity_type = 1
        identity.primary_field = b"me"
        identity.positive_response_requested = False
        more = [window, identity]

    keep = [(evt.EVT_CONN_OPEN, lambda event: node.sockets.append(event.assoc.dul.socket.socket))]
    association = entity.associate(
        "127.0.0.1", node.port, ae_title="PLEURA", ext_neg=more, evt_handlers=keep
    )
    assert association.is_established
    if extended:
        assert association.acceptor.asynchronous_operations == (1, 1)
    assert association.send_c_store(image()).Status == 0x0000
    association.release()
    assert association.is_released


def test_orthanc_as_sender(
    start: Callable[..., Node],
    peer: Program,
    data: Path,
    tmp_path: Path,
    free_port: FreePort,
) -> None:
    node = start()
    ports = (free_port(), free_port())
    files = [siim(data, 1)[JPEG][0], siim(data, 1)[JPEG_LS][0], data / "node" / "RG2_UNC.dcm"]
    with Orthanc(peer("Orthanc"), tmp_path / "orthanc", ports, node_port=node.port):
        root = f"http://127.0.0.1:{ports[1]}"

        def post(path: str, body: bytes) -> Any:
            with urllib.request.urlopen(f"{root}{path}", body, timeout=60) as answer:
                return json.loads(answer.read())

        names = [post("/instances", path.read_bytes())["ID"] for path in files]
        post("/modalities/pleura/echo", b"{}")
        post("/modalities/pleura/store", json.dumps(names).encode())
    rows = node.rows()
    assert len({row["sop_instance_uid"] for row in rows}) == 3
    assert len({row["transfer_syntax_uid"] for row in rows}) == 3
