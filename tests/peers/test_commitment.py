"""Storage commitment: a delivery is done when the archive commits to the object, and an object that
the archive has lost is sent again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt

from daemon.backoff import Backoff
from daemon.config import Config, DicomDestination, Peer
from daemon.deliver.commitment import Asker
from daemon.deliver.limits import DEFAULT_LIMITS, DeliverLimits
from daemon.dicom.acceptor import Rejection
from daemon.dicom.negotiation import CALLING_AE_TITLE_NOT_RECOGNIZED
from daemon.dicom.tables import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.ledger.schema import deliveries
from daemon.receive.access import AccessList, Caller
from daemon.receive.scp import Receiver
from daemon.spool import Spool
from tools.peers.archive import serving
from tools.peers.harness import Node, Orthanc, storescu
from tools.peers.waiting import wait_until

SC = "1.2.840.10008.5.1.4.1.1.7"
# If the peer closes an association first, pynetdicom leaves the socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
FreePort = Callable[[], int]


def test_orthanc_commits_and_receives_a_lost_object_again(
    peer: Callable[[str], str],
    xrays: list[Path],
    quick: str,
    tmp_path: Path,
    free_port: FreePort,
) -> None:
    """The archive is not listed in `peers`: the node takes the reports of every destination with
    `commitment`.
    """
    port = free_port()
    with Orthanc(
        peer("Orthanc"), tmp_path / "orthanc", (free_port(), free_port()), node_port=port
    ) as archive:
        node = Node(
            tmp_path / "node",
            port,
            model=quick,
            peers=[{"ae_title": "XRAY1", "host": "127.0.0.1"}],
            destinations=[archive.destination(commitment=True, results=["SC"])],
        )
        with node:
            assert storescu(peer("storescu"), node, xrays[:1], "-xy").returncode == 0
            wait_until("it is committed", lambda: node.counts()["deliveries"]["committed"] == 1)
        # The archive loses the object between its success and the commitment request. The node is
        # stopped, so no request goes out meanwhile.

        (held,) = archive.instances().values()
        archive.delete(held["orthanc"])
        engine = sa.create_engine(node.settings["ledger"])
        with engine.begin() as conn:
            conn.execute(
                deliveries.update().values(state="stored", commit_due_at=0.0, commit_asks=0)
            )
        engine.dispose()

        with node:
            wait_until(
                "it is sent again and committed",
                lambda: node.counts()["deliveries"]["committed"] == 1,
            )
        assert archive.instances().keys() == {held["SOPInstanceUID"]}


class Bench:
    """A ledger with results stored at an archive, and the receive role that takes its reports."""

    def __init__(self, folder: Path, ports: tuple[int, int]) -> None:
        self.port, archive_port = ports
        self.destination = DicomDestination(
            name="pacs", ae_title="ARCHIVE", host="127.0.0.1", port=archive_port, commitment=True
        )

        self.config = Config(
            host="127.0.0.1",
            port=self.port,
            spool=folder / "spool",
            ledger=f"sqlite:///{folder}/ledger.db",
            spool_reserve_mb=0,
            peers=({"ae_title": "XRAY1", "host": "127.0.0.1"},),
            destinations=(self.destination,),
        )

        self.ledger = Ledger(self.config.ledger)
        self.receiver = Receiver(self.config, self.ledger, Spool(self.config.spool))
        self.receiver.start()
        self.stop_asking = threading.Event()
        self.asker: threading.Thread | None = None

    def store(self, *uids: str) -> None:
        """Record these results as stored at the archive; commitment is due for them."""
        self.ledger.receive(
            [Arrival(f"{uids[0]}-file", SC, f"1.2.{uids[0]}", "", "", "dimse", 1, 1)]
        )
        (job,) = self.ledger.claim_images("test", 1)
        made = tuple(
            StoredResult("SC", f"{uid}-file", SC, uid, str(ExplicitVRLittleEndian), 1)
            for uid in uids
        )
        self.ledger.complete(job, Completion("analysed", uids[0], results=made), self.config.owed())
        for delivery in self.ledger.claim_deliveries("pacs", "test", 99):
            self.ledger.mark_stored(delivery, 0, commitment=True)

    def ask(self, limits: DeliverLimits = DEFAULT_LIMITS) -> None:
        asker = Asker(self.destination, Config(), self.ledger, limits)
        self.asker = threading.Thread(target=asker.run, args=(self.stop_asking,))
        self.asker.start()

    def states(self) -> dict[str, int]:
        return {
            state: count
            for state, count in self.ledger.inspect.counts()["deliveries"].items()
            if count
        }

    def close(self) -> None:
        self.stop_asking.set()
        if self.asker:
            self.asker.join()
        self.receiver.stop()
        self.ledger.close()


class Archive:
    """A Storage Commitment SCP that records requests in `questions` as (transaction UID, SOP
    Instance UIDs), and calls `on_question(event, transaction UID, UIDs)` for each.
    """

    def __init__(self, port: int, status: int = 0x0000) -> None:
        self.questions: list[tuple[str, list[str]]] = []
        self.on_question: Callable[[Any, str, list[str]], None] = lambda *_: None
        self.status = status
        self._entity = AE("ARCHIVE")
        self._entity.add_supported_context(STORAGE_COMMITMENT)
        self._open = contextlib.ExitStack()
        self._open.enter_context(serving(self._entity, port, [(evt.EVT_N_ACTION, self._action)]))

    def _action(self, event: Any) -> tuple[int, None]:
        information = event.action_information
        uids = [str(item.ReferencedSOPInstanceUID) for item in information.ReferencedSOPSequence]
        self.questions.append((str(information.TransactionUID), uids))
        self.on_question(event, *self.questions[-1])
        return self.status, None

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def bench(tmp_path: Path, free_port: FreePort) -> Iterator[Bench]:
    bench = Bench(tmp_path, (free_port(), free_port()))
    yield bench
    bench.close()


@pytest.fixture
def archive(bench: Bench) -> Iterator[Archive]:
    archive = Archive(bench.destination.port)
    yield archive
    archive.close()


def information(transaction_uid: str, committed: list[str], failed: dict[str, int]) -> Dataset:
    report = Dataset()
    report.TransactionUID = UID(transaction_uid)
    report.ReferencedSOPSequence = [item(uid) for uid in committed]
    report.FailedSOPSequence = [item(uid, reason) for uid, reason in failed.items()]
    return report


def item(uid: str, reason: int | None = None) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = UID(SC)
    reference.ReferencedSOPInstanceUID = UID(uid)
    if reason is not None:
        reference.FailureReason = reason
    return reference


def report(
    port: int, content: Dataset, calling: str = "ARCHIVE", event_type: int | None = None
) -> int | None:
    """Send an N-EVENT-REPORT on a separate association.

    Returns the status, or None if the association is rejected.
    """
    entity = AE(calling)
    entity.add_requested_context(STORAGE_COMMITMENT)
    role = build_role(STORAGE_COMMITMENT, scu_role=False, scp_role=True)
    association = entity.associate("127.0.0.1", port, ae_title="PLEURA", ext_neg=[role])
    if not association.is_established:
        return None

    kind = event_type or (2 if content.FailedSOPSequence else 1)
    status, _ = association.send_n_event_report(
        content, kind, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
    )
    association.release()
    answer: int | None = status.get("Status")
    return answer


def test_a_report_that_overtakes_the_answer_counts(bench: Bench, archive: Archive) -> None:
    statuses = []
    archive.on_question = lambda _, transaction, uids: statuses.append(
        report(bench.port, information(transaction, uids, {}))
    )
    bench.store("1.1", "1.2")
    bench.ask()
    wait_until("both are committed", lambda: bench.states() == {"committed": 2})
    wait_until("the report is answered", lambda: statuses)
    assert statuses == [0x0000]
    assert archive.questions[0][1] == ["1.1", "1.2"]


def test_a_report_on_the_association_that_asked_counts(bench: Bench, archive: Archive) -> None:
    def later(event: Any, transaction: str, uids: list[str]) -> None:
        def send() -> None:
            # Let the answer to the request go first.
            time.sleep(0.2)
            event.assoc.send_n_event_report(
                information(transaction, uids, {}),
                1,
                STORAGE_COMMITMENT,
                STORAGE_COMMITMENT_INSTANCE,
            )

        threading.Thread(target=send, daemon=True).start()

    archive.on_question = later
    bench.store("1.1")
    bench.ask()
    wait_until("it is committed", lambda: bench.states() == {"committed": 1})


def test_a_report_on_that_association_before_the_answer_counts(
    bench: Bench, archive: Archive
) -> None:
    statuses: list[Any] = []

    def at_once(event: Any, transaction: str, uids: list[str]) -> None:
        answer, _ = event.assoc.send_n_event_report(
            information(transaction, uids, {}), 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
        )
        statuses.append(answer.get("Status"))

    archive.on_question = at_once
    bench.store("1.1")
    bench.ask()
    wait_until("it is committed", lambda: bench.states() == {"committed": 1})
    wait_until("the report is answered", lambda: statuses)
    assert statuses == [0x0000]


def test_each_failure_reason_has_its_consequence(bench: Bench, archive: Archive) -> None:
    bench.store("1.1", "1.2", "1.3", "1.4")
    archive.on_question = lambda _, transaction, uids: report(
        bench.port, information(transaction, ["1.1"], {"1.2": 0x0112, "1.3": 0x0122, "1.4": 0x0110})
    )
    bench.ask()
    wait_until("the report is recorded", lambda: "committed" in bench.states())
    assert bench.states() == {"committed": 1, "owed": 1, "refused": 1, "stored": 1}

    (again,) = bench.ledger.claim_deliveries("pacs", "test", 9)
    assert again.result.sop_instance_uid == "1.2"


def test_an_archive_that_does_not_report_is_asked_again_and_logged(
    bench: Bench, archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    bench.store("1.1")
    bench.ask(DeliverLimits(first_report_s=0.01))
    wait_until("it is asked again", lambda: len(archive.questions) >= 3)
    assert "pacs: no commitment report came on 1 objects; asking again." in caplog.text

    unreported = bench.ledger.inspect.destinations()["pacs"]["unreported"]
    assert unreported == 1
    # Each request has its own transaction UID (PS3.4 J.3.2).
    transactions = {transaction for transaction, _ in archive.questions}
    assert len(transactions) == len(archive.questions)
    assert bench.states() == {"stored": 1}

    # A late report on the first request still counts.
    first = archive.questions[0][0]
    assert report(bench.port, information(first, ["1.1"], {})) == 0x0000
    assert bench.states() == {"committed": 1}


def test_one_reference_that_fails_a_whole_request_holds_up_no_other(
    bench: Bench, archive: Archive
) -> None:
    def on_question(_: Any, transaction: str, uids: list[str]) -> None:
        archive.status = 0x0110 if "1.3" in uids else 0x0000
        if not archive.status:
            report(bench.port, information(transaction, uids, {}))

    archive.on_question = on_question
    bench.store(*(f"1.{number}" for number in range(1, 9)))
    bench.ask(DeliverLimits(backoff=Backoff(0.01, 0.01)))
    wait_until("the others are committed", lambda: bench.states() == {"committed": 7, "stored": 1})


def test_an_archive_that_is_away_or_declines_is_asked_later(bench: Bench) -> None:
    bench.store("1.1")
    bench.ask()
    wait_until("the request has failed", lambda: bench.ledger.inspect.troubles()["deliveries"])
    assert "storage commitment" in bench.ledger.inspect.troubles()["deliveries"][0]["why"]

    archive = Archive(bench.destination.port, status=0x0110)
    try:
        wait_until("it is asked", lambda: archive.questions)
        archive.status = 0x0000
        archive.on_question = lambda _, transaction, uids: report(
            bench.port, information(transaction, uids, {})
        )
        wait_until("it is committed", lambda: bench.states() == {"committed": 1})
    finally:
        archive.close()


def test_an_archive_whose_name_is_not_known_is_asked_later(bench: Bench) -> None:
    bench.destination = bench.destination.model_copy(update={"host": "no-such-host.invalid"})
    bench.store("1.1")
    bench.ask()
    wait_until("the request has failed", lambda: bench.ledger.inspect.troubles()["deliveries"])
    why = bench.ledger.inspect.troubles()["deliveries"][0]["why"]
    assert why.startswith("storage commitment: ")
    assert "cannot connect" in why


def test_only_the_archive_that_was_asked_may_report(bench: Bench) -> None:
    bench.store("1.1")
    question = bench.ledger.ask_commitment("pacs", 9, 60)
    assert question is not None
    good = information(question.transaction_uid, ["1.1"], {})
    # An unknown AE title: the association is rejected.
    assert report(bench.port, good, calling="STRANGER") is None
    # A peer that is not a destination
    assert report(bench.port, good, calling="XRAY1") == 0x0115
    # A transaction that the node did not ask for
    assert report(bench.port, information("2.25.4711", ["1.1"], {})) == 0x0115
    assert report(bench.port, good, event_type=3) == 0x0113
    assert bench.states() == {"stored": 1}

    # A repeated report changes nothing.
    assert report(bench.port, good) == 0x0000
    assert report(bench.port, good) == 0x0000
    assert bench.states() == {"committed": 1}


def test_a_destination_may_report_and_verify_but_not_store(bench: Bench) -> None:
    entity = AE("ARCHIVE")
    for sop_class in (SC, STORAGE_COMMITMENT, "1.2.840.10008.1.1"):
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", bench.port, ae_title="PLEURA")
    assert {context.abstract_syntax for context in association.accepted_contexts} == {
        STORAGE_COMMITMENT,
        "1.2.840.10008.1.1",
    }
    assert association.send_c_echo().Status == 0x0000
    association.release()


def test_a_report_is_taken_from_its_destination_only(bench: Bench) -> None:
    access = AccessList("PLEURA", bench.config.peers, bench.config.committing())
    refused = access.admit("PLEURA", "ARCHIVE", "192.0.2.1")
    assert isinstance(refused, Rejection)
    assert refused.answer == CALLING_AE_TITLE_NOT_RECOGNIZED

    caller = access.admit("PLEURA", "ARCHIVE", "127.0.0.1")
    assert isinstance(caller, Caller)
    assert (caller.stores, caller.destinations) == (False, ("pacs",))

    # An archive behind a load balancer may report from the balancer's address if `peers` lists it.
    behind = AccessList(
        "PLEURA", (Peer(ae_title="ARCHIVE", host="192.0.2.9"),), bench.config.committing()
    )
    caller = behind.admit("PLEURA", "ARCHIVE", "192.0.2.9")
    assert isinstance(caller, Caller)
    assert caller.destinations == ("pacs",)
