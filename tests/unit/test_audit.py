"""The audit trail: which events each transition records, their XML, and their way to a repository."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import ValidationError
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from daemon.audit import Alerts, AuditSender, Source, document
from daemon.audit.sender import append
from daemon.audit.syslog import formatted
from daemon.commands.retry import Wanted, retry
from daemon.config import Audit, Config, digests
from daemon.deliver.deliverer import Deliverer
from daemon.ledger import (
    Arrival,
    AuditRow,
    Completion,
    Ledger,
    LedgerLimits,
    Recipient,
    StoredResult,
)
from daemon.spool import Spool
from tests.unit.audit_schema import faults
from tools.peers.audit_repository import Repository, numbers
from tools.peers.certificates import Authority, Pair

SOURCE = Source("PLEURA", "node.example", "Hospital 1")
SC = "1.2.840.10008.5.1.4.1.1.7"
OBJECT = {
    "study_instance_uid": "1.2.3",
    "sop_class_uid": SC,
    "sop_instance_uid": "1.2.3.4",
    "spool_name": "ab/cd",
}
EVENTS = {
    "start": {"role": "receive", "pid": "4711"},
    "stop": {"role": "receive", "pid": "4711"},
    "received": OBJECT | {"ae_title": "XRAY1", "address": "10.0.4.11", "patient_id": "4711"},
    "sent": OBJECT | {"ae_title": "PACS", "address": "pacs.example"},
    "exported": OBJECT | {"folder": "/var/lib/pleura/outbox"},
    "refused": {"address": "fe80::1", "why": "rejected with 1/1/3: no peer has this AE title"},
    "settings": {"keys": "overlay, peers"},
    "command": {"by": "alice", "what": "retry: 3 tried again"},
    "recording_stopped": {"waiting": "1000000"},
    "recording_started": {"lost": "17"},
    "login": {"by": "alice", "address": "10.0.4.11"},
    "settings_refused": {"changes": "port: 104 -> 11112", "by": "ada", "why": "port: a restart"},
    "login_failed": {"by": "", "address": "10.0.4.11"},
    "logout": {"by": "alice", "address": "10.0.4.11"},
    "query": {"by": "alice", "what": "accession, since"},
    "accessed": OBJECT | {"by": "alice"},
}


def row(event: str, number: int = 1, **more: str) -> AuditRow:
    return AuditRow(number, 1_800_000_000.25, event, EVENTS[event] | more)


@pytest.mark.parametrize("event", EVENTS)
def test_every_message_is_valid_by_the_schema_of_the_standard(event: str) -> None:
    assert faults(document(row(event), SOURCE)) == []
    assert faults(document(row(event), Source("PLEURA", "node"))) == []


def test_the_schema_rejects_invalid_messages() -> None:
    whole = document(row("received"), SOURCE)
    for part in ("UserIsRequestor", "EventOutcomeIndicator", "originalText", "AuditSourceID"):
        assert faults(whole.replace(part, "Other")), part
    # The code attributes of an audit source type must be all present or all absent.
    assert faults(whole.replace('csd-code="4"', 'csd-code="4" displayName="Server"'))
    for kind in ("AuditSourceIdentification", "ParticipantObjectIDTypeCode"):
        root = ElementTree.fromstring(whole)
        for parent in root.iter():
            for inner in parent.findall(kind):
                parent.remove(inner)
        assert faults(ElementTree.tostring(root, encoding="unicode")), kind


def test_a_hostile_value_cannot_break_the_xml() -> None:
    evil = 'X"/><AuditMessage>\x00\x1b\n \ud800& \uffff'
    for event in ("received", "refused", "command"):
        facts = dict.fromkeys(EVENTS[event], evil)
        xml = document(AuditRow(1, 0.0, event, facts), Source("PLEURA", "node", evil))
        assert faults(xml) == []
        assert xml.count("<AuditMessage") == 1
        xml.encode()


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("letter", ["a", '"', "\U0001f6ab"])
def test_a_message_fits_into_a_datagram_whatever_it_says(event: str, letter: str) -> None:
    facts = dict.fromkeys(EVENTS[event] | {"changes": "", "by": ""}, letter * 100_000)
    message = formatted(AuditRow(1, 0.0, event, facts), SOURCE)
    assert len(message) <= 65_507
    assert faults(message.decode().partition("\ufeff")[2]) == []


@pytest.mark.parametrize("event", ["teleported", "login"])
def test_an_event_of_another_version_is_quoted_and_stops_no_other(event: str) -> None:
    xml = document(AuditRow(1, 0.0, event, {"whom": "bob"}), SOURCE)
    assert faults(xml) == []
    (detail,) = ElementTree.fromstring(xml).iter("ParticipantObjectDetail")
    words = base64.b64decode(detail.attrib["value"]).decode()
    assert words == f"event '{event}' of another version; whom: bob"


def test_the_codes_are_those_of_the_standard() -> None:
    """PS3.16 CID 400 to 404, transcribed by hand."""
    wanted = {
        "start": ("110100", "110120"),
        "stop": ("110100", "110121"),
        "received": ("110104",),
        "sent": ("110104",),
        "exported": ("110106",),
        "refused": ("110113", "110126"),
        "settings": ("110113", "110129"),
        "command": ("110113", "110132"),
        "recording_stopped": ("110113", "110133"),
        "recording_started": ("110113", "110134"),
    }

    for event, codes in wanted.items():
        identification = ElementTree.fromstring(document(row(event), SOURCE))[0]
        assert tuple(each.attrib["csd-code"] for each in identification) == codes

    quiet = ElementTree.fromstring(document(row("settings", keys="overlay"), SOURCE))[0]
    assert quiet[1].attrib["csd-code"] == "110131"


def test_a_message_names_a_patient_only_if_the_event_has_one() -> None:
    with_id = ElementTree.fromstring(document(row("received"), SOURCE))
    patients = with_id.findall("ParticipantObjectIdentification[@ParticipantObjectTypeCode='1']")
    assert [each.attrib["ParticipantObjectID"] for each in patients] == ["4711"]
    assert not ElementTree.fromstring(document(row("sent"), SOURCE)).findall(
        "ParticipantObjectIdentification[@ParticipantObjectTypeCode='1']"
    )


def test_a_message_is_framed_as_rfc_5424_requires() -> None:
    message = formatted(row("start", 7), SOURCE).decode()
    head = (
        r"<85>1 2027-01-15T08:00:00\.250Z node\.example Pleura - DICOM\+RFC3881 "
        r'\[meta sequenceId="7"\] \ufeff<\?xml .*</AuditMessage>'
    )
    assert re.fullmatch(head, message)
    assert formatted(row("start", 7), SOURCE).decode() == message
    assert formatted(row("refused"), SOURCE).startswith(b"<84>1 ")
    assert b'sequenceId="1"' in formatted(row("start", 2147483648), SOURCE)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"repository": "tcp://host:1"},
        {"repository": "tls://host"},
        {"repository": "udp://user@host:514"},
        {"repository": "tls://host:99999"},
        {"file": "relative"},
        {"file": "/a", "key": "/b"},
        {"file": "/a", "patients": "name"},
    ],
)
def test_invalid_audit_settings_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Audit.model_validate(keys)


# -- the ledger


class Bench:
    """A ledger with its audit trail on, and its spool."""

    def __init__(self, folder: Path, url: str, **audit: Any) -> None:
        folder_destination = {"name": "out", "folder": str(folder / "out"), "results": ["SC"]}
        self.config = Config.model_validate(
            {
                "spool": str(folder / "spool"),
                "ledger": url,
                "destinations": [folder_destination],
                "audit": {"file": str(folder / "audit.log")} | audit,
            }
        )
        self.ledger = Ledger(url)
        self.ledger.is_audited = True
        self.spool = Spool(self.config.spool)

    def receive(self, uid: str = "1.2.3.4") -> None:
        name = self.spool.write(_picture(uid))
        self.ledger.receive([Arrival(name, SC, uid, "", "XRAY1", "dimse", 1, 1, "10.0.4.11")])

    def analyse(self, uid: str = "1.2.3.4") -> None:
        (job,) = self.ledger.claim_images("test", 1)
        made = StoredResult("SC", self.spool.write(b"x"), SC, f"{uid}.5", "", 1)
        done = Completion("analysed", f"digest {uid}", "1.2.3", results=(made,))
        self.ledger.complete(job, done, self.config.owed())

    def rows(self) -> list[AuditRow]:
        return self.ledger.claim_audit("test", 100)[0]

    def rows_left(self) -> int:
        """The number of events that have not been sent yet."""
        return self.ledger.inspect.audit_waiting()


def _picture(uid: str) -> bytes:
    import io

    dataset = Dataset()
    dataset.SOPClassUID = UID(SC)
    dataset.SOPInstanceUID = UID(uid)
    dataset.PatientID = "4711"
    dataset.PatientName = "Geheim"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def bench(tmp_path: Path, ledger_url: str) -> Iterator[Bench]:
    bench = Bench(tmp_path, ledger_url)
    yield bench
    bench.ledger.close()


def test_each_transition_records_its_audit_event(bench: Bench) -> None:
    bench.receive()
    # The study is not known before the analysis.
    assert bench.rows() == []
    bench.analyse()
    (job,) = bench.ledger.claim_deliveries("out", "test", 1)
    bench.ledger.mark_stored(job, 0, recipient=Recipient("PACS", "10.0.4.2"))
    assert bench.ledger.resend("out", uids=["1.2.3"], by="alice") == (1, 0)
    (job,) = bench.ledger.claim_deliveries("out", "test", 1)
    bench.ledger.mark_stored(job, 0, recipient=Recipient("/out"))
    # The lease is stale, so nothing changes.
    bench.ledger.mark_stored(job, 0, recipient=Recipient("/out"))
    bench.ledger.record_audit("start", {"role": "deliver", "pid": "1"})

    rows = bench.rows()
    assert [each.number for each in rows] == [1, 2, 3, 4, 5]
    assert [each.event for each in rows] == ["received", "sent", "command", "exported", "start"]
    received, sent, command, exported, _ = (each.facts for each in rows)
    assert (received["ae_title"], received["address"]) == ("XRAY1", "10.0.4.11")
    assert {received["study_instance_uid"], sent["study_instance_uid"]} == {"1.2.3"}
    assert (sent["ae_title"], sent["address"], exported["folder"]) == ("PACS", "10.0.4.2", "/out")
    assert command == {"by": "alice", "what": "resend: 1 objects are sent again to out"}
    assert all("4711" not in str(each) and "Geheim" not in str(each) for each in rows)
    assert all(faults(document(each, SOURCE)) == [] for each in rows)


def test_a_duplicate_is_recorded_as_received_and_a_remade_image_is_not(bench: Bench) -> None:
    for _ in range(2):
        bench.receive()
        bench.analyse()
    assert [each.event for each in bench.rows()] == ["received", "received"]
    (job,) = bench.ledger.claim_deliveries("out", "test", 1)
    assert bench.ledger.remake(job, "lost")
    bench.analyse()
    assert len(bench.rows()) == 2


def test_without_an_audit_trail_nothing_is_recorded(bench: Bench) -> None:
    bench.ledger.is_audited = False
    bench.receive()
    bench.analyse()
    (job,) = bench.ledger.claim_deliveries("out", "test", 1)
    bench.ledger.mark_stored(job, 0, recipient=Recipient("/out"))
    bench.ledger.resend("out", uids=["1.2.3"], by="alice")
    bench.ledger.record_audit("start", {})
    assert bench.rows() == []


def test_changed_settings_are_recorded_by_key_and_never_by_value(bench: Bench) -> None:
    before = digests(bench.config)
    assert bench.ledger.record_settings(before) == []
    assert bench.ledger.record_settings(before) == []
    other = bench.config.model_copy(update={"ae_title": "OTHER", "max_batch": 3})
    assert bench.ledger.record_settings(digests(other)) == ["ae_title", "max_batch"]
    (event,) = bench.rows()
    assert (event.event, event.facts) == ("settings", {"keys": "ae_title, max_batch"})


def test_every_retry_is_recorded_with_its_user(bench: Bench) -> None:
    bench.receive()
    bench.analyse()
    bench.rows()
    bench.ledger.drop_audit("test", 1)
    (job,) = bench.ledger.claim_deliveries("out", "test", 1)
    bench.ledger.retry_later(job, "away", 600.0)
    takes = {"new": ("SC",)}
    readdress = Wanted((), to_destination="new", by="alice", from_destination="out")
    retry(bench.ledger, readdress, takes)
    # A second call has nothing to do and records nothing.
    retry(bench.ledger, readdress, takes)
    retry(bench.ledger, Wanted((), to_destination="new", now=True, by="alice"), takes)

    recorded = [(each.event, each.facts["by"], each.facts["what"]) for each in bench.rows()]
    assert recorded == [
        ("command", "alice", "retry: 1 for out are sent to new"),
        ("command", "alice", "retry: 1 due now to new"),
    ]


def test_recording_stops_with_an_event_when_too_many_events_wait(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.ledger.limits = LedgerLimits(audit_rows=3)
    for _ in range(7):
        bench.ledger.record_audit("start", EVENTS["start"])
    first = bench.rows()
    assert [each.event for each in first] == ["start"] * 3 + ["recording_stopped"]
    assert [each.number for each in first] == [1, 2, 3, 4]
    assert bench.ledger.inspect.audit_lost() == 4
    assert caplog.text.count("recording stops") == 1

    # Recording does not resume with a little room, or it would stop and start again with each
    # event.
    bench.ledger.drop_audit("test", 2)
    bench.ledger.record_audit("start", EVENTS["start"])
    bench.ledger.drop_audit("test", 4)
    bench.ledger.record_audit("stop", EVENTS["stop"])
    rows = bench.rows()
    assert [(each.number, each.event) for each in rows] == [
        (9, "recording_started"),
        (10, "stop"),
    ]
    assert rows[0].facts == {"lost": "5"}
    assert bench.ledger.inspect.audit_lost() == 5
    assert "recording goes on; 5 events were not recorded" in caplog.text
    assert all(faults(document(each, SOURCE)) == [] for each in [*first, *rows])


def test_one_process_sends_at_a_time_and_a_successor_replaces_a_dead_process(bench: Bench) -> None:
    bench.ledger.record_audit("start", EVENTS["start"])
    assert bench.ledger.claim_audit("first", 10)[0]
    assert bench.ledger.claim_audit("second", 10)[0] == []
    bench.ledger.drop_audit("second", 1)
    assert bench.ledger.inspect.lease_owners() == {"first"}
    bench.ledger.release_leases("first")
    assert len(bench.ledger.claim_audit("second", 10)[0]) == 1
    bench.ledger.drop_audit("second", 1)
    assert bench.ledger.claim_audit("second", 10)[0] == []


# -- the sender


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60.0
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def sending(bench: Bench) -> Iterator[None]:
    stop = threading.Event()
    sender = AuditSender(bench.config, bench.ledger, bench.spool)
    thread = threading.Thread(target=sender.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_repository_gets_everything_in_order_across_an_outage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca = Authority(tmp_path / "ca")
    repository = Repository(ca.issue("repository"), ca)
    own = ca.issue("node").settings()
    to = {"repository": f"tls://127.0.0.1:{repository.port}", "ca": str(ca.certificate)}
    bench = Bench(tmp_path, f"sqlite:///{tmp_path}/ledger.db", **own, **to)

    try:
        with sending(bench), caplog.at_level(logging.INFO, "pleura.audit"):
            bench.ledger.record_audit("start", EVENTS["start"])
            until(lambda: not bench.rows_left())
            repository.break_off()
            for _ in range(5):
                bench.ledger.record_audit("stop", EVENTS["stop"])
            until(lambda: "cannot be reached" in caplog.text)
            repository.is_away = False
            until(lambda: not bench.rows_left())

        got = numbers(repository.messages)
        assert list(dict.fromkeys(got)) == [1, 2, 3, 4, 5, 6]
        assert caplog.text.count("cannot be reached") == 1
        assert caplog.text.count("go out again") == 1

        # The file received each event once, despite the outage.
        lines = (tmp_path / "audit.log").read_bytes().splitlines()
        assert numbers(lines) == [1, 2, 3, 4, 5, 6]
        assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600
    finally:
        repository.close()
        bench.ledger.close()


class IllRepository(Repository):
    """Its first connection reads `most_bytes` of what it gets, and then closes, or reads no more."""

    def __init__(self, pair: Pair, ca: Authority, most_bytes: int, closes: bool) -> None:
        self._most_bytes = most_bytes
        self._closes = closes
        self.is_ill = True
        self.has_begun = False
        super().__init__(pair, ca)
        # So little that the kernel does not acknowledge for it what it does not read.
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def _read(self, connection: ssl.SSLSocket) -> None:
        if not self.is_ill:
            super()._read(connection)
            return
        connection.recv(self._most_bytes)
        self.has_begun = True
        if self._closes:
            self.is_ill = False
        until(lambda: not self.is_ill)


@pytest.mark.parametrize(("closes", "count"), [(True, 20), (False, 100)])
def test_a_repository_that_does_not_read_what_it_gets_gets_it_again(
    tmp_path: Path,
    closes: bool,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("daemon.audit.syslog._TIMEOUT_S", 0.5)
    ca = Authority(tmp_path / "ca")
    repository = IllRepository(ca.issue("repository"), ca, 300, closes)
    own = ca.issue("node").settings()
    to = {"repository": f"tls://127.0.0.1:{repository.port}", "ca": str(ca.certificate)}
    bench = Bench(tmp_path, f"sqlite:///{tmp_path}/ledger.db", **own, **to)
    for _ in range(count):
        bench.ledger.record_audit("start", EVENTS["start"])

    try:
        with sending(bench):
            until(lambda: "cannot be reached" in caplog.text or not bench.rows_left())
            repository.is_ill = False
            until(lambda: not bench.rows_left())
        until(lambda: len(set(repository.messages)) == count)
        assert list(dict.fromkeys(numbers(repository.messages))) == [*range(1, count + 1)]
        assert closes or "the repository does not read its messages" in caplog.text
    finally:
        repository.is_ill = False
        repository.close()
        bench.ledger.close()


def test_the_deliver_role_ends_while_a_repository_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.audit.syslog._TIMEOUT_S", 3600.0)
    monkeypatch.setattr("daemon.deliver.deliverer._PATIENCE_S", 0.1)
    ca = Authority(tmp_path / "ca")
    repository = IllRepository(ca.issue("repository"), ca, 300, closes=False)
    own = ca.issue("node").settings()
    to = {"repository": f"tls://127.0.0.1:{repository.port}", "ca": str(ca.certificate)}
    bench = Bench(tmp_path, f"sqlite:///{tmp_path}/ledger.db", **own, **to)
    for _ in range(100):
        bench.ledger.record_audit("start", EVENTS["start"])

    deliverer = Deliverer(bench.config, bench.ledger, bench.spool)
    deliverer.start()
    stopping = threading.Thread(target=deliverer.stop)
    try:
        until(lambda: repository.has_begun)
        stopping.start()
        until(lambda: not stopping.is_alive())
        assert bench.rows_left() == 100
    finally:
        repository.is_ill = False
        stopping.join()
        until(lambda: "audit" not in [thread.name for thread in threading.enumerate()])
        repository.close()
        bench.ledger.close()


def test_datagrams_carry_one_message_each(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as repository:
        repository.bind(("127.0.0.1", 0))
        repository.settimeout(30.0)
        to = f"udp://127.0.0.1:{repository.getsockname()[1]}"
        bench = Bench(tmp_path, f"sqlite:///{tmp_path}/ledger.db", repository=to, file=None)
        with sending(bench):
            for _ in range(3):
                bench.ledger.record_audit("start", EVENTS["start"])
            got = [repository.recv(65536) for _ in range(3)]
        bench.ledger.close()
    assert numbers(got) == [1, 2, 3]
    assert all(faults(each.decode().partition("\ufeff")[2]) == [] for each in got)


@pytest.mark.parametrize("patients", ["none", "id"])
def test_the_patient_id_is_written_only_if_the_settings_ask_for_it(
    tmp_path: Path, patients: str
) -> None:
    bench = Bench(tmp_path, f"sqlite:///{tmp_path}/ledger.db", patients=patients)
    bench.receive()
    bench.analyse()
    with sending(bench):
        until(lambda: not bench.rows_left())
    bench.ledger.close()
    text = (tmp_path / "audit.log").read_text()
    assert ("4711" in text) == (patients == "id")
    assert "Geheim" not in text


def test_an_event_that_a_dead_sender_filed_is_not_filed_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"sqlite:///{tmp_path}/ledger.db")
    for _ in range(3):
        bench.ledger.record_audit("start", EVENTS["start"])
    bench.ledger.claim_audit("dead", 2)
    bench.ledger.note_audit_filed(2)
    bench.ledger.release_leases("dead")
    with sending(bench):
        until(lambda: not bench.rows_left())
    bench.ledger.close()
    assert numbers((tmp_path / "audit.log").read_bytes().splitlines()) == [3]


def test_a_full_disk_leaves_no_partial_message_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    append(file, [b"first"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        with pytest.raises(OSError, match="too large"):
            append(file, [b"second", b"third, longer than the room"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)

    append(file, [b"second", b"third"])
    assert file.read_bytes() == b"first\nsecond\nthird\n"


def test_a_line_cut_off_by_a_crash_loses_no_later_message(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    file.write_bytes(b"first\nsec")
    append(file, [b"second"])
    assert file.read_bytes().splitlines() == [b"first", b"sec", b"second"]


def test_a_refusal_is_recorded_once_a_minute_for_each_address_and_reason(bench: Bench) -> None:
    alerts = Alerts(bench.ledger)
    alerts.start()
    for _ in range(3):
        for address in ("10.0.4.11", "10.0.4.12"):
            alerts.refuse(address, "rejected with 1/1/3")
    alerts.refuse("10.0.4.11", "the TLS handshake failed")
    alerts.stop()
    recorded = [(each.facts["address"], each.facts["why"][:8]) for each in bench.rows()]
    assert recorded == [
        ("10.0.4.11", "rejected"),
        ("10.0.4.12", "rejected"),
        ("10.0.4.11", "the TLS "),
    ]


def test_the_first_refusal_after_a_boot_is_recorded(bench: Bench) -> None:
    """The clock counts from the boot; 0.1 - 60.0 + 60.0 is more than 0.1."""
    alerts = Alerts(bench.ledger, lambda: 0.1)
    alerts.refuse("10.0.4.11", "rejected with 1/1/3")
    alerts.start()
    alerts.stop()
    assert [each.facts["why"] for each in bench.rows()] == ["rejected with 1/1/3"]


def test_an_address_that_makes_up_reasons_cannot_fill_the_audit_trail(bench: Bench) -> None:
    now = [0.0]
    alerts = Alerts(bench.ledger, lambda: now[0])
    for number in range(500):
        alerts.refuse("10.0.4.66", f"no peer has the AE title LAPTOP{number}")
    alerts.refuse("10.0.4.11", "the TLS handshake failed")
    now[0] += 61.0
    alerts.refuse("10.0.4.66", "another")

    alerts.start()
    alerts.stop()
    recorded = [(each.facts["address"], each.facts["why"]) for each in bench.rows()]
    assert ("10.0.4.11", "the TLS handshake failed") in recorded
    assert ("10.0.4.66", "another") in recorded
    told = ("10.0.4.66", "470 further refusals of this address; the log has each of them")
    assert recorded.count(told) == 1
    assert len(recorded) == 33
