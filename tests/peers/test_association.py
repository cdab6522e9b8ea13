"""Our requestor against DCMTK, Orthanc and scripted archives: every byte arrives, and an
association that the peer ends is reported as lost.
"""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP, N_EVENT_REPORT_RQ
from pynetdicom.dimse_primitives import C_STORE, N_EVENT_REPORT
from pynetdicom.dsutils import split_dataset
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ, P_DATA_TF

from daemon.dicom.link import Link, LinkDownError, NotAcceptedError, Remote, proposal
from daemon.dicom.outgoing import Outgoing, UnsendableError, describe
from daemon.dicom.requestor import DEFAULT_LIMITS, EventReport, Limits, Requestor
from tests.peers.test_deliver import SEG, StoreSCP, segmentation
from tools.peers.archive import serving
from tools.peers.harness import Orthanc

DEADLINE_S = 30.0
FreePort = Callable[[], int]
ABORT = bytes.fromhex("07 00 00000004 0000 00 00")  # PS3.8 9.3.8
RELEASE_RQ = bytes.fromhex("05 00 00000004 00000000")  # PS3.8 9.3.6
RELEASE_RP = bytes.fromhex("06 00 00000004 00000000")  # PS3.8 9.3.7


def outgoing(folder: Path, data_set_bytes: int, uid: str = "2.25.1") -> Outgoing:
    """A file with a data set of this length."""
    path = folder / f"{uid}.dcm"
    path.write_bytes(segmentation(uid, 1000))
    path.write_bytes(segmentation(uid, 1000 + (data_set_bytes - len(data_set(path))) // 2 * 2))
    path.write_bytes(path.read_bytes() + b"\0" * (data_set_bytes - len(data_set(path))))
    assert len(data_set(path)) == data_set_bytes
    return describe(path)


def data_set(path: Path) -> bytes:
    """The bytes after the file meta information, as pynetdicom finds them."""
    return path.read_bytes()[split_dataset(path)[1] :]


def link_to(
    port: int, *objects: Outgoing, ae_title: str = "ARCHIVE", limits: Limits = DEFAULT_LIMITS
) -> Link:
    contexts = proposal([one.syntaxes for one in objects])
    return Link.open("PLEURA", Remote(ae_title, "127.0.0.1", port), contexts, limits)


# -- whole objects
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maximum_bytes", [4096, 16384, 131072])
def test_dcmtk_receives_every_byte_of_any_length(
    peer: Callable[[str], str], tmp_path: Path, free_port: FreePort, maximum_bytes: int
) -> None:
    fragment_bytes = maximum_bytes - 6
    lengths = [
        2000,
        fragment_bytes - 2,
        fragment_bytes,
        fragment_bytes + 2,
        9 * fragment_bytes,
        15_000_002,
    ]
    objects = [
        outgoing(tmp_path, length, f"2.25.{number}") for number, length in enumerate(lengths, 1)
    ]
    scp = StoreSCP(peer("storescp"), free_port(), tmp_path / "archive", "-pdu", str(maximum_bytes))
    try:
        with link_to(scp.port, *objects) as link:
            assert [link.store(one).status for one in objects] == [0] * len(objects)
    finally:
        scp.stop()

    arrived = {str(dcmread(path).SOPInstanceUID): data_set(path) for path in scp.folder.iterdir()}
    assert arrived == {one.sop_instance_uid: data_set(one.path) for one in objects}


def test_orthanc_receives_every_byte(orthanc: Orthanc, tmp_path: Path) -> None:
    objects = [
        outgoing(tmp_path, length, f"2.25.{length}")
        for length in (2000, 16_378, 16_380, 15_000_002)
    ]
    with link_to(orthanc.dicom_port, *objects, ae_title=orthanc.ae_title) as link:
        assert [link.store(one).status for one in objects] == [0] * len(objects)

    instances = orthanc.instances()
    assert set(instances) == {one.sop_instance_uid for one in objects}
    for one in objects:
        kept = tmp_path / "kept.dcm"
        kept.write_bytes(orthanc.file(instances[one.sop_instance_uid]["orthanc"]))
        assert data_set(kept) == data_set(one.path)


# 0 means no limit (PS3.8 D.1).
@pytest.mark.parametrize("maximum_bytes", [0, 8, 9, 100, 1 << 30])
def test_the_peers_maximum_pdu_length_is_kept(
    tmp_path: Path, free_port: FreePort, maximum_bytes: int
) -> None:
    """Also for a data set of odd length, which the standard forbids but a disk may hold."""
    arrived: list[bytes] = []
    lengths: list[int] = []

    def store(event: Any) -> int:
        arrived.append(event.request.DataSet.getvalue())
        return 0

    def note(event: Any) -> None:
        if isinstance(event.pdu, P_DATA_TF):
            lengths.append(event.pdu.pdu_length)

    port = free_port()
    entity = AE("ARCHIVE")
    entity.maximum_pdu_size = maximum_bytes
    entity.add_supported_context(SEG, ExplicitVRLittleEndian)
    handlers: list[Any] = [(evt.EVT_C_STORE, store), (evt.EVT_PDU_RECV, note)]
    large = 2000 if 0 < maximum_bytes < 1000 else 1_000_001
    objects = [outgoing(tmp_path, length, f"2.25.{length}") for length in (1999, large)]

    with serving(entity, port, handlers), link_to(port, *objects) as link:
        assert [link.store(one).status for one in objects] == [0, 0]

    assert arrived == [data_set(one.path) for one in objects]
    assert max(lengths) <= (maximum_bytes or 1 << 30)


# -- scripted archives
# -----------------------------------------------------------------------------------------------


class Scripted:
    """An archive that accepts every proposed context of one association, then runs its script."""

    def __init__(self, script: Callable[[Scripted], None], maximum_bytes: int = 16384) -> None:
        self._script = script
        self._maximum_bytes = maximum_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.port = int(self._listener.getsockname()[1])
        self.message_ids: list[int] = []
        # The types of the PDUs read
        self.saw: list[int] = []

    def _run(self) -> None:
        self.connection, _ = self._listener.accept()
        with self._listener, self.connection:
            self.connection.settimeout(DEADLINE_S)
            request = A_ASSOCIATE_RQ()

            request.decode(self.pdu())
            primitive = request.to_primitive()
            contexts = primitive.presentation_context_definition_list
            for context in contexts:
                context.transfer_syntax = [context.transfer_syntax[0]]
                context.result = 0
            primitive.presentation_context_definition_results_list = contexts
            primitive.presentation_context_definition_list = []
            primitive.maximum_length_received = self._maximum_bytes
            primitive.result = 0
            primitive.result_source = 1
            self.connection.sendall(A_ASSOCIATE_AC(primitive).encode())
            self._script(self)

    def pdu(self) -> bytes:
        """The next PDU; b"" at the end."""
        data = self._exactly(6)
        self.saw += data[:1]
        return data + self._exactly(int.from_bytes(data[2:], "big"))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (part := self.connection.recv(size - len(data))):
            data += part
        return data

    def request(self) -> None:
        """Read a whole C-STORE-RQ."""
        message = C_STORE_RQ()
        done = False
        while not done:
            pdu = P_DATA_TF()
            pdu.decode(self.pdu())
            done = bool(message.decode_msg(pdu.to_primitive()))
        message_id = message.message_to_primitive().MessageID
        assert message_id is not None
        self.message_ids.append(message_id)

    def response(self, message_id: int | None = None, fragment_bytes: int = 16384) -> bytes:
        """The PDUs of a C-STORE-RSP."""
        primitive = C_STORE()
        primitive.MessageIDBeingRespondedTo = (
            self.message_ids[-1] if message_id is None else message_id
        )
        primitive.AffectedSOPClassUID = SEG
        primitive.AffectedSOPInstanceUID = "2.25.1"
        primitive.Status = 0xB007

        message = C_STORE_RSP()
        message.primitive_to_message(primitive)
        return b"".join(P_DATA_TF(part).encode() for part in message.encode_msg(1, fragment_bytes))

    def until_closed(self) -> None:
        """Read and ignore everything until the peer closes the connection."""
        while self.connection.recv(1 << 16):
            pass

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


def abort_midway(archive: Scripted) -> None:
    for _ in range(5):
        archive.pdu()
    archive.connection.sendall(ABORT)


def close_midway(archive: Scripted) -> None:
    for _ in range(5):
        archive.pdu()


def abort_instead(archive: Scripted) -> None:
    archive.request()
    archive.connection.sendall(ABORT)


def close_instead(archive: Scripted) -> None:
    archive.request()


def release_instead(archive: Scripted) -> None:
    archive.request()
    archive.connection.sendall(RELEASE_RQ)
    assert archive.pdu() == RELEASE_RP


def answer_another(archive: Scripted) -> None:
    archive.request()
    archive.connection.sendall(archive.response(archive.message_ids[-1] + 1))


def answer_with_a_request(archive: Scripted) -> None:
    archive.request()
    primitive = C_STORE()
    primitive.MessageID = archive.message_ids[-1]
    primitive.Priority = 0
    primitive.AffectedSOPClassUID = SEG
    primitive.AffectedSOPInstanceUID = "2.25.1"

    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    (part,) = message.encode_msg(1, 16384)
    archive.connection.sendall(P_DATA_TF(part).encode())


def answer_without_end(archive: Scripted) -> None:
    archive.request()
    archive.connection.sendall(archive.response()[:-20])
    archive.until_closed()


def answer_garbage(archive: Scripted) -> None:
    archive.request()
    archive.connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def answer_endlessly(archive: Scripted) -> None:
    archive.request()
    archive.connection.sendall(b"\x04\0\xff\xff\xff\xff")


def answer_an_empty_pdv(archive: Scripted) -> None:
    archive.request()
    archive.connection.sendall(b"\x04\0\0\0\0\x04\0\0\0\0")


def answer_nothing(archive: Scripted) -> None:
    archive.request()
    archive.until_closed()


def read_nothing(archive: Scripted) -> None:
    archive.pdu()
    time.sleep(1.0)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        # Our side may see a socket error before it reads the abort.
        (abort_midway, ""),
        (close_midway, ""),
        (abort_instead, "aborted the association"),
        (close_instead, "closed the connection"),
        (release_instead, "released the association"),
        (answer_another, "to another request"),
        (answer_with_a_request, "to another request"),
        (answer_without_end, "no answer came in time"),
        (answer_garbage, "type 0x48"),
        (answer_endlessly, "4294967295 bytes"),
        (answer_an_empty_pdv, "a PDV header that is cut off"),
        (answer_nothing, "no answer came in time"),
        (read_nothing, "stopped reading"),
    ],
)
def test_a_peer_that_gives_up_ends_the_link(
    tmp_path: Path, script: Callable[[Scripted], None], why: str
) -> None:
    limits = Limits(answer_s=0.5, stalled_s=0.3, slowest_bytes_per_s=1e9)
    one = outgoing(
        tmp_path, 30_000_000 if script in (abort_midway, close_midway, read_nothing) else 30_000
    )
    with Scripted(script) as archive, link_to(archive.port, one, limits=limits) as link:
        with pytest.raises(LinkDownError, match=f"the association was lost: .*{why}"):
            link.store(one)
        with pytest.raises(LinkDownError):
            link.store(one)


def test_a_second_answer_is_not_taken_for_the_next_objects(tmp_path: Path) -> None:
    def script(archive: Scripted) -> None:
        archive.request()
        archive.connection.sendall(2 * archive.response())
        archive.request()

    one, another = outgoing(tmp_path, 3000, "2.25.1"), outgoing(tmp_path, 3000, "2.25.2")
    with Scripted(script) as archive, link_to(archive.port, one, another) as link:
        assert link.store(one).status == 0xB007
        with pytest.raises(LinkDownError, match="to another request"):
            link.store(another)


def test_a_report_that_crosses_our_release_counts(tmp_path: Path) -> None:
    """PS3.8 Table 9-10, Sta7, AR-6."""

    def script(archive: Scripted) -> None:
        archive.request()
        archive.connection.sendall(archive.response())

        assert archive.pdu() == RELEASE_RQ

        primitive = N_EVENT_REPORT()
        primitive.MessageID = 7
        primitive.EventTypeID = 1
        primitive.AffectedSOPClassUID = SEG
        primitive.AffectedSOPInstanceUID = "2.25.7"
        primitive.EventInformation = io.BytesIO(b"report")

        message = N_EVENT_REPORT_RQ()
        message.primitive_to_message(primitive)
        for part in message.encode_msg(1, 16384):
            archive.connection.sendall(P_DATA_TF(part).encode())
        archive.connection.sendall(RELEASE_RP)

    reports: list[EventReport] = []

    def take(report: EventReport) -> int:
        reports.append(report)
        return 0x0000

    one = outgoing(tmp_path, 3000)
    with Scripted(script) as archive:
        remote = Remote("ARCHIVE", "127.0.0.1", archive.port)
        contexts = proposal([one.syntaxes])
        with Link.open("PLEURA", remote, contexts, DEFAULT_LIMITS, take) as link:
            assert link.store(one).status == 0xB007
    assert [(report.sop_instance_uid, report.information) for report in reports] == [
        ("2.25.7", b"report")
    ]


def test_an_answer_may_come_in_pieces(tmp_path: Path) -> None:
    def script(archive: Scripted) -> None:
        archive.request()
        for byte in archive.response(fragment_bytes=20):
            archive.connection.sendall(bytes([byte]))
        assert archive.pdu() == RELEASE_RQ
        archive.connection.sendall(RELEASE_RP)

    one = outgoing(tmp_path, 3000)
    with Scripted(script) as archive, link_to(archive.port, one) as link:
        assert link.store(one).status == 0xB007


def test_a_file_that_becomes_shorter_is_never_sent_as_whole(tmp_path: Path) -> None:
    # More than the sockets' buffers hold
    one = outgoing(tmp_path, 60_000_000)
    lasts: list[bool] = []

    def script(archive: Scripted) -> None:
        for _ in range(5):
            archive.pdu()
        os.truncate(one.path, 20_000_000)
        while len(pdu := archive.pdu()) > 12:
            lasts.append(bool(pdu[11] & 0b10))

    with (
        Scripted(script) as archive,
        link_to(archive.port, one) as link,
        pytest.raises(LinkDownError, match="became shorter"),
    ):
        link.store(one)
    assert lasts
    assert not any(lasts)


def test_a_peer_whose_pdus_are_too_short_for_any_message_gets_nothing(tmp_path: Path) -> None:
    one = outgoing(tmp_path, 3000)
    with (
        Scripted(Scripted.until_closed, maximum_bytes=7) as archive,
        pytest.raises(LinkDownError, match="at most 7 bytes"),
    ):
        link_to(archive.port, one)


def test_an_interrupted_object_is_aborted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An association with an unanswered request cannot be released: that would wait for the
    time-out.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def script(archive: Scripted) -> None:
        archive.request()
        assert archive.pdu()[0] == ABORT[0]

    one = outgoing(tmp_path, 3000)
    monkeypatch.setattr(Requestor, "_response", interrupt)
    with (
        Scripted(script) as archive,
        link_to(archive.port, one) as link,
        pytest.raises(KeyboardInterrupt),
    ):
        link.store(one)


class Answering:
    """An archive that answers one association request with given bytes."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.port = int(self._listener.getsockname()[1])

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with self._listener, connection:
            connection.settimeout(DEADLINE_S)
            connection.sendall(self._answer(connection.recv(1 << 16)))
            while connection.recv(1 << 16):
                pass

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE_S)


def sloppy_accept(request: bytes, *, titles: bytes = bytes(32), more: bytes = b"") -> bytes:
    """An A-ASSOCIATE-AC of the first context, sloppy in ways that some archives are."""
    syntax = b"\x40\x00\x00\x13" + b"1.2.840.10008.1.2.1"
    context = bytes((0x21, 0, 0, 4 + len(syntax), 1, 0, 0, 0)) + syntax
    maximum = b"\x51\x00\x00\x04\x00\x00\x40\x00"
    user = b"\x50\x00" + (len(maximum) + len(more)).to_bytes(2, "big") + maximum + more
    body = b"\x00\x01\x00\x00" + titles + bytes(32) + context + user
    return b"\x02\x00" + len(body).to_bytes(4, "big") + body


LONG_NAME = b"\x55\x00\x00\x20" + b"an implementation version of 32."
UNKNOWN_SUB_ITEM = b"\x5f\x00\x00\x03abc"


@pytest.mark.parametrize(
    ("titles", "more"),
    [
        (b"ARCHIVE\0\0\0\0\0\0\0\0\0PLEURA\0\0\0\0\0\0\0\0\0\0", b""),
        (bytes(32), b""),
        (b"\xff" * 32, b""),
        (b" " * 32, LONG_NAME),
        (b" " * 32, UNKNOWN_SUB_ITEM),
        (b" " * 32, LONG_NAME + UNKNOWN_SUB_ITEM),
    ],
)
def test_an_accept_may_hold_parts_that_the_standard_says_to_ignore(
    tmp_path: Path, titles: bytes, more: bytes
) -> None:
    one = outgoing(tmp_path, 3000)
    with (
        Answering(lambda request: sloppy_accept(request, titles=titles, more=more)) as archive,
        link_to(archive.port, one, limits=Limits(acse_s=1.0)) as link,
    ):
        assert set(link.accepted) == {one.syntaxes}


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ((1, 1, 3), "1/1/3 .*calling AE title not recognized.*add the AE title PLEURA"),
        ((1, 1, 7), "1/1/7 .*called AE title not recognized.*correct `ae_title`"),
        ((1, 1, 1), "1/1/1 .*AE title PLEURA and this machine.s address"),
        ((2, 3, 2), "2/3/2 .*local limit exceeded.*it is busy"),
        ((1, 1, 9), "1/1/9 .*the standard does not have.*its log may tell"),
    ],
)
def test_a_rejection_says_what_to_do(reason: tuple[int, int, int], advice: str) -> None:
    reject = bytes((3, 0, 0, 0, 0, 4, 0, *reason))
    with (
        Answering(lambda _: reject) as archive,
        pytest.raises(LinkDownError, match=f"association rejected with {advice}"),
    ):
        link_to(archive.port)


# -- files
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive_port(free_port: FreePort) -> Iterator[int]:
    """The port of an archive that answers success and stores nothing."""
    port = free_port()
    entity = AE("ARCHIVE")
    entity.add_supported_context(SEG, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    with serving(entity, port, [(evt.EVT_C_STORE, lambda _: 0)]):
        yield port


def test_a_file_of_another_object_is_not_sent_under_this_objects_name(
    tmp_path: Path, archive_port: int
) -> None:
    one, another = outgoing(tmp_path, 3000, "2.25.1"), outgoing(tmp_path, 3000, "2.25.2")
    one.path.write_bytes(another.path.read_bytes())
    with link_to(archive_port, one, another) as link:
        with pytest.raises(UnsendableError, match="another object"):
            link.store(one)
        assert link.store(another).status == 0


def test_a_file_without_data_set_is_not_sent(tmp_path: Path, archive_port: int) -> None:
    one, another = outgoing(tmp_path, 3000, "2.25.1"), outgoing(tmp_path, 3000, "2.25.2")
    one.path.write_bytes(one.path.read_bytes()[: split_dataset(one.path)[1]])
    with link_to(archive_port, one, another) as link:
        with pytest.raises(UnsendableError, match="no data set"):
            link.store(one)
        assert link.store(another).status == 0


@pytest.mark.parametrize(
    "wrong", ["0", "16", "4095", "2**32 - 1", "right - 2", "right + 8", "before the last element"]
)
def test_a_wrong_group_length_does_not_move_the_data_set(
    peer: Callable[[str], str], tmp_path: Path, free_port: FreePort, wrong: str
) -> None:

    one = outgoing(tmp_path, 3000)
    data = one.path.read_bytes()
    right = int.from_bytes(data[140:144], "little")
    lengths = {
        "0": 0,
        "16": 16,
        "4095": 4095,
        "2**32 - 1": 2**32 - 1,
        "right - 2": right - 2,
        "right + 8": right + 8,
    }
    lengths["before the last element"] = data.index(b"\x02\x00\x13\x00SH") - 144
    one.path.write_bytes(data[:140] + lengths[wrong].to_bytes(4, "little") + data[144:])

    assert describe(one.path) == one

    scp = StoreSCP(peer("storescp"), free_port(), tmp_path / "archive")
    try:
        with link_to(scp.port, one) as link:
            assert link.store(one).status == 0
    finally:
        scp.stop()

    (path,) = scp.folder.iterdir()
    # storescp writes the right group length.
    arrived = path.read_bytes()
    assert arrived[144 + int.from_bytes(arrived[140:144], "little") :] == data_set(one.path)


def test_verification_is_answered_or_not_accepted(
    archive_port: int, peer: Callable[[str], str], free_port: FreePort, tmp_path: Path
) -> None:
    with link_to(archive_port) as link, pytest.raises(NotAcceptedError, match="Verification"):
        link.echo()
    scp = StoreSCP(peer("storescp"), free_port(), tmp_path / "archive")
    try:
        with link_to(scp.port) as link:
            assert [link.echo().status, link.echo().status] == [0, 0]
    finally:
        scp.stop()
